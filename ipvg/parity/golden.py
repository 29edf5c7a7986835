"""Golden folders: what the original implementation computed, read case by case.

A folder holds ``<stage>.json`` (facts, configs, inputs, the list of tensors) and ``<stage>.safetensors`` (outputs).
Weights and inputs are not stored: `recipe` makes them. A stage's check asks a `Golden` for its cases and never
names one, so that another folder of the same form (``IPVG_GOLDEN``) tests the same code with other numbers.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from . import recipe

#: Relative L2 bounds for float32 against the original. They follow from how far float32 implementations of the same
#: network lie apart (the golden files record 1e-6 to 5e-6 for PyTorch against float64), with room for another
#: summation order.
FP32 = {"gemm": 1e-5, "attention": 1e-5, "norm": 1e-6, "block": 2e-5, "forward": 1e-4, "umt5": 1e-4, "vae": 1e-4}


@dataclass(frozen=True)
class Result:
    """One comparison. `error` and `bound` are in `measure`; `note` says what the tensor is, or why it failed."""

    stage: str
    case: str
    tensor: str
    error: float
    bound: float
    ok: bool
    note: str = ""
    measure: str = "rel L2"


def relative_l2(ours: np.ndarray, reference: np.ndarray) -> float:
    """|ours - reference| / |reference| in float64; |ours| where that is all zero; inf for NaN and other shapes."""
    ours, reference = np.asarray(ours), np.asarray(reference)
    if ours.shape != reference.shape:
        return float("inf")
    ours, reference = ours.astype(np.float64), reference.astype(np.float64)
    size = float(np.linalg.norm(reference.ravel()))
    error = float(np.linalg.norm((ours - reference).ravel())) / (size or 1.0)
    return error if np.isfinite(error) else float("inf")


def max_difference(ours: np.ndarray, reference: np.ndarray) -> float:
    """The largest |ours - reference|; inf for NaN or another shape. 0 means equal."""
    ours, reference = np.asarray(ours), np.asarray(reference)
    if ours.shape != reference.shape:
        return float("inf")
    if ours.size == 0:
        return 0.0
    if ours.dtype.kind in "biu" and reference.dtype.kind in "biu":
        return float(np.abs(ours.astype(np.int64) - reference.astype(np.int64)).max())
    error = float(np.abs(ours.astype(np.float64) - reference.astype(np.float64)).max())
    return error if np.isfinite(error) else float("inf")


_MEASURES = {"rel L2": relative_l2, "max abs": max_difference}


def measure(
    stage: str,
    case: str,
    tensor: str,
    ours: np.ndarray,
    reference: np.ndarray,
    bound: float,
    *,
    note: str = "",
    by: str = "rel L2",
) -> Result:
    """A `Result` from two arrays. `by`: "rel L2", or "max abs" for integers and pixels (bound 0: exactly equal)."""
    error = _MEASURES[by](ours, reference)
    if np.shape(ours) != np.shape(reference):
        note = f"shape {tuple(np.shape(ours))}, expected {tuple(np.shape(reference))}. {note}".strip()
    elif not np.isfinite(error):
        note = f"holds NaN or infinity. {note}".strip()
    return Result(stage, case, tensor, error, bound, error <= bound, note, by)


@dataclass(frozen=True)
class TensorInfo:
    """What the JSON says about a golden tensor."""

    shape: tuple[int, ...]
    dtype: str
    meaning: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)  # e.g. "rows": which rows were kept


class Case:
    """One case: its config and inputs, and its golden tensors, read when asked for (``case["v"]``)."""

    def __init__(self, golden: Golden, name: str, data: Mapping[str, Any], tensors: Mapping[str, TensorInfo]):
        self.golden, self.name, self.data, self.tensors = golden, name, data, dict(tensors)
        self.config: Mapping[str, Any] = data.get("config", {})

    def __repr__(self) -> str:
        return f"<Case {self.golden.stage}/{self.name}: {', '.join(self.tensors) or 'no tensors'}>"

    def __contains__(self, tensor: str) -> bool:
        return tensor in self.tensors

    @property
    def stored(self) -> list[str]:
        """The tensors whose values the file holds; of some the JSON keeps checksums alone."""
        return [tensor for tensor in self.tensors if f"{self.name}/{tensor}" in self.golden.file]

    def __getitem__(self, tensor: str) -> np.ndarray:
        """The reference's array; KeyError if the case has none of that name."""
        if tensor not in self.tensors:
            raise KeyError(f"{self!r} has no tensor {tensor!r}")
        return self.golden.tensor(f"{self.name}/{tensor}")

    @property
    def inputs(self) -> dict[str, Mapping[str, Any]]:
        """Input name -> recipe entry: the stage's common inputs, then the case's own."""
        entries = [*self.golden.about.get("inputs", []), *self.data.get("inputs", [])]
        for kind, name in (("pixels", "video"), ("zeros", "video"), ("normal", "latent")):  # vae's shorter form
            if kind in self.data:
                value, shape = self.data[kind], self.data.get("shape")
                key, shape = ("", value) if kind == "zeros" else (value, shape)
                entries.append({"name": name, "recipe": kind, "key": key, "shape": shape})
        return {entry["name"]: entry for entry in entries}

    def input(self, name: str, shape: Iterable[int] | None = None) -> np.ndarray:
        """The named input, made by its recipe. `shape` overrides the JSON's where that is given in words."""
        entry = self.inputs[name]
        if "recipe" not in entry:
            raise ValueError(f"input {name!r} of {self!r} has a rule in words: {entry.get('rule')}")
        size = tuple(shape if shape is not None else entry["shape"])
        if entry["recipe"] == "zeros":
            return np.zeros(size, np.float32)
        make = {"normal": recipe.normal, "uniform": recipe.uniform, "pixels": recipe.pixels, "box": recipe.box}
        return make[entry["recipe"]](self.golden.salt + entry["key"], size)

    def compare(self, tensor: str, ours: np.ndarray, bound: float, *, by: str = "rel L2", note: str = "") -> Result:
        """`ours` against the golden tensor of that name. Yield it in the order of computation."""
        info = self.tensors[tensor]
        return measure(
            self.golden.stage, self.name, tensor, ours, self[tensor], bound, by=by, note=note or info.meaning
        )

    def fail(self, tensor: str, why: str) -> Result:
        """A result for what could not be computed at all."""
        return Result(self.golden.stage, self.name, tensor, float("inf"), 0.0, False, why)


class Golden:
    """The cases of one stage of a golden folder.

    >>> golden = Golden("tests/golden", "dit")
    >>> for case in golden.cases.values():
    ...     yield case.compare("v", forward(case), FP32["forward"])
    """

    def __init__(self, folder: str | Path, stage: str):
        self.folder, self.stage = Path(folder), stage
        with open(self.path(folder, stage), encoding="utf-8") as file:
            self.data: dict[str, Any] = json.load(file)
        self.salt: str = self.data.get("salt", "")
        about = self.data.get("about", {})
        #: Facts and the common inputs; an empty dict where the file's `about` is a sentence.
        self.about: Mapping[str, Any] = about if isinstance(about, dict) else {}

    @staticmethod
    def path(folder: str | Path, stage: str) -> Path:
        """The JSON file of a stage; only the text stage's is called otherwise."""
        return Path(folder) / f"{'tokenizer' if stage == 'text' else stage}.json"

    def __repr__(self) -> str:
        return f"<Golden {self.stage} in {self.folder}: {len(self.cases)} cases>"

    def weight(self, name: str, shape: Iterable[int]) -> np.ndarray:
        """float32: what the checkpoint tensor of that official name holds here."""
        return recipe.weight(name, tuple(shape), self.salt)

    @cached_property
    def cases(self) -> dict[str, Case]:
        """Case name -> case, in the file's order."""
        if "cases" in self.data:
            return {
                name: Case(self, name, data, {k: _info(v) for k, v in data.get("tensors", {}).items()})
                for name, data in self.data["cases"].items()
            }
        # The flat form (umt5): "tensors" holds "<case>/<tensor>", "inputs" what each case is made from.
        groups: dict[str, dict[str, TensorInfo]] = {}
        for path, entry in self.data.get("tensors", {}).items():
            case, _, tensor = path.partition("/")
            groups.setdefault(case, {})[tensor] = _info(entry)
        inputs = self.data.get("inputs", {})
        return {name: Case(self, name, {"config": inputs.get(name, {})}, tensors) for name, tensors in groups.items()}

    def tensor(self, path: str) -> np.ndarray:
        """A stored array by its full name, ``<case>/<tensor>``."""
        return self.file[path]

    @cached_property
    def file(self) -> Mapping[str, np.ndarray]:
        """Every stored array by its full name, read when asked for."""
        return _Arrays(self.path(self.folder, self.stage).with_suffix(".safetensors"))


def _info(entry: Any) -> TensorInfo:
    if isinstance(entry, Mapping):
        extra = {k: v for k, v in entry.items() if k not in ("shape", "dtype", "meaning")}
        return TensorInfo(tuple(entry["shape"]), entry["dtype"], entry.get("meaning", ""), extra)
    shape, dtype, *meaning = entry
    return TensorInfo(tuple(shape), dtype, *meaning)


class _Arrays(Mapping[str, np.ndarray]):
    """The arrays of a safetensors file as read-only views of a memory map; only dtypes that NumPy has."""

    _DTYPES: ClassVar = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "U8": "|u1"}

    def __init__(self, path: Path):
        self._bytes = np.memmap(path, np.uint8, "r")
        size = int(self._bytes[:8].view("<u8")[0])
        self._start = 8 + size
        self._header = json.loads(bytes(self._bytes[8 : self._start]))
        self._header.pop("__metadata__", None)

    def __getitem__(self, name: str) -> np.ndarray:
        entry = self._header[name]
        first, last = entry["data_offsets"]
        data = self._bytes[self._start + first : self._start + last]
        # A copy where the file does not align the data, which NumPy's view needs.
        return np.frombuffer(data, dtype=self._DTYPES[entry["dtype"]]).reshape(entry["shape"])

    def __iter__(self) -> Iterator[str]:
        return iter(self._header)

    def __len__(self) -> int:
        return len(self._header)

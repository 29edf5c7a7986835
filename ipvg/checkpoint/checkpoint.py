"""A checkpoint folder as ipvg sees it: three components, official tensor names, nothing read but headers.

ckpt = Checkpoint.open("models/Wan2.1-VACE-1.3B")
ckpt.layout  # "official" or "diffusers"
ckpt.components["dit"].config  # DitConfig(dim=1536, ...)
ckpt.components["dit"].weights()  # _core.Weights for a model to take from; maps the files
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .. import _core
from .._core import FormatError
from . import config as configs
from . import names, strictjson
from .config import Config, VaeConfig
from .entry import WEIGHT_DTYPES, Entry, printable
from .index import Layout, find_layout, read_tensors
from .shapes import check_tensors

COMPONENTS = ("dit", "vae", "text")
_TITLES = {"dit": "transformer", "vae": "VAE", "text": "text encoder"}
_FILES = {
    "official": {
        "dit": "diffusion_pytorch_model*.safetensors",
        "vae": "Wan2.1_VAE.pth",
        "text": "models_t5_umt5-xxl-enc-bf16.pth",
    },
    "diffusers": {
        "dit": "transformer/diffusion_pytorch_model*.safetensors",
        "vae": "vae/diffusion_pytorch_model*.safetensors",
        "text": "text_encoder/model*.safetensors",
    },
}


@dataclass(frozen=True)
class Component:
    """One network: its sizes and where its tensors are (official names)."""

    name: str
    config: Config
    entries: dict[str, Entry]

    @property
    def files(self) -> list[Path]:
        """The files that hold its tensors."""
        return sorted({entry.file for entry in self.entries.values()})

    @property
    def nbytes(self) -> int:
        """Bytes of its tensors, in their own dtypes."""
        return sum(entry.nbytes for entry in self.entries.values())

    def weights(self, changed: Mapping[str, np.ndarray] | None = None) -> _core.Weights:
        """Maps the files. Only strided views of .pth files are copied. Raises FormatError, OSError.

        changed: float32 arrays that take the place of those tensors; the rest stays mapped."""
        changed = changed or {}
        sources = {name: changed[name] if name in changed else entry.source() for name, entry in self.entries.items()}
        return _core.Weights(sources)


@dataclass(frozen=True)
class Checkpoint:
    """See open()."""

    path: Path
    layout: str
    components: dict[str, Component]
    tokenizer_path: Path | None

    @classmethod
    def open(cls, path: str | os.PathLike, components: Iterable[str] = COMPONENTS) -> Checkpoint:
        """Reads the headers of a checkpoint folder, official or diffusers layout, sharded or not, and checks that each
        component has exactly the tensors that its config says.

        components: which to open, of "dit", "vae", "text". tokenizer_path is the folder's tokenizer.json, or None.
        Raises FormatError, which names the file and the tensor and what was expected; OSError."""
        if not isinstance(components, Iterable):
            raise TypeError(f"components: expected names of {', '.join(COMPONENTS)}, got {components!r}")
        wanted = tuple(components)
        for name in wanted:
            if name not in COMPONENTS:
                raise ValueError(f"components: {name!r} is none of {', '.join(COMPONENTS)}")
        layout = find_layout(Path(path))
        return cls(layout.root, layout.name, {name: _open(layout, name) for name in wanted}, layout.tokenizer)

    def sha256(self, component: str, progress: Callable[[int, int], None] | None = None) -> dict[str, str]:
        """File name (relative to the checkpoint) -> sha256 in hex, of a component's files. Reads them whole;
        progress(bytes done, bytes in all) is called about every 16 MB."""
        files = self.components[component].files
        total, done, out = sum(f.stat().st_size for f in files), 0, {}
        for path in files:
            digest = hashlib.sha256()
            with path.open("rb") as f:
                while block := f.read(16 << 20):
                    digest.update(block)
                    done += len(block)
                    if progress:
                        progress(done, total)
            out[str(path.relative_to(self.path))] = digest.hexdigest()
        return out


def _open(layout: Layout, name: str) -> Component:
    paths = layout.tensors[name]
    if not paths:
        raise FormatError(
            f"{layout.root}: the {_TITLES[name]} is missing: expected {_FILES[layout.name][name]} "
            f"({layout.name} layout)"
        )
    where = str(paths[0] if len(paths) == 1 else paths[0].parent)
    path = layout.configs[name]
    table = strictjson.read(path) if path else {}
    if not path and (layout.name == "diffusers" or name == "dit"):
        raise FormatError(f"{paths[0].parent}: config.json is missing, which tells the {_TITLES[name]}'s sizes")

    entries = read_tensors(paths)
    unknown: list[str] = []
    config: Config
    if name == "vae":
        if path:
            config = configs.read_vae(table, str(path))
            entries, unknown = _official_names(entries, layout, name, config)
        else:
            config = configs.infer_vae({k: e.shape for k, e in entries.items()}, where)
    else:
        entries, unknown = _official_names(entries, layout, name)
        shapes = {k: e.shape for k, e in entries.items()}
        if name == "dit":
            config = configs.read_dit(table, str(path), shapes)
        else:
            config = configs.read_text(table, str(path)) if path else configs.infer_text(shapes, where)
    check_tensors(entries, config, where, unknown)
    for tensor, entry in entries.items():
        if entry.dtype not in WEIGHT_DTYPES:
            raise FormatError(
                f"{entry.file}: tensor '{tensor}' has dtype {entry.dtype}; ipvg takes {', '.join(WEIGHT_DTYPES)}"
            )
    return Component(name, config, entries)


def _official_names(
    entries: dict[str, Entry], layout: Layout, component: str, config: VaeConfig | None = None
) -> tuple[dict[str, Entry], list[str]]:
    """The entries under official names, and the names that no rule knows."""
    if layout.name == "official":
        return entries, []
    out: dict[str, Entry] = {}
    unknown = []
    for name, entry in entries.items():
        official = names.to_official(component, name, config.num_res_blocks if config else 2)
        if official is None:
            unknown.append(printable(name))
        elif official not in out or name != names.TIED:  # a tied embedding under both names: shared.weight wins
            out[official] = entry
    return out, unknown

"""Weights of a formula: a number, one a step, a function of (step, sigma), an interval, or one for each element."""

from __future__ import annotations

import base64
import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from .. import _arguments
from .._arguments import number
from ..schedule import Schedule


@dataclass(frozen=True)
class Interval:
    """A weight that is `inside` where lo < sigma <= hi, or (by="step") where lo <= step / steps < hi; else `outside`.

    arXiv 2404.07724: guidance helps in the middle of the run and harms at its ends.
    """

    lo: float
    hi: float
    inside: float = 1.0
    outside: float = 0.0
    by: Literal["sigma", "step"] = "sigma"

    def __post_init__(self) -> None:
        for name in ("lo", "hi", "inside", "outside"):
            object.__setattr__(self, name, number(f"interval: {name}", getattr(self, name)))
        if self.by not in ("sigma", "step"):
            raise ValueError(f"interval: by: expected 'sigma' or 'step', got {self.by!r}")
        if not self.lo < self.hi:
            raise ValueError(f"interval: lo must lie below hi, got {self.lo:g} and {self.hi:g}")

    def at(self, step: int, sigma: float, steps: int) -> float:
        within = self.lo < sigma <= self.hi if self.by == "sigma" else self.lo <= step / steps < self.hi
        return self.inside if within else self.outside

    def __str__(self) -> str:
        place = f"sigma in ({self.lo:g}, {self.hi:g}]" if self.by == "sigma" else f"steps [{self.lo:g}, {self.hi:g})"
        return f"{self.inside:g} for {place}, else {self.outside:g}"


class Field:
    """A weight with a number for each element: an array of 2 to 4 axes that broadcasts to the latent (C, F, h, w), the
    reference slots in F included; with 5 axes the first one is the step. Frozen, hashable; float32."""

    __slots__ = ("array",)

    def __init__(self, array: Any):
        array = np.array(array, dtype=np.float32)
        if not 2 <= array.ndim <= 5 or not array.size:
            raise ValueError(f"expected 2 to 4 axes that broadcast to (C, F, h, w), got shape {array.shape}")
        if not np.isfinite(array).all():
            raise ValueError("expected finite numbers")
        array.flags.writeable = False
        object.__setattr__(self, "array", array)

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError("a Field cannot be changed")

    def at(self, step: int) -> np.ndarray:
        return self.array[step].astype(np.float64) if self.array.ndim == 5 else self.array.astype(np.float64)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Field) and np.array_equal(self.array, other.array)

    def __hash__(self) -> int:
        return hash((self.array.shape, self.array.tobytes()))

    def __reduce__(self):
        return Field, (self.array,)

    def __str__(self) -> str:
        return f"array {self.array.shape} of {self.array.min():g} to {self.array.max():g}"


#: What a user may give. 1-D arrays are one number a step; 2-D to 5-D ones a `Field`. A function gives a number, or an
#: array of 2 to 4 axes that broadcasts to the latent.
Weight = float | Sequence[float] | Callable[[int, float], float | np.ndarray] | Interval | Field | np.ndarray


def parse(name: str, value: Any) -> Weight:
    """float, tuple of floats, Interval, Field or function; from JSON too."""
    if isinstance(value, Interval | Field) or callable(value):
        return value
    try:
        if isinstance(value, Mapping) and value.keys() == {"interval"}:
            return Interval(**value["interval"])
        if isinstance(value, Mapping) and value.keys() == {"array"}:
            return Field(_unpacked(value["array"]))
        if isinstance(value, np.ndarray) and value.ndim > 1:
            return Field(value)
    except (TypeError, ValueError) as error:
        raise type(error)(f"weight {name!r}: {error}") from None
    if isinstance(value, list | tuple) or (isinstance(value, np.ndarray) and value.ndim == 1):
        if not len(value):
            raise ValueError(f"weight {name!r}: an empty list; expected one number a step")
        return tuple(number(f"weight {name!r}", v) for v in value)
    return number(f"weight {name!r}", value)


def to_json(name: str, weight: Weight) -> Any:
    if isinstance(weight, Interval):
        return {"interval": asdict(weight)}
    if isinstance(weight, Field):
        return {"array": _packed(weight.array)}
    if callable(weight):
        raise TypeError(f"weight {name!r} is a function, not JSON: use guidance.resolve(schedule) first")
    return list(weight) if isinstance(weight, tuple) else weight


def _packed(array: np.ndarray) -> Any:
    """Lists for a few numbers; else the shape and the float32 bytes, deflated, in base 64: a mask for each of 50 steps
    would make a manifest of 100 MB."""
    if array.size <= 64:
        return array.tolist()
    data = zlib.compress(array.astype("<f4").tobytes(), 6)
    return {"shape": list(array.shape), "float32": base64.b64encode(data).decode()}


def _unpacked(value: Any) -> Any:
    if not isinstance(value, Mapping):
        return value
    if value.keys() != {"shape", "float32"}:
        raise ValueError("array: expected lists, or shape and float32")
    try:
        shape = [_arguments.integer("shape", n, 1, 1 << 24) for n in value["shape"]]
        size = 4 * math.prod(shape)
        data = zlib.decompressobj().decompress(base64.b64decode(value["float32"], validate=True), size + 1)
    except (TypeError, zlib.error) as error:
        raise ValueError(f"array: {error}") from None
    if len(data) != size:
        raise ValueError(f"array: {len(data)} bytes where {shape} needs {size}")
    return np.frombuffer(data, "<f4").reshape(shape)


def resolve(name: str, weight: Weight, schedule: Schedule) -> Weight:
    """A function or interval becomes one number a step; a function that gave an array at any step, a `Field` of them
    all."""
    steps, sigmas = schedule.steps, schedule.sigmas
    if isinstance(weight, Interval):
        return tuple(weight.at(k, float(sigmas[k]), steps) for k in range(steps))
    if callable(weight):
        values = [returned(name, weight(k, float(sigmas[k])), k) for k in range(steps)]
        return tuple(values) if all(isinstance(v, float) for v in values) else _stacked(name, values)
    for length in (len(weight),) if isinstance(weight, tuple) else ():
        if length != steps:
            raise ValueError(f"weight {name!r}: {length} values for {steps} steps")
    if isinstance(weight, Field) and weight.array.ndim == 5 and len(weight.array) not in (1, steps):
        raise ValueError(f"weight {name!r}: {len(weight.array)} arrays for {steps} steps")
    return weight


def returned(name: str, value: Any, step: int) -> float | np.ndarray:
    """What a function gave: a number, or float32 of 4 axes."""
    if not getattr(value, "ndim", 0):
        return number(f"weight {name!r} at step {step}", value)
    try:
        array = Field(value).array
        if array.ndim > 4:
            raise ValueError(f"expected 2 to 4 axes that broadcast to (C, F, h, w), got shape {array.shape}")
    except (TypeError, ValueError) as error:
        raise type(error)(f"weight {name!r} at step {step}: {error}") from None
    return array.reshape((1,) * (4 - array.ndim) + array.shape)


def _stacked(name: str, values: Sequence[float | np.ndarray]) -> Field:
    arrays = [np.full((1, 1, 1, 1), v) if isinstance(v, float) else v for v in values]
    try:
        return Field(np.stack(np.broadcast_arrays(*arrays)))
    except ValueError:
        shapes = sorted({v.shape for v in values if not isinstance(v, float)})
        raise ValueError(f"weight {name!r}: its arrays have shapes that do not go together: {shapes}") from None


def at(weight: Weight, step: int) -> float | np.ndarray:
    """Of a resolved weight."""
    if isinstance(weight, Field):
        return weight.at(step if weight.array.ndim < 5 or len(weight.array) > 1 else 0)
    return weight[step] if isinstance(weight, tuple) else weight


def show(weight: Weight) -> str:
    if isinstance(weight, float):
        return f"{weight:g}"
    if isinstance(weight, Interval | Field):
        return str(weight)
    if callable(weight):
        return f"{getattr(weight, '__name__', 'function')}(step, sigma)"
    if len(weight) <= 4:
        return f"[{', '.join(f'{v:g}' for v in weight)}]"
    return f"[{weight[0]:g}, {weight[1]:g}, ..., {weight[-1]:g}] ({len(weight)} steps)"

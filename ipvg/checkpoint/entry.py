"""One tensor of a checkpoint: where its bytes are and how to read them. NumPy has no bfloat16: its bits are uint16."""

from __future__ import annotations

import math
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from .._core import FormatError

#: dtype name -> (NumPy type that holds its bits, bytes an element). The first three are what a model can take.
DTYPES = {
    "float32": (np.float32, 4),
    "bfloat16": (np.uint16, 2),
    "float16": (np.float16, 2),
    "float64": (np.float64, 8),
    "int64": (np.int64, 8),
    "int32": (np.int32, 4),
    "int16": (np.int16, 2),
    "int8": (np.int8, 1),
    "uint64": (np.uint64, 8),
    "uint32": (np.uint32, 4),
    "uint16": (np.uint16, 2),
    "uint8": (np.uint8, 1),
    "bool": (np.uint8, 1),
    "float8_e4m3": (np.uint8, 1),
    "float8_e5m2": (np.uint8, 1),
}
WEIGHT_DTYPES = ("float32", "bfloat16", "float16")

MAX_DIMS = 8  # of a tensor in a file; nothing in this field has more than 6
MAX_BYTES = 1 << 62  # of a tensor: a product beyond it is a lie, and C's 64 bits hold what is below


def opened(path: Path) -> BinaryIO:
    """A regular file, for reading. O_NONBLOCK: a pipe in its place must not make us wait."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise FormatError(f"{path}: not a regular file")
    return os.fdopen(handle, "rb")


@dataclass(frozen=True)
class Entry:
    """A tensor in a file. `offset` and `nbytes` are in bytes, `strides` in elements; None means C-contiguous."""

    file: Path
    offset: int
    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...] | None = None

    @property
    def count(self) -> int:
        """Elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor when it is contiguous."""
        return self.count * DTYPES[self.dtype][1]

    def read(self) -> np.ndarray:
        """The tensor as a new C-contiguous array of `shape`; bfloat16 as uint16. Raises FormatError, OSError."""
        holder, size = DTYPES[self.dtype]
        if self.count == 0:
            return np.zeros(self.shape, holder)
        strides = self.strides or contiguous_strides(self.shape)
        extent = 1 + sum((n - 1) * s for n, s in zip(self.shape, strides))
        flat = np.fromfile(self.file, holder, extent, offset=self.offset)
        if len(flat) != extent:
            raise FormatError(f"{self.file}: has no {extent * size} bytes at {self.offset}: is it truncated?")
        if self.strides is None:
            return flat.reshape(self.shape)
        return np.lib.stride_tricks.as_strided(flat, self.shape, [s * size for s in strides]).copy(order="C")

    def source(self):
        """What `_core.Weights` takes for this tensor: a place in the file, or the copied data of a strided view."""
        if self.strides is None:
            return (self.file, self.offset, self.dtype, self.shape)
        return (self.read(), self.dtype)


def contiguous_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """C-order strides in elements."""
    return tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))


def checked_shape(shape: object, where: str) -> tuple[int, ...]:
    """`shape` as a tuple of sizes that can exist, or FormatError with `where` in front."""
    if not isinstance(shape, (list, tuple)) or not all(type(n) is int for n in shape):
        raise FormatError(f"{where}: its shape is not a list of integers")
    if len(shape) > MAX_DIMS:
        raise FormatError(f"{where}: {len(shape)} dimensions, at most {MAX_DIMS} make sense")
    if any(n < 0 for n in shape):
        raise FormatError(f"{where}: a negative size in its shape")
    if math.prod(max(n, 1) for n in shape) * 8 > MAX_BYTES:
        raise FormatError(f"{where}: its shape holds more elements than any file can")
    return tuple(shape)


def printable(name: object, limit: int = 120) -> str:
    """An untrusted name for an error text: quoted, control characters escaped, cut to `limit`."""
    text = name if isinstance(name, str) else f"<{type(name).__name__}>"
    return ascii(text if len(text) <= limit else text[:limit] + "...")


def to_bfloat16(x: np.ndarray) -> np.ndarray:
    """float32 values rounded to bfloat16 (nearest, ties to even), as uint16. NaN stays NaN."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    rounded = ((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)).astype(np.uint16)
    nan = (bits & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000)
    return np.where(nan, (bits >> np.uint32(16)).astype(np.uint16) | np.uint16(0x40), rounded)


def from_bfloat16(bits: np.ndarray) -> np.ndarray:
    """uint16 bits of bfloat16 as float32: exact."""
    return (np.ascontiguousarray(bits, np.uint16).astype(np.uint32) << np.uint32(16)).view(np.float32)

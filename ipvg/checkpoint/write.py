"""Writes .safetensors files: whole or not at all (a temporary file beside the target, then a rename)."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np

from .entry import DTYPES
from .safetensors import CODES

_NAMES = {np.dtype(holder).str: name for name, (holder, _) in reversed(DTYPES.items())} | {
    "<u2": "uint16",
    "|u1": "uint8",
    "|b1": "bool",
}


def save_safetensors(
    path: str | os.PathLike,
    tensors: Mapping[str, np.ndarray],
    metadata: Mapping[str, str] | None = None,
    dtypes: Mapping[str, str] | None = None,
) -> None:
    """Writes tensors to `path`, replacing it in one step; a reader never sees half a file.

    tensors: name -> array of any strides. dtypes: name -> dtype name where the array's own type does not say it:
    {"w": "bfloat16"} for a uint16 array that holds bfloat16 (see entry.to_bfloat16). Raises TypeError, OSError."""
    path = Path(path)
    arrays = {}
    for name, array in tensors.items():
        array = np.asarray(array)
        dtype = (dtypes or {}).get(name) or _NAMES.get(array.dtype.newbyteorder("<").str)
        if dtype not in DTYPES:
            raise TypeError(f"tensor {name!r}: cannot write dtype {dtype or array.dtype}")
        if array.dtype.itemsize != DTYPES[dtype][1]:
            raise TypeError(f"tensor {name!r}: {dtype} elements take {DTYPES[dtype][1]} bytes, {array.dtype} does not")
        arrays[name] = (array.astype(array.dtype.newbyteorder("<"), order="C", copy=False), dtype)

    # Larger elements first: then every tensor is aligned to its element size.
    order = sorted(arrays, key=lambda name: (-DTYPES[arrays[name][1]][1], name))
    header: dict = {"__metadata__": dict(metadata)} if metadata else {}
    at = 0
    for name in order:
        array, dtype = arrays[name]
        header[name] = {"dtype": CODES[dtype], "shape": list(array.shape), "data_offsets": [at, at + array.nbytes]}
        at += array.nbytes
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)

    def data() -> Iterator[bytes]:
        yield len(text).to_bytes(8, "little") + text
        yield from (arrays[name][0].tobytes() for name in order)

    replace(path, data(), sync=True)


def replace(path: Path, data: Iterable[bytes], sync: bool = False) -> None:
    """A file appears whole or not at all; with `sync` on the disk as well. OSError names it, not the temporary one."""
    temporary = None
    try:
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name[:40]}.", dir=path.parent)
        with os.fdopen(handle, "wb") as f:
            for part in data:
                f.write(part)
            if sync:
                f.flush()
                os.fsync(f.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
        if sync:
            _sync(path.parent)
    except BaseException as error:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno:
            raise OSError(error.errno, error.strerror, str(path)) from None
        raise


def _sync(folder: Path) -> None:
    """The rename itself reaches the disk: a power cut afterwards leaves the new file."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask

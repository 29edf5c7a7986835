"""Tensors of .pth files as torch.save writes them (a zip of raw storages and a pickle that names them), without torch
and without pickle.load: see unpickle.py. The storages stay where they are; an Entry points into the file."""

from __future__ import annotations

import os
from pathlib import Path

from .._core import FormatError
from . import unpickle
from .entry import DTYPES, Entry, checked_shape, contiguous_strides, opened, printable
from .safetensors import MAX_TENSORS, check_name
from .ziprecords import Record, read_records

MAX_PICKLE = 32 << 20  # bytes; umT5-XXL's has 0.04 MB


def read_pth(path: str | os.PathLike) -> dict[str, Entry]:
    """Name -> Entry of the state dict in a file; a bare tensor has the name "tensor".
    Raises FormatError for a file that is no checkpoint, is damaged, or wants code to run; OSError."""
    path = Path(path)
    with opened(path) as f:
        records = read_records(f, path)
        pickles = [name for name in records if name == "data.pkl" or name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise FormatError(f"{path}: {len(pickles)} records called data.pkl, expected one: not a .pth file")
        prefix = pickles[0][: -len("data.pkl")]  # the file's name when it was saved, which it need not have now
        if prefix + "byteorder" in records and _read(f, records[prefix + "byteorder"], 16) != b"little":
            raise FormatError(f"{path}: its byte order is not little endian")
        if records[pickles[0]].size > MAX_PICKLE:
            raise FormatError(f"{path}: a pickle of {records[pickles[0]].size} bytes, at most {MAX_PICKLE} make sense")
        root = unpickle.loads(_read(f, records[pickles[0]], MAX_PICKLE), str(path))
    if isinstance(root, unpickle.Tensor):
        root = {"tensor": root}
    if not isinstance(root, dict):
        raise FormatError(f"{path}: expected a state dict (names to tensors), found {type(root).__name__}")
    if len(root) > MAX_TENSORS:
        raise FormatError(f"{path}: {len(root)} tensors, at most {MAX_TENSORS} make sense")
    return {name: _entry(tensor, name, records, prefix, path) for name, tensor in root.items()}


def _read(f, record: Record, limit: int) -> bytes:
    f.seek(record.offset)
    return f.read(min(record.size, limit))


def _entry(tensor: object, name: object, records: dict[str, Record], prefix: str, path: Path) -> Entry:
    where = f"{path}: tensor {printable(name)}"
    check_name(name, where)
    if not isinstance(tensor, unpickle.Tensor):
        raise FormatError(f"{where}: expected a tensor, found {type(tensor).__name__}: not a plain state dict")
    storage = tensor.storage
    record = records.get(f"{prefix}data/{storage.key}")
    if record is None:
        raise FormatError(f"{where}: its storage, record data/{storage.key}, is not in the file")
    size = DTYPES[storage.dtype][1]
    if record.size != storage.count * size:
        raise FormatError(
            f"{where}: its storage claims {storage.count} elements of {storage.dtype}, record data/{storage.key} has "
            f"{record.size} bytes"[:300]
        )
    shape = checked_shape(tensor.shape, where)
    if tensor.offset < 0 or any(s < 0 for s in tensor.strides):
        raise FormatError(f"{where}: a negative offset or stride")
    contiguous = contiguous_strides(shape)
    if 0 in shape:
        if tensor.offset > storage.count:
            raise FormatError(f"{where}: begins outside its storage")
        return Entry(path, record.offset + tensor.offset * size, storage.dtype, shape)
    last = tensor.offset + sum((n - 1) * s for n, s in zip(shape, tensor.strides))
    entry = Entry(path, record.offset + tensor.offset * size, storage.dtype, shape)
    if last >= storage.count or entry.count > storage.count:  # the latter: strides of 0 that would blow it up
        raise FormatError(
            f"{where}: shape {list(shape)} with strides {list(tensor.strides)} from element {tensor.offset} does not "
            f"fit the {storage.count} elements of its storage"[:400]
        )
    if all(n == 1 or s == c for n, s, c in zip(shape, tensor.strides, contiguous)):
        return entry
    return Entry(entry.file, entry.offset, entry.dtype, shape, tensor.strides)

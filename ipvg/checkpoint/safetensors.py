"""Headers of .safetensors files: 8 bytes of length (little endian), a JSON header, the data.

The rules are the format's own: the data of all tensors cover the rest of the file exactly, without overlap, hole or
remainder. Only the header is read. Limits of ours are far above any real file and far below what hurts a machine.
"""

from __future__ import annotations

import os
from pathlib import Path

from .._core import FormatError
from . import strictjson
from .entry import DTYPES, MAX_BYTES, Entry, checked_shape, opened, printable

MAX_HEADER = 16 << 20  # bytes; the real 14B files have 0.2 MB
MAX_TENSORS = 100_000
MAX_NAME = 1024

_DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "U8": "uint8",
    "BOOL": "bool",
    "F8_E4M3": "float8_e4m3",
    "F8_E5M2": "float8_e5m2",
}
CODES = {name: code for code, name in _DTYPES.items()}


def read_header(path: str | os.PathLike) -> dict[str, Entry]:
    """Name -> Entry of every tensor, in the order of their data. Raises FormatError (with file and tensor), OSError."""
    return _read(Path(path))[0]


def read_metadata(path: str | os.PathLike) -> dict[str, str]:
    """The file's `__metadata__`: text to text, {} if it has none. Raises as read_header."""
    return _read(Path(path))[1]


def _read(path: Path) -> tuple[dict[str, Entry], dict[str, str]]:
    with opened(path) as f:
        size = os.fstat(f.fileno()).st_size
        if size < 8:
            raise FormatError(f"{path}: {size} bytes are too few for a safetensors file: is it truncated?")
        length = int.from_bytes(f.read(8), "little")
        if length > MAX_HEADER:
            raise FormatError(f"{path}: a header of {length} bytes (at most {MAX_HEADER}): not a safetensors file?")
        if length > size - 8:
            raise FormatError(f"{path}: the header takes {length} bytes, the file has {size}: is it truncated?")
        header = f.read(length)
    if len(header) != length:
        raise FormatError(f"{path}: the header ends early: is the file being written?")
    return parse(header, path, size)


def parse(header: bytes, path: Path, size: int) -> tuple[dict[str, Entry], dict[str, str]]:
    """The entries and metadata of a header; `size` is the whole file's, in bytes."""
    if not header.startswith(b"{"):
        raise FormatError(f"{path}: the header does not start with '{{': not a safetensors file?")
    table = strictjson.parse(header, str(path))
    metadata = table.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise FormatError(f"{path}: __metadata__ is not a table of texts")
    if len(table) > MAX_TENSORS:
        raise FormatError(f"{path}: {len(table)} tensors, at most {MAX_TENSORS} make sense")

    data = 8 + len(header)
    spans = []
    for name, item in table.items():
        where = f"{path}: tensor {printable(name)}"
        check_name(name, where)
        if not isinstance(item, dict) or item.keys() != {"dtype", "shape", "data_offsets"}:
            raise FormatError(f"{where}: expected exactly dtype, shape and data_offsets")
        dtype = _DTYPES.get(item["dtype"]) if isinstance(item["dtype"], str) else None
        if dtype is None:
            raise FormatError(f"{where}: unknown dtype {printable(item['dtype'], 20)}")
        shape = checked_shape(item["shape"], where)
        offsets = item["data_offsets"]
        if not isinstance(offsets, list) or len(offsets) != 2 or not all(type(o) is int for o in offsets):
            raise FormatError(f"{where}: data_offsets are not two integers")
        begin, end = offsets
        if not 0 <= begin <= end <= MAX_BYTES:
            raise FormatError(f"{where}: data_offsets are no range of bytes")
        entry = Entry(path, data + begin, dtype, shape)
        if end - begin != entry.nbytes:
            raise FormatError(
                f"{where}: {item['dtype']} of shape {list(shape)} takes {entry.nbytes} bytes, "
                f"data_offsets give {end - begin}"
            )
        if end > size - data:
            raise FormatError(f"{where}: its data end at byte {data + end}, the file has {size}: is it truncated?")
        spans.append((begin, end, name, entry))

    spans.sort(key=lambda span: span[:2])
    reached = 0
    for begin, end, name, _ in spans:
        if begin != reached:
            what = "overlap those of the tensor before" if begin < reached else "leave a hole"
            raise FormatError(f"{path}: tensor {printable(name)}: its data {what} (at {begin}, expected {reached})")
        reached = end
    if reached != size - data:
        raise FormatError(f"{path}: {size - data - reached} bytes after the last tensor belong to nothing")
    return {name: entry for _, _, name, entry in spans}, metadata


def check_name(name: object, where: str) -> None:
    """A tensor's name must be printable text that C can hold: FormatError otherwise."""
    if not isinstance(name, str) or not name or len(name) > MAX_NAME or not name.isprintable():
        raise FormatError(f"{where}: a name is 1 to {MAX_NAME} printable characters")


assert set(CODES) == set(DTYPES)

"""The zip container of .pth files: stored (never compressed) records, zip64, no more than torch.save writes."""

from __future__ import annotations

import os
import stat
from itertools import pairwise
from pathlib import Path
from struct import error as StructError
from struct import unpack_from
from typing import BinaryIO, NamedTuple

from .._core import FormatError
from .entry import printable

MAX_RECORDS = 200_000
MAX_DIRECTORY = 64 << 20  # bytes


class Record(NamedTuple):
    """A stored record: its first data byte in the file, and its length in bytes."""

    offset: int
    size: int


def read_records(f: BinaryIO, path: Path) -> dict[str, Record]:
    """Name -> Record. The sizes come from the central directory: local headers of torch hold zeros (flag bit 3).
    Raises FormatError for a file that is no zip, truncated, compressed, encrypted, or whose records overlap."""
    info = os.fstat(f.fileno())
    if not stat.S_ISREG(info.st_mode):
        raise FormatError(f"{path}: not a regular file")
    try:
        return _read(f, path, info.st_size)
    except StructError:
        raise FormatError(f"{path}: a zip record ends early: is the file truncated?") from None


def _read(f: BinaryIO, path: Path, size: int) -> dict[str, Record]:
    magic = _at(f, 0, 4)
    if magic[:2] == b"\x80\x02":
        raise FormatError(
            f"{path}: the format of torch before 1.6, which ipvg does not read; convert it with torch: "
            "torch.save(torch.load(path, weights_only=True), new_path)"
        )
    if magic != b"PK\3\4":
        raise FormatError(f"{path}: not a .pth file: it does not start with a zip record")
    count, begin, length = _directory(f, path, size)
    if count > MAX_RECORDS or length > MAX_DIRECTORY:
        raise FormatError(f"{path}: {count} records in a directory of {length} bytes: no checkpoint has so many")
    directory = _at(f, begin, length)
    records: dict[str, Record] = {}
    spans = []
    at = 0
    for _ in range(count):
        name, local, nbytes, at = _central(directory, at, path)
        if name in records:
            raise FormatError(f"{path}: record {printable(name)} is there twice")
        header = _at(f, local, 30) if local < begin else b""
        if header[:4] != b"PK\3\4":
            raise FormatError(f"{path}: record {printable(name)}: no local header at byte {local}")
        name_length, extra_length = unpack_from("<HH", header, 26)
        # The local extra field is longer than the directory's: it pads the data to a multiple of 64.
        data = local + 30 + name_length + extra_length
        if _at(f, local + 30, name_length) != name.encode():
            raise FormatError(f"{path}: record {printable(name)}: its local header has another name")
        if data + nbytes > begin:
            raise FormatError(f"{path}: record {printable(name)}: {nbytes} bytes at {data} run past the data's end")
        records[name] = Record(data, nbytes)
        spans.append((local, data + nbytes, name))
    if at != len(directory):
        raise FormatError(f"{path}: the zip directory holds more than its {count} records")
    spans.sort()
    for (_, end, name), (start, _, _) in pairwise(spans):
        if end > start:
            raise FormatError(f"{path}: record {printable(name)} overlaps the next one")
    return records


def _at(f: BinaryIO, offset: int, length: int) -> bytes:
    f.seek(offset)
    return f.read(length)


def _directory(f: BinaryIO, path: Path, size: int) -> tuple[int, int, int]:
    """(records, offset, bytes) of the central directory, from the end record or, over 4 GB, the zip64 one."""
    tail_at = max(0, size - 22 - 65535 - 20)
    tail = _at(f, tail_at, size - tail_at)
    end = tail.rfind(b"PK\5\6")
    while end >= 0 and not (len(tail) - end >= 22 and unpack_from("<H", tail, end + 20)[0] == len(tail) - end - 22):
        end = tail.rfind(b"PK\5\6", 0, end)
    if end < 0:
        raise FormatError(f"{path}: no zip end record: the file is truncated")
    disk, first_disk, here, count, length, offset, _ = unpack_from("<HHHHIIH", tail, end + 4)
    limit = tail_at + end
    if end >= 20 and tail[end - 20 : end - 16] == b"PK\6\7":
        where = unpack_from("<Q", tail, end - 20 + 8)[0]
        if where > size - 56:
            raise FormatError(f"{path}: the zip64 end record would be at byte {where} of {size}")
        record = _at(f, where, 56)
        if record[:4] != b"PK\6\6":
            raise FormatError(f"{path}: no zip64 end record at byte {where}")
        wide = unpack_from("<IIQQQQ", record, 16)
        narrow = (disk, first_disk, here, count, length, offset)
        # Fields that did not overflow are there twice: two readers must not see two archives in one file.
        if any(n not in (w, limit) for n, w, limit in zip(narrow, wide, (0xFFFF,) * 4 + (0xFFFFFFFF,) * 2)):
            raise FormatError(f"{path}: its zip end records contradict each other")
        disk, first_disk, here, count, length, offset = wide
        limit = where
    if disk or first_disk or here != count:
        raise FormatError(f"{path}: a zip of several parts")
    if offset > limit or length > limit - offset:
        raise FormatError(f"{path}: the zip directory ({length} bytes at {offset}) is not in front of its end record")
    return count, offset, length


def _central(directory: bytes, at: int, path: Path) -> tuple[str, int, int, int]:
    """(name, offset of the local header, bytes, where the next entry begins) of the entry at `at`."""
    if directory[at : at + 4] != b"PK\1\2":
        raise FormatError(f"{path}: the zip directory is damaged at its byte {at}")
    flags, method = unpack_from("<HH", directory, at + 8)
    packed, size, name_length, extra_length, comment_length, disk = unpack_from("<IIHHHH", directory, at + 20)
    local = unpack_from("<I", directory, at + 42)[0]
    extra_at = at + 46 + name_length
    following = extra_at + extra_length + comment_length
    if following > len(directory):
        raise FormatError(f"{path}: the zip directory ends inside an entry")
    try:
        name = directory[at + 46 : extra_at].decode("utf-8")
    except UnicodeDecodeError:
        raise FormatError(f"{path}: a record's name is not UTF-8") from None
    where = f"{path}: record {printable(name)}"
    # Only the fields that overflow are in the zip64 extra, in this order.
    wide = _zip64_values(directory[extra_at : extra_at + extra_length], where)
    size, packed, local = (
        (wide.pop(0) if wide else _missing(where)) if v == 0xFFFFFFFF else v for v in (size, packed, local)
    )
    if method != 0 or size != packed:
        raise FormatError(f"{where} is compressed; torch.save never does that")
    if flags & 0x2041:
        raise FormatError(f"{where} is encrypted")
    if disk:
        raise FormatError(f"{where} is in another part of the archive")
    return name, local, size, following


def _zip64_values(extra: bytes, where: str) -> list[int]:
    at = 0
    while at + 4 <= len(extra):
        kind, length = unpack_from("<HH", extra, at)
        if at + 4 + length > len(extra):
            raise FormatError(f"{where}: its extra field is damaged")
        if kind == 1:
            return [unpack_from("<Q", extra, at + 4 + 8 * i)[0] for i in range(length // 8)]
        at += 4 + length
    return []


def _missing(where: str) -> int:
    raise FormatError(f"{where}: a 64-bit size or offset is missing")

"""JSON of untrusted files: bounded, no duplicate names, no NaN; an object on top."""

from __future__ import annotations

import json
from pathlib import Path

from .._core import FormatError
from .entry import printable


def parse(data: bytes, where: str) -> dict:
    """The JSON object in `data`. Raises FormatError with `where` in front."""

    def unique(pairs):
        out = dict(pairs)
        if len(out) != len(pairs):
            seen: set[str] = set()
            twice = next(k for k, _ in pairs if k in seen or seen.add(k))
            raise FormatError(f"{where}: {printable(twice)} is there twice")
        return out

    def constant(name):
        raise FormatError(f"{where}: {name} is not JSON")

    try:
        text = data.decode("utf-8")
        out = json.loads(text, object_pairs_hook=unique, parse_constant=constant)
    except UnicodeDecodeError as e:
        raise FormatError(f"{where}: not UTF-8 at byte {e.start}") from None
    except RecursionError:
        raise FormatError(f"{where}: nested too deeply") from None
    except FormatError:
        raise
    except ValueError as e:  # JSONDecodeError, and an integer of thousands of digits
        raise FormatError(f"{where}: not valid JSON: {str(e)[:200]}") from None
    if not isinstance(out, dict):
        raise FormatError(f"{where}: expected a JSON object, found {type(out).__name__}")
    return out


def read(path: Path, max_bytes: int = 1 << 20) -> dict:
    """The JSON object in a file of at most `max_bytes`. Raises FormatError, OSError."""
    with path.open("rb") as f:
        data = f.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise FormatError(f"{path}: larger than {max_bytes} bytes, which no such file is")
    return parse(data, str(path))

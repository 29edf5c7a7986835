"""Cleaning and tokenizer: exactly equal on every golden text, with the small tokenizer that lies beside them."""

from __future__ import annotations

import gzip
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ..text import Tokenizer, clean
from .golden import Golden, Result, measure


def check(golden: Golden, device: str) -> Iterator[Result]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "tokenizer.json")
        path.write_bytes(gzip.decompress((golden.folder / "tokenizer_standin.json.gz").read_bytes()))
        tokenizer = Tokenizer(path)
    for name, case in golden.cases.items():
        text, cleaned = case.data["text"], case.data["cleaned"]
        yield measure(
            "text", name, "cleaned", _points(clean(text)), _points(cleaned), 0, by="max abs", note=repr(text)[:80]
        )
        ids = np.array(case.data["standin_ids"])
        yield measure("text", name, "ids", np.array(tokenizer(text)), ids, 0, by="max abs", note=repr(text)[:80])


def _points(text: str) -> np.ndarray:
    return np.array([ord(c) for c in text], np.int64)

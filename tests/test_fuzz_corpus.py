"""Replays what the fuzzers found: every input of tests/fuzz/corpus is refused with FormatError or usable."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent / "fuzz"
sys.path.insert(0, str(HERE))
import targets  # noqa: E402


@pytest.mark.parametrize("target", targets.TARGETS)
def test_corpus(target, tmp_path):
    inputs = sorted((HERE / "corpus" / target).iterdir())
    accepted = [targets.run(target, path.read_bytes(), tmp_path) for path in inputs]
    # Both outcomes must occur, or the target no longer reaches what it is for.
    assert any(accepted) and (target == "tensor_names" or not all(accepted))

"""Shared by all tests: where the golden files are."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    """The golden folder: IPVG_GOLDEN, else tests/golden. Read cases from its JSON files and name none."""
    return Path(os.environ.get("IPVG_GOLDEN") or ROOT / "tests/golden")

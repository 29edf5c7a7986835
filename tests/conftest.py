"""Shared by all tests: where the golden files are, a small checkpoint, an environment without settings of services."""

from __future__ import annotations

import importlib.util
import os
import signal
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# A shell's background job inherits that Ctrl-C is ignored, and so would every program that a test wants to stop.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    """The golden folder: IPVG_GOLDEN, else tests/golden. Read cases from its JSON files and name none."""
    return Path(os.environ.get("IPVG_GOLDEN") or ROOT / "tests/golden")


@pytest.fixture(scope="session")
def small_checkpoint(tmp_path_factory) -> Path:
    """The untrained checkpoint of models/recipe.py: official layout, complete, small."""
    spec = importlib.util.spec_from_file_location("ipvg_recipe_checkpoint", ROOT / "models" / "recipe.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.write(tmp_path_factory.mktemp("checkpoint") / "small")


@pytest.fixture
def no_settings_from_outside(monkeypatch):
    """For tests of services: no proxy, no key and no address of this machine's own."""
    for name in list(os.environ):
        if name.lower().endswith("_proxy") or name.startswith("OPENAI_") or name == "SSL_CERT_FILE":
            monkeypatch.delenv(name)

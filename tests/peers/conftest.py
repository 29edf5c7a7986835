"""`make test-peers`: equal to diffusers and transformers. Without them (they take several GB) pytest passes this folder
by, and says so."""

import importlib.util

import pytest

PEERS = ("torch", "diffusers", "transformers", "safetensors")
MISSING = [name for name in PEERS if importlib.util.find_spec(name) is None]

if MISSING:
    collect_ignore_glob = ["test_*.py"]


def pytest_report_header():
    return f"tests/peers left out: no {', '.join(MISSING)}; `make test-peers` gets them" if MISSING else None


def pytest_itemcollected(item):
    item.add_marker(pytest.mark.filterwarnings("ignore"))  # of the peers' own code; ours are errors elsewhere


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """The same weights as two checkpoints: {"official": folder, "diffusers": folder}."""
    from . import checkpoints

    return checkpoints.write(tmp_path_factory.mktemp("peers"))

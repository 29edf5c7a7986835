"""`make test-gateways`: LiteLLM's proxy and OpenAI's own client. Without them (0.75 GB, two minutes to install) pytest
passes this folder by, and says so."""

import importlib.util

import pytest

PEERS = ("litellm", "openai")
MISSING = [name for name in PEERS if importlib.util.find_spec(name) is None]

if MISSING:
    collect_ignore_glob = ["test_*.py"]


def pytest_report_header():
    return f"tests/gateways left out: no {', '.join(MISSING)}; `make test-gateways` gets them" if MISSING else None


def pytest_itemcollected(item):
    item.add_marker(pytest.mark.filterwarnings("ignore"))  # of the peers' own code; ours are errors elsewhere

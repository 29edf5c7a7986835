"""The .pyi files say what the extension modules have: the same names, classes, methods and properties."""

import ast
import importlib
from pathlib import Path

import pytest

import ipvg

PROTOCOLS = ("__iter__", "__next__", "__array__", "__dlpack__", "__dlpack_device__")


def declared(path):
    """{name: None for a function, else the names in the class}"""
    out = {}
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef):
            out[node.name] = None
        elif isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            out[node.name] = {n.name for n in node.body if isinstance(n, ast.FunctionDef)} - {"__new__"}
    return out


def present(module):
    out = {}
    for name, value in vars(module).items():
        if isinstance(value, type):
            names = {n for n in vars(value) if not n.startswith("_") or n in PROTOCOLS}
            out[name] = set() if issubclass(value, Exception) else names
        elif not name.startswith("_") and callable(value):
            out[name] = None
    return out


@pytest.mark.parametrize("name", ["_core", "_media", "_remote"])
def test_stub_matches_module(name):
    module = pytest.importorskip(f"ipvg.{name}") if name != "_core" else importlib.import_module(f"ipvg.{name}")
    assert declared(Path(ipvg.__file__).with_name(f"{name}.pyi")) == present(module)


def test_every_public_name_loads():
    for name in ipvg.__all__:
        assert getattr(ipvg, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        ipvg.nonsense  # noqa: B018

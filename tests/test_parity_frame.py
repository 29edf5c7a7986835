"""The parity frame itself: it must notice what differs, name it, and never pass a case that nobody compared."""

from __future__ import annotations

import json
import subprocess
import sys
import types

import numpy as np
import pytest

from ipvg import parity
from ipvg.parity import Golden, recipe


@pytest.fixture
def folder(tmp_path):
    """A golden folder of two cases, written by hand: the frame must not know names."""
    tensors = {"one/a": np.arange(6, dtype=np.float32).reshape(2, 3), "one/b": np.ones(4, np.float32)}
    tensors["two/a"] = np.full((2, 3), 7, np.uint8)
    header, offset, data = {}, 0, b""
    kinds = {"float32": "F32", "uint8": "U8"}
    for name, value in tensors.items():
        end = offset + value.nbytes
        header[name] = {"dtype": kinds[str(value.dtype)], "shape": list(value.shape), "data_offsets": [offset, end]}
        offset, data = end, data + value.tobytes()
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    (tmp_path / "dit.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data)
    cases = {}
    for path, value in tensors.items():
        case, tensor = path.split("/")
        entry = {"shape": list(value.shape), "dtype": str(value.dtype), "meaning": f"what {tensor} is"}
        cases.setdefault(case, {"config": {"n": 1}, "inputs": [], "tensors": {}})["tensors"][tensor] = entry
    cases["one"]["inputs"] = [{"name": "x", "recipe": "normal", "key": "k", "shape": [3]}]
    (tmp_path / "dit.json").write_text(json.dumps({"salt": "s/", "about": {"inputs": []}, "cases": cases}))
    return tmp_path


def run(monkeypatch, folder, check):
    module = types.ModuleType("ipvg.parity.dit")
    module.check = check
    monkeypatch.setitem(sys.modules, "ipvg.parity.dit", module)
    return parity.run(folder, ["dit"])


def test_equal_passes_and_the_table_says_so(folder, monkeypatch):
    def check(golden, device):
        for case in golden.cases.values():
            for tensor in case.tensors:
                yield case.compare(tensor, case[tensor].copy(), 1e-6)

    results = run(monkeypatch, folder, check)
    assert [(r.case, r.tensor, r.ok, r.error) for r in results] == [
        ("one", "a", True, 0.0),
        ("one", "b", True, 0.0),
        ("two", "a", True, 0.0),
    ]
    assert parity.first_divergence(results) is None
    assert parity.table(results).splitlines()[1].split() == ["dit", "rel", "L2", "2", "3", "0.00e+00", "1e-06", "ok"]


def test_the_first_divergence_is_named_with_what_agreed_before_it(folder, monkeypatch):
    def check(golden, device):
        for case in golden.cases.values():
            for tensor in case.tensors:
                yield case.compare(tensor, case[tensor] * (1 if tensor == "a" else 1.01), 1e-3)

    results = run(monkeypatch, folder, check)
    text = str(parity.first_divergence(results))
    assert "dit: one/b: 1.00e-02" in text and "what b is" in text and "before it 1 agree, last a" in text


@pytest.mark.parametrize("how", ["NaN", "shape", "infinity"])
def test_what_cannot_be_measured_fails(folder, monkeypatch, how):
    def check(golden, device):
        for case in golden.cases.values():
            ours = case["a"].astype(np.float32)
            ours = {"NaN": ours * np.nan, "infinity": ours + np.inf, "shape": ours[:1]}[how]
            yield case.compare("a", ours, 1e9)

    assert not any(result.ok for result in run(monkeypatch, folder, check))


def test_a_case_without_a_comparison_fails(folder, monkeypatch):
    def check(golden, device):
        yield golden.cases["one"].compare("a", golden.cases["one"]["a"], 1e-6)

    bad = [result for result in run(monkeypatch, folder, check) if not result.ok]
    assert [(result.case, result.note) for result in bad] == [("two", "the check compared nothing in this case")]


def test_a_check_that_breaks_is_a_failure_not_a_crash(folder, monkeypatch):
    def check(golden, device):
        yield golden.cases["one"].compare("a", golden.cases["one"]["a"], 1e-6)
        raise RuntimeError("the model is not there")

    results = run(monkeypatch, folder, check)
    assert [result.ok for result in results] == [True, False]
    assert "the model is not there" in results[-1].note


def test_inputs_come_from_the_recipe_with_the_salt(folder):
    case = Golden(folder, "dit").cases["one"]
    assert np.array_equal(case.input("x"), recipe.normal("s/k", (3,)))
    with pytest.raises(KeyError):
        case["absent"]


def test_every_golden_tensor_can_be_read(golden_dir):
    stages = [stage for stage in parity.STAGES if Golden.path(golden_dir, stage).is_file()]
    assert stages
    for stage in stages:
        for case in Golden(golden_dir, stage).cases.values():
            for name, info in case.tensors.items():
                if name in case.stored:
                    assert case[name].shape == info.shape, f"{stage}/{case.name}/{name}"
                    assert str(case[name].dtype) == info.dtype


def test_compare_is_public_and_keeps_the_reference_order():
    reference = {"q": np.ones(3), "k": np.ones(3), "v": np.ones(3)}
    ours = {"k": np.ones(3) * 2, "q": np.ones(3)}
    results = parity.compare(ours, reference, bound=1e-3)
    assert [(r.tensor, r.ok) for r in results] == [("q", True), ("k", False), ("v", False)]
    assert parity.first_divergence(results).result.tensor == "k"
    assert parity.compare(np.ones(3), np.ones(3))[0].ok


def test_a_wrong_folder_or_stage_is_named(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        parity.run(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="unknown stage 'dot'"):
        parity.run(folder, ["dot"])
    with pytest.raises(FileNotFoundError, match=r"vae\.json"):
        parity.run(folder, ["vae"])


def test_the_command_fails_when_something_differs(tmp_path):
    done = subprocess.run([sys.executable, "-m", "ipvg.parity", str(tmp_path)], capture_output=True, text=True)
    assert done.returncode != 0 and "no golden files" in done.stderr
    assert "Traceback" not in done.stderr

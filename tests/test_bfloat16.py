"""The bfloat16 device: its products take rounded inputs, everything else stays float32."""

import dataclasses
import importlib
import json

import bfloat16
import numpy as np
import pytest

from ipvg import _core, parity
from ipvg.checkpoint import DitConfig, TextConfig, expected, from_bfloat16, to_bfloat16
from ipvg.parity import recipe, relative_l2

DIT = DitConfig(dim=256, ffn_dim=384, num_heads=2, num_layers=2, vace_layers=(0,), text_dim=64)
TEXT = TextConfig(vocab=320, dim=64, dim_attn=64, dim_ffn=160, num_heads=4, num_layers=1)


def rounded(x):
    return from_bfloat16(to_bfloat16(x))


def weights(config):
    return {name: recipe.weight(name, shape) for name, shape in expected(config).items()}


def velocity(tensors, dtype, threads=1):
    device = _core.Device("cpu", threads, dtype)

    dit = _core.Dit(device, dataclasses.asdict(DIT), _core.Weights(tensors))
    text = dit.text(recipe.normal("text", (7, 64)))
    context = dit.context(recipe.normal("vace", (96, 3, 6, 8)))
    return dit.forward(recipe.normal("x", (16, 3, 6, 8)), 700, text, context)


def test_device_says_what_it_computes_in():
    assert _core.Device().dtype == "float32" and _core.Device().native
    assert _core.Device(dtype="bfloat16").dtype == "bfloat16"
    with pytest.raises(ValueError, match=r"dtype: .*half"):
        _core.Device(dtype="half")


def test_products_take_rounded_weights():
    """Weights that are rounded before, but for the exact layers, change nothing: the device rounds them itself."""
    plain = weights(DIT)
    exact = ("time_", "head.", "modulation", "norm")
    halved = {
        n: w if w.ndim < 2 or any(e in n for e in exact) else rounded(w).reshape(w.shape) for n, w in plain.items()
    }
    assert any((halved[n] != plain[n]).any() for n in plain)
    assert np.array_equal(velocity(plain, "bfloat16"), velocity(halved, "bfloat16"))
    stored = {n: (to_bfloat16(w).reshape(w.shape), "bfloat16") if w is not plain[n] else w for n, w in halved.items()}
    assert np.array_equal(velocity(plain, "bfloat16"), velocity(stored, "bfloat16"))


def test_error_is_that_of_bfloat16_and_not_of_a_mistake():
    """bfloat16 keeps 8 bits: a product is off by some 3e-3, and a forward of two blocks by a few times that."""
    plain = weights(DIT)
    error = relative_l2(velocity(plain, "bfloat16"), velocity(plain, "float32"))
    assert 1e-4 < error < 3e-2


def test_the_exact_layers_are_exact():
    """With the blocks silenced, patch, time and head are left of the velocity; time and head are float32."""
    tensors = weights(DIT)
    for name in tensors:
        if name.endswith(
            (".o.weight", ".o.bias", "ffn.2.weight", "ffn.2.bias", "after_proj.weight", "after_proj.bias")
        ):
            tensors[name] = np.zeros_like(tensors[name])
    tensors["patch_embedding.weight"] = rounded(tensors["patch_embedding.weight"])
    half, full = velocity(tensors, "bfloat16"), velocity(tensors, "float32")
    inputs = relative_l2(rounded(recipe.normal("x", (16, 3, 6, 8))), recipe.normal("x", (16, 3, 6, 8)))
    assert relative_l2(half, full) < 1.5 * inputs  # the patch's inputs alone are rounded


def test_text_encoder_takes_it_too():

    def states(dtype):
        device = _core.Device("cpu", 1, dtype)
        encoder = _core.TextEncoder(device, dataclasses.asdict(TEXT), _core.Weights(weights(TEXT)))
        return encoder.encode(list(range(2, 30)) + [1])

    assert 1e-4 < relative_l2(states("bfloat16"), states("float32")) < 3e-2


def test_planned_scratch_is_enough_and_bytes_repeat():
    plain = weights(DIT)
    first = velocity(plain, "bfloat16", threads=2)
    assert np.array_equal(first, velocity(plain, "bfloat16", threads=2))


# ---- golden cases, against PyTorch's own error in bfloat16 ----


@pytest.mark.parametrize("stage", ["umt5", "dit"])
def test_golden_outputs_are_as_near_as_pytorch_s(golden_dir, stage, monkeypatch):
    device = _core.Device
    monkeypatch.setattr(_core, "Device", lambda name: device(name, dtype="bfloat16"))
    golden = parity.Golden(golden_dir, stage)
    results = bfloat16.judge(golden, importlib.import_module(f"ipvg.parity.{stage}").check(golden, "cpu"))
    assert not [result for result in results if not result.ok]
    outputs = [result.error for result in results if np.isfinite(result.bound)]
    assert len(outputs) >= len({result.case for result in results}) - 1 and min(outputs) > 1e-4  # it is bfloat16


def test_the_judge(golden_dir):
    golden = parity.Golden(golden_dir, "dit")
    case = next(iter(golden.cases.values()))
    golden.cases = {case.name: case}
    figure = json.loads(bfloat16.FIGURES.read_text())["stages"]["dit"]

    def verdict(error, tensor="v"):
        first, *rest = bfloat16.judge(golden, [parity.Result("dit", case.name, tensor, error, 1e-4, False)])
        return first.ok, rest

    known, most = figure.get(f"{case.name}/v", {"of": None}), max(f["error"] for f in figure.values())
    most = known["error"] if known["of"] == bfloat16.fingerprint(case["v"]) else most
    assert verdict(1.49 * most) == (True, [])
    assert verdict(1.51 * most) == (False, [])
    assert verdict(float("inf"))[0] is False
    assert verdict(3.0, "block0") == (True, bfloat16.judge(golden, []))  # finite; but then no output was compared
    assert verdict(float("inf"), "block0")[0] is False
    assert [result.ok for result in bfloat16.judge(golden, [])] == [False]


def test_a_case_without_a_figure_is_held_against_the_largest(golden_dir):
    golden = parity.Golden(golden_dir, "dit")
    case = next(iter(golden.cases.values()))
    golden.cases = {"another": type(case)(golden, case.name, case.data, case.tensors)}
    most = max(f["error"] for f in json.loads(bfloat16.FIGURES.read_text())["stages"]["dit"].values())
    for error, ok in ((1.49 * most, True), (1.51 * most, False)):
        (result,) = bfloat16.judge(golden, [parity.Result("dit", "another", "v", error, 1e-4, False)])
        assert result.ok is ok and "no figure" in result.note

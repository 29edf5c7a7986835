"""dtype="fp8": 8-bit numbers in the diffusion model. On a GPU or the emulated one (tests/test_cuda.py)."""

import os

import numpy as np
import pytest
import test_sharing
import test_umt5
from dit_oracle import CONFIG, inputs, weights_of

import ipvg
from ipvg import _core, guidance, settings
from ipvg.parity import recipe, relative_l2

gpu = pytest.mark.skipif(os.environ.get("IPVG_DEVICE") != "cuda", reason="IPVG_DEVICE=cuda: a GPU or the emulated one")

WIDE = CONFIG | {"dim": 256, "num_heads": 2, "ffn_dim": 384, "in_dim": 16, "out_dim": 16}
WIDE |= {"vace_in_dim": 96, "text_dim": 64}

#: What one product of E4M3 numbers errs by on Gaussian data; what a net that adds to its state makes of it is below.
BOUND = 3.8e-2


def model(config=WIDE, dtype="fp8"):
    return _core.Dit(_core.Device("cuda", dtype=dtype), config, _core.Weights(weights_of(config)))


def run(dit, given, **options):
    x, t, text, context = given
    return dit.forward(x, t, dit.text(text), dit.context(context, frames=x.shape[1]), **options)


@gpu
@pytest.mark.parametrize(
    "options",
    [{}, {"skip": (2,), "keep_hint": True}, {"scale": 0.5}, {"identity": (1, 2)}, {"blur": ((0, 3), 1.5)}],
    ids=str,
)
def test_velocities_stay_near_float32(options):
    given = inputs(WIDE)
    want = run(_core.Dit(_core.Device(), WIDE, _core.Weights(weights_of(WIDE))), given, **options)
    error, half = (relative_l2(run(model(dtype=dtype), given, **options), want) for dtype in ("fp8", "bfloat16"))
    assert half < error <= BOUND


@gpu
def test_nag_and_the_same_bytes_twice():
    given, away = inputs(WIDE), np.random.default_rng(9).standard_normal((3, WIDE["text_dim"])).astype(np.float32)
    first, cpu = model(), _core.Dit(_core.Device(), WIDE, _core.Weights(weights_of(WIDE)))

    def guided(dit):
        return run(dit, given, nag=(dit.text(away), 4.0, 2.5, 0.25))

    ours = guided(first)
    assert relative_l2(ours, guided(cpu)) <= BOUND
    assert ours.tobytes() == guided(first).tobytes() == guided(model()).tobytes()


@gpu
def test_branches_share_work():
    dit = model()
    texts = {name: recipe.normal(f"fp8/{name}", (5, WIDE["text_dim"])) for name in ("cond", "negative")}
    test_sharing.check(dit, texts, test_sharing.make_source(), guidance.tpige_code())


@gpu
def test_what_large_products_take_is_seen_as_its_values():
    """Of every row of the trace's arrays: 127 sizes and their signs at most, times one scale."""

    def is_e4m3(array):
        assert array.dtype == np.float32 and np.isfinite(array).all()
        steps = array / np.abs(array).max(axis=1, keepdims=True) * np.float32(448)
        mantissa = np.frexp(steps[np.abs(steps) >= 2.0**-6])[0] * 16
        return np.allclose(mantissa, np.round(mantissa), atol=1e-4)

    seen = {}
    run(model(), inputs(WIDE), trace=lambda name, array: seen.setdefault(name, array.copy()))
    for name in ("block0_attn_in", "block0_cross_in", "vace1_ffn_in"):
        assert is_e4m3(seen[name]), name
    assert not is_e4m3(seen["block0_attn"]), "attention stays in 16 bits"


@gpu
def test_scratch_is_what_was_planned():
    given, device = inputs(WIDE, size=(5, 16, 24)), _core.Device("cuda", dtype="fp8")
    dit = _core.Dit(device, WIDE, _core.Weights(weights_of(WIDE)))
    run(dit, given)
    assert device.scratch == dit.memory(*given[0].shape[1:])["scratch"]


@gpu
def test_other_models_compute_as_in_bfloat16():
    weights, ids = _core.Weights(test_umt5.weights_of()), np.arange(5)
    states = [
        _core.TextEncoder(_core.Device("cuda", dtype=dtype), test_umt5.CONFIG, weights).encode(ids)
        for dtype in ("fp8", "bfloat16")
    ]
    assert states[0].tobytes() == states[1].tobytes()


@gpu
def test_odd_widths_are_refused_by_name():
    with pytest.raises(ipvg.UnsupportedError, match=r"multiples of 16, not 256 and 200; try dtype='bfloat16'"):
        model(WIDE | {"ffn_dim": 200})


def test_its_name_everywhere():
    with pytest.raises(ipvg.UnsupportedError, match="the CPU computes in float32 or bfloat16, not in fp8"):
        _core.Device(dtype="fp8")
    with pytest.raises(ValueError, match="dtype: expected one of 'float32', 'bfloat16', 'fp8', got 'float8'"):
        _core.Device(dtype="float8")
    with pytest.raises(TypeError, match="dtype 'fp8' is none of"):
        _core.Weights({"a": (np.zeros(4, np.uint8), "fp8")})
    assert settings.check({"prompt": "A cat.", "dtype": "fp8"})["dtype"] == "fp8"
    if os.environ.get("IPVG_DEVICE") == "cuda":
        assert _core.Device("cuda", dtype="fp8").dtype == "fp8"


@gpu
def test_streamed_weights_are_the_same_bytes():
    """Quantised again each time that they come."""
    small = CONFIG | {"dim": 32, "num_heads": 2, "ffn_dim": 48}
    given, weights, free = inputs(small), _core.Weights(weights_of(small)), _core.Device("cuda", dtype="fp8")
    dit = _core.Dit(free, small, weights)
    m, half = (one.memory(*given[0].shape[1:]) for one in (dit, model(small, "bfloat16")))
    assert m["block"] < 0.8 * half["block"]
    room = m["least"] + m["scratch"] + m["text"] + m["context"] + 2 * given[0].nbytes + m["block"]
    limited = _core.Device("cuda", dtype="fp8", memory_limit=free.memory["fixed"] + room)
    ours = _core.Dit(limited, small, weights)
    assert run(ours, given).tobytes() == run(dit, given).tobytes() and ours.streamed > 2
    assert limited.memory["peak"] <= limited.memory["limit"]

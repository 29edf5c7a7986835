"""The diffusion transformer: equal to the formulas in float64 at any size and for every branch option, exact plan, safe
against any input. The reference's own numbers are in the parity tests."""

import threading

import numpy as np
import pytest
from dit_oracle import CONFIG, SIZE, inputs, oracle, shapes, weights_of

from ipvg import _core
from ipvg.parity import relative_l2


def model(weights=None, config=CONFIG, device=None):
    weights = weights_of(config) if weights is None else weights
    return _core.Dit(device or _core.Device("cpu", threads=2), config, _core.Weights(weights))


def run(dit, x, t, text, context, **options):
    return dit.forward(x, t, dit.text(text), dit.context(context, frames=x.shape[1]), **options)


# Float32 against float64 over four layers of this width; the golden models of the same kind are at 1e-6.
BOUND = 1e-5


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"skip": [2]},
        {"skip": [2], "keep_hint": True},
        {"skip": [1, 3], "keep_hint": True, "scale": 0.4},
        {"skip": [0, 1, 2, 3]},
        {"scale": 0.0},
        {"scale": -2},
        {"scale": [0.5, 0.0, 2.0]},
        {"scale": [0.5, 0.7, 0.0]},
        {"skip": (3,), "scale": np.array([1.5, 0, 1])},
        {"identity": [1]},
        {"identity": [0, 3], "skip": [1]},
        {"blur": ([1, 2], 0.7)},
        {"blur": ([0], 3.0)},
        {"blur": ([2], np.inf), "identity": (3,)},
        {"reference_scale": 0.0, "reference_frames": 1},
        {"reference_scale": [2, 0, -1.0], "reference_frames": 2, "scale": 0.0},
        {"reference_scale": 0.5, "reference_frames": 3, "scale": [0.5, 0.0, 2.0]},
    ],
    ids=str,
)
def test_every_branch_option(options):
    weights, given = weights_of(), inputs()
    assert relative_l2(run(model(weights), *given, **options), oracle(weights, CONFIG, *given, **options)) < BOUND


@pytest.mark.parametrize("numbers", [(11, 2.5, 0.25), (1, 2.5, 1), (4, 1e9, 1.0), (4, 0.5, 0.5), (-2, 1, 0.7)], ids=str)
def test_nag(numbers):
    weights, given, dit = weights_of(), inputs(), model()
    negative = inputs(seed=8, text=7)[2]
    ours = run(dit, *given, nag=(dit.text(negative), *numbers))
    assert relative_l2(ours, oracle(weights, CONFIG, *given, nag=(negative, *numbers))) < BOUND


@pytest.mark.parametrize("size", [(2, 2, 2), (1, 2, 12), (2, 10, 4)])
@pytest.mark.parametrize("sigma", [0.2, 1, 5, np.inf])
def test_blurred_queries_of_every_size(size, sigma):
    weights, given = weights_of(), inputs(size=size)
    options = {"blur": ([0, 1, 2, 3], sigma)}
    assert relative_l2(run(model(weights), *given, **options), oracle(weights, CONFIG, *given, **options)) < BOUND


def test_what_a_perturbation_leaves_alone():
    dit, given = model(), inputs()
    plain = run(dit, *given)
    for same in (
        {"identity": []},
        {"blur": ([], 1.0)},
        {"reference_scale": 1.0, "reference_frames": 2},
        {"reference_scale": 3.0, "reference_frames": 0},
        {"nag": (dit.text(given[2]), 5.0, 2.5, 0.0)},
    ):
        assert relative_l2(run(dit, *given, **same), plain) < 1e-6, same
    for other in ({"identity": [2]}, {"blur": ([2], 1.0)}, {"reference_scale": 0.5, "reference_frames": 1}):
        assert relative_l2(run(dit, *given, **other), plain) > 1e-3, other


@pytest.mark.parametrize(
    "change",
    [
        {"dim": 4, "num_heads": 1, "ffn_dim": 3, "num_layers": 1, "vace_layers": [0]},
        {"dim": 70, "num_heads": 7},  # 5 complex pairs a head: 3 for time, 1 and 1 for space
        {"dim": 8, "num_heads": 4},  # 1 pair a head: time alone
        {"dim": 256, "num_heads": 2, "ffn_dim": 130, "num_layers": 2, "vace_layers": [0, 1]},
        {"vace_layers": [0]},
        {"vace_layers": []},
        {"eps": 0.1},
        {"text_len": 40, "text_dim": 3},
    ],
    ids=str,
)
def test_every_config(change):
    config = CONFIG | change
    weights, given = weights_of(config, seed=1), inputs(config)
    assert relative_l2(run(model(weights, config), *given), oracle(weights, config, *given)) < BOUND


@pytest.mark.parametrize("size", [(1, 2, 2), (1, 2, 10), (7, 6, 2), (2, 16, 18)])
@pytest.mark.parametrize("text", [1, 9])
def test_every_size_and_text_length(size, text):
    weights, given = weights_of(), inputs(size=size, text=text)
    assert relative_l2(run(model(weights), *given), oracle(weights, CONFIG, *given)) < BOUND


@pytest.mark.parametrize("text", [1, 7, 8, 15, 16, 20, 21])
def test_padding_is_one_row_that_counts_as_often(text):
    config, seen = CONFIG | {"text_len": 21}, {}
    weights, given = weights_of(config), inputs(config, text=text)
    dit, nag = model(weights, config), (inputs(seed=8, text=1)[2], 5.0, 2.5, 0.25)
    dit.text(given[2], trace=seen.__setitem__)
    assert len(seen["text_rows"]) == min(text // 8 * 8 + 8, 21)
    assert relative_l2(run(dit, *given), oracle(weights, config, *given)) < BOUND
    ours = run(dit, *given, nag=(dit.text(nag[0]), *nag[1:]))
    assert relative_l2(ours, oracle(weights, config, *given, nag=nag)) < BOUND


@pytest.mark.parametrize("t", [0, 0.5, 1, 999, 999.75, 1000])
def test_every_timestep(t):
    weights, (x, _, text, context) = weights_of(), inputs()
    want = oracle(weights, CONFIG, x, t, text, context)
    assert relative_l2(run(model(weights), x, t, text, context), want) < BOUND


def test_a_shorter_context_leaves_zero_rows_at_the_end():
    weights, given = weights_of(), inputs(context_frames=1)
    assert relative_l2(run(model(weights), *given), oracle(weights, CONFIG, *given)) < BOUND


def test_an_absent_slot_is_the_bias_not_zero_rows():
    weights, seen = weights_of(), {}
    absent = inputs()[3]
    absent[:, 0] = 0
    model(weights).context(absent, trace=seen.__setitem__)
    assert np.array_equal(seen["vace_tokens"][:6], np.tile(weights["vace_patch_embedding.bias"], (6, 1)))


def test_weights_of_16_bits_and_mixed_are_widened():
    """As in the released checkpoints: float32 for the base, bfloat16 for what starts with "vace"."""
    weights = weights_of()
    stored, rounded = dict(weights), dict(weights)
    for i, (name, value) in enumerate(weights.items()):
        if name.startswith("vace"):
            bits = value.view(np.uint32) >> np.uint32(16)
            stored[name], rounded[name] = (bits.astype(np.uint16), "bfloat16"), (bits << np.uint32(16)).view(np.float32)
        elif i % 3 == 0:
            stored[name] = value.astype(np.float16)
            rounded[name] = stored[name].astype(np.float32)
    given = inputs()
    assert relative_l2(run(model(stored), *given), oracle(rounded, CONFIG, *given)) < BOUND


def test_two_runs_give_the_same_bytes_and_threads_only_round():
    given = inputs(size=(4, 16, 16))
    one = model(device=_core.Device("cpu", threads=1))
    first = run(one, *given)
    assert run(one, *given).tobytes() == first.tobytes()
    three = model(device=_core.Device("cpu", threads=3))
    assert run(three, *given).tobytes() == run(three, *given).tobytes()
    assert relative_l2(run(three, *given), first) < 1e-5


def test_a_trace_changes_nothing():
    given = inputs()
    dit = model()
    for options in ({}, {"skip": [3]}, {"scale": 0.0}):
        assert run(dit, *given, **options).tobytes() == run(dit, *given, trace=lambda *_: None, **options).tobytes()


def test_what_no_main_block_takes_is_not_computed():
    """Checked through the weights: a NaN in a block whose hint nobody takes must not reach the velocity."""
    weights = weights_of()
    weights["vace_blocks.2.ffn.0.bias"] = np.full_like(weights["vace_blocks.2.ffn.0.bias"], np.nan)
    dit, given = model(weights), inputs()
    assert np.isnan(run(dit, *given)).any()
    for options in ({"skip": [3]}, {"scale": [1, 1, 0]}, {"scale": 0}):
        assert np.isfinite(run(dit, *given, **options)).all()


def test_trace_sees_the_golden_names_in_the_order_of_computation():
    names = []
    run(model(), *inputs(), trace=lambda name, array: names.append(name))
    inner = ("attn_in", "q", "k", "attn", "attn_out", "cross_in", "cross_out", "ffn_in", "ffn_out")
    want = ["e", "e0", "x_tokens"]
    for i in range(4):
        n = [0, 2, 3].index(i) if i in (0, 2, 3) else None
        want += [f"vace{n}_{part}" for part in (*inner, "c")] if n is not None else []
        want += [f"block{i}_{part}" for part in inner]
        want += ([f"vace{n}_hint"] if n is not None else []) + [f"block{i}"]
    assert names == [*want, "head_in", "head"]


def test_the_plan_is_what_a_run_takes():
    for size in (SIZE, (5, 10, 8)):
        device = _core.Device("cpu", threads=2)
        dit, given = model(device=device), inputs(size=size, text=9)
        planned = dit.memory(*size)
        assert device.scratch == 0
        run(dit, *given)
        assert device.scratch == planned["scratch"]
        d, blocks, tokens = CONFIG["dim"], 7, size[0] * size[1] * size[2] // 4
        assert planned["text"] == blocks * 2 * CONFIG["text_len"] * d * 4
        assert planned["context"] - 256 <= tokens * (d + d // 3) * 4 <= planned["context"]


def test_a_step_of_several_branches_plans_a_state_for_each():
    dit, state = model(), -(-SIZE[0] * 6 * CONFIG["dim"] * 4 // 256) * 256  # (L, D) float32
    one, three = dit.memory(*SIZE)["scratch"], dit.memory(*SIZE, branches=3)["scratch"]
    assert three == one + 4 * state  # x and the VACE blocks' c of two more
    assert dit.memory(*SIZE, branches=3, hints=1)["scratch"] == one + 2 * state
    for wrong in ({"branches": 0}, {"branches": 17}, {"hints": 2}, {"branches": 3, "hints": 0}):
        with pytest.raises(ValueError, match=r"branches|hints"):
            dit.memory(*SIZE, **wrong)


def test_shapes_without_data_plan_and_do_not_compute():
    empty = {name: (None, 0, "float32", shape) for name, shape in shapes(CONFIG).items()}
    dit = model(empty)
    assert dit.memory(*SIZE) == model().memory(*SIZE)
    _, _, text, context = inputs()
    with pytest.raises(ValueError, match="no weights"):
        dit.text(text)
    with pytest.raises(ValueError, match="no weights"):
        dit.context(context)


def test_out_may_be_given_and_may_be_x():
    config = CONFIG | {"out_dim": CONFIG["in_dim"]}
    dit, (x, t, text, context) = model(weights_of(config), config), inputs(config)
    want = run(dit, x, t, text, context)
    out = np.full_like(want, np.nan)
    assert run(dit, x, t, text, context, out=out) is out and np.array_equal(out, want)
    run(dit, x, t, text, context, out=x)
    assert np.array_equal(x, want)


def test_config_comes_back():
    assert model().config == CONFIG | {"eps": pytest.approx(1e-6)}


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"x": np.zeros((5, 3, 4, 8), np.float32)}, ValueError, r"x has shape \(5, 3, 4, 8\)"),
        ({"x": np.zeros((4, 3, 4, 6), np.float32)}, ValueError, "x"),
        ({"x": np.full((5, *SIZE), np.nan, np.float32)}, ValueError, "not finite"),
        ({"x": np.zeros((5, *SIZE), complex)}, TypeError, "x"),
        ({"t": -1}, ValueError, "0 to 1000"),
        ({"t": 1000.5}, ValueError, "0 to 1000"),
        ({"t": float("nan")}, ValueError, "0 to 1000"),
        ({"t": "late"}, TypeError, None),
        ({"text": np.zeros((0, 11))}, ValueError, "states"),
        ({"text": np.zeros((10, 11))}, ValueError, "1 to 9"),
        ({"text": np.zeros((3, 12))}, ValueError, "states"),
        ({"text": np.full((3, 11), np.inf)}, ValueError, "not finite"),
        ({"context": np.zeros((7, 4, 4, 6))}, ValueError, "shorter, not longer"),
        ({"context": np.zeros((6, 3, 4, 6))}, ValueError, "context"),
        ({"context": np.zeros((7, 3, 5, 6))}, ValueError, "even"),
        ({"skip": [4]}, ValueError, r"skip: .* 0 to 3"),
        ({"skip": [-1]}, ValueError, r"skip: .* 0 to 3"),
        ({"skip": ["a"]}, TypeError, None),
        ({"skip": 2}, TypeError, "skip"),
        ({"scale": [1, 2]}, ValueError, "3 VACE layers"),
        ({"scale": float("nan")}, ValueError, "scale"),
        ({"scale": None}, TypeError, None),
        ({"scale": "big"}, TypeError, None),
        ({"identity": [4]}, ValueError, "identity: block 4 of a model whose blocks are 0 to 3"),
        ({"identity": 1}, TypeError, "identity"),
        ({"blur": ([4], 1.0)}, ValueError, "blur: block 4"),
        ({"blur": ([1], 0.0)}, ValueError, "above 0"),
        ({"blur": ([1], float("nan"))}, ValueError, "above 0"),
        ({"blur": [1]}, TypeError, "blur"),
        ({"nag": 3}, TypeError, "nag"),
        ({"reference_scale": 1.0, "reference_frames": 4}, ValueError, "4 reference frames in a latent of 3"),
        ({"reference_scale": 1.0, "reference_frames": -1}, ValueError, "reference frames"),
        ({"reference_scale": [1.0]}, ValueError, "3 VACE layers"),
        ({"out": np.zeros((3, 3, 4, 7), np.float32)}, ValueError, "out"),
        ({"out": np.zeros((3, *SIZE))}, ValueError, "float32"),
        ({"trace": 3}, TypeError, "trace"),
    ],
    ids=lambda value: str(next(iter(value.items())))[:60] if isinstance(value, dict) else "",
)
def test_wrong_arguments_are_named(change, error, words):
    dit = model()
    names = ("x", "t", "text", "context")
    given = dict(zip(names, inputs(), strict=True))
    options = {k: v for k, v in change.items() if k not in names}
    given |= {k: v for k, v in change.items() if k in names}
    with pytest.raises(error, match=words):
        run(dit, **given, **options)
    assert np.isfinite(run(dit, *inputs())).all()  # still usable


def test_prepared_inputs_are_for_one_model():
    a, b = model(), model()
    x, t, text, context = inputs()
    with pytest.raises(ValueError, match="another model"):
        a.forward(x, t, b.text(text), a.context(context))
    with pytest.raises(ValueError, match="another model"):
        a.forward(x, t, a.text(text), b.context(context))


def test_prepared_inputs_keep_their_model_alive():
    _, _, text, context = inputs()
    prepared = model().text(text), model().context(context)
    assert prepared[1].size == SIZE
    with pytest.raises(TypeError):
        type(prepared[0])()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num_heads": 7}, "heads"),
        ({"num_heads": 60}, "even"),
        ({"freq_dim": 21}, "freq_dim"),
        ({"vace_layers": [1, 2]}, "ascend from 0"),
        ({"vace_layers": [0, 2, 2]}, "ascend"),
        ({"vace_layers": [0, 4]}, "below 4"),
    ],
)
def test_a_config_that_cannot_work(change, words):
    with pytest.raises(ValueError, match=words):
        model(config=CONFIG | change, weights=weights_of())


def test_a_missing_a_misshapen_and_an_unknown_tensor_are_named():
    weights = weights_of()
    name = "vace_blocks.1.after_proj.bias"
    with pytest.raises(_core.FormatError, match=name):
        model({k: v for k, v in weights.items() if k != name})
    with pytest.raises(_core.FormatError, match=r"blocks\.0\.ffn\.0\.weight"):
        model(weights | {"blocks.0.ffn.0.weight": weights["blocks.0.ffn.0.weight"].T.copy()})
    with pytest.raises(_core.FormatError, match=r"blocks\.4\.modulation"):
        model(weights | {"blocks.4.modulation": weights["blocks.0.modulation"]})


def test_cancel_stops_within_a_block_and_leaves_the_model_usable():
    device = _core.Device("cpu")
    dit, given = model(device=device), inputs()
    before, seen = run(dit, *given), []

    def stop(name, array):
        seen.append(name)
        if name == "block1":
            assert device.cancel()

    with pytest.raises(_core.Cancelled):
        run(dit, *given, trace=stop)
    assert seen[-1] == "block1"
    assert np.array_equal(run(dit, *given), before)


def test_an_exception_in_the_trace_comes_through():
    dit = model()

    def stop(name, array):
        if name == "vace1_hint":
            raise KeyError("enough")

    with pytest.raises(KeyError, match="enough"):
        run(dit, *inputs(), trace=stop)
    assert np.isfinite(run(dit, *inputs())).all()


def test_threads_may_share_a_model():
    dit = model()
    cases = [inputs(size=size, seed=i) for i, size in enumerate([(1, 4, 4), (3, 4, 6), (2, 8, 8)])]
    want = [run(dit, *case) for case in cases]
    wrong = []

    def work(i):
        for _ in range(10):
            if not np.array_equal(run(dit, *cases[i]), want[i]):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong

"""Weights that are arrays: a function of (step, sigma) may return one, per frame or per region, at any step."""

import json

import numpy as np
import pytest
from test_sampler import make_model, make_source

from ipvg import guidance as G
from ipvg.guidance import Field, Guidance
from ipvg.parity import recipe
from ipvg.sampler import Sampler
from ipvg.schedule import Schedule

SCHEDULE = Schedule(3, 8.0)


@pytest.fixture(scope="module")
def run(golden_dir):
    model, source = make_model(golden_dir), make_source()
    width = model.config["text_dim"]
    states = {n: recipe.normal(f"arrays/{n}", (k, width)) for n, k in (("cond", 9), ("negative", 12))}
    return lambda rule: Sampler(model, states, source, guidance=rule, schedule=SCHEDULE, seed=5)


def shape_of(run):
    return run(G.none()).latent.shape


def frames(count, *values):
    out = np.full((1, count, 1, 1), values[0], np.float32)
    out[:, 1:] = values[1]
    return out


def test_a_function_that_gives_arrays_is_the_sum_written_out(run):
    """Against NumPy on the velocities that the run itself predicted, at every step; a number at one of the steps."""
    _, count, h, w = shape_of(run)
    face = np.zeros((h, w), np.float32)
    face[: h // 2, w // 2 :] = 4

    def weight(step, sigma):
        if step == 0:
            return frames(count, 1, 6)
        return face + np.float32(sigma) if step == 1 else 2.5  # two axes, then a number

    sampler = run(G.cfg(w=weight))
    for step in sampler:
        c, u = (np.asarray(step.velocity[name], np.float64) for name in ("cond", "uncond"))
        expected = u + np.asarray(weight(step.index, step.sigma), np.float64) * (c - u)
        # float32 sums of two terms with weights up to 6, against float64
        np.testing.assert_allclose(step.combined, expected, rtol=0, atol=2e-5 * abs(expected).max())
    assert isinstance(sampler.guidance.weights["w"], Field) and sampler.guidance.weights["w"].array.shape[0] == 3


def test_equal_numbers_in_an_array_are_the_numbers(run):
    """A constant array takes another path through the core (a field): the same up to float32 rounding."""
    plain = run(G.cfg(w=lambda step, sigma: 3.0 + step)).run()
    arrays = run(G.cfg(w=lambda step, sigma: np.full((1, 1, 1, 1), 3.0 + step))).run()
    np.testing.assert_allclose(arrays, plain, rtol=0, atol=1e-5 * abs(plain).max())


def test_a_step_of_zeros_is_not_computed(run):
    count = shape_of(run)[1]
    rule = G.stg_r(s=lambda step, sigma: frames(count, 0, 1) if step == 1 else 0.0)
    sampler = run(rule)
    sampler.run()
    assert sampler.forwards == sampler.forwards_total == 4 and G.forwards(rule, SCHEDULE) == [1, 2, 1]


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (np.zeros((2, 3, 4)), "does not broadcast to the latent"),
        (np.zeros(3), "weight 'w' at step 0: expected a number|2 to 4 axes"),
        (np.zeros((1, 1, 1, 1, 1)), "weight 'w' at step 0: expected 2 to 4 axes"),
        (np.full((1, 1), np.nan), "weight 'w' at step 0: expected finite"),
        ("3", "weight 'w' at step 0: expected a number"),
        (np.array([["a"]]), "weight 'w' at step 0"),
    ],
)
def test_arrays_that_cannot_be_weights_are_named(run, value, words):
    with pytest.raises((TypeError, ValueError), match=words):
        run(G.cfg(w=lambda step, sigma: value))


def test_shapes_that_do_not_go_together(run):
    with pytest.raises(ValueError, match=r"weight 'w': its arrays have shapes .*\(1, 1, 2, 3\)"):
        run(G.cfg(w=lambda step, sigma: np.zeros((2, 3) if step else (3, 2))))


def test_control_has_no_weight_for_arrays():
    rule = G.tpige_code(s=lambda step, sigma: np.ones((2, 2)))
    with pytest.raises(ValueError, match="no CFG of equal weight"):
        G.control(rule).resolve(SCHEDULE)


@pytest.mark.parametrize("shape", [(3, 1, 4, 1, 1), (3, 1, 4, 6, 8), (6, 8)])
def test_arrays_pass_through_json_to_the_bit(shape):
    rule = G.cfg(w=np.random.default_rng(0).random(shape, np.float32))
    text = rule.to_json()
    assert Guidance.from_json(text) == rule
    assert len(text) < 600 + 6 * int(np.prod(shape)) + 30 * 12


def test_a_packed_array_is_checked():
    rule = G.cfg(w=np.ones((1, 4, 6, 8), np.float32)).to_dict()
    packed = rule["weights"]["w"]["array"]
    for broken in (
        {**packed, "shape": [1, 4, 6, 9]},
        {**packed, "shape": [1, 4, 6]},
        {**packed, "shape": ["x"]},
        {**packed, "float32": "eJw="},
        {**packed, "float32": "*"},
        {**packed, "float32": 3},
        {"shape": [1]},
    ):
        with pytest.raises(ValueError, match="weight 'w': "):
            Guidance.from_dict(json.loads(json.dumps({**rule, "weights": {"w": {"array": broken}}})))

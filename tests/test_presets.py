"""Every preset is what its paper says: an oracle in float64, on the velocities that a run recorded; and it costs
exactly the forwards that it needs."""

import itertools

import numpy as np
import pytest
from test_sampler import make_model, make_source

from ipvg import guidance as G
from ipvg.guidance import APG, NAG, Branch, Field, Guidance, Interval, Rescale
from ipvg.parity import recipe, relative_l2
from ipvg.sampler import Sampler
from ipvg.schedule import Schedule

STEPS = 4
# Float32 sums of a few terms whose weights reach 10, against float64.
BOUND = 1e-5


@pytest.fixture(scope="module")
def model(golden_dir):
    return make_model(golden_dir)


@pytest.fixture(scope="module")
def make(model):
    width = model.config["text_dim"]
    states = {n: recipe.normal(f"presets/{n}", (k, width)) for n, k in (("cond", 9), ("negative", 12), ("null", 1))}

    def make(rule, steps=STEPS, **settings):
        settings = {"schedule": Schedule(steps, 8.0), "seed": 5, "source": make_source()} | settings
        return Sampler(model, settings.pop("texts", states), settings.pop("source"), guidance=rule, **settings)

    return make


# ---- the papers' formulas, each as plainly as it can be written; v: name -> float64 velocity ----


def inner(a, b):
    return float((a * b).sum())


def as_x0(v, x, sigma):
    return x - sigma * v


def cfg_of(c, u, w):
    return u + w * (c - u)


def zero_star(c, u, w):
    return cfg_of(c, inner(c, u) / inner(u, u) * u, w)


def tangential(c, u, w):
    _, _, rows = np.linalg.svd(np.stack([c.ravel(), u.ravel()]), full_matrices=False)
    return cfg_of(c, (inner(u.ravel(), rows[0]) * rows[0]).reshape(u.shape), w)


def rescaled(c, u, w, phi):
    g = cfg_of(c, u, w)
    return phi * g * c.std() / g.std() + (1 - phi) * g


class Projected:
    """APG with its momentum buffer, as in the paper's Algorithm 1."""

    def __init__(self, w, momentum, norm, eta):
        self.w, self.momentum, self.norm, self.eta, self.running = w, momentum, norm, eta, 0.0

    def __call__(self, c, u):
        self.running = c - u + self.momentum * self.running
        d = self.running
        if self.norm:
            d = d * min(1.0, self.norm / np.sqrt(inner(d, d)))
        along = inner(d, c) / inner(c, c) * c
        return c + (self.w - 1) * (d - along + self.eta * along)


def in_x0(rule):
    """The same rule on clean latents: velocities in, velocity out."""

    def apply(c, u, x, sigma):
        return (x - rule(as_x0(c, x, sigma), as_x0(u, x, sigma))) / sigma

    return apply


def in_v(rule):
    return lambda c, u, x, sigma: rule(c, u)


NONLINEAR = {
    "cfg_zero_star v": (lambda: G.cfg_zero_star(5, 0), in_v(lambda c, u: zero_star(c, u, 5))),
    "cfg_zero_star x0": (lambda: G.cfg_zero_star(3, 0, "x0"), in_x0(lambda c, u: zero_star(c, u, 3))),
    "tcfg v": (lambda: G.tcfg(5), in_v(lambda c, u: tangential(c, u, 5))),
    "tcfg x0": (lambda: G.tcfg(5, "x0"), in_x0(lambda c, u: tangential(c, u, 5))),
    "rescale v": (lambda: G.rescale(5, 0.7), in_v(lambda c, u: rescaled(c, u, 5, 0.7))),
    "rescale x0": (lambda: G.rescale(8, 1, "x0"), in_x0(lambda c, u: rescaled(c, u, 8, 1))),
    "apg v": (lambda: G.apg(5, 0.2, 0, -0.5, "v"), lambda: in_v(Projected(5, -0.5, 0, 0.2))),
    "apg x0": (lambda: G.apg(5), lambda: in_x0(Projected(5, -0.5, 0, 0))),
    "apg clipped v": (lambda: G.apg(7, 1.0, 0.5, 0.3, "v"), lambda: in_v(Projected(7, 0.3, 0.5, 1.0))),
    "apg clipped x0": (lambda: G.apg(7, 0.5, 0.5, 0.3), lambda: in_x0(Projected(7, 0.3, 0.5, 0.5))),
}


@pytest.mark.parametrize("name", NONLINEAR)
def test_operations_are_their_papers_formulas(make, name):
    preset, oracle = NONLINEAR[name]
    oracle = oracle() if name.startswith("apg") else oracle
    run = make(preset())
    x, moved = run.latent.astype(np.float64), 0.0
    plain = {"cfg_zero_star": 5, "tcfg": 5, "rescale": 5, "apg": 5}[name.split()[0]]
    for step in run:
        c, u = (step.velocity[b].astype(np.float64) for b in ("cond", "uncond"))
        assert relative_l2(step.combined, oracle(c, u, x, step.sigma)) < BOUND
        moved = max(moved, relative_l2(cfg_of(c, u, plain), step.combined))
        x = step.latent.astype(np.float64)
    assert moved > 1e-3  # the operation is not a fine way of doing nothing
    assert run.forwards == run.forwards_total == 2 * STEPS


LINEAR = {
    "none": ((), lambda v, k, sigma: v["cond"], 1),
    "cfg": ((5,), lambda v, k, sigma: cfg_of(v["cond"], v["uncond"], 5), 2),
    "stg_r": ((2.0,), lambda v, k, sigma: v["cond"] + 2 * (v["cond"] - v["weak"]), 2),
    "stg_a": ((2.0,), lambda v, k, sigma: v["cond"] + 2 * (v["cond"] - v["weak"]), 2),
    "pag": ((3.0,), lambda v, k, sigma: v["cond"] + 3 * (v["cond"] - v["weak"]), 2),
    "seg": ((3.0, (1, 2), 1.5), lambda v, k, sigma: v["cond"] + 3 * (v["cond"] - v["weak"]), 2),
    "slg": ((4.0,), lambda v, k, sigma: cfg_of(v["cond"], v["uncond"], 4), 2),
    "autoguidance": ((2.0,), lambda v, k, sigma: v["weak"] + 2 * (v["cond"] - v["weak"]), 2),
    "dual": ((1.5, 5), lambda v, k, s: v["none"] + 1.5 * (v["image"] - v["none"]) + 5 * (v["cond"] - v["image"]), 3),
    "three_stream": ((5, 2), lambda v, k, s: v["none"] + 5 * (v["text"] - v["none"]) + 2 * (v["cond"] - v["text"]), 3),
    "nag": ((), lambda v, k, sigma: v["cond"], 1),
    "tpige_code": (
        (5, 0.5), lambda v, k, s: (v_cfg := cfg_of(v["cond"], v["uncond"], 5)) + 0.5 * (v_cfg - v["weak"]), 3
    ),
    "tpige_aligned": (
        (5, 0.5), lambda v, k, s: (v_cfg := cfg_of(v["cond"], v["uncond"], 5)) + 0.5 * (v_cfg - v["weak"]), 3
    ),
    "tpige_figure": (
        (5, 0.5), lambda v, k, s: v["uncond"] + 5 * (v["cond"] - v["uncond"]) + 0.5 * (v["cond"] - v["weak"]), 3
    ),
}  # fmt: skip


def test_every_preset_has_a_test():
    named = {*LINEAR, *(name.split()[0] for name in NONLINEAR), "interval"}
    assert named == set(G.PRESETS)


@pytest.mark.parametrize("name", LINEAR)
def test_linear_presets_are_their_papers_formulas(make, name):
    arguments, oracle, cost = LINEAR[name]
    run = make(G.PRESETS[name](*arguments))
    for step in run:
        v = {branch: velocity.astype(np.float64) for branch, velocity in step.velocity.items()}
        assert relative_l2(step.combined, oracle(v, step.index, step.sigma)) < BOUND
    assert run.forwards == run.forwards_total == cost * STEPS


BRANCHES = {
    "stg_r": ("weak", {"skip": [2]}), "stg_a": ("weak", {"identity": [2]}), "pag": ("weak", {"identity": [2]}),
    "seg": ("weak", {"blur": ([2], np.inf)}), "slg": ("uncond", {"skip": [2]}), "autoguidance": ("weak", {"skip": [2]}),
}  # fmt: skip


@pytest.mark.parametrize("name", BRANCHES)
def test_the_perturbed_branch_is_the_perturbed_forward(make, model, name):
    """The forward itself is held against float64 formulas in test_dit.py."""
    branch, options = BRANCHES[name]
    run = make(G.PRESETS[name]())
    x = run.latent.copy()
    step = next(run)
    text = run._prepared.states["negative" if branch == "uncond" else "cond"]
    context = model.context(run.source.context)
    assert np.array_equal(step.velocity[branch], model.forward(x, step.timestep, model.text(text), context, **options))


def test_nag_is_the_forward_with_nag(make, model):
    run = make(G.nag(4.0, 1.5, 0.5))
    x, states = run.latent.copy(), run._prepared.states
    step = next(run)
    negative = (model.text(states["negative"]), 4.0, 1.5, 0.5)
    context = model.context(run.source.context)
    want = model.forward(x, step.timestep, model.text(states["cond"]), context, nag=negative)
    assert np.array_equal(step.combined, want)
    assert not np.array_equal(want, model.forward(x, step.timestep, model.text(states["cond"]), context))


def test_cfg_zero_star_rests_in_the_first_steps(make):
    run = make(G.cfg_zero_star(5, zero_init=0.25), steps=8)
    start = run.latent.copy()
    for step in run:
        if step.index < 2:
            assert not step.combined.any() and not step.velocity
            # The solver's weights of x and x0 sum to 1, up to their rounding: the sample stays.
            assert relative_l2(step.x0, start) < 1e-6 and relative_l2(step.latent, start) < 1e-6
        else:
            assert step.combined.any()
    assert run.forwards == run.forwards_total == 12


# ---- weights ----


def test_an_interval_costs_what_it_uses(make):
    schedule = Schedule(8, 3.0)
    for rule in (G.interval(5, 0.5, 0.9), G.cfg(5).interval(0.5, 0.9), G.apg(5).interval(0.5, 0.9)):
        run = make(rule, schedule=schedule)
        inside = [0.5 < s <= 0.9 for s in schedule.sigmas[:-1]]
        assert any(inside) and not all(inside)
        for step in run:
            assert set(step.velocity) == ({"cond", "uncond"} if inside[step.index] else {"cond"})
            if not inside[step.index]:
                assert np.array_equal(step.combined, step.velocity["cond"])
        assert run.forwards == run.forwards_total == 8 + sum(inside)
    steps = G.cfg(5).interval(0.25, 0.5, by="step").coefficients(schedule)["uncond"]
    assert steps.tolist() == [0, 0, -4, -4, 0, 0, 0, 0]


def test_momentum_of_an_interval_waits_for_its_steps(make):
    """APG within an interval: the running difference is that of the steps where it acts."""
    schedule = Schedule(6, 3.0)
    run = make(G.apg(5, momentum=0.5).interval(1 / 3, 1, by="step"), schedule=schedule)
    oracle, x = in_x0(Projected(5, 0.5, 0, 0)), run.latent.astype(np.float64)
    for step in run:
        if step.index >= 2:
            c, u = (step.velocity[b].astype(np.float64) for b in ("cond", "uncond"))
            assert relative_l2(step.combined, oracle(c, u, x, step.sigma)) < BOUND
        x = step.latent.astype(np.float64)


@pytest.mark.parametrize("shape", [(4, 1, 1), (6, 8), (16, 4, 6, 8), (STEPS, 1, 4, 1, 1), (1, 1, 1, 6, 8)], ids=str)
def test_a_weight_may_be_an_array(make, shape):
    w = np.random.default_rng(0).normal(1, 3, shape).astype(np.float32)
    rule = Guidance({"cond": {}, "uncond": {"text": "negative"}}, "uncond + s*w*(cond - uncond)", s=[0.5, 1, 1, 2], w=w)
    assert Guidance.from_json(rule.to_json()) == rule and hash(rule) == hash(Guidance.from_json(rule.to_json()))
    run = make(rule)
    for step in run:
        c, u = (step.velocity[b].astype(np.float64) for b in ("cond", "uncond"))
        now = w[step.index % len(w)] if w.ndim == 5 else w
        assert relative_l2(step.combined, cfg_of(c, u, [0.5, 1, 1, 2][step.index] * now)) < BOUND
    assert "array" in repr(rule)


def test_an_array_that_is_zero_at_a_step_costs_nothing_there(make):
    w = np.ones((STEPS, 1, 1, 6, 8), np.float32)
    w[1:3] = 0
    run = make(Guidance({"cond": {}, "weak": {"skip_blocks": [1]}}, "cond + w*(cond - weak)", w=w))
    run.run()
    assert run.forwards == run.forwards_total == 2 * STEPS - 2


def test_a_region_alone_is_guided(make):
    """A face mask, say: outside of it nothing but the conditional prediction."""
    mask = np.zeros((6, 8), np.float32)
    mask[1:4, 2:6] = 1
    step = next(make(Guidance({"cond": {}, "weak": {"skip_blocks": [1]}}, "cond + s*m*(cond - weak)", s=2.0, m=mask)))
    same = step.combined == step.velocity["cond"]
    assert same[..., mask == 0].all() and not same[..., mask == 1].all()


def test_context_scale_by_step_and_layer(make, model):
    layers = len(model.config["vace_layers"])
    table = np.random.default_rng(1).uniform(0, 2, (STEPS, layers))
    table[1] = 0  # a step without any hint needs less memory, and the next one more again
    rules = [
        (Branch(context_scale=0.5), np.full((STEPS, layers), 0.5)),
        (Branch(context_scale=table[0]), np.broadcast_to(table[0], (STEPS, layers))),
        (Branch(context_scale=table), table),
        (Branch(context_scale=table[:, :1]), np.broadcast_to(table[:, :1], (STEPS, layers))),
        (Branch(context_scale=lambda k, sigma: table[k, 0]), np.broadcast_to(table[:, :1], (STEPS, layers))),
        (Branch(context_scale=lambda k, sigma: table[k].tolist()), table),
        (Branch(context_scale=table, reference_scale=0.0, control_scale=2.0), table),
    ]
    for branch, want in rules:
        run = make(Guidance({"cond": branch}, "cond"), source=make_source(references=2))
        x, text = run.latent.copy(), run._prepared.text("cond", "cond")
        for step in run:
            options = {"scale": (want[step.index] * branch.control_scale).tolist()}
            if branch.reference_scale != branch.control_scale:
                reference = (want[step.index] * branch.reference_scale).tolist()
                options |= {"reference_scale": reference, "reference_frames": 2}
            v = model.forward(x, step.timestep, text, run._prepared.context("present"), **options)
            assert np.array_equal(v, step.combined)
            x = step.latent.copy()
        assert Guidance.from_json(run.guidance.to_json()) == run.guidance


def test_scales_that_do_not_fit_are_named(make):
    for scale, match in (([1.0] * 7, "1 x 7 numbers for 4 steps"), ([[1.0]] * 3, "3 x 1 numbers for 4 steps")):
        with pytest.raises(ValueError, match=match):
            make(Guidance({"cond": Branch(context_scale=scale)}, "cond"))


# ---- composition ----


def test_a_sum_adds_the_terms(make):
    rule = G.cfg(5) + G.stg_a(2.0) + G.seg(1.0, sigma=1.0)
    assert rule.expanded() == "8 cond - 4 uncond - 2 weak - 1 weak_2"
    assert rule.branches["weak"] == Branch(identity_blocks=(2,)) and rule.branches["weak_2"].blur_blocks == (2,)
    assert set(rule.weights) == {"w", "s", "s_2"}
    run = make(rule)
    for step in run:
        v = {name: velocity.astype(np.float64) for name, velocity in step.velocity.items()}
        want = cfg_of(v["cond"], v["uncond"], 5) + 2 * (v["cond"] - v["weak"]) + v["cond"] - v["weak_2"]
        assert relative_l2(step.combined, want) < BOUND
    assert run.forwards == 4 * STEPS
    assert Guidance.from_json(rule.to_json()) == rule


def test_a_sum_shares_what_is_the_same(make):
    assert (G.cfg(5) + G.cfg(3)).expanded() == "7 cond - 6 uncond"
    rule = G.apg(5, momentum=0.4, space="v") + G.cfg(3)  # APG replaces its uncond: CFG's own must stay as predicted
    assert set(rule.branches) == {"cond", "uncond", "uncond_2"}
    run, oracle = make(rule), Projected(5, 0.4, 0, 0)
    for step in run:
        c, u = (step.velocity[b].astype(np.float64) for b in ("cond", "uncond"))
        assert np.array_equal(step.velocity["uncond_2"], step.velocity["uncond"])
        assert relative_l2(step.combined, oracle(c, u) + 2 * (c - u)) < BOUND
    assert run.forwards == run.forwards_total == 2 * STEPS  # given the same, predicted once


def test_operations_of_a_sum(make):
    rule = G.tcfg(5) + G.tcfg(3)
    assert len(rule.operations) == 1 and set(rule.branches) == {"cond", "uncond"}
    both = G.rescale(5, 0.7) + G.stg_r(1.0)
    run = make(both)
    step = next(run)
    v = {name: velocity.astype(np.float64) for name, velocity in step.velocity.items()}
    g = cfg_of(v["cond"], v["uncond"], 5) + v["cond"] - v["weak"]
    assert relative_l2(step.combined, 0.7 * g * v["cond"].std() / g.std() + 0.3 * g) < BOUND  # of the whole sum


@pytest.mark.parametrize("turned", [False, True])
def test_nag_in_a_sum_is_how_cond_is_predicted(make, turned):
    nag, rule = G.nag(4.0, 1.5, 0.5), G.cfg(5) + G.stg_a(2.0)
    run = make(rule + nag if turned else nag + rule)
    alone, plain = next(make(nag)).velocity["cond"].copy(), next(make(rule)).velocity
    step = next(run)
    v = {name: velocity.astype(np.float64) for name, velocity in step.velocity.items()}
    assert np.array_equal(step.velocity["cond"], alone) and not np.array_equal(alone, plain["cond"])
    assert all(np.array_equal(step.velocity[name], plain[name]) for name in ("uncond", "weak"))
    want = cfg_of(v["cond"], v["uncond"], 5) + 2 * (v["cond"] - v["weak"])
    assert relative_l2(step.combined, want) < BOUND and run.forwards_total == 3 * STEPS


def test_any_two_presets_compose():
    for a, b in itertools.product(G.PRESETS.values(), repeat=2):
        rule = a() + b()
        assert Guidance.from_json(rule.to_json()) == rule


def test_what_cannot_be_composed_says_so():
    with pytest.raises(ValueError, match="same branch 'cond'"):
        G.nag(4) + G.nag(5)
    with pytest.raises(ValueError, match="no branch 'base'"):
        G.cfg(5).interval(0, 1, base="base")
    with pytest.raises(TypeError):
        G.cfg(5) + 3
    with pytest.raises(ValueError, match="no CFG"):
        G.control(G.apg())


# ---- data ----


@pytest.mark.parametrize(
    ("make_it", "error", "match"),
    [
        (lambda: APG(norm=-1), ValueError, "norm"),
        (lambda: APG(space="z"), ValueError, "space"),
        (lambda: APG(cond="a", uncond="a"), ValueError, "two branches"),
        (lambda: Rescale(phi="x"), TypeError, "phi"),
        (lambda: G.ZeroInit(1.0), ValueError, "fraction"),
        (lambda: Guidance({"cond": {}}, "cond", [Rescale(cond="other")]), ValueError, "no branch 'other'"),
        (lambda: Guidance({"cond": {}}, "cond", [{"kind": "magic"}]), ValueError, "kind"),
        (lambda: Guidance({"cond": {}}, "cond", [{"kind": "rescale", "psi": 1}]), ValueError, "'psi' is unknown"),
        (lambda: Guidance({"cond": {}}, "cond", "apg"), TypeError, "operations"),
        (lambda: Interval(1, 0), ValueError, "below"),
        (lambda: Interval(0, 1, by="time"), ValueError, "by"),
        (lambda: G.cfg(np.zeros((2, 2, 2, 2, 2, 2))), ValueError, "weight 'w': expected 2 to 4 axes"),
        (lambda: G.cfg(np.array([[np.nan, 1]])), ValueError, "finite"),
        (lambda: Field([1.0]), ValueError, "axes"),
        (lambda: NAG(tau=0), ValueError, "tau"),
        (lambda: NAG(text=""), ValueError, "text"),
        (lambda: Branch(nag=3), TypeError, "nag"),
        (lambda: Branch(identity_blocks=[1], blur_blocks=[1]), ValueError, "block 1"),
        (lambda: Branch(blur_blocks=[1], blur_sigma=0), ValueError, "blur_sigma"),
        (lambda: Branch(context_scale=[[1, 2], [1]]), ValueError, "equal length"),
        (lambda: Branch(context_scale=[1, [2]]), ValueError, "context_scale"),
        (lambda: Branch(context_scale=[]), ValueError, "context_scale"),
    ],
)
def test_what_cannot_work_says_so(make_it, error, match):
    with pytest.raises(error, match=match):
        make_it()


def test_an_array_of_another_size_is_named(make):
    with pytest.raises(ValueError, match=r"\(3, 1, 1\) does not broadcast to the latent \(16, 4, 6, 8\), whose first"):
        make(G.cfg(np.ones((3, 1, 1))))
    with pytest.raises(ValueError, match="3 arrays for 4 steps"):
        make(G.cfg(np.ones((3, 1, 1, 1, 1))))


def test_operations_give_the_same_bytes_on_any_number_of_threads(golden_dir):
    """Their inner products are added in one order. (The forwards are not: so the velocities are given here.)"""
    results = []
    for threads in (1, 2, 3):
        model = make_model(golden_dir, threads)
        states = {n: recipe.normal(f"presets/{n}", (5, model.config["text_dim"])) for n in ("cond", "negative")}
        source = make_source(frames=17, size=(192, 192))
        given = {n: recipe.normal(f"threads/{n}", source.latent_shape) for n in ("cond", "uncond")}
        run = Sampler(model, states, source, guidance=G.apg(5) + G.rescale(2), schedule=Schedule(1), seed=1,
                      edit_velocity=lambda p, given=given: given)  # fmt: skip
        results.append(run.run().tobytes())
    assert results[0] == results[1] == results[2]

"""Schedules and solvers: equal to the original at every golden case, and sound where the original fails."""

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ipvg import _core, parity
from ipvg.schedule import Schedule

SOLVERS = ("unipc", "dpmpp", "euler")
DEVICE = _core.Device(threads=1)


def test_every_golden_case_agrees(golden_dir):
    results = parity.run(golden_dir, ["schedule"])
    assert [r for r in results if not r.ok] == []
    assert len(results) > 100


# ---- against the formulas of the papers, in float64, with D1, rk and a linear solve as they are printed there ----


def lam(sigma):
    with np.errstate(divide="ignore"):
        return np.log(1 - sigma) - np.log(sigma)


def unipc_update(x, m_last, m_before, s_before, s_last, s_to, order, m_new=None):
    """Multistep UniPC B2 in x0 form; with m_new the corrector."""
    h = lam(s_to) - lam(s_last)
    hh = -h
    h_phi_1 = np.expm1(hh)
    b_h = np.expm1(hh)
    out = s_to / s_last * x - (1 - s_to) * h_phi_1 * m_last
    rest = 0
    rk = (lam(s_before) - lam(s_last)) / h if order == 2 else None
    if m_new is None:
        if order == 2:
            rest = 0.5 * (m_before - m_last) / rk
    elif order == 1:
        rest = 0.5 * (m_new - m_last)
    else:
        h_phi_k = h_phi_1 / hh - 1
        b1 = h_phi_k / b_h
        b2 = (h_phi_k / hh - 0.5) * 2 / b_h
        rho = np.linalg.solve([[1, 1], [rk, 1]], [b1, b2])
        rest = rho[0] * (m_before - m_last) / rk + rho[1] * (m_new - m_last)
    return out - (1 - s_to) * b_h * rest


def oracle(schedule, x, model):
    s = schedule.sigmas.astype(np.float64)
    n, samples, m, anchor = schedule.steps, [], [], None
    for k in range(n):
        v = model(x, k)
        m.append(x - s[k] * v)
        if schedule.solver == "euler":
            x = x + (s[k + 1] - s[k]) * v
        elif k == n - 1:
            x = m[k]
        elif schedule.solver == "unipc":
            if k > 0:
                order = 1 if k == 1 else 2
                x = unipc_update(anchor, m[k - 1], m[k - 2], s[k - 2], s[k - 1], s[k], order, m[k])
            anchor = x
            x = unipc_update(x, m[k], m[k - 1], s[k - 1], s[k], s[k + 1], 1 if k == 0 else 2)
        else:
            h = lam(s[k + 1]) - lam(s[k])
            slope = 0
            if k > 0 and np.isfinite(lam(s[k - 1])):
                slope = 0.5 * (m[k] - m[k - 1]) / ((lam(s[k]) - lam(s[k - 1])) / h)
            x = s[k + 1] / s[k] * x - (1 - s[k + 1]) * np.expm1(-h) * (m[k] + slope)
        samples.append(x)
    return np.stack(samples)


def run(schedule, x, model):
    solver = schedule.start(x, DEVICE)
    return np.stack([solver.step(model(solver.x, k)).copy() for k in range(schedule.steps)])


def velocities(n, shape=(3, 5)):
    drift = np.random.default_rng(1).normal(size=(n, *shape))
    return lambda x, k: 0.7 * x + 0.3 * drift[k]


@pytest.mark.parametrize("sigmas_from", ["official", "diffusers"])
@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize(
    ("steps", "shift"), [(1, 16), (2, 3), (3, 16), (5, 0.2), (50, 16), (68, 16), (120, 16), (300, 5)]
)
def test_any_step_count_follows_the_formulas(solver, steps, shift, sigmas_from):
    schedule = Schedule(steps, shift, solver, sigmas_from)
    noise = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
    ours = run(schedule, noise, velocities(steps))
    expected = oracle(schedule, noise.astype(np.float64), velocities(steps))
    # float32 rounds each of the samples a few times: 1e-7 a step, as a random walk.
    assert parity.relative_l2(ours, expected) < 3e-7 * np.sqrt(steps)


def test_steps_that_share_a_timestep_are_not_skipped():
    schedule = Schedule(68, 16.0)
    assert schedule.timesteps[0] == schedule.timesteps[1]  # where the original stops with an AssertionError
    assert len(set(schedule.sigmas.tolist())) == 69


@settings(deadline=None, max_examples=300)
@given(
    steps=st.integers(1, 200),
    shift=st.floats(1e-6, 1e6),
    solver=st.sampled_from(SOLVERS),
    sigmas_from=st.sampled_from(["official", "diffusers"]),
)
def test_sigmas_fall_to_zero_and_a_perfect_model_is_solved_exactly(steps, shift, solver, sigmas_from):
    """Along a straight path every solver is exact: noise to clean, at any step count and shift, without a NaN."""
    schedule = Schedule(steps, shift, solver, sigmas_from)
    sigmas = schedule.sigmas
    assert sigmas.shape == (steps + 1,) and sigmas[-1] == 0 and 0 < sigmas[0] <= 1
    assert (np.diff(sigmas) <= 0).all()
    assert ((schedule.timesteps >= 0) & (schedule.timesteps <= 1000)).all()
    noise, clean = np.random.default_rng(2).normal(size=(2, 7)).astype(np.float32)
    start = (1 - sigmas[0]) * clean + sigmas[0] * noise
    solver = schedule.start(start, DEVICE)
    bound = 1e-6 + steps * 2**-23  # one rounding of a number below 4 a step, all to one side
    for k in range(steps):
        solver.step(noise - clean)
        expected = (1 - sigmas[k + 1]) * clean + sigmas[k + 1] * noise
        np.testing.assert_allclose(solver.x, expected, rtol=0, atol=bound)
        np.testing.assert_allclose(solver.x0, clean, rtol=0, atol=bound)


def test_last_sample_is_exactly_the_last_x0():
    for solver in ("unipc", "dpmpp"):
        run = Schedule(4, 16.0, solver).start(np.arange(6.0).reshape(2, 3), DEVICE)
        for k in range(4):
            run.step(np.sin(run.x + k))
        assert run.x.tobytes() == run.x0.tobytes()


@pytest.mark.parametrize(
    ("settings", "error", "text"),
    [
        ({"steps": 0}, ValueError, "steps"),
        ({"steps": 100_001}, ValueError, "steps"),
        ({"steps": 2.5}, TypeError, "steps"),
        ({"steps": True}, TypeError, "steps"),
        ({"shift": 0}, ValueError, "shift"),
        ({"shift": -1}, ValueError, "shift"),
        ({"shift": float("nan")}, ValueError, "shift"),
        ({"shift": float("inf")}, ValueError, "shift"),
        ({"shift": "x"}, TypeError, "shift: expected a number"),
        ({"solver": "heun"}, ValueError, "heun"),
        ({"sigmas_from": "karras"}, ValueError, "karras"),
    ],
)
def test_settings_that_cannot_work_say_so(settings, error, text):
    with pytest.raises(error, match=text):
        Schedule(**settings)


def test_solver_refuses_what_is_not_a_velocity():
    solver = Schedule(2, 3.0).start(np.zeros((2, 3)), DEVICE)
    with pytest.raises(ValueError, match="velocity"):
        solver.step(np.zeros((3, 2)))
    with pytest.raises(ValueError, match="not finite"):
        solver.step(np.full((2, 3), np.nan))
    with pytest.raises(TypeError, match="velocity"):
        solver.step(np.array([["a"] * 3] * 2))
    with pytest.raises(ValueError, match="noise"):
        Schedule(2, 3.0).start(np.zeros(0), DEVICE)
    assert solver.index == 0 and solver.x0 is None
    solver.step(np.zeros((2, 3)))
    solver.step(np.zeros((2, 3)))
    with pytest.raises(ValueError, match="all 2 steps are done"):
        solver.step(np.zeros((2, 3)))


def test_views_outlive_their_owner_and_cannot_be_written():
    solver = Schedule(2, 3.0).start(np.ones((2, 3)), DEVICE)
    x, sigmas = solver.x, Schedule(7, 3.0).sigmas
    del solver
    assert x.sum() == 6 and len(sigmas) == 8
    with pytest.raises(ValueError, match="read-only"):
        x[0, 0] = 3
    with pytest.raises(ValueError, match="read-only"):
        sigmas[0] = 3


def test_schedules_compare_hash_and_pickle_by_their_settings():
    a, b = Schedule(20, 16), Schedule(20, 16.0)
    assert a == b and hash(a) == hash(b) and a != Schedule(20, 8.0)
    assert pickle.loads(pickle.dumps(a)) == a
    assert "shift=16.0" in repr(a)

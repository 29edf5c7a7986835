"""Solvers with sigmas_from="diffusers" against diffusers' own, step by step with the same velocities."""

import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, UniPCMultistepScheduler

from ipvg.parity import relative_l2
from ipvg.schedule import Schedule

PEERS = {
    "unipc": lambda shift: UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift, solver_order=2, solver_type="bh2"
    ),
    "dpmpp": lambda shift: DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift, solver_order=2,
        algorithm_type="dpmsolver++", solver_type="midpoint", final_sigmas_type="zero",
    ),
}  # fmt: skip


@pytest.mark.parametrize("solver", PEERS)
@pytest.mark.parametrize("steps, shift", [(1, 16.0), (2, 5.0), (5, 3.0), (20, 16.0), (50, 16.0), (50, 1.0)])
def test_trajectory(solver, steps, shift):
    peer = PEERS[solver](shift)
    peer.set_timesteps(steps)
    schedule = Schedule(steps=steps, shift=shift, solver=solver, sigmas_from="diffusers")
    if solver == "dpmpp":  # diffusers' DPM++ has sigmas of its own; "diffusers" means its UniPC's, Wan's default there
        peer.sigmas, peer.timesteps = torch.from_numpy(schedule.sigmas.copy()), torch.from_numpy(schedule.timesteps)
    assert np.array_equal(schedule.timesteps, peer.timesteps.numpy())
    assert relative_l2(schedule.sigmas, peer.sigmas.numpy()) < 1e-6

    rng = np.random.default_rng(steps)
    noise = rng.standard_normal((16, 3, 4, 5), np.float32)
    ours, theirs = schedule.start(noise), torch.from_numpy(noise)
    for t in peer.timesteps:
        velocity = rng.standard_normal(noise.shape, np.float32)
        theirs = peer.step(torch.from_numpy(velocity), t, theirs, return_dict=False)[0]
        # 1e-5: both work in float32, and diffusers' coefficients come from float32 logarithms.
        assert relative_l2(ours.step(velocity), theirs.numpy()) < 1e-5

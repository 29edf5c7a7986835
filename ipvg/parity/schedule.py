"""Schedules against Wan2.1's and diffusers' own: sigmas and timesteps bit for bit, whole trajectories in float32."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from .. import _core
from ..schedule import Schedule
from . import recipe
from .golden import Case, Golden, Result

#: Trajectories, relative L2 of all samples of a run. The reference lies up to 4.8e-7 from a float64 run of itself
#: (fp64_study in the JSON, 50 steps); ours has as many roundings; at worst the two add up, and twice
#: that leaves room for longer runs (the error grows with the steps).
TRAJECTORY = 2e-6


def of_case(case: Case) -> Schedule:
    """The schedule that a case's config describes; the end-to-end cases have the same keys."""
    solver = case.config["solver"]
    if solver.startswith("diffusers UniPC"):
        return Schedule(case.config["steps"], case.config["shift"], "unipc", "diffusers")
    return Schedule(case.config["steps"], case.config["shift"], solver)


def check(golden: Golden, device: str) -> Iterator[Result]:
    dev = _core.Device(device)
    for case in golden.cases.values():
        schedule = of_case(case)
        for name in ("sigmas_f64", "sigmas", "timesteps"):
            if name in case:
                yield case.compare(name, getattr(schedule, name), 0, by="max abs")
        yield case.compare("x", trajectory(schedule, case, dev), TRAJECTORY)


def trajectory(schedule: Schedule, case: Case, device: _core.Device) -> np.ndarray:
    """(steps,) + shape: the sample after each step, with the model that about.model describes."""
    solver = schedule.start(case.input("x_0"), device)
    entry = case.inputs["n_k, k = 0..n-1"]
    samples = []
    for k in range(schedule.steps):
        noise = recipe.normal(case.golden.salt + entry["key"].replace("<k>", str(k)), entry["shape"])
        velocity = np.float32(0.7) * solver.x + np.float32(0.3) * noise
        samples.append(solver.step(velocity).copy())
    return np.stack(samples)

"""The noise schedule and its solver: which sigmas a run visits, and how a velocity moves the sample to the next one.

>>> schedule = Schedule(steps=20, shift=16.0)
>>> solver = schedule.start(noise)                          # any float32 array
>>> while solver.index < schedule.steps:
...     velocity = model(solver.x, schedule.timesteps[solver.index])
...     solver.step(velocity)
>>> clean = solver.x.copy()
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np

from . import _arguments, _core

SolverName = Literal["unipc", "dpmpp", "euler"]
Convention = Literal["official", "diffusers"]


@dataclass(frozen=True)
class Schedule:
    """Noise levels and solver of a run. Frozen, hashable; equal settings are equal schedules.

    steps: 1 or more. shift: above 0; larger spends more steps near pure noise (VACE's default is 16, 1 is none).
    solver: "unipc" (order 2 with corrector), "dpmpp" (DPM-Solver++ 2M) or "euler".
    sigmas_from: "official" (Wan2.1's own code) or "diffusers" (linspace(1, 0.001), as newer diffusers has it: at 50
    steps and shift 16, 20 of 50 timesteps differ).

    begin: the step that a run begins with, its first steps left out: for latents that are not pure noise (SDEdit). The
    solver has no history there.

    Everything is indexed by step; that two steps may share an integer timestep (68 steps at shift 16) does no harm.
    Raises ValueError for a value out of range. Source: Wan2.1 wan/utils/fm_solvers_unipc.py and fm_solvers.py.
    """

    steps: int = 50
    shift: float = 16.0
    solver: SolverName = "unipc"
    sigmas_from: Convention = "official"
    begin: int = 0
    _core: _core.Schedule = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "steps", _arguments.integer("steps", self.steps, 1, 100_000))
        object.__setattr__(self, "shift", _arguments.number("shift", self.shift))
        _arguments.choice("solver", self.solver, get_args(SolverName))
        _arguments.choice("sigmas_from", self.sigmas_from, get_args(Convention))
        object.__setattr__(self, "begin", _arguments.integer("begin", self.begin, 0, self.steps - 1))
        core = _core.Schedule(self.solver, self.steps, self.shift, self.sigmas_from, self.begin)
        object.__setattr__(self, "_core", core)

    def __reduce__(self):
        return Schedule, (self.steps, self.shift, self.solver, self.sigmas_from, self.begin)

    @property
    def sigmas(self) -> np.ndarray:
        """(steps + 1,) float32, falling: the noise level before each step, and 0 at the end. What the solver uses."""
        return self._core.sigmas

    @property
    def sigmas_f64(self) -> np.ndarray:
        """(steps + 1,) float64: the same before they are rounded; the timesteps come from these."""
        return self._core.sigmas_f64

    @property
    def timesteps(self) -> np.ndarray:
        """(steps,) int64 in [0, 1000]: what the model is told, 1000 sigma truncated."""
        return self._core.timesteps

    def start(self, noise: np.ndarray, device: _core.Device | None = None) -> _core.Solver:
        """A run of the solver from `noise`, any float32 array. Its ``step(velocity)`` returns the next sample.

        The arrays that it hands out are read-only views of its memory, overwritten by the next step: copy what you
        keep. Raises ValueError for NaN or infinity, in the noise and in every velocity.
        """
        return _core.Solver(device or _core.Device(), self._core, noise)

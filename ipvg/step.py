"""What a sampler shows of a step, and how far it is."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np


class Velocities(dict):
    """Branch name -> velocity; says why one is not there."""

    def __missing__(self, name: str):
        raise KeyError(f"no velocity of branch {name!r} at this step: its weight is 0 here, or there is no such branch")


@dataclass(frozen=True)
class Prediction:
    """A step under way, for hooks. All arrays are read-only float32 views (C, F, h, w), reference slots included.

    index: 0-based. sigma, timestep: what the model was told. latent: the sample that it saw. velocity: branch name ->
    that prediction. combined: their combination; None for the hook that comes before it.
    """

    index: int
    sigma: float
    timestep: int
    latent: np.ndarray
    velocity: Mapping[str, np.ndarray]
    combined: np.ndarray | None = None


@dataclass(frozen=True)
class Step:
    """One finished step. All arrays are read-only float32 views (C, F, h, w), reference slots included, of the
    sampler's own memory: valid until the next step begins, safe to hold for ever. Copy what you want to keep.

    index: 0-based. sigma, timestep: what the model was told. weights: branch name -> its coefficient, where it is not
    0: a number, or an array that broadcasts to the latent. velocity: branch name -> that prediction, as the model gave
    it. combined: their combination, what the solver got. x0: the clean latent it implies, x - sigma combined. latent:
    the sample after the step. seconds: wall time of the step.
    """

    index: int
    sigma: float
    timestep: int
    weights: Mapping[str, float | np.ndarray]
    velocity: Mapping[str, np.ndarray]
    combined: np.ndarray
    x0: np.ndarray
    latent: np.ndarray
    seconds: float


class Progress(NamedTuple):
    """done, total: steps. elapsed, eta: seconds; eta counts the model forwards that are left, not the steps."""

    done: int
    total: int
    elapsed: float
    eta: float

    def __str__(self) -> str:
        return f"step {self.done}/{self.total}, {_clock(self.elapsed)} so far, {_clock(self.eta)} left"


def print_progress(progress: Progress) -> None:
    end = "\r" if sys.stderr.isatty() and progress.done < progress.total else "\n"
    print(progress, end=end, file=sys.stderr, flush=True)


def _clock(seconds: float) -> str:
    if not math.isfinite(seconds):
        return "?"
    minutes, s = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{s:02}" if minutes >= 60 else f"{minutes}:{s:02}"

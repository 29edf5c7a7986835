"""What a sampler shows of a step, and how far it is."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ._core import Tensor


class Velocities(Mapping):
    """Branch name -> velocity, made by `read` of its tensor when asked for; says why one is not there."""

    def __init__(self, tensors: Mapping[str, Tensor], read: Callable[[Tensor], Any]):
        self._tensors, self._read = tensors, read

    def __getitem__(self, name: str):
        if name not in self._tensors:
            raise KeyError(
                f"no velocity of branch {name!r} at this step: its weight is 0 here, or there is no such branch"
            )
        return self._read(self._tensors[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


@dataclass(frozen=True)
class Tensors:
    """What a step shows, where the model runs: for torch.from_dlpack and others, without a copy. See `ipvg.Tensor`.

    latent: (C, F, h, w) float32, reference slots included. velocity: branch name -> tensor. combined and x0: None where
    the step has none yet. On a GPU whatever is not read stays there.
    """

    latent: Tensor
    velocity: Mapping[str, Tensor]
    combined: Tensor | None = None
    x0: Tensor | None = None


class _Arrays:
    """`tensors` as NumPy arrays, read when asked for."""

    tensors: Tensors

    @property
    def latent(self) -> np.ndarray:
        return np.asarray(self.tensors.latent)

    @property
    def velocity(self) -> Mapping[str, np.ndarray]:
        return Velocities(self.tensors.velocity, np.asarray)

    @property
    def combined(self) -> np.ndarray:
        return None if self.tensors.combined is None else np.asarray(self.tensors.combined)


@dataclass(frozen=True)
class Prediction(_Arrays):
    """A step under way, for hooks. All arrays are read-only float32 (C, F, h, w), reference slots included.

    index: 0-based. sigma, timestep: what the model was told. latent: the sample that it saw. velocity: branch name ->
    that prediction. combined: their combination; None for the hook that comes before it.
    tensors: the same where the model runs. A hook may write to what it can replace: edit_velocity to velocity[name],
    edit_combined to combined; what it writes counts, as if it had returned it.
    """

    index: int
    sigma: float
    timestep: int
    tensors: Tensors


@dataclass(frozen=True)
class Step(_Arrays):
    """One finished step. All arrays are read-only float32 (C, F, h, w), reference slots included, of the sampler's own
    memory: valid until the next step begins, safe to hold for ever. Copy what you want to keep. On the CPU they are
    views, on a GPU each reading is a copy, so that a step costs the bus only what somebody looks at.

    index: 0-based. sigma, timestep: what the model was told. weights: branch name -> its coefficient, where it is not
    0: a number, or an array that broadcasts to the latent. velocity: branch name -> that prediction, as the model gave
    it. combined: their combination, what the solver got. x0: the clean latent it implies, x - sigma combined. latent:
    the sample after the step. seconds: wall time of the step. tensors: the four where the model runs, read-only.
    """

    index: int
    sigma: float
    timestep: int
    weights: Mapping[str, float | np.ndarray]
    tensors: Tensors
    seconds: float

    @property
    def x0(self) -> np.ndarray:
        return np.asarray(self.tensors.x0)


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

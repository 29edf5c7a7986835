"""The denoising loop, open: every branch's velocity, their combination, the x0 preview and the latent at every step.

>>> sampler = Sampler(dit, {"cond": states, "negative": other}, source,
...                   guidance=guidance.tpige_code(), schedule=Schedule(50, 16.0), seed=2025)
>>> for step in sampler:
...     print(step.index, step.sigma, abs(step.velocity["weak"]).mean(), step.x0.std())
>>> sampler.latents                                  # (16, F, h, w), reference slots cut off: for the VAE
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from . import _arguments, _core
from .guidance import Guidance
from .schedule import Schedule
from .source import Source


def noise(seed: int, shape: Sequence[int]) -> np.ndarray:
    """Standard normal noise, float32, the same bits on every machine and device.

    Element i (C order) depends on (seed, i) alone: Philox4x32-10 and the inverse normal distribution, as
    csrc/base/random.h says. seed: 0 to 2**64 - 1. It is not torch's generator: to repeat a run of the original code,
    pass its noise instead. Raises TypeError / ValueError for a seed or shape that cannot work.
    """
    seed = _arguments.integer("seed", seed, 0, 2**64 - 1)
    shape = tuple(
        _arguments.integer("shape", size, 0, 2**40) for size in _arguments.instance("shape", shape, Sequence, "sizes")
    )
    if math.prod(shape) > 2**40:
        raise ValueError(f"shape: {shape} has more elements than any machine holds")
    return _core.normals(seed, 0, 0, math.prod(shape)).reshape(shape)


draw = noise  # where an argument is called noise


class _Velocities(dict):
    """Branch name -> velocity; says why one is not there."""

    def __missing__(self, name: str):
        raise KeyError(f"no velocity of branch {name!r} at this step: its weight is 0 here, or there is no such branch")


@dataclass(frozen=True)
class Step:
    """One finished step. All arrays are read-only float32 views (C, F, h, w), reference slots included, of the
    sampler's own memory: valid until the next step begins, safe to hold for ever. Copy what you want to keep.

    index: 0-based. sigma, timestep: what the model was told. weights: branch name -> its coefficient, where it is not
    0. velocity: branch name -> that prediction. combined: the sum, what the solver got. x0: the clean latent it
    implies, x - sigma combined. latent: the sample after the step. seconds: wall time of the step.
    """

    index: int
    sigma: float
    timestep: int
    weights: Mapping[str, float]
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


class Sampler:
    """Iterates over the steps of one video. Stop, look, change your mind, go on: nothing is lost between steps.

    model: a `_core.Dit`. texts: prompt name -> umT5 states (n, text_dim) float32, or what ``model.text`` made of them;
        all names that ``guidance.texts`` lists. source: the VACE context, which has all three kinds of reference in it.
    guidance, schedule: frozen settings. seed or noise, one of them: noise is (C, F, h, w) float32, reference slots too.

    Same seed, same thread count: the same bytes. Other thread counts differ by float32 rounding.
    Raises ValueError / TypeError naming the argument.
    """

    def __init__(
        self,
        model: _core.Dit,
        texts: Mapping[str, np.ndarray | _core.DitText],
        source: Source,
        *,
        guidance: Guidance,
        schedule: Schedule | None = None,
        seed: int | None = None,
        noise: np.ndarray | None = None,
    ):
        self.model = _arguments.instance("model", model, _core.Dit)
        self.source = _arguments.instance("source", source, Source)
        self.schedule = Schedule() if schedule is None else _arguments.instance("schedule", schedule, Schedule)
        _arguments.instance("guidance", guidance, Guidance)
        _arguments.instance("texts", texts, Mapping, "a mapping of prompt names to states")
        self.seed = seed
        self.guidance = guidance.resolve(self.schedule)
        if (seed is None) == (noise is None):
            raise ValueError("give seed= or noise=, one of them")
        if noise is None:
            noise = draw(seed, source.latent_shape)

        with np.errstate(over="ignore"):  # an infinity is refused below, with its place
            weights = {name: w.astype(np.float32) for name, w in guidance.coefficients(self.schedule).items()}
        self._names = [name for name, w in weights.items() if w.any()]
        if not self._names:
            raise ValueError(f"guidance: every coefficient is 0 at every step of {guidance.combine!r}")
        self._weights = np.stack([weights[name] for name in self._names], axis=1)
        self._core = _core.Sampler(model, self.schedule._core, self._branches(texts), self._weights, noise)
        self._elapsed = 0.0

    def _branches(self, texts: Mapping[str, np.ndarray | _core.DitText]) -> list[tuple]:
        """What `_core.Sampler` wants; a prompt or context that several branches share is prepared once."""
        text_of, context_of, out = {}, {}, []
        for name in self._names:
            b = self.guidance.branches[name]
            if b.text not in texts:
                given = ", ".join(sorted(texts)) or "nothing"
                raise ValueError(f"texts: branch {name!r} needs {b.text!r}; given: {given}")
            if b.text not in text_of:
                text = texts[b.text]
                text_of[b.text] = text if isinstance(text, _core.DitText) else self.model.text(text)
            if b.reference not in context_of:
                context = self.source.variant(b.reference)
                context_of[b.reference] = self.model.context(context, frames=self.source.latent_shape[1])
            out.append((text_of[b.text], context_of[b.reference], b.skip_blocks, b.keep_hint, b.context_scale))
        return out

    # ---- stepping ----

    def __iter__(self) -> Iterator[Step]:
        return self

    def __len__(self) -> int:
        """Steps of the whole run."""
        return self.schedule.steps

    def __next__(self) -> Step:
        if self.done:
            raise StopIteration
        return self.step()

    def step(self) -> Step:
        """The next step. On any failure the sampler stays at the last finished step and can go on from there.

        Raises ipvg.Cancelled after `cancel`, KeyboardInterrupt within one block of the model after Ctrl-C, ValueError
        when the run is finished.
        """
        k, begin = self._core.index, time.perf_counter()
        self._core.step()
        seconds = time.perf_counter() - begin
        self._elapsed += seconds
        active = [(i, name) for i, name in enumerate(self._names) if self._weights[k, i]]
        return Step(
            index=k,
            sigma=float(self.schedule.sigmas[k]),
            timestep=int(self.schedule.timesteps[k]),
            weights={name: float(self._weights[k, i]) for i, name in active},
            velocity=_Velocities({name: self._core.velocity(i) for i, name in active}),
            combined=self._core.combined,
            x0=self._core.x0,
            latent=self._core.latent,
            seconds=seconds,
        )

    def run(
        self,
        callback: Callable[[Step], object] | None = None,
        progress: bool | Callable[[Progress], object] = False,
    ) -> np.ndarray:
        """The steps that are left; returns `latents`. callback gets each Step; an exception of its own stops the run.

        progress: a function that gets a `Progress` after each step, or True for a line on stderr.
        """
        show = _print_progress if progress is True else progress
        for step in self:
            if callback:
                callback(step)
            if show:
                show(self.progress)
        return self.latents

    def cancel(self) -> None:
        """From another thread or a callback: the step that runs stops within one block of the model, else the next one
        does not begin; either raises ipvg.Cancelled, once. The sampler stays at the last finished step, and usable."""
        self._core.cancel()

    # ---- looking ----

    @property
    def index(self) -> int:
        """Steps done; the index of the next one."""
        return self._core.index

    @property
    def done(self) -> bool:
        return self.index >= self.schedule.steps

    @property
    def latent(self) -> np.ndarray:
        """(C, F, h, w) float32 view: the sample that the model sees next, reference slots included. Assign an array to
        replace it; the solver's history stays as it is."""
        return self._core.latent

    @latent.setter
    def latent(self, value: np.ndarray) -> None:
        self._core.set_latent(value)

    @property
    def latents(self) -> np.ndarray:
        """(C, F - references, h, w) float32 view of `latent`: what the VAE decodes, once the run is done."""
        return self._core.latent[:, self.source.references :]

    @property
    def forwards(self) -> int:
        """Model forwards computed so far."""
        return self._core.forwards

    @property
    def forwards_total(self) -> int:
        """Model forwards of the whole run: a branch counts only at the steps where its weight is not 0."""
        return int(np.count_nonzero(self._weights))

    @property
    def bytes(self) -> int:
        """Memory of the run's own tensors, without the model's scratch."""
        return self._core.bytes

    @property
    def progress(self) -> Progress:
        left = int(np.count_nonzero(self._weights[self.index :]))
        eta = self._elapsed / self.forwards * left if self.forwards else math.nan
        return Progress(self.index, self.schedule.steps, self._elapsed, eta)

    def __repr__(self) -> str:
        return f"<Sampler: step {self.index} of {self.schedule.steps}, {self.guidance.combine}>"


def _clock(seconds: float) -> str:
    if not math.isfinite(seconds):
        return "?"
    minutes, s = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{s:02}" if minutes >= 60 else f"{minutes}:{s:02}"


def _print_progress(progress: Progress) -> None:
    end = "\r" if sys.stderr.isatty() and progress.done < progress.total else "\n"
    print(progress, end=end, file=sys.stderr, flush=True)

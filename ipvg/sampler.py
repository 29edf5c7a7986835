"""The denoising loop, open: every branch's velocity, their combination, the x0 preview and the latent at every step.

>>> sampler = Sampler(dit, {"cond": states, "negative": other}, source,
...                   guidance=guidance.tpige_code(), schedule=Schedule(50, 16.0), seed=2025)
>>> for step in sampler:
...     print(step.index, step.sigma, abs(step.velocity["weak"]).mean(), step.x0.std())
>>> sampler.latents                                  # (16, F, h, w), reference slots cut off: for the VAE
>>> other = sampler.fork(guidance=guidance.cfg(7))   # goes on from here with another guidance
>>> sampler.snapshot("run.safetensors")              # and Sampler.restore("run.safetensors", dit) in another process
"""

from __future__ import annotations

import dataclasses
import math
import os
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from . import _arguments, _core
from .guidance import Guidance
from .plan import Plan, Prepared
from .schedule import Schedule
from .source import Source
from .step import Prediction, Progress, Step, Tensors, Velocities, print_progress


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

Latents = np.ndarray
Array = Any  # a NumPy array, an ipvg.Tensor, or an object with __dlpack__ of another library, on the host or on the GPU
VelocityHook = Callable[[Prediction], Mapping[str, Array] | None]
CombinedHook = Callable[[Prediction], Array | None]


@dataclasses.dataclass(frozen=True)
class State:
    """All that a run goes on from, as copies: `index` steps done, `forwards` computed, the solver's five tensors and
    the running differences of APG, in the order of `operations`."""

    index: int
    forwards: int
    elapsed: float
    solver: list[np.ndarray]
    running: list[np.ndarray]


class Sampler:
    """Iterates over the steps of one video. Stop, look, change your mind, go on: nothing is lost between steps.

    model: a `_core.Dit`. texts: prompt name -> umT5 states (n, text_dim) float32, or what ``model.text`` made of them;
        all names that ``guidance.texts`` lists. source: the VACE context, which has all three kinds of reference in it.
    guidance, schedule: frozen settings. seed or noise, one of them: noise is (C, F, h, w) float32, reference slots too.
    start: (latents, where): begin from these clean latents (C, F or F - references, h, w) with noise up to `where`, a
        step index or a sigma (the first step at or below it), as SDEdit does; missing reference slots are zero.
    record: True, or the step indices before which a copy of the state is kept, for `fork(at=)`: five latents each.
    edit_velocity: called at each step with a `Prediction`; returns branch name -> velocity for those to replace, or
        None. edit_combined: the same after their combination; returns the velocity that the solver gets, or None.
    Arrays may be another library's (texts, noise, what hooks return, `latent`): whatever has __dlpack__, on the host or
        on the model's GPU, where it is copied to where the model reads it and never to the host. What a step shows goes
        the other way: ``torch.from_dlpack(step.tensors.x0)``.

    Same seed, same thread count: the same bytes. Other thread counts differ by float32 rounding.
    Raises ValueError / TypeError naming the argument.
    """

    def __init__(
        self,
        model: _core.Dit,
        texts: Mapping[str, Array | _core.DitText] | Prepared,
        source: Source,
        *,
        guidance: Guidance,
        schedule: Schedule | None = None,
        seed: int | None = None,
        noise: Array | None = None,
        start: tuple[Latents, int | float] | None = None,
        record: bool | Collection[int] = False,
        edit_velocity: VelocityHook | None = None,
        edit_combined: CombinedHook | None = None,
    ):
        self.model = _arguments.instance("model", model, _core.Dit)
        self.source = _arguments.instance("source", source, Source)
        self.schedule = Schedule() if schedule is None else _arguments.instance("schedule", schedule, Schedule)
        _arguments.instance("guidance", guidance, Guidance)
        _arguments.instance("texts", texts, Mapping | Prepared, "a mapping of prompt names to states")
        self.seed = seed
        if (seed is None) == (noise is None):
            raise ValueError("give seed= or noise=, one of them")
        if noise is None:
            noise = draw(seed, source.latent_shape)
        if start is not None:
            self.schedule, noise = _start(self.schedule, source, start, noise)
        self.guidance = guidance.resolve(self.schedule)
        for name, hook in (("edit_velocity", edit_velocity), ("edit_combined", edit_combined)):
            if hook is not None and not callable(hook):
                raise TypeError(f"{name}: expected a function of a Prediction, got {_arguments.short(hook)}")
        if not isinstance(record, bool):
            _arguments.instance("record", record, Collection, "True or step indices")
            record = {_arguments.integer("record", k, 0, self.schedule.steps) for k in record}
        self.record, self.edit_velocity, self.edit_combined = record, edit_velocity, edit_combined
        self._prepared = texts if isinstance(texts, Prepared) else Prepared(model, source, dict(texts))
        self._plan = Plan(self.guidance, self.schedule, self._prepared)
        self._names = self._plan.names
        self._core = _core.Sampler(
            model, self.schedule._core, self._plan.branches, self._plan.weights, noise, self._plan.core_operations()
        )
        self._needed = np.array(
            [[self._core.needs(k, i) for i in range(len(self._names))] for k in range(self.schedule.steps)]
        )
        alone = np.array([not branch[4] for branch in self._plan.branches])  # not the twin of another
        self._forwards = (self._needed & alone).sum(axis=1)
        self._forwards[: self.schedule.begin] = 0
        self._elapsed = 0.0
        self._records: dict[int, State] = {}
        self._keep_record()

    # ---- stepping ----

    def __iter__(self) -> Iterator[Step]:
        return self

    def __len__(self) -> int:
        """Steps of the whole run."""
        return self.schedule.steps - self.schedule.begin

    def __next__(self) -> Step:
        if self.done:
            raise StopIteration
        return self.step()

    def step(self) -> Step:
        """The next step. On any failure the sampler stays at the last finished step and can go on from there.

        Raises ipvg.Cancelled after `cancel`, KeyboardInterrupt within one block of the model after Ctrl-C, ValueError
        when the run is finished, what a hook raises.
        """
        k, begin = self._core.index, time.perf_counter()
        if k < self.schedule.steps:
            self._plan.set_step(self._core, k)
        if self.edit_velocity or self.edit_combined:
            self._edited_step(k)
        else:
            self._core.step()
        seconds = time.perf_counter() - begin
        self._elapsed += seconds
        self._keep_record()
        return Step(
            index=k,
            sigma=float(self.schedule.sigmas[k]),
            timestep=int(self.schedule.timesteps[k]),
            weights=self._plan.weights_at(k),
            tensors=self._tensors(combined=self._core.tensor("combined"), x0=self._core.tensor("x0")),
            seconds=seconds,
        )

    def _edited_step(self, k: int) -> None:
        core = self._core
        core.predict()
        seen = Prediction(
            index=k,
            sigma=float(self.schedule.sigmas[k]),
            timestep=int(self.schedule.timesteps[k]),
            tensors=self._tensors(writable=bool(self.edit_velocity)),
        )
        for name, velocity in ((self.edit_velocity and self.edit_velocity(seen)) or {}).items():
            if name not in seen.velocity:
                there = ", ".join(seen.velocity)
                raise ValueError(f"edit_velocity: {name!r} is not predicted at step {k}; there are {there}")
            core.set_velocity(self._names.index(name), velocity)
        core.combine()
        if self.edit_combined:
            tensors = self._tensors(combined=core.tensor("combined", writable=True))
            velocity = self.edit_combined(dataclasses.replace(seen, tensors=tensors))
            if velocity is not None:
                core.set_velocity(-1, velocity)
        core.advance()

    def _tensors(self, writable: bool = False, **others: _core.Tensor) -> Tensors:
        found = {name: self._core.tensor(i, writable=writable) for i, name in enumerate(self._names)}
        velocity = Velocities({name: v for name, v in found.items() if v is not None}, lambda tensor: tensor)
        return Tensors(self._core.tensor("latent"), velocity, **others)

    def run(
        self,
        callback: Callable[[Step], object] | None = None,
        progress: bool | Callable[[Progress], object] = False,
    ) -> np.ndarray:
        """The steps that are left; returns `latents`. callback gets each Step; an exception of its own stops the run.

        progress: a function that gets a `Progress` after each step, or True for a line on stderr.
        """
        show = print_progress if progress is True else progress
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

    # ---- forks, seeds, snapshots ----

    def fork(
        self,
        at: int | None = None,
        guidance: Guidance | None = None,
        text: Mapping[str, np.ndarray | _core.DitText] | None = None,
    ) -> Sampler:
        """A second run that goes on from before step `at` (default: here): the same sample, solver history and running
        differences of operations that both have; another guidance, or some other prompts. This one is not changed.

        ValueError: a step that was not recorded (`record`), a prompt that is missing.
        """
        at = self.index if at is None else _arguments.integer("at", at, 0, self.schedule.steps)
        state = self._state() if at == self.index else self._records.get(at)
        if state is None:
            known = ", ".join(map(str, sorted({*self._records, self.index})))
            raise ValueError(f"at: no copy of the state before step {at} was kept (see record=); there are: {known}")
        _arguments.instance("text", {} if text is None else text, Mapping, "a mapping of prompt names to states")
        prepared = self._prepared.with_texts(text) if text else self._prepared
        rule = self.guidance if guidance is None else guidance
        other = self._like(prepared, rule, self.seed, np.zeros(self.source.latent_shape, np.float32))
        other._load(state, self._apgs())
        return other

    def seeds(self, seeds: Sequence[int]) -> Iterator[Sampler]:
        """A fresh run of the same settings for each seed, made when its turn comes. They share the prepared prompts and
        contexts. Not for a run that began from latents (start=): give that one each seed yourself."""
        if self.schedule.begin:
            raise ValueError("seeds: this run began from latents; make one Sampler(start=..., seed=...) for each seed")
        for seed in seeds:
            yield self._like(self._prepared, self.guidance, seed, draw(seed, self.source.latent_shape))

    def _like(self, prepared: Prepared, guidance: Guidance, seed: int | None, noise: np.ndarray) -> Sampler:
        other = Sampler(
            self.model, prepared, self.source, guidance=guidance, schedule=self.schedule, noise=noise,
            record=self.record, edit_velocity=self.edit_velocity, edit_combined=self.edit_combined,
        )  # fmt: skip
        other.seed = seed
        return other

    def snapshot(self, path: str | os.PathLike) -> None:
        """Writes all that this run goes on from to one .safetensors file, replacing it in one step: whoever is killed
        meanwhile leaves the old file or the new one. Raises OSError. See `restore`."""
        from .snapshot import save

        save(self, path)

    @classmethod
    def restore(
        cls,
        path: str | os.PathLike,
        model: _core.Dit,
        *,
        texts: Mapping[str, np.ndarray | _core.DitText] | None = None,
        source: Source | None = None,
        record: bool | Collection[int] = False,
        edit_velocity: VelocityHook | None = None,
        edit_combined: CombinedHook | None = None,
    ) -> Sampler:
        """The run of a snapshot, on a model of the same sizes and weights; it continues to the same bytes on the same
        number of threads. texts and source: in place of those in the file; texts are needed where the sampler had been
        given prepared ones, which no file can hold. Hooks are code: give them again.

        Raises OSError, ipvg.FormatError for a file that is no snapshot, ValueError for a model of other sizes; warns
        of weights (it names them), version or thread count that are not those it was made with."""
        from .snapshot import load

        hooks = {"record": record, "edit_velocity": edit_velocity, "edit_combined": edit_combined}
        return load(cls, path, model, texts, source, hooks)

    def _apgs(self) -> list:
        return [o for o in self._plan.operations if o.kind == "apg"]

    def _state(self) -> State:
        copies = [np.array(view) for view in self._core.state()]
        return State(self.index, self.forwards, self._elapsed, copies[:5], copies[5:])

    def _load(self, state: State, apgs: list) -> None:
        """apgs: the operations that state.running belongs to."""
        known = list(zip(apgs, state.running, strict=True))
        running = []
        for operation in self._apgs():
            found = next((i for i, (o, _) in enumerate(known) if o == operation), None)
            running.append(np.zeros_like(state.solver[0]) if found is None else known.pop(found)[1])
        self._core.load(state.index, state.forwards, [*state.solver, *running])
        self._elapsed = state.elapsed
        self._records.clear()
        self._keep_record()

    def _keep_record(self) -> None:
        if self.record is True or (self.record is not False and self.index in self.record):
            self._records[self.index] = self._state()

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
        return np.asarray(self._core.tensor("latent"))

    @latent.setter
    def latent(self, value: Array) -> None:
        self._core.set_latent(value)

    @property
    def latents(self) -> np.ndarray:
        """(C, F - references, h, w) float32 view of `latent`: what the VAE decodes, once the run is done."""
        return np.asarray(self.latents_tensor)

    @property
    def latents_tensor(self) -> _core.Tensor:
        """`latents` where the model runs: for the VAE without a way over the host, or for another library."""
        return self._core.tensor("latent", skip=self.source.references)

    @property
    def forwards(self) -> int:
        """Model forwards computed so far."""
        return self._core.forwards

    @property
    def forwards_total(self) -> int:
        """Model forwards of the whole run: a branch counts only at the steps that need it, and once for all branches
        that are given the same."""
        return int(self._forwards.sum())

    @property
    def bytes(self) -> int:
        """Memory of the run's own tensors, without the model's scratch."""
        return self._core.bytes

    @property
    def progress(self) -> Progress:
        left = int(self._forwards[self.index :].sum())
        eta = self._elapsed / self.forwards * left if self.forwards else math.nan
        return Progress(self.index, self.schedule.steps, self._elapsed, eta)

    def __repr__(self) -> str:
        return f"<Sampler: step {self.index} of {self.schedule.steps}, {self.guidance.combine}>"


def _start(
    schedule: Schedule, source: Source, start: tuple[Latents, int | float], noise: np.ndarray
) -> tuple[Schedule, np.ndarray]:
    """The schedule that begins there, and (1 - sigma) latents + sigma noise."""
    try:
        latents, where = start
    except (TypeError, ValueError):
        raise TypeError("start: expected (latents, step or sigma)") from None
    if isinstance(where, bool) or not isinstance(where, int | float | np.integer | np.floating):
        raise TypeError(f"start: expected a step (int) or a sigma (float), got {where!r}")
    if isinstance(where, int | np.integer):
        k = int(where)
    else:
        below = np.flatnonzero(schedule.sigmas[:-1] <= np.float32(where))
        if not len(below):
            raise ValueError(f"start: no step of this schedule has a sigma of {where:g} or less")
        k = int(below[0])
    if not 0 <= k < schedule.steps:
        raise ValueError(f"start: expected a step from 0 to {schedule.steps - 1}, got {k}")
    shape, given = source.latent_shape, np.asarray(latents, dtype=np.float32)
    if given.shape == (shape[0], shape[1] - source.references, *shape[2:]):
        given = np.concatenate([np.zeros((shape[0], source.references, *shape[2:]), np.float32), given], axis=1)
    if given.shape != shape:
        raise ValueError(f"start: latents have shape {given.shape}, expected {shape} with the reference slots")
    sigma = schedule.sigmas[k]
    mixed = (np.float32(1) - sigma) * given + sigma * np.asarray(noise, dtype=np.float32)
    return dataclasses.replace(schedule, begin=k), mixed

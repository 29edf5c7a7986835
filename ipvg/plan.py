"""What a guidance asks of the model at each step: the form that `_core.Sampler` takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from . import _core
from .guidance import Guidance
from .guidance.operation import Operation
from .schedule import Schedule
from .source import Source


@dataclass
class Prepared:
    """Prompts and contexts ready for one model: made once, shared by branches, forks and seeds.

    states: prompt name -> umT5 states, or what ``model.text`` made of them.
    """

    model: _core.Dit
    source: Source
    states: dict[str, np.ndarray | _core.DitText]
    _texts: dict[str, _core.DitText] = field(default_factory=dict)
    _contexts: dict[str, _core.DitContext] = field(default_factory=dict)

    def text(self, name: str, branch: str) -> _core.DitText:
        if name not in self.states:
            given = ", ".join(sorted(self.states)) or "nothing"
            raise ValueError(f"texts: branch {branch!r} needs {name!r}; given: {given}")
        if name not in self._texts:
            given = self.states[name]
            if isinstance(given, str):
                raise TypeError(f"text {name!r}: expected umT5 states, got words; Pipeline.encode_text makes them")
            self._texts[name] = given if isinstance(given, _core.DitText) else self.model.text(given)
        return self._texts[name]

    def context(self, reference: str) -> _core.DitContext:
        if not self.source.references:
            reference = "present"  # the others are the same then, and what is the same is computed once
        if reference not in self._contexts:
            context = self.source.variant(reference)
            self._contexts[reference] = self.model.context(context, frames=self.source.latent_shape[1])
        return self._contexts[reference]

    @cached_property
    def fingerprints(self) -> dict[str, str]:
        """Of the model's weights, for a snapshot."""
        from .snapshot import fingerprints

        return fingerprints(self.model.weights)

    def with_texts(self, states: Mapping[str, np.ndarray | _core.DitText]) -> Prepared:
        """The same with some prompts replaced or added."""
        kept = {name: text for name, text in self._texts.items() if name not in states}
        return Prepared(self.model, self.source, {**self.states, **states}, kept, self._contexts)


class Plan:
    """names: the branches that count at some step, by name. weights: (steps, names) float32. fields: name -> (steps,
    C, F, h, w broadcast) where the weight is one number an element. scales: name -> per-step hint scales, where they
    change from step to step.
    """

    def __init__(self, guidance: Guidance, schedule: Schedule, prepared: Prepared):
        self.guidance, self.prepared = guidance, prepared
        self.layers = len(prepared.model.config["vace_layers"])
        self.steps = schedule.steps
        shape = prepared.source.latent_shape
        with np.errstate(over="ignore"):  # an infinity is refused below, with its place
            weights = {n: w.astype(np.float32) for n, w in guidance.coefficients(schedule).items()}
        self.fields = {n: w for n, w in weights.items() if w.ndim > 1}
        for name, w in self.fields.items():
            try:
                np.broadcast_shapes(w.shape[1:], shape)
                fits = w.ndim <= 5 and np.broadcast_shapes(w.shape[1:], shape) == shape
            except ValueError:
                fits = False
            if not fits:
                raise ValueError(
                    f"weight of branch {name!r}: shape {w.shape[1:]} does not broadcast to the latent {shape}, whose "
                    f"first {prepared.source.references} frames are reference slots"
                )
            if not np.isfinite(w).all():
                raise ValueError(f"weight of branch {name!r}: not a finite float32")
            weights[name] = w.reshape(self.steps, -1).any(axis=1).astype(np.float32)
        self.names = _used(guidance, [n for n, w in weights.items() if w.any()])
        if not self.names:
            raise ValueError(f"guidance: every coefficient is 0 at every step of {guidance.combine!r}")
        self.fields = {n: w for n, w in self.fields.items() if n in self.names}
        self.weights = np.stack([weights[name] for name in self.names], axis=1)
        self.scales: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        self.branches = [self._branch(name) for name in self.names]
        self.operations = [o for o in guidance.operations if _acts(o, self.names)]

    def _branch(self, name: str) -> tuple:
        """(text, context, options of Dit.forward, has a field, 1 + the first branch that is given the same or 0)."""
        b, p = self.guidance.branches[name], self.prepared
        slots = p.source.references if b.reference != "drop" else 0
        reference, control = b.scales(self.steps, self.layers)
        if (reference != reference[0]).any() or (control != control[0]).any():
            self.scales[name] = (control, reference)
        options: dict[str, Any] = {
            "skip": b.skip_blocks,
            "keep_hint": b.keep_hint,
            "scale": control[0].tolist(),
            "identity": b.identity_blocks,
        }
        if slots and b.reference_scale != b.control_scale:
            options |= {"reference_scale": reference[0].tolist(), "reference_frames": slots}
        if b.blur_blocks:
            options["blur"] = (b.blur_blocks, b.blur_sigma)
        if b.nag:
            options["nag"] = (p.text(b.nag.text, name), b.nag.scale, b.nag.tau, b.nag.alpha)
        before = self.names[: self.names.index(name)]
        twin = next((i + 1 for i, n in enumerate(before) if self.guidance.branches[n] == b), 0)
        return p.text(b.text, name), p.context(b.reference), options, name in self.fields, twin

    def core_operations(self) -> list[tuple]:
        index = {name: i for i, name in enumerate(self.names)}
        return [(o.kind, index[o.cond], index.get(o.replaces, -1), o.space == "x0", *o.core) for o in self.operations]

    def set_step(self, core: _core.Sampler, k: int) -> None:
        """Hands the core what changes from step to step."""
        for i, name in enumerate(self.names):
            if name in self.fields and self.weights[k, i]:
                shape = self.prepared.source.latent_shape
                core.set_field(i, np.ascontiguousarray(np.broadcast_to(self.fields[name][k], shape)))
            if name in self.scales:
                control, reference = self.scales[name]
                core.set_scale(i, control[k].tolist(), reference[k].tolist())

    def weights_at(self, k: int) -> dict[str, float | np.ndarray]:
        return {
            name: self.fields[name][k] if name in self.fields else float(self.weights[k, i])
            for i, name in enumerate(self.names)
            if self.weights[k, i]
        }


def _acts(operation: Operation, names: list[str]) -> bool:
    """Is it one for the core, with all of its branches at hand?"""
    return bool(operation.branches) and all(name in names for name in operation.branches)


def _used(guidance: Guidance, counted: list[str]) -> list[str]:
    """The branches that count at some step, or that an operation reads for one that does."""
    used = set(counted)
    for operation in reversed(guidance.operations):
        if used and (operation.replaces in used or operation.replaces is None):
            used.update(operation.branches)
    return [name for name in guidance.branches if name in used]

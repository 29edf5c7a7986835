"""A branch: what one prediction of the model is given."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

import numpy as np

from .._arguments import number
from ..schedule import Schedule

Reference = Literal["present", "drop", "absent"]
#: A number; one a VACE layer; rows of that, one a step (either length may be 1); or a function (step, sigma) -> the
#: first two.
Scale = float | Sequence[float] | Sequence[Sequence[float]] | Callable[[int, float], float | Sequence[float]]

_REFERENCES = ("present", "drop", "absent")


@dataclass(frozen=True)
class NAG:
    """Normalised attention guidance (arXiv 2505.21179): in every cross-attention, those of the VACE blocks too, what
    the model reads from the branch's text (p) is pushed away from what it reads from `text` (n):

        g = scale p - (scale - 1) n;  token by token, where |g|_1 > tau |p|_1, g is shrunk to that;
        the result is alpha g + (1 - alpha) p

    Costs a second cross-attention, not a second forward: it works with step-distilled models, which have no CFG.
    """

    text: str = "negative"
    scale: float = 11.0
    tau: float = 2.5
    alpha: float = 0.25

    def __post_init__(self) -> None:
        if not isinstance(self.text, str) or not self.text:
            raise ValueError(f"nag: text: expected the name of a prompt, got {self.text!r}")
        for name in ("scale", "tau", "alpha"):
            object.__setattr__(self, name, number(f"nag: {name}", getattr(self, name)))
        if self.tau <= 0:
            raise ValueError(f"nag: tau: expected a number above 0, got {self.tau}")

    def __str__(self) -> str:
        return f"NAG against {self.text} (scale {self.scale:g}, tau {self.tau:g}, alpha {self.alpha:g})"


@dataclass(frozen=True)
class Branch:
    """What one prediction of the model is given. Frozen, hashable; the default is the plain conditional prediction.

    text: which prompt, by name. The presets use "cond" (the prompt), "negative" (the negative prompt, Wan's own by
        default) and "null" (the empty prompt); any other name is yours to encode.
    reference: "present"; "drop" = the context without the reference slots, one latent frame shorter for each, its
        tokens zero-padded at the END: the control tokens of the other frames sit too early (what the released TPIGE
        code does); "absent" = the slots kept and zero in all 96 channels, so that nothing moves.
    skip_blocks: main blocks left out, 0-based. Their hints are dropped with them (as released), or added all the same
        with keep_hint.
    identity_blocks: main blocks whose self-attention map is the identity, so that its output is V. STG-A and PAG are
        this same perturbation here, since Wan attends over space and time at once.
    blur_blocks: main blocks whose queries are blurred over the rows and columns of each frame with a Gaussian of
        blur_sigma tokens, inf: the frame's mean (SEG). After the rotary embedding: it is the logits that are blurred.
    context_scale: factor of the hints, see `Scale`. reference_scale, control_scale: further factors for the tokens of
        the reference slots and of all other frames.
    nag: normalised attention guidance in this branch's cross-attentions, or None.
    """

    text: str = "cond"
    reference: Reference = "present"
    skip_blocks: tuple[int, ...] = ()
    keep_hint: bool = False
    context_scale: Scale = 1.0
    reference_scale: float = 1.0
    control_scale: float = 1.0
    identity_blocks: tuple[int, ...] = ()
    blur_blocks: tuple[int, ...] = ()
    blur_sigma: float = math.inf
    nag: NAG | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.text, str) or not self.text:
            raise ValueError(f"text: expected the name of a prompt, got {self.text!r}")
        if self.reference not in _REFERENCES:
            raise ValueError(f"reference: expected one of {', '.join(_REFERENCES)}, got {self.reference!r}")
        if not isinstance(self.keep_hint, bool):
            raise TypeError(f"keep_hint: expected True or False, got {self.keep_hint!r}")
        for name in ("skip_blocks", "identity_blocks", "blur_blocks"):
            object.__setattr__(self, name, _blocks(name, getattr(self, name)))
        if both := set(self.identity_blocks) & set(self.blur_blocks):
            raise ValueError(f"block {both.pop()} is in identity_blocks and in blur_blocks")
        object.__setattr__(self, "context_scale", _scale(self.context_scale))
        for name in ("reference_scale", "control_scale"):
            object.__setattr__(self, name, number(name, getattr(self, name)))
        sigma = self.blur_sigma
        if isinstance(sigma, bool | str) or not hasattr(sigma, "__float__") or not float(sigma) > 0:
            raise ValueError(f"blur_sigma: expected a number above 0 or inf, got {sigma!r}")
        object.__setattr__(self, "blur_sigma", float(sigma) if self.blur_blocks else math.inf)
        if isinstance(self.nag, Mapping):
            object.__setattr__(self, "nag", NAG(**self.nag))
        if self.nag is not None and not isinstance(self.nag, NAG):
            raise TypeError(f"nag: expected a NAG or None, got {self.nag!r}")

    def __str__(self) -> str:
        parts = [f"text {self.text}"]
        if self.reference != "present":
            parts.append(f"reference {self.reference}")
        if self.skip_blocks:
            parts.append(f"without block {_listed(self.skip_blocks)}{' (hint kept)' * self.keep_hint}")
        if self.identity_blocks:
            parts.append(f"attention = V in block {_listed(self.identity_blocks)}")
        if self.blur_blocks:
            parts.append(f"queries blurred (sigma {self.blur_sigma:g}) in block {_listed(self.blur_blocks)}")
        if self.context_scale != 1:
            shown = f"{self.context_scale:g}" if isinstance(self.context_scale, float) else "scheduled"
            parts.append(f"context scale {shown}")
        if self.reference_scale != 1 or self.control_scale != 1:
            parts.append(f"reference slots x {self.reference_scale:g}, others x {self.control_scale:g}")
        if self.nag:
            parts.append(str(self.nag))
        return ", ".join(parts)

    @property
    def texts(self) -> tuple[str, ...]:
        """Names of the prompts that this branch needs."""
        return (self.text, self.nag.text) if self.nag else (self.text,)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON: what differs from the defaults, and always the text. TypeError for a function."""
        if callable(self.context_scale):
            raise TypeError("context_scale is a function, not JSON: use guidance.resolve(schedule) first")
        plain = {f.name: f.default for f in fields(self)}
        out = {"text": self.text}
        for name, default in plain.items():
            value = getattr(self, name)
            if name != "text" and value != default:
                out[name] = asdict(value) if isinstance(value, NAG) else _lists(value)
        return out

    @classmethod
    def from_dict(cls, name: str, data: Mapping[str, Any]) -> Branch:
        """The inverse of `to_dict`. TypeError / ValueError that name the branch."""
        if not isinstance(data, Mapping):
            raise TypeError(f"branch {name!r}: expected a Branch or a dict of its fields, got {type(data).__name__}")
        if unknown := data.keys() - {f.name for f in fields(cls)}:
            raise ValueError(f"branch {name!r}: {unknown.pop()!r} is unknown")
        return cls(**data)

    def resolve(self, schedule: Schedule) -> Branch:
        """The same with a function for context_scale replaced by its values at the schedule's steps."""
        if not callable(self.context_scale):
            return self
        values = [self.context_scale(k, float(schedule.sigmas[k])) for k in range(schedule.steps)]
        return replace(self, context_scale=[np.atleast_1d(v).tolist() for v in values])

    def scales(self, steps: int, layers: int) -> tuple[np.ndarray, np.ndarray]:
        """What the hints count for: (steps, layers) float64 for the reference slots, and for the other frames.
        ValueError: a context_scale of another length. Call `resolve` first."""
        scale = np.atleast_2d(np.asarray(self.context_scale, dtype=np.float64))
        if scale.shape[0] not in (1, steps) or scale.shape[1] not in (1, layers):
            raise ValueError(
                f"context_scale: {scale.shape[0]} x {scale.shape[1]} numbers for {steps} steps and {layers} VACE layers"
            )
        scale = np.broadcast_to(scale, (steps, layers))
        return scale * self.reference_scale, scale * self.control_scale


def _blocks(name: str, value: Any) -> tuple[int, ...]:
    listed = isinstance(value, Sequence | set) or (isinstance(value, np.ndarray) and value.ndim == 1)
    if isinstance(value, str | bytes) or not listed:
        raise TypeError(f"{name}: expected a list of block numbers, got {value!r}")
    for block in value:
        if isinstance(block, bool) or not isinstance(block, int | np.integer) or block < 0:
            raise ValueError(f"{name}: expected block numbers from 0, got {block!r}")
    return tuple(sorted({int(b) for b in value}))


def _scale(value: Any) -> Scale:
    if callable(value):
        return value
    if (isinstance(value, Sequence) and not isinstance(value, str | bytes)) or getattr(value, "ndim", 0):
        rows = tuple(_scale(v) for v in value)
        if not rows or any(isinstance(r, tuple) != isinstance(rows[0], tuple) for r in rows):
            raise ValueError("context_scale: expected one number a VACE layer, or such a list for each step")
        if isinstance(rows[0], tuple) and (isinstance(rows[0][0], tuple) or any(len(r) != len(rows[0]) for r in rows)):
            raise ValueError("context_scale: expected lists of equal length, one for each step")
        return rows
    return number("context_scale", value)


def _lists(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_lists(v) for v in value]
    return "inf" if value == math.inf else value


def _listed(blocks: tuple[int, ...]) -> str:
    return ", ".join(map(str, blocks))

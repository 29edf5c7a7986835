"""Guidance as data: branches (what each prediction is given) and a formula (how their velocities are combined).

>>> g = Guidance(branches={"cond": Branch(text="cond"), "uncond": Branch(text="negative"),
...                        "weak": Branch(text="cond", reference="drop", skip_blocks=[2])},
...              combine="uncond + W*(cond - uncond) + s*(cond - weak)", W=7.0, s=0.5)
>>> g == Guidance.from_json(g.to_json())
True
>>> control(g)                              # the CFG of equal effective weight, for a fair comparison
Guidance: uncond + W*(cond - uncond), W = 7

Every method of the literature that mixes predictions linearly is such an object: presets below, anything else as a
formula. Velocities are v-predictions; a mix whose coefficients sum to 1 is the same for x0 = x - sigma v.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, TypeVar

import numpy as np

from . import _arguments
from .formula import Formula
from .schedule import Schedule

Reference = Literal["present", "drop", "absent"]
#: A number; one number a step; or a function of (step, sigma) that gives it.
Weight = float | Sequence[float] | Callable[[int, float], float]

FORMAT, VERSION = "ipvg.guidance", 1
_REFERENCES = ("present", "drop", "absent")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_T = TypeVar("_T")


@dataclass(frozen=True)
class Branch:
    """What one prediction of the model is given. Frozen, hashable; the default is the plain conditional prediction.

    text: which prompt, by name. The presets use "cond" (the prompt), "negative" (the negative prompt, Wan's own by
        default) and "null" (the empty prompt); any other name is yours to encode.
    reference: "present"; "drop" = the context without the reference slots, one latent frame shorter for each, its
        tokens zero-padded at the END: the control tokens of the other frames sit too early (what the released TPIGE
        code does); "absent" = the slots kept and zero in all 96 channels, so that nothing moves.
    skip_blocks: main blocks left out, 0-based. Their hints are dropped with them (as released), or added all the same
        with keep_hint. context_scale: factor of the hints.
    """

    text: str = "cond"
    reference: Reference = "present"
    skip_blocks: tuple[int, ...] = ()
    keep_hint: bool = False
    context_scale: float = 1.0

    def __post_init__(self) -> None:
        if not isinstance(self.text, str) or not self.text:
            raise ValueError(f"text: expected the name of a prompt, got {self.text!r}")
        if self.reference not in _REFERENCES:
            raise ValueError(f"reference: expected one of {', '.join(_REFERENCES)}, got {self.reference!r}")
        if (
            isinstance(self.skip_blocks, str | bytes)
            or not isinstance(self.skip_blocks, Sequence | np.ndarray | set)
            or (isinstance(self.skip_blocks, np.ndarray) and self.skip_blocks.ndim != 1)
        ):
            raise TypeError(f"skip_blocks: expected a list of block numbers, got {self.skip_blocks!r}")
        for block in self.skip_blocks:
            if isinstance(block, bool) or not isinstance(block, int | np.integer) or block < 0:
                raise ValueError(f"skip_blocks: expected block numbers from 0, got {block!r}")
        if not isinstance(self.keep_hint, bool):
            raise TypeError(f"keep_hint: expected True or False, got {self.keep_hint!r}")
        object.__setattr__(self, "skip_blocks", tuple(sorted({int(b) for b in self.skip_blocks})))
        object.__setattr__(self, "context_scale", _arguments.number("context_scale", self.context_scale))

    def __str__(self) -> str:
        parts = [f"text {self.text}"]
        if self.reference != "present":
            parts.append(f"reference {self.reference}")
        if self.skip_blocks:
            parts.append(f"without block {', '.join(map(str, self.skip_blocks))}{' (hint kept)' * self.keep_hint}")
        if self.context_scale != 1:
            parts.append(f"context scale {self.context_scale:g}")
        return ", ".join(parts)


@dataclass(frozen=True, init=False, repr=False)
class Guidance:
    """Named branches and a formula over them. Frozen, hashable, comparable, JSON in and out, printable.

    branches: name -> Branch (or a dict of its fields). combine: a formula that is linear in the branches, see
    `formula.py`. Every further keyword is a weight of the formula: a number, one number a step, or a callable (step,
    sigma) -> number, which is resolved when a sampler starts. A branch whose coefficient is 0 at a step is not
    computed there.

    Order means nothing: branches are kept by name, and the sum is taken in that order, so equal guidance gives equal
    bytes. Raises ValueError / TypeError naming what is wrong; FormulaError (a ValueError) names the spot in the
    formula.
    """

    branches: Mapping[str, Branch]
    combine: str
    weights: Mapping[str, Weight]

    def __init__(self, branches: Mapping[str, Branch | Mapping[str, Any]], combine: str, **weights: Weight):
        if not isinstance(branches, Mapping) or not branches:
            raise ValueError("branches: expected at least one name -> Branch")
        if len(branches) > 16:
            raise ValueError(f"branches: at most 16 can be combined, got {len(branches)}")
        for name in (*branches, *weights):
            if not isinstance(name, str) or not _NAME.fullmatch(name):
                raise ValueError(f"{name!r}: names of branches and weights are letters, digits and _")
        if both := branches.keys() & weights.keys():
            raise ValueError(f"{both.pop()!r} is the name of a branch and of a weight")
        formula = Formula(combine, branches, weights)
        if unused := (set(branches) | set(weights)) - formula.used:
            raise ValueError(f"not in the formula: {', '.join(sorted(unused))} (formula: {formula.text})")
        object.__setattr__(self, "branches", _Frozen({name: _branch(name, b) for name, b in branches.items()}))
        object.__setattr__(self, "combine", formula.text)
        object.__setattr__(self, "_formula", formula)
        object.__setattr__(self, "weights", _Frozen({name: _weight(name, w) for name, w in weights.items()}))
        if all(isinstance(w, float) for w in self.weights.values()):
            formula.coefficients(self.weights)  # a division by zero is an error now, not at the first step

    def __reduce__(self):
        return _build, (dict(self.branches), self.combine, dict(self.weights))

    # ---- as text ----

    def __repr__(self) -> str:
        weights = "".join(f", {name} = {_show(w)}" for name, w in self.weights.items())
        return f"Guidance: {self.combine}{weights}"

    def __str__(self) -> str:
        """The formula, its weights, and a line for each branch."""
        width = max(map(len, self.branches))
        return "\n".join([repr(self), *(f"  {name:{width}}  {branch}" for name, branch in self.branches.items())])

    def expanded(self) -> str:
        """The coefficients, where all weights are numbers: '7.5 cond - 6 uncond - 0.5 weak'."""
        text = ""
        for name, c in self._at(0, math.nan).items():
            sign = ("-" if c < 0 else "") if not text else (" - " if c < 0 else " + ")
            text += f"{sign}{abs(c):.10g} {name}"
        return text

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON. TypeError for a callable weight: `resolve` it first, so that the numbers are
        recorded.
        """
        for name, weight in self.weights.items():
            if callable(weight):
                raise TypeError(f"weight {name!r} is a function, not JSON: use guidance.resolve(schedule) first")
        weights = {name: w if isinstance(w, float) else list(w) for name, w in self.weights.items()}
        branches = {name: {**asdict(b), "skip_blocks": list(b.skip_blocks)} for name, b in self.branches.items()}
        return {"format": FORMAT, "version": VERSION, "branches": branches, "combine": self.combine, "weights": weights}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Guidance:
        """The inverse of `to_dict`. ValueError for another format, a newer version, a missing or an unknown key."""
        if not isinstance(data, Mapping) or data.get("format") != FORMAT:
            raise ValueError(f"not a guidance: expected format {FORMAT!r}")
        if data.get("version") != VERSION:
            raise ValueError(f"guidance version {data.get('version')!r}: this build reads version {VERSION}")
        keys = {"format", "version", "branches", "combine", "weights"}
        if wrong := data.keys() ^ keys:
            key = wrong.pop()
            raise ValueError(f"guidance: {key!r} is {'unknown' if key in data else 'missing'}")
        weights = data["weights"]
        if not isinstance(weights, Mapping) or {"self", "branches", "combine"} & weights.keys():
            raise ValueError("guidance: weights must map names to numbers or lists")
        return cls(data["branches"], data["combine"], **weights)

    def to_json(self, indent: int | None = None) -> str:
        return json.dumps(self.to_dict(), indent=indent)

    @classmethod
    def from_json(cls, text: str) -> Guidance:
        return cls.from_dict(json.loads(text))

    # ---- as numbers ----

    @property
    def texts(self) -> tuple[str, ...]:
        """Names of the prompts that the branches need."""
        return tuple(sorted({branch.text for branch in self.branches.values()}))

    def replace(self, **weights: Weight) -> Guidance:
        """The same with some weights changed."""
        if unknown := weights.keys() - self.weights.keys():
            raise ValueError(f"no weight {unknown.pop()!r} in {self.combine}")
        return Guidance(self.branches, self.combine, **{**self.weights, **weights})

    def resolve(self, schedule: Schedule) -> Guidance:
        """The same with every callable weight replaced by its values at the schedule's steps."""
        sigmas = schedule.sigmas
        values = {
            name: [w(k, float(sigmas[k])) for k in range(schedule.steps)]
            for name, w in self.weights.items()
            if callable(w)
        }
        return self.replace(**values) if values else self

    def coefficients(self, schedule: Schedule) -> dict[str, np.ndarray]:
        """Branch name -> (steps,) float64: the velocity of step k is the sum of coefficient[k] times branch velocity.

        ValueError: a list of weights whose length is not the number of steps, a division by zero, a non-finite result.
        """
        for name, weight in self.weights.items():
            if isinstance(weight, tuple) and len(weight) != schedule.steps:
                raise ValueError(f"weight {name!r}: {len(weight)} values for {schedule.steps} steps")
        resolved = self.resolve(schedule)
        rows = [resolved._at(k, math.nan) for k in range(schedule.steps)]
        return {name: np.array([row[name] for row in rows]) for name in self.branches}

    def _at(self, step: int, sigma: float) -> dict[str, float]:
        now = {
            name: w
            if isinstance(w, float)
            else w[step]
            if isinstance(w, tuple)
            else _arguments.number(name, w(step, sigma))
            for name, w in self.weights.items()
        }
        found = self._formula.coefficients(now)
        return {name: found.get(name, 0.0) for name in self.branches}


# ---- parts ----


class _Frozen(Mapping[str, _T]):
    """A mapping that cannot change, sorted by name, hashable."""

    __slots__ = ("_items",)

    def __init__(self, items: Mapping[str, _T]):
        self._items = {name: items[name] for name in sorted(items)}

    def __getitem__(self, name: str) -> _T:
        return self._items[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __hash__(self) -> int:
        return hash(tuple(self._items.items()))

    def __repr__(self) -> str:
        return repr(self._items)


def _build(branches: dict, combine: str, weights: dict) -> Guidance:
    return Guidance(branches, combine, **weights)


def _weight(name: str, value: Any) -> Weight:
    if callable(value):
        return value
    if isinstance(value, list | tuple) or (isinstance(value, np.ndarray) and value.ndim == 1):
        if not len(value):
            raise ValueError(f"weight {name!r}: an empty list; expected one number a step")
        return tuple(_arguments.number(f"weight {name!r}", v) for v in value)
    return _arguments.number(f"weight {name!r}", value)


def _branch(name: str, value: Branch | Mapping[str, Any]) -> Branch:
    if isinstance(value, Branch):
        return value
    if not isinstance(value, Mapping):
        raise TypeError(f"branch {name!r}: expected a Branch or a dict of its fields, got {type(value).__name__}")
    if unknown := value.keys() - {f.name for f in fields(Branch)}:
        raise ValueError(f"branch {name!r}: {unknown.pop()!r} is unknown")
    return Branch(**value)


def _show(weight: Weight) -> str:
    if isinstance(weight, float):
        return f"{weight:g}"
    if callable(weight):
        return f"{getattr(weight, '__name__', 'function')}(step, sigma)"
    if len(weight) <= 4:
        return f"[{', '.join(f'{v:g}' for v in weight)}]"
    return f"[{weight[0]:g}, {weight[1]:g}, ..., {weight[-1]:g}] ({len(weight)} steps)"


# ---- presets ----

_COND, _NEGATIVE = Branch(text="cond"), Branch(text="negative")


def none() -> Guidance:
    """The conditional prediction alone: for step-distilled models."""
    return Guidance({"cond": _COND}, "cond")


def cfg(w: Weight = 5.0) -> Guidance:
    """Classifier-free guidance (Ho and Salimans, arXiv 2207.12598): what VACE's own generate() does with w = 5."""
    return Guidance({"cond": _COND, "uncond": _NEGATIVE}, "uncond + w*(cond - uncond)", w=w)


def tpige_code(w: Weight = 5.0, s: Weight = 0.5, block: int = 2) -> Guidance:
    """TPIGE as its released code computes it (Andyplus1/IPT2V): weak = the prompt, the reference dropped, one main
    block skipped; v_cfg = uncond + w (cond - uncond); v = v_cfg + s (v_cfg - weak). Effective CFG weight w (1 + s) -
    s = 7."""
    weak = Branch(text="cond", reference="drop", skip_blocks=(block,))
    return _tpige(weak, w, s)


def tpige_aligned(w: Weight = 5.0, s: Weight = 0.5, block: int = 2) -> Guidance:
    """`tpige_code` with the reference slot kept and empty, so that the weak branch's control tokens stay where they
    belong.
    """
    weak = Branch(text="cond", reference="absent", skip_blocks=(block,))
    return _tpige(weak, w, s)


def _tpige(weak: Branch, w: Weight, s: Weight) -> Guidance:
    combine = "uncond + w*(cond - uncond) + s*(uncond + w*(cond - uncond) - weak)"
    return Guidance({"cond": _COND, "uncond": _NEGATIVE, "weak": weak}, combine, w=w, s=s)


def tpige_figure(W_c: Weight = 5.0, W_i: Weight = 0.5, block: int = 2) -> Guidance:
    """TPIGE as the paper's figure shows it (arXiv 2509.01362): uncond and weak have the empty prompt and the
    reference.
    """
    null, weak = Branch(text="null"), Branch(text="null", skip_blocks=(block,))
    combine = "uncond + W_c*(cond - uncond) + W_i*(cond - weak)"
    return Guidance({"cond": _COND, "uncond": null, "weak": weak}, combine, W_c=W_c, W_i=W_i)


PRESETS: dict[str, Callable[..., Guidance]] = {
    f.__name__: f for f in (none, cfg, tpige_code, tpige_figure, tpige_aligned)
}


def control(guidance: Guidance, cond: str = "cond", uncond: str = "uncond") -> Guidance:
    """The plain CFG of equal effective weight: what is left of `guidance` if its perturbations had no effect.

    A branch with the text of `cond` then predicts what `cond` does, one with the text of `uncond` what `uncond` does;
    so W = the sum of the coefficients of all branches with the text of `cond`. For TPIGE's code W = w (1 + s) - s.
    ValueError: no such branch, a third text, or coefficients that do not sum to 1.
    """
    if cond not in guidance.branches:
        raise ValueError(f"control: no branch {cond!r}; there are {', '.join(guidance.branches)}")
    plain = guidance.branches[cond]
    same = [name for name, b in guidance.branches.items() if b.text == plain.text]
    others = [name for name in guidance.branches if name not in same]
    if others and (uncond not in others or len({guidance.branches[name].text for name in others}) > 1):
        found = ", ".join(guidance.texts)
        raise ValueError(f"control: expected the texts of {cond!r} and {uncond!r} only, got {found}")

    def weight(step: int, sigma: float) -> float:
        c = guidance._at(step, sigma)
        total = math.fsum(c.values())
        if abs(total - 1) > 1e-6:
            raise ValueError(f"control: the coefficients sum to {total:g}, not 1, so no CFG is equal to it")
        return round(math.fsum(c[name] for name in same), 12)

    w: Weight = weight
    if not any(callable(x) for x in guidance.weights.values()):
        lengths = {len(x) for x in guidance.weights.values() if isinstance(x, tuple)}
        if len(lengths) > 1:
            raise ValueError(f"control: lists of weights of different lengths: {sorted(lengths)}")
        w = [weight(k, math.nan) for k in range(lengths.pop())] if lengths else weight(0, math.nan)
    if not others:
        weight(0, math.nan)
        return Guidance({cond: plain}, cond)
    return Guidance({cond: plain, uncond: guidance.branches[uncond]}, f"{uncond} + W*({cond} - {uncond})", W=w)

"""Guidance as data: branches (what each prediction is given) and a formula (how their velocities are combined).

>>> g = Guidance(branches={"cond": Branch(text="cond"), "uncond": Branch(text="negative"),
...                        "weak": Branch(text="cond", reference="drop", skip_blocks=[2])},
...              combine="uncond + W*(cond - uncond) + s*(cond - weak)", W=7.0, s=0.5)
>>> g == Guidance.from_json(g.to_json())
True
>>> control(g)                              # the CFG of equal effective weight, for a fair comparison
Guidance: uncond + W*(cond - uncond), W = 7
>>> (apg(w=5) + stg_a(s=0.5)).interval(0.3, 0.9)        # two methods at once, at medium noise only

Every method of the literature is such an object: the presets, or a formula of yours, with operations for what no
weighted sum can be. Velocities are v-predictions; a mix whose coefficients sum to 1 is the same for x0 = x - sigma v.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np

from ..schedule import Schedule
from . import operation as ops
from . import weight as weights_
from .branch import Branch
from .formula import Formula
from .weight import Field, Interval, Weight

FORMAT, VERSION = "ipvg.guidance", 1
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_RESERVED = {"self", "branches", "combine", "operations"}
_T = TypeVar("_T")


class Guidance:
    """Named branches, a formula over them, and operations. Frozen, hashable, comparable, JSON in and out, printable.

    branches: name -> Branch (or a dict of its fields). combine: a formula that is linear in the branches, see
    `formula.py`. Every further keyword is a weight of the formula: a number, one number a step, a callable (step,
    sigma) -> number or array, an `Interval`, or an array that broadcasts to the latent (`Field`: per frame, per
    region).
    operations: what no weighted sum can be, see `operation.py`.

    A branch whose coefficient is 0 at a step, and that no operation reads there, is not computed; branches that are
    given the same are computed once. Order of names means nothing: branches are kept by name, and the sum is taken in
    that order, so equal guidance gives equal bytes. Raises ValueError / TypeError naming what is wrong; FormulaError (a
    ValueError) names the spot in the formula.

    Two compose: `a + b` adds b's guidance term, what its formula gives beyond "cond", to a. Branches of one name and
    one definition are shared; what else has a name in both is renamed name_2. b's operations follow a's.
    """

    branches: Mapping[str, Branch]
    combine: str
    weights: Mapping[str, Weight]
    operations: tuple[ops.Operation, ...]

    def __init__(
        self,
        branches: Mapping[str, Branch | Mapping[str, Any]],
        combine: str,
        operations: Sequence[ops.Operation | Mapping[str, Any]] = (),
        **weights: Weight,
    ):
        if not isinstance(branches, Mapping) or not branches:
            raise ValueError("branches: expected at least one name -> Branch")
        if len(branches) > 16:
            raise ValueError(f"branches: at most 16 can be combined, got {len(branches)}")
        for name in (*branches, *weights):
            if not isinstance(name, str) or not _NAME.fullmatch(name):
                raise ValueError(f"{name!r}: names of branches and weights are letters, digits and _")
        if both := branches.keys() & weights.keys():
            raise ValueError(f"{both.pop()!r} is the name of a branch and of a weight")
        if isinstance(operations, str | Mapping) or not isinstance(operations, Sequence):
            raise TypeError(f"operations: expected a list, got {operations!r}")
        operations = tuple(ops.parse(o) for o in operations)
        if len(operations) > 16:
            raise ValueError(f"operations: at most 16, got {len(operations)}")
        read = {name for o in operations for name in o.branches}
        if unknown := read - branches.keys():
            raise ValueError(f"operations: no branch {unknown.pop()!r}; there are {', '.join(sorted(branches))}")
        formula = Formula(combine, branches, weights)
        if unused := (set(branches) | set(weights)) - formula.used - read:
            raise ValueError(f"not in the formula: {', '.join(sorted(unused))} (formula: {formula.text})")
        self._set("branches", _Frozen({name: _branch(name, b) for name, b in branches.items()}))
        self._set("combine", formula.text)
        self._set("_formula", formula)
        self._set("operations", operations)
        self._set("weights", _Frozen({name: weights_.parse(name, w) for name, w in weights.items()}))
        if all(isinstance(w, float) for w in self.weights.values()):
            formula.coefficients(self.weights)  # a division by zero is an error now, not at the first step

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"guidance cannot be changed in place ({name}); see replace()")

    def _key(self) -> tuple:
        return self.branches, self.combine, self.weights, self.operations

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Guidance) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def __reduce__(self):
        return _build, (dict(self.branches), self.combine, self.operations, dict(self.weights))

    # ---- as text ----

    def __repr__(self) -> str:
        """The formula, its weights and its operations."""
        weights = "".join(f", {name} = {weights_.show(w)}" for name, w in self.weights.items())
        return f"Guidance: {self.combine}{weights}" + "".join(f"; {o}" for o in self.operations)

    def __str__(self) -> str:
        """The same, and a line for each branch."""
        width = max(map(len, self.branches))
        return "\n".join([repr(self), *(f"  {name:{width}}  {branch}" for name, branch in self.branches.items())])

    def expanded(self) -> str:
        """The coefficients, where all weights are numbers: '7.5 cond - 6 uncond - 0.5 weak'."""
        text = ""
        for name, c in self._at(0).items():
            sign = ("-" if c < 0 else "") if not text else (" - " if c < 0 else " + ")
            text += f"{sign}{abs(c):.10g} {name}"
        return text

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON. TypeError for a function: `resolve` it first, so that the numbers are recorded."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "branches": {name: b.to_dict() for name, b in self.branches.items()},
            "combine": self.combine,
            "weights": {name: weights_.to_json(name, w) for name, w in self.weights.items()},
            "operations": [o.to_dict() for o in self.operations],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Guidance:
        """The inverse of `to_dict`. ValueError for another format, a newer version, a missing or an unknown key."""
        if not isinstance(data, Mapping) or data.get("format") != FORMAT:
            raise ValueError(f"not a guidance: expected format {FORMAT!r}")
        if data.get("version") != VERSION:
            raise ValueError(f"guidance version {data.get('version')!r}: this build reads version {VERSION}")
        data = {"operations": [], **data}
        if wrong := data.keys() ^ {"format", "version", "branches", "combine", "weights", "operations"}:
            key = wrong.pop()
            raise ValueError(f"guidance: {key!r} is {'unknown' if key in data else 'missing'}")
        weights = data["weights"]
        if not isinstance(weights, Mapping) or _RESERVED & weights.keys():
            raise ValueError("guidance: weights must map names to numbers or lists")
        return cls(data["branches"], data["combine"], data["operations"], **weights)

    def to_json(self, indent: int | None = None) -> str:
        return json.dumps(self.to_dict(), indent=indent)

    @classmethod
    def from_json(cls, text: str) -> Guidance:
        return cls.from_dict(json.loads(text))

    # ---- as numbers ----

    @property
    def texts(self) -> tuple[str, ...]:
        """Names of the prompts that the branches need."""
        return tuple(sorted({text for branch in self.branches.values() for text in branch.texts}))

    def replace(self, **weights: Weight) -> Guidance:
        """The same with some weights changed."""
        if unknown := weights.keys() - self.weights.keys():
            raise ValueError(f"no weight {unknown.pop()!r} in {self.combine}")
        return Guidance(self.branches, self.combine, self.operations, **{**self.weights, **weights})

    def resolve(self, schedule: Schedule) -> Guidance:
        """The same with every function replaced by its values at the schedule's steps."""
        values = {n: weights_.resolve(n, w, schedule) for n, w in self.weights.items() if _is_function(w)}
        branches = {name: b.resolve(schedule) for name, b in self.branches.items()}
        if not values and branches == dict(self.branches):
            return self
        return Guidance(branches, self.combine, self.operations, **{**self.weights, **values})

    def coefficients(self, schedule: Schedule) -> dict[str, np.ndarray]:
        """Branch name -> (steps,) float64: the velocity of step k is the sum of coefficient[k] times branch velocity.
        With a `Field` among its weights: (steps, ...), the rest broadcasts to the latent. All 0 where `ZeroInit` says.

        ValueError: a list of weights whose length is not the number of steps, a division by zero, a non-finite result.
        """
        now = {name: weights_.resolve(name, w, schedule) for name, w in self.weights.items()}
        rest = max((o.steps(schedule.steps) for o in self.operations if isinstance(o, ops.ZeroInit)), default=0)
        rows = [self._at(k, now) for k in range(schedule.steps)]
        out = {}
        for name in self.branches:
            out[name] = np.stack(np.broadcast_arrays(*[row[name] for row in rows])).astype(np.float64)
            out[name][:rest] = 0
        return out

    def _at(self, step: int, weights: Mapping[str, Weight] | None = None) -> dict[str, float | np.ndarray]:
        weights = self.weights if weights is None else weights
        found = self._formula.coefficients({name: weights_.at(w, step) for name, w in weights.items()})
        return {name: found.get(name, 0.0) for name in self.branches}

    # ---- composition ----

    def interval(self, lo: float, hi: float, by: str = "sigma", base: str = "cond") -> Guidance:
        """The same where lo < sigma <= hi, or with by="step" where lo <= step / steps < hi; elsewhere `base` alone."""
        if base not in self.branches:
            raise ValueError(f"interval: no branch {base!r}; there are {', '.join(self.branches)}")
        on = _free("on", {*self.branches, *self.weights})
        combine = f"{base} + {on}*({self.combine} - {base})"
        return Guidance(self.branches, combine, self.operations, **{**self.weights, on: Interval(lo, hi, by=by)})

    def __add__(self, other: Guidance) -> Guidance:
        if not isinstance(other, Guidance):
            return NotImplemented
        base = "cond"
        cond = _joined(self.branches.get(base), other.branches.get(base))
        if cond is None:
            raise ValueError(f"a + b: both need the same branch {base!r}, whose prediction the terms are added to")
        mine, theirs = {**self.branches, base: cond}, {**other.branches, base: cond}
        taken, names = {*self.branches, *self.weights}, {}
        changed = {o.replaces for g in (self, other) for o in g.operations} - {None}
        for name in (*other.branches, *other.weights):
            same = name in theirs and mine.get(name) == theirs[name]
            if name in taken and not (same and (name not in changed or self.operations == other.operations)):
                names[name] = _free(name, taken | {*other.branches, *other.weights} | {*names.values()})
        text = re.sub(r"(?<![\w.])[A-Za-z_]\w*", lambda m: names.get(m[0], m[0]), other.combine)
        branches = {**mine, **{names.get(n, n): b for n, b in theirs.items()}}
        weights = {**self.weights, **{names.get(n, n): w for n, w in other.weights.items()}}
        operations = [*self.operations]
        operations += [o for o in (o.renamed(names) for o in other.operations) if o not in operations]
        return Guidance(branches, f"{self.combine} + ({text}) - {base}", operations, **weights)


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


def _build(branches: dict, combine: str, operations: tuple, weights: dict) -> Guidance:
    return Guidance(branches, combine, operations, **weights)


def _branch(name: str, value: Branch | Mapping[str, Any]) -> Branch:
    return value if isinstance(value, Branch) else Branch.from_dict(name, value)


def _joined(a: Branch | None, b: Branch | None) -> Branch | None:
    """What both are: equal, or but for NAG, which is a way to predict that one of them asks for. None: two things."""
    for one, other in ((a, b), (b, a)):
        if one and other and (one == other or (other.nag is None and replace(other, nag=one.nag) == one)):
            return one
    return None


def _is_function(weight: Weight) -> bool:
    return callable(weight)


def _free(name: str, taken: set[str]) -> str:
    found, i = name, 2
    while found in taken:
        found, i = f"{name}_{i}", i + 1
    return found


def control(guidance: Guidance, cond: str = "cond", uncond: str = "uncond") -> Guidance:
    """The plain CFG of equal effective weight: what is left of `guidance` if its perturbations had no effect.

    A branch with the text of `cond` then predicts what `cond` does, one with the text of `uncond` what `uncond` does;
    so W = the sum of the coefficients of all branches with the text of `cond`. For TPIGE's code W = w (1 + s) - s.
    ValueError: no such branch, a third text, coefficients that do not sum to 1, or no weighted sum at all.
    """
    if guidance.operations or any(isinstance(w, Field) for w in guidance.weights.values()):
        raise ValueError("control: with operations or arrays of weights there is no CFG of equal weight")
    if cond not in guidance.branches:
        raise ValueError(f"control: no branch {cond!r}; there are {', '.join(guidance.branches)}")
    plain = guidance.branches[cond]
    same = [name for name, b in guidance.branches.items() if b.text == plain.text]
    others = [name for name in guidance.branches if name not in same]
    if others and (uncond not in others or len({guidance.branches[name].text for name in others}) > 1):
        found = ", ".join(guidance.texts)
        raise ValueError(f"control: expected the texts of {cond!r} and {uncond!r} only, got {found}")

    def weight(step: int, sigma: float = math.nan) -> float:
        now = {name: _value(name, w, step, sigma) for name, w in guidance.weights.items()}
        c = guidance._at(step, now)
        total = math.fsum(c.values())
        if abs(total - 1) > 1e-6:
            raise ValueError(f"control: the coefficients sum to {total:g}, not 1, so no CFG is equal to it")
        return round(math.fsum(c[name] for name in same), 12)

    w: Weight = weight
    if not any(callable(x) or isinstance(x, Interval) for x in guidance.weights.values()):
        lengths = {len(x) for x in guidance.weights.values() if isinstance(x, tuple)}
        if len(lengths) > 1:
            raise ValueError(f"control: lists of weights of different lengths: {sorted(lengths)}")
        w = [weight(k) for k in range(lengths.pop())] if lengths else weight(0)
    elif any(isinstance(x, Interval) and x.by == "step" for x in guidance.weights.values()):
        raise ValueError("control: an interval of steps needs their number: give a list, one number a step")
    if not others:
        return Guidance({cond: plain}, cond)
    return Guidance({cond: plain, uncond: guidance.branches[uncond]}, f"{uncond} + W*({cond} - {uncond})", W=w)


def _value(name: str, weight: Weight, step: int, sigma: float) -> float:
    if isinstance(weight, Interval):
        return weight.at(step, sigma, 1)
    if not callable(weight):
        return weights_.at(weight, step)
    value = weights_.returned(name, weight(step, sigma), step)
    if not isinstance(value, float):
        raise ValueError(f"control: weight {name!r} is an array at step {step}, so there is no CFG of equal weight")
    return value

"""Operations of a guidance that no weighted sum can be: projections, clipping, rescaling, a start at rest.

They act on named branches: those that replace a velocity do so in their order, then the formula is evaluated, then
`Rescale` acts on its result. `space` says on what: "v" = velocities, "x0" = the clean latents x - sigma v that they
imply. Inner products run over the whole latent (C, F, h, w), in double (csrc/sample/guidance.c).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, ClassVar, Literal

from .._arguments import number

Space = Literal["v", "x0"]


@dataclass(frozen=True)
class Operation:
    """Base. `core` is its form for `_core.Sampler`: the kind's name there and three numbers."""

    kind: ClassVar[str]

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name == "space":
                if value not in ("v", "x0"):
                    raise ValueError(f"{self.kind}: space: expected 'v' or 'x0', got {value!r}")
            elif field.name in ("cond", "uncond"):
                if not isinstance(value, str) or not value:
                    raise ValueError(f"{self.kind}: {field.name}: expected the name of a branch, got {value!r}")
            else:
                object.__setattr__(self, field.name, number(f"{self.kind}: {field.name}", value))
        if len(set(self.branches)) < len(self.branches):
            raise ValueError(f"{self.kind}: cond and uncond must be two branches, both are {self.branches[0]!r}")

    @property
    def branches(self) -> tuple[str, ...]:
        return tuple(getattr(self, name) for name in ("cond", "uncond") if hasattr(self, name))

    @property
    def replaces(self) -> str | None:
        """The branch whose velocity it replaces."""
        return getattr(self, "uncond", None)

    def renamed(self, names: Mapping[str, str]) -> Operation:
        return replace(self, **{f: names.get(getattr(self, f), getattr(self, f)) for f in self._roles()})

    def _roles(self) -> list[str]:
        return [name for name in ("cond", "uncond") if hasattr(self, name)]

    @property
    def core(self) -> tuple[float, float, float]:
        return (0.0, 0.0, 0.0)

    def to_dict(self) -> dict[str, Any]:
        return {"kind": self.kind, **asdict(self)}


@dataclass(frozen=True)
class OptimalScale(Operation):
    """CFG-Zero* (arXiv 2503.18886): uncond becomes a uncond with the a that brings it closest to cond."""

    kind: ClassVar[str] = "optimal_scale"
    cond: str = "cond"
    uncond: str = "uncond"
    space: Space = "v"

    def __str__(self) -> str:
        return f"{self.uncond} := a {self.uncond}, a = <{self.cond}, {self.uncond}>/|{self.uncond}|^2 in {self.space}"


@dataclass(frozen=True)
class APG(Operation):
    """Adaptive projected guidance (arXiv 2410.02416): d = cond - uncond + momentum d of the last step; shrunk to
    |d| <= norm (0: no limit); its part along cond times eta; then uncond becomes cond - d, so that
    uncond + w*(cond - uncond) is cond + (w - 1) d.

    |d| is over the whole latent: it grows with the square root of its size (the paper's 15 is for 4 x 64 x 64).
    The running d is part of a run's state: forks and snapshots carry it.
    """

    kind: ClassVar[str] = "apg"
    momentum: float = -0.5
    norm: float = 0.0
    eta: float = 0.0
    cond: str = "cond"
    uncond: str = "uncond"
    space: Space = "x0"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.norm < 0:
            raise ValueError(f"apg: norm: expected 0 (no limit) or more, got {self.norm:g}")

    @property
    def core(self) -> tuple[float, float, float]:
        return (self.momentum, self.norm, self.eta)

    def __str__(self) -> str:
        clip = f", |d| <= {self.norm:g}" if self.norm else ""
        d = f"d = {self.cond} - {self.uncond} + {self.momentum:g} d'"
        return f"{self.uncond} := {self.cond} - (d_perp + {self.eta:g} d_par), {d}{clip} in {self.space}"


@dataclass(frozen=True)
class TCFG(Operation):
    """Tangential damping (arXiv 2503.18137): uncond projected on the first right singular vector of [cond; uncond]."""

    kind: ClassVar[str] = "tcfg"
    cond: str = "cond"
    uncond: str = "uncond"
    space: Space = "v"

    def __str__(self) -> str:
        u = self.uncond
        return f"{u} := <v1, {u}> v1, v1 = first right singular vector of [{self.cond}; {u}] in {self.space}"


@dataclass(frozen=True)
class Rescale(Operation):
    """Of the formula's result g: (phi std(cond)/std(g) + 1 - phi) g (arXiv 2305.08891)."""

    kind: ClassVar[str] = "rescale"
    phi: float = 0.7
    cond: str = "cond"
    space: Space = "v"

    @property
    def core(self) -> tuple[float, float, float]:
        return (self.phi, 0.0, 0.0)

    def __str__(self) -> str:
        return f"then g := ({self.phi:g} std({self.cond})/std(g) + {1 - self.phi:g}) g in {self.space}"


@dataclass(frozen=True)
class ZeroInit(Operation):
    """CFG-Zero*: the velocity is 0 in the first `fraction` of the steps (rounded to whole ones): no forwards there."""

    kind: ClassVar[str] = "zero_init"
    fraction: float = 0.04

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.fraction < 1:
            raise ValueError(f"zero_init: fraction: expected 0 up to below 1, got {self.fraction:g}")

    def steps(self, total: int) -> int:
        return round(self.fraction * total)

    def __str__(self) -> str:
        return f"v = 0 in the first {100 * self.fraction:g} % of steps"


KINDS = {c.kind: c for c in (OptimalScale, APG, TCFG, Rescale, ZeroInit)}


def parse(value: Any) -> Operation:
    """An Operation, or the dict of one."""
    if isinstance(value, Operation):
        return value
    if not isinstance(value, Mapping) or value.get("kind") not in KINDS:
        raise ValueError(f"operations: expected one, or a dict with a kind of {', '.join(KINDS)}, got {value!r}")
    kind = KINDS[value["kind"]]
    given = {k: v for k, v in value.items() if k != "kind"}
    if unknown := given.keys() - {f.name for f in fields(kind)}:
        raise ValueError(f"operation {value['kind']}: {unknown.pop()!r} is unknown")
    return kind(**given)

"""What is compared: each arm is a guidance, and each method's arm names the CFG of equal weight it is held against."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from ipvg import guidance as g
from ipvg.guidance import Branch, Guidance

#: Weight of the released run; the bundled model is over-saturated there, so the rest stands at `base`.
PAPER = 5.0
S = 0.5
OTHER = "other rendered clips"  # what distances between distributions are measured to


@dataclass(frozen=True)
class Arm:
    """name: unique. rule: None for the rows that are not generated. control: name of the arm it is held against.
    table: where the report shows it. reference: "own", "stranger" or "enhanced". prompt: "caption" or "enhanced".
    pairs: which set. kind: "clip", or what work.py makes otherwise ("rendered", "codec", "enhanced", "ratios"). steps:
    0: the run's."""

    name: str
    rule: Guidance | None = None
    control: str = ""
    table: str = "main"
    reference: str = "own"
    prompt: str = "caption"
    pairs: str = "main"
    kind: str = "clip"
    steps: int = 0

    @property
    def enhanced(self) -> bool:
        """Is it made from what PE or IE gave?"""
        return "enhanced" in (self.reference, self.prompt)

    @property
    def file(self) -> str:
        return re.sub(r"[^a-z0-9.]+", "-", self.name.lower()).strip("-") + ".npz"


def tpige(weak: Branch, w: float, s: float) -> Guidance:
    """TPIGE's formula with another weak branch."""
    combine = "uncond + w*(cond - uncond) + s*(uncond + w*(cond - uncond) - weak)"
    return Guidance({"cond": Branch(), "uncond": Branch("negative"), "weak": weak}, combine, w=w, s=s)


def listed(base: float, layers: int, sweep_steps: int) -> list[Arm]:
    """All arms, controls before what needs them. base: the CFG weight of the ablations and sweeps; 1: no CFG at all, so
    that the weak branch acts alone. layers: main blocks."""
    plain = cfg(base)
    arms = [Arm("rendered", kind="rendered"), Arm("through the codec", kind="codec")]
    arms += [Arm(OTHER, kind="rendered", pairs="other")]
    arms += [cfg(w) for w in sorted({1.0, 1.5, 2.0, 3.0, 5.0, 7.0, base})]
    arms += [
        Arm(f"{plain.name}, stranger's reference", plain.rule, plain.name, reference="stranger"),
        Arm("none, absent reference", Guidance({"cond": Branch(reference="absent")}, "cond"), "none"),
    ]
    methods = [Arm(f"tpige_code w {w:g} s {S}", g.tpige_code(w, S)) for w in sorted({1.0, 1.5, 2.0, 3.0, PAPER, base})]
    for w in sorted({base, PAPER}):
        methods += [
            Arm(f"tpige_aligned w {w:g} s {S}", g.tpige_aligned(w, S)),
            Arm(f"tpige_figure W_c {w:g} W_i {S}", g.tpige_figure(w, S)),
            Arm(f"skip only w {w:g} s {S}", tpige(Branch(skip_blocks=(2,)), w, S)),
            Arm(f"drop only w {w:g} s {S}", tpige(Branch(reference="drop"), w, S)),
            Arm(f"absent only w {w:g} s {S}", tpige(Branch(reference="absent"), w, S)),
            Arm(f"stg_r w {w:g} s 1", g.cfg(w) + g.stg_r(1.0)),
            Arm(f"stg_a w {w:g} s 1", g.cfg(w) + g.stg_a(1.0)),
        ]
    for w in (2.0, PAPER):
        methods += [Arm(f"apg w {w:g}", g.apg(w), f"cfg {w:g}"),
                    Arm(f"cfg_zero_star w {w:g}", g.cfg_zero_star(w), f"cfg {w:g}")]  # fmt: skip
    methods += [Arm(f"three_stream s_T {t:g} s_R {r:g}", g.three_stream(t, r), cfg(t).name)
                for t, r in ((1.0, 1.5), (1.0, 2.0), (2.0, 3.0), (PAPER, 2.0))]  # fmt: skip
    methods += [Arm(f"tpige_code w {base:g} s {s:g}", g.tpige_code(base, s), table="s") for s in (0, 0.25, 1.0, 2.0)]
    arms += with_controls(methods, arms)
    arms += [Arm("ratios", plain.rule, kind="ratios", table="ratios"), *conflicts(base)]
    sweep = [Arm(f"tpige_code w {base:g} s {S} block {k}", g.tpige_code(base, S, k)) for k in range(layers)]
    sweep += [Arm(f"skip only w {base:g} s {S} block {k}", tpige(Branch(skip_blocks=(k,)), base, S))
              for k in range(layers)]  # fmt: skip
    sweep = with_controls(sweep, [])
    suffix = f", {sweep_steps} steps"
    return arms + [replace(a, name=a.name + suffix, control=a.control and a.control + suffix, table="block",
                           steps=sweep_steps) for a in sweep]  # fmt: skip


def conflicts(base: float) -> list[Arm]:
    """PE and IE, each on and off, on pairs whose reference contradicts the caption; without and with TPIGE's GE."""
    plain = cfg(base)
    arms = [Arm("enhanced", plain.rule, kind="enhanced", table="conflict", pairs="conflict"),
            Arm("conflict: rendered", kind="rendered", table="conflict", pairs="conflict")]  # fmt: skip
    for rule, name in ((plain.rule, plain.name), (g.tpige_code(base, S), f"tpige_code w {base:g} s {S}")):
        for pe in (False, True):
            for ie in (False, True):
                label = f"conflict: {name}{', PE' * pe}{', IE' * ie}"
                control = f"conflict: {name}" if pe or ie else ""
                arms.append(
                    Arm(label, rule, control, "conflict", "enhanced" if ie else "own", "enhanced" if pe else "caption",
                        "conflict")
                )  # fmt: skip
    return arms


def cfg(w: float, uncond: str = "negative") -> Arm:
    if w == 1:
        return Arm("none", g.none())
    rule = Guidance({"cond": Branch(), "uncond": Branch(uncond)}, "uncond + w*(cond - uncond)", w=w)
    return Arm(f"cfg {w:g}{'' if uncond == 'negative' else ' against ' + uncond}", rule)


def with_controls(methods: list[Arm], known: list[Arm]) -> list[Arm]:
    """The methods, each with its control's name, behind those controls that are not known yet. A control is what
    `ipvg.guidance.control` says: the CFG of the same effective weight; a method that is no weighted sum brings its own.
    """
    have, out = {a.name for a in known}, []
    for arm in methods:
        if arm.name in have:
            continue
        if not arm.control:
            rule = g.control(arm.rule)
            w = rule.weights.get("W", 1.0)
            uncond = rule.branches["uncond"].text if "uncond" in rule.branches else "negative"
            arm = replace(arm, control=cfg(w, uncond).name)
            if arm.control not in have:
                out.append(replace(cfg(w, uncond), table=arm.table))
                have.add(arm.control)
        out.append(arm)
        have.add(arm.name)
    return out

"""The methods of the literature as guidance. `PRESETS` has all of them by name; every one of them runs on any model.

Blocks are 0-based main blocks. The default block 2 is TPIGE's; which one serves best depends on the model (for Wan 1.3B
users of skip-layer guidance name 9), so sweep it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from .branch import NAG, Branch
from .operation import APG, TCFG, OptimalScale, Rescale, Space, ZeroInit
from .rule import Guidance
from .weight import Interval, Weight

_COND, _NEGATIVE = Branch(text="cond"), Branch(text="negative")
_CFG = "uncond + w*(cond - uncond)"
Blocks = Sequence[int]


def none() -> Guidance:
    """The conditional prediction alone: for step-distilled models."""
    return Guidance({"cond": _COND}, "cond")


def cfg(w: Weight = 5.0) -> Guidance:
    """Classifier-free guidance (Ho and Salimans, arXiv 2207.12598): what VACE's own generate() does with w = 5."""
    return Guidance({"cond": _COND, "uncond": _NEGATIVE}, _CFG, w=w)


def interval(w: float = 5.0, lo: float = 0.3, hi: float = 0.9, by: str = "sigma") -> Guidance:
    """CFG where lo < sigma <= hi only (arXiv 2404.07724), or with by="step" in a range of step fractions; else cond."""
    return cfg(Interval(lo, hi, inside=w, outside=1.0, by=by))


def _weaker(weak: Branch, s: Weight) -> Guidance:
    """cond pushed away from a weaker version of itself. Alone, without CFG; add it: cfg(5) + stg_a(0.5)."""
    return Guidance({"cond": _COND, "weak": weak}, "cond + s*(cond - weak)", s=s)


def stg_r(s: Weight = 1.0, blocks: Blocks = (2,)) -> Guidance:
    """Spatiotemporal guidance, residual (arXiv 2411.18664): weak skips blocks. Compose with CFG: cfg() + stg_r()."""
    return _weaker(Branch(skip_blocks=tuple(blocks)), s)


def stg_a(s: Weight = 1.0, blocks: Blocks = (2,)) -> Guidance:
    """Spatiotemporal guidance, attention (arXiv 2411.18664): in weak, self-attention gives V."""
    return _weaker(Branch(identity_blocks=tuple(blocks)), s)


def pag(s: Weight = 3.0, blocks: Blocks = (2,)) -> Guidance:
    """Perturbed attention guidance (arXiv 2403.17377): in weak, the attention map is the identity. Its output is then
    V: in a model that attends over space and time at once this is `stg_a` with PAG's own default weight."""
    return _weaker(Branch(identity_blocks=tuple(blocks)), s)


def seg(s: Weight = 3.0, blocks: Blocks = (2,), sigma: float = math.inf) -> Guidance:
    """Smoothed energy guidance (arXiv 2408.00760): in weak, queries are blurred over each frame."""
    return _weaker(Branch(blur_blocks=tuple(blocks), blur_sigma=sigma), s)


def slg(w: Weight = 5.0, blocks: Blocks = (2,)) -> Guidance:
    """Skip-layer guidance inside the uncond prediction: no third forward."""
    return Guidance({"cond": _COND, "uncond": Branch(text="negative", skip_blocks=tuple(blocks))}, _CFG, w=w)


def autoguidance(w: Weight = 2.0, blocks: Blocks = (2,)) -> Guidance:
    """Autoguidance (arXiv 2406.02507) with the model itself, less some blocks, as the weaker one."""
    weak = Branch(skip_blocks=tuple(blocks))
    return Guidance({"cond": _COND, "weak": weak}, "weak + w*(cond - weak)", w=w)


def cfg_zero_star(w: Weight = 5.0, zero_init: float = 0.04, space: Space = "v") -> Guidance:
    """CFG-Zero* (arXiv 2503.18886): uncond with its optimal scale, and v = 0 in the first steps."""
    operations = [OptimalScale(space=space), *([ZeroInit(zero_init)] if zero_init else [])]
    return Guidance({"cond": _COND, "uncond": _NEGATIVE}, _CFG, operations, w=w)


def apg(w: Weight = 5.0, eta: float = 0.0, norm: float = 0.0, momentum: float = -0.5, space: Space = "x0") -> Guidance:
    """Adaptive projected guidance (arXiv 2410.02416). norm 0: no limit; see `APG` for its scale."""
    operations = [APG(momentum, norm, eta, space=space)]
    return Guidance({"cond": _COND, "uncond": _NEGATIVE}, _CFG, operations, w=w)


def tcfg(w: Weight = 5.0, space: Space = "v") -> Guidance:
    """Tangential damping CFG (arXiv 2503.18137)."""
    return Guidance({"cond": _COND, "uncond": _NEGATIVE}, _CFG, [TCFG(space=space)], w=w)


def rescale(w: Weight = 5.0, phi: float = 0.7, space: Space = "v") -> Guidance:
    """CFG, rescaled towards the standard deviation of cond (arXiv 2305.08891)."""
    return Guidance({"cond": _COND, "uncond": _NEGATIVE}, _CFG, [Rescale(phi, space=space)], w=w)


def dual(s_I: Weight = 1.5, s_T: Weight = 5.0) -> Guidance:
    """Weights of their own for reference and text (InstructPix2Pix, arXiv 2211.09800): the reference first."""
    branches = {"none": Branch("negative", "absent"), "image": Branch("negative"), "cond": _COND}
    return Guidance(branches, "none + s_I*(image - none) + s_T*(cond - image)", s_I=s_I, s_T=s_T)


def three_stream(s_T: Weight = 5.0, s_R: Weight = 2.0) -> Guidance:
    """Weights of their own for text and reference: the text first."""
    branches = {"none": Branch("negative", "absent"), "text": Branch("cond", "absent"), "cond": _COND}
    return Guidance(branches, "none + s_T*(text - none) + s_R*(cond - text)", s_T=s_T, s_R=s_R)


def nag(scale: float = 11.0, tau: float = 2.5, alpha: float = 0.25) -> Guidance:
    """Normalised attention guidance (arXiv 2505.21179) in one forward a step, for step-distilled models. In a sum it is
    how the others' cond is predicted."""
    return Guidance({"cond": Branch(nag=NAG("negative", scale, tau, alpha))}, "cond")


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
    f.__name__: f
    for f in (
        none, cfg, interval, stg_r, stg_a, slg, pag, seg, autoguidance, cfg_zero_star, apg, tcfg, rescale, dual,
        three_stream, nag, tpige_code, tpige_figure, tpige_aligned,
    )
}  # fmt: skip

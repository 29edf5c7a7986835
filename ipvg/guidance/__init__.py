"""Guidance as data: `rule.py` (Guidance), `branch.py`, `weight.py`, `operation.py`; the methods are in `presets.py`."""

from .branch import NAG, Branch, Reference
from .cost import forwards
from .formula import Formula, FormulaError
from .operation import APG, TCFG, Operation, OptimalScale, Rescale, ZeroInit
from .presets import (
    PRESETS,
    apg,
    autoguidance,
    cfg,
    cfg_zero_star,
    dual,
    interval,
    nag,
    none,
    pag,
    rescale,
    seg,
    slg,
    stg_a,
    stg_r,
    tcfg,
    three_stream,
    tpige_aligned,
    tpige_code,
    tpige_figure,
)
from .rule import Guidance, control
from .spec import read
from .weight import Field, Interval, Weight

__all__ = [
    "APG", "NAG", "PRESETS", "TCFG", "Branch", "Field", "Formula", "FormulaError", "Guidance", "Interval", "Operation",
    "OptimalScale", "Reference", "Rescale", "Weight", "ZeroInit", "apg", "autoguidance", "cfg", "cfg_zero_star",
    "control", "dual", "forwards", "interval", "nag", "none", "pag", "read", "rescale", "seg", "slg", "stg_a", "stg_r",
    "tcfg", "three_stream", "tpige_aligned", "tpige_code", "tpige_figure",
]  # fmt: skip

"""Golden cases in bfloat16: an output may be 1.5 times as far from the float32 reference as PyTorch's own bfloat16 is.

PyTorch's errors are the figures of tests/bfloat16.json, which tests/peers/bfloat16.py measured, or of a bfloat16.json
beside other golden tensors. An output without a figure (of another case, or other numbers under the same name) is held
against the largest figure of that stage's outputs of the same kind. What lies between must be finite.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np

from ipvg.parity import Golden, Result

SLACK = 1.5
FIGURES = Path(__file__).with_name("bfloat16.json")

#: The outputs of dit, umt5 and vae, by kind.
_OUTPUT = re.compile(r"(v|latent|frames|out)(_clamped|_(?:first|last)\d+)?")


def fingerprint(reference: np.ndarray) -> int:
    return zlib.crc32(np.ascontiguousarray(reference).tobytes())


def judge(golden: Golden, results: Iterable[Result]) -> list[Result]:
    """The results with these bounds; a failure for each case that has outputs of which none was compared."""
    beside = golden.folder / FIGURES.name
    figures = json.loads((beside if beside.is_file() else FIGURES).read_text())["stages"][golden.stage]
    judged = [_judge(golden, figures, result) for result in results]
    seen = {result.case for result in judged if _OUTPUT.fullmatch(result.tensor)}
    silent = [c for n, c in golden.cases.items() if n not in seen and any(map(_OUTPUT.fullmatch, c.tensors))]
    return judged + [case.fail("", "none of its outputs was compared") for case in silent]


def _judge(golden: Golden, figures: dict, result: Result) -> Result:
    kind = _OUTPUT.fullmatch(result.tensor)
    if not kind:
        return replace(result, bound=float("inf"), ok=bool(np.isfinite(result.error)))
    figure = figures.get(f"{result.case}/{result.tensor}")
    if figure and figure["of"] == fingerprint(golden.cases[result.case][result.tensor]):
        error, of = figure["error"], "PyTorch's"
    else:
        alike = [f["error"] for name, f in figures.items() if _kind(name) == kind[1]]
        error, of = max(alike), f"the largest of PyTorch's for '{kind[1]}', as this case has no figure:"
    bound = SLACK * error
    return replace(result, bound=bound, ok=result.error <= bound, note=f"{result.error / error:.2f} x {of} {error:.3g}")


def _kind(name: str) -> str:
    return _OUTPUT.fullmatch(name.rpartition("/")[2])[1]

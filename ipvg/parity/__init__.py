"""Is this build equal to the original implementation? Compare every stage with golden tensors.

    >>> from ipvg import parity
    >>> results = parity.run("tests/golden")            # or: python -m ipvg.parity [FOLDER]
    >>> print(parity.table(results))

For your own edit, compare two sets of intermediates and see where they part:

    >>> results = parity.compare(ours, reference, bound=1e-4)     # dicts of arrays, in the order of computation
    >>> parity.first_divergence(results)

Each stage has a module here with ``check(golden, device)``: it yields a `Result` per golden tensor, in the order in
which the model computes them, so that the first failing one is where the two computations part.
"""

from __future__ import annotations

import importlib
import traceback
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from .golden import FP32, Case, Golden, Result, max_difference, measure, relative_l2
from .report import as_dict, first_divergence, report, table

__all__ = [
    "FP32", "STAGES", "Case", "Golden", "Result", "as_dict", "compare", "first_divergence", "max_difference",
    "measure", "relative_l2", "report", "run", "table",
]  # fmt: skip

#: The stages, in the order of the pipeline: a module here and a golden file each.
STAGES = ("text", "umt5", "vae", "context", "dit", "schedule", "endtoend")


def compare(
    ours: np.ndarray | Mapping[str, np.ndarray],
    reference: np.ndarray | Mapping[str, np.ndarray],
    bound: float = 1e-4,
    *,
    stage: str = "yours",
    case: str = "",
) -> list[Result]:
    """Relative L2 of one array, or of every array of a mapping in the reference's order.

    bound: the largest error that passes; `FP32` holds those used for float32. A name that `ours` lacks is a failure.
    """
    if not isinstance(reference, Mapping):
        return [measure(stage, case, "array", ours, reference, bound)]
    return [
        measure(stage, case, name, ours[name], value, bound)
        if name in ours
        else Result(stage, case, name, float("inf"), bound, False, "missing")
        for name, value in reference.items()
    ]


def run(golden_dir: str | Path, stages: Iterable[str] | None = None, device: str = "cpu") -> list[Result]:
    """Runs the checks of `stages` (default: every stage that the folder has) and returns all results.

    A golden case for which a check yields nothing is a failure: a case that nobody compares proves nothing.
    FileNotFoundError: no such folder, or a named stage has no golden file. ValueError: an unknown stage.
    """
    folder = Path(golden_dir)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder of golden tensors")
    names = STAGES if stages is None else tuple(stages)
    for name in names:
        if name not in STAGES:
            raise ValueError(f"unknown stage {name!r}; there are {', '.join(STAGES)}")
        if stages is not None and not Golden.path(folder, name).is_file():
            raise FileNotFoundError(f"{Golden.path(folder, name)}: the stage {name!r} has no golden file there")
    names = [name for name in names if Golden.path(folder, name).is_file()]
    if not names:
        raise FileNotFoundError(f"{folder}: no golden files; expected e.g. {Golden.path(folder, 'dit')}")
    return [result for name in names for result in _run_stage(folder, name, device)]


def _run_stage(folder: Path, stage: str, device: str) -> list[Result]:
    golden = Golden(folder, stage)
    results: list[Result] = []
    try:
        check = importlib.import_module(f"{__name__}.{stage}").check
        results.extend(check(golden, device))
    except Exception as error:  # a stage that breaks is a failed row, and the other stages still run
        where = traceback.extract_tb(error.__traceback__)[-1]
        why = f"{type(error).__name__}: {error} ({Path(where.filename).name}:{where.lineno})"
        return [*results, Result(stage, "", "", float("inf"), 0.0, False, why)]
    seen = {result.case for result in results}
    silent = [case for case in golden.cases.values() if case.name not in seen]
    return results + [case.fail("", "the check compared nothing in this case") for case in silent]


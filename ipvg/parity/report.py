"""Results as text: a table by stage, and where a failing stage first left the reference."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from .golden import Result


@dataclass(frozen=True)
class Divergence:
    """The first failing tensor of the failing case that shows most intermediates, and what still agreed before it."""

    result: Result
    agreed: tuple[Result, ...]
    failing: int  # failing results of the stage

    def __str__(self) -> str:
        bad = self.result
        where = "/".join(part for part in (bad.case, bad.tensor) if part)
        if not where:
            return f"{bad.stage} stopped: {bad.note}"
        text = f"first divergence in {bad.stage}: {where}: {bad.error:.2e} ({bad.measure}), bound {bad.bound:.0e}"
        if bad.note:
            text += f"\n    {bad.note}"
        if self.agreed:
            last = self.agreed[-1]
            text += f"\n    before it {len(self.agreed)} agree, last {last.tensor} with {last.error:.2e}"
        return text + f"\n    {self.failing} of this stage's comparisons fail"


def first_divergence(results: Iterable[Result]) -> Divergence | None:
    """Where the first failing stage leaves the reference, or None if all agree."""
    results = list(results)
    stage = next((r.stage for r in results if not r.ok), None)
    if stage is None:
        return None
    cases: dict[str, list[Result]] = {}
    for result in results:
        if result.stage == stage:
            cases.setdefault(result.case, []).append(result)
    failing = [case for case in cases.values() if not all(r.ok for r in case)]
    case = max(failing, key=len)  # the case with most intermediates tells most; the first of equals
    index = next(i for i, r in enumerate(case) if not r.ok)
    count = sum(not r.ok for r in results if r.stage == stage)
    return Divergence(case[index], tuple(case[:index]), count)


def table(results: Iterable[Result]) -> str:
    """One line per stage and measure: cases, tensors, worst error, bound of that one, verdict."""
    groups: dict[tuple[str, str], list[Result]] = {}
    for result in results:
        groups.setdefault((result.stage, result.measure), []).append(result)
    rows = [("stage", "measure", "cases", "tensors", "worst error", "bound", "verdict")]
    for (stage, by), group in groups.items():
        # Worst: the error that uses most of its bound, so that a tight bound is not hidden behind a wide one.
        worst = max(group, key=lambda r: (not r.ok, r.error / r.bound if r.bound else r.error))
        bad = sum(not r.ok for r in group)
        verdict = "ok" if not bad else f"{bad} FAIL"
        cases = str(len({r.case for r in group}))
        rows.append((stage, by, cases, str(len(group)), f"{worst.error:.2e}", f"{worst.bound:.0e}", verdict))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows)


def report(results: Iterable[Result], verbose: bool = False) -> str:
    """The table, then the first divergence of each stage that has one; `verbose` puts every comparison before it."""
    results = list(results)
    parts = ["\n".join(map(_line, results))] if verbose else []
    parts.append(table(results))
    for stage in dict.fromkeys(result.stage for result in results):
        divergence = first_divergence(result for result in results if result.stage == stage)
        if divergence:
            parts.append(str(divergence))
    return "\n\n".join(parts)


def as_dict(result: Result) -> dict[str, Any]:
    """For JSON, which has no infinity: the error is None then."""
    return {**asdict(result), "error": result.error if math.isfinite(result.error) else None}


def _line(r: Result) -> str:
    text = f"{'ok  ' if r.ok else 'FAIL'} {r.error:.2e} <= {r.bound:.0e}  {r.stage} {r.case} {r.tensor}"
    return text if r.ok or not r.note else f"{text}  {r.note}"

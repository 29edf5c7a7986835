"""A line of the table and what stands behind it."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from .work import Work

if TYPE_CHECKING:
    from .ceilings import Ceilings
    from .meter import Timing

GIB = 2**30
_COLUMNS = "ours      eager   fastest     floor x floor  faster         GiB"
HEAD = f"{'work':49} {_COLUMNS}  apart"


@dataclass
class Row:
    """ours, peers: timings of the same work. floor: seconds by kind of operation at this run's ceilings. bytes: seconds
    of the fewest bytes, and of the loose passes, at the copy's speed. apart: relative L2 between the results."""

    name: str
    title: str
    ours: Timing | None = None
    peers: dict[str, Timing] = field(default_factory=dict)
    floor: dict[str, float] = field(default_factory=dict)
    bytes: dict[str, float] = field(default_factory=dict)
    apart: float | None = None
    peak: dict[str, int] = field(default_factory=dict)
    parts: dict[str, dict] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)
    more: dict = field(default_factory=dict)
    note: str = ""

    def attempt(self, side: str, run: Callable[[], object]) -> None:
        """A side that fails leaves its reason; the others go on. Running out of time or Ctrl-C is no such failure."""
        try:
            run()
        except Exception as error:
            self.errors[side] = f"{type(error).__name__}: {str(error)[:600]}"
            print(f"    {self.name}: {side} failed: {self.errors[side]}", flush=True)
            traceback.print_exc()

    def seen(self, side: str, timing: Timing) -> Timing:
        """Says at once what a row will only say at its end."""
        at = f", {timing.clock:.0f} MHz, {timing.power:.0f} W" if timing.clock else ""
        print(f"    {self.name}: {side} {timing.seconds * 1e3:.1f} ms ({min(timing.runs) * 1e3:.1f} to "
              f"{max(timing.runs) * 1e3:.1f}, {len(timing.runs)} runs, the first call {timing.first:.2f} s{at})",
              flush=True)  # fmt: skip
        return timing

    def set_floor(self, work: Work, ceilings: Ceilings, measure: bool = True) -> None:
        if measure:
            ceilings.measure(work.large())
        kinds = sorted({job.kind for job in work.jobs})
        self.floor = {kind: work.seconds(ceilings.rate, kind) for kind in kinds}
        self.bytes = {"fused": work.fused / ceilings.copy, "loose": work.loose / ceilings.copy}
        self.more["flops"] = {kind: work.flops(kind) for kind in kinds}

    @property
    def least(self) -> float:
        """The floor: the larger of arithmetic and bytes."""
        return max(sum(self.floor.values()), self.bytes.get("fused", 0.0))

    @property
    def fastest(self) -> tuple[str, Timing] | None:
        return min(self.peers.items(), key=lambda item: item[1].seconds, default=None)

    def record(self) -> dict:
        best = self.fastest
        return {
            "name": self.name, "title": self.title, "note": self.note, "errors": self.errors,
            "ours": self.ours and self.ours.record(), "peers": {n: t.record() for n, t in self.peers.items()},
            "floor_seconds": self.least, "floor": self.floor, "bytes_seconds": self.bytes,
            "x_floor": self.ours and self.least and self.ours.seconds / self.least,
            "fastest": best and best[0], "faster": best and self.ours and best[1].seconds / self.ours.seconds,
            "apart": self.apart, "peak_bytes": self.peak, "parts": self.parts, **self.more,
        }  # fmt: skip

    def line(self) -> str:
        def ms(seconds: float | None) -> str:
            return f"{seconds * 1e3:9.1f}" if seconds else f"{'-':>9}"

        best = self.fastest
        eager = self.peers.get("eager")
        over = f"{self.ours.seconds / self.least:7.3f}" if self.ours and self.least else f"{'-':>7}"
        faster = f"{best[1].seconds / self.ours.seconds:7.3f}" if self.ours and best else f"{'-':>7}"
        sides = "ours", best[0] if best else ""
        gib = "/".join(f"{self.peak[side] / GIB:.1f}" if self.peak.get(side) else "-" for side in sides)
        apart = f"{self.apart:.1e}" if self.apart is not None else "-"
        tail = f"  ({best[0]})" if best and best[0] != "eager" else ""
        failed = f"  failed: {', '.join(self.errors)}" if self.errors else ""
        return (f"{self.title:44} {ms(self.ours and self.ours.seconds)} {ms(eager and eager.seconds)} "
                f"{ms(best and best[1].seconds)} {ms(self.least or None)} {over} {faster} {gib:>11}  {apart}"
                f"{tail}{'  ' + self.note if self.note else ''}{failed}")  # fmt: skip

    def part_lines(self) -> list[str]:
        """Where the time goes: seconds of each kind of kernel beside the floor's for it."""
        out = []
        for side, found in self.parts.items():
            for part, seconds in sorted(found.get("parts", {}).items(), key=lambda item: -item[1]):
                floor = self.floor.get(part)
                share = f"floor {floor * 1e3:9.1f} ms, {floor / seconds:5.1%} of it" if floor else ""
                out.append(f"    {self.name} {side:9} {part:10} {seconds * 1e3:9.1f} ms  {share}")
            if "idle" in found:
                gaps = f"gaps {found['gaps'] * 1e3:.1f} ms"
                out.append(f"    {self.name} {side:9} {'idle':10} {found['idle'] * 1e3:9.1f} ms  {gaps}")
        return out

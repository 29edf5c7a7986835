"""Time, memory, power and kernels of one GPU; on the CPU, for trying the benchmark out, time alone."""

from __future__ import annotations

import contextlib
import gc
import json
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch

from .parts import summary

MOST = 200  # timed calls


@dataclass
class Timing:
    """Seconds of each timed run; what the card did meanwhile (MHz, W; 0 where unknown)."""

    runs: list[float]
    first: float  # the first call of all: plans, tuning, compilation
    clock: float = 0.0
    power: float = 0.0

    @property
    def seconds(self) -> float:
        return statistics.median(self.runs)

    def record(self) -> dict:
        return {"seconds": self.seconds, "least": min(self.runs), "most": max(self.runs), "runs": len(self.runs),
                "first": self.first, "clock_mhz": self.clock, "power_w": self.power}  # fmt: skip


class Meter:
    """device: "cuda" or "cpu". warm, timed: seconds that a load is kept on before it is timed, and timed for: a card at
    its power limit is slower than in a burst."""

    def __init__(self, device: str, warm: float, timed: float):
        self.device, self.warm, self.timed = device, warm, timed
        self.gpu = device == "cuda"

    def sync(self) -> None:
        if self.gpu:
            torch.cuda.synchronize()

    def reset_peak(self) -> None:
        if self.gpu:
            torch.cuda.reset_peak_memory_stats()

    def peak(self) -> int:
        """Bytes of PyTorch's own tensors at their most: less than what its process holds, so in the peer's favour."""
        return torch.cuda.max_memory_allocated() if self.gpu else 0

    def empty(self) -> None:
        gc.collect()
        if self.gpu:
            torch.cuda.synchronize()
            torch.cuda.empty_cache()

    def used(self) -> int:
        """Bytes of the card that anybody holds."""
        if not self.gpu:
            return 0
        free, total = torch.cuda.mem_get_info()
        return total - free

    def time(
        self, run: Callable[[], object], least: int = 2, warm: float | None = None, timed: float | None = None
    ) -> Timing:
        """Wall clock of a call and the wait for its end: after the load was on for `warm` seconds, for `timed` seconds
        and at least `least` times. A call four times as long as `warm` warms itself up."""
        warm, timed = self.warm if warm is None else warm, self.timed if timed is None else timed
        first, load = self.once(run), 0.0
        runs: list[float] = []
        with self.watch() as seen:
            while len(runs) < least or (sum(runs) < timed and len(runs) < MOST):
                seconds = self.once(run)
                if load >= warm or seconds >= 4 * warm:
                    runs.append(seconds)
                load += seconds
        return Timing(runs, first, seen.clock, seen.power)

    def once(self, run: Callable[[], object]) -> float:
        self.sync()
        began = time.perf_counter()
        run()
        self.sync()
        return time.perf_counter() - began

    def rate(self, run: Callable[[], object], amount: float) -> float:
        """`amount` (operations, bytes) a second of a short operation under sustained load. The card is warm already."""
        self.once(run)
        calls = max(1, min(2000, int(0.05 / max(self.once(run), 1e-6))))

        def batch() -> None:
            for _ in range(calls):
                run()

        return amount * calls / self.time(batch, 3, self.warm / 2, self.timed / 2).seconds

    @contextlib.contextmanager
    def watch(self, every: float = 0.1) -> Iterator[Watch]:
        """Peak of the card's memory, mean clock and power while the block runs, looked at every so many seconds."""
        seen = Watch(self, every)
        thread = threading.Thread(target=seen.look, daemon=True)
        if self.gpu:
            thread.start()
        try:
            yield seen
        finally:
            seen.done.set()
            if self.gpu:
                thread.join()
                seen.sample()


@dataclass
class Watch:
    meter: Meter
    every: float
    peak: int = 0
    clocks: list[float] = field(default_factory=list)
    powers: list[float] = field(default_factory=list)
    done: threading.Event = field(default_factory=threading.Event)

    def sample(self) -> None:
        self.peak = max(self.peak, self.meter.used())

    def look(self) -> None:
        while not self.done.wait(self.every):
            self.sample()
            with contextlib.suppress(Exception):  # without NVML: no clock, no power
                self.clocks.append(torch.cuda.clock_rate())
                self.powers.append(torch.cuda.power_draw() / 1000)

    @property
    def clock(self) -> float:
        return statistics.mean(self.clocks) if self.clocks else 0.0

    @property
    def power(self) -> float:
        return statistics.mean(self.powers) if self.powers else 0.0


def profile(run: Callable[[], object], seconds: float) -> dict:
    """Seconds by part of one call, from CUPTI's records of every kernel of this process: ours as well as PyTorch's.
    seconds: what the call takes without the profiler; what no kernel accounts for is "idle". "kernels": the dearest."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as found:
        run()
        torch.cuda.synchronize()
    with tempfile.TemporaryDirectory() as folder:
        found.export_chrome_trace(f"{folder}/trace.json")
        events = json.loads(Path(folder, "trace.json").read_text())["traceEvents"]
    return summary(events, seconds)

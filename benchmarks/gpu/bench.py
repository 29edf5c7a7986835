"""What the rows share: sizes, the meter, the ceilings, options; and both sides of a transformer."""

from __future__ import annotations

import argparse
import contextlib
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ipvg import _core
from ipvg.checkpoint import DitConfig, TextConfig, VaeConfig
from ipvg.parity import relative_l2

from . import weights, work
from .ceilings import Ceilings
from .meter import Meter, Timing, profile
from .row import Row

Size = tuple[int, int, int]  # frames, height, width of a video


@dataclass(frozen=True)
class Sizes:
    b13: DitConfig = work.B13
    b14: DitConfig = work.B14
    umt5: TextConfig = work.UMT5
    vae: VaeConfig = work.VAE
    p480: Size = (81, 480, 832)
    p720: Size = (81, 720, 1280)
    scaling: tuple[Size, ...] = ((17, 480, 832), (49, 480, 832), (161, 480, 832), (17, 720, 1280), (81, 720, 1280))
    accuracy: Size = (9, 480, 832)  # where a float32 forward of full length takes too long
    words: int = 200  # tokens of a prompt


_SMALL = DitConfig(dim=256, ffn_dim=384, num_heads=2, num_layers=4, vace_layers=(0, 2), text_dim=64)
TINY = Sizes(
    b13=_SMALL,
    b14=replace(_SMALL, num_layers=3, vace_layers=(0,)),
    umt5=TextConfig(vocab=2560, dim=64, dim_attn=64, dim_ffn=160, num_heads=1, num_layers=3),
    vae=VaeConfig(dim=24),
    p480=(5, 16, 32),
    p720=(5, 32, 32),
    scaling=((1, 16, 32), (9, 16, 32)),
    accuracy=(5, 16, 32),
    words=20,
)


class Bench:
    def __init__(self, args: argparse.Namespace):
        self.args, self.device = args, args.device
        self.sizes = TINY if args.tiny else Sizes()
        self.meter = Meter(args.device, args.warm, args.timed)
        self.ceilings = Ceilings(self.meter)
        self.best: dict[str, object] = {}  # what later rows build on: floors, the peers' fastest settings
        self._folders: dict[str, Path] = {}

    def wants(self, side: str) -> bool:
        return side in self.args.sides

    @contextlib.contextmanager
    def ours(self, row: Row, dtype: str = "bfloat16", limit: int | None = None) -> Iterator[_core.Device]:
        """A device object for the block. What the card holds more at its peak than before is the row's peak."""
        self.meter.empty()
        before = self.meter.used()
        with self.meter.watch(0.25) as seen:
            device = _core.Device(self.args.ours, dtype=dtype, memory_limit=limit)
            try:
                yield device
            finally:
                seen.sample()
                row.peak["ours"] = max(row.peak.get("ours", 0), seen.peak - before)
                del device
        self.meter.empty()

    @contextlib.contextmanager
    def peer(self) -> Iterator[None]:
        """A block in which PyTorch holds tensors, none before and none after."""
        self.meter.empty()
        try:
            yield
        finally:
            self.meter.empty()

    def timed(self, row: Row, side: str, run: Callable[[], object], least: int = 2) -> Timing:
        self.meter.reset_peak()
        timing = row.seen(side, self.meter.time(run, least))
        if not side.startswith("ours"):
            row.peak[side] = self.meter.peak()
        if self.args.profile and self.meter.gpu and (side != "eager" or not self.wants("compiled")):
            row.attempt(f"profile of {side}", lambda: row.parts.update({side: profile(run, timing.seconds)}))
        return timing

    def floor(self, row: Row, jobs: work.Work, measure: bool = True) -> None:
        if self.wants("floor"):
            row.attempt("floor", lambda: row.set_floor(jobs, self.ceilings, measure))

    def folder(self, name: str, gib: int) -> Path:
        """For a checkpoint of so many GiB; removed at the end."""
        if name not in self._folders:
            needed = 2**20 if self.args.tiny else gib * 2**30
            self._folders[name] = Path(tempfile.mkdtemp(prefix=f"ipvg-engine-{name}-", dir=weights.room(needed)))
        return self._folders[name]

    def close(self) -> None:
        for folder in self._folders.values():
            shutil.rmtree(folder, ignore_errors=True)


def array(name: str, shape: tuple[int, ...]) -> np.ndarray:
    return weights.draw(name, shape, "cpu").numpy()


def dit_inputs(c: DitConfig, size: Size, words: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """x (16, F, h, w), context (96, F, h, w), states (words, text_dim), for a video with one reference."""
    latent = work.latent(*size)
    shapes = (c.in_dim, *latent), (c.vace_in_dim, *latent), (words, c.text_dim)
    x, context, states = (array(name, shape) for name, shape in zip(("x", "context", "text"), shapes))
    return x, context, states


def apart(row: Row, a: np.ndarray | None, b: np.ndarray | None) -> None:
    if a is not None and b is not None:
        row.apart = float(relative_l2(a, b))

"""How visible the seams of a long video are: colour, likeness and motion from frame to frame, there and elsewhere.

>>> print(seams.measure(video, [81, 145]))                  # or video.manifest["seams"], `ipvg seams alice.mp4`
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from . import _arguments
from .video import Video

#: Below this many grey levels a picture stands still as far as 8 bits can tell: the least that ratios divide by.
STILL = 0.1


@dataclass(frozen=True)
class Change:
    """From one frame to the next. colour: distance of the mean colours (RGB), in grey levels. psnr: of the one frame
    against the other, dB (100: equal). motion: mean absolute difference of their pixels, in grey levels."""

    colour: float
    psnr: float
    motion: float


@dataclass(frozen=True)
class Seam:
    """frame: the first new one. change: from the frame before it. colour_ratio and motion_ratio: how many times the
    usual change inside chunks (1: not to be seen); psnr_drop: dB below the usual one. drift: mean colour of the chunk
    that begins here minus that of the first one, in grey levels."""

    frame: int
    change: Change
    colour_ratio: float
    motion_ratio: float
    psnr_drop: float
    drift: tuple[float, float, float]


@dataclass(frozen=True)
class Seams:
    """inside: medians over all frames that are no seam. worst_inside: the largest colour and motion and the smallest
    PSNR there: a cut inside a chunk would show. Prints as a table."""

    inside: Change
    worst_inside: Change
    seams: tuple[Seam, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Seams:
        """The inverse of `to_dict`."""
        found = [{**s, "change": Change(**s["change"]), "drift": tuple(s["drift"])} for s in data["seams"]]
        return cls(Change(**data["inside"]), Change(**data["worst_inside"]), tuple(Seam(**s) for s in found))

    def __str__(self) -> str:
        head = f"{'':>12}{'colour':>9}{'x usual':>9}{'PSNR':>8}{'below':>8}{'motion':>9}{'x usual':>9}   drift R G B"
        rows = [head]
        for name, c in (("inside", self.inside), ("worst inside", self.worst_inside)):
            rows.append(f"{name:>12}{c.colour:9.2f}{'':9}{c.psnr:8.2f}{'':8}{c.motion:9.2f}")
        for s in self.seams:
            drift = " ".join(f"{d:+.1f}" for d in s.drift)
            rows.append(
                f"{f'frame {s.frame}':>12}{s.change.colour:9.2f}{s.colour_ratio:9.2f}{s.change.psnr:8.2f}"
                f"{s.psnr_drop:8.2f}{s.change.motion:9.2f}{s.motion_ratio:9.2f}   {drift}"
            )
        return "\n".join(rows)


def measure(video: Video | np.ndarray, at: Sequence[int]) -> Seams:
    """video: Video or uint8 (F, H, W, 3). at: the first new frame of every chunk but the first, growing.

    Raises TypeError and ValueError: a frame outside 1 to F - 1, no change inside chunks to compare with.
    """
    frames = video.frames if isinstance(video, Video) else np.asarray(video)
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3:
        raise TypeError(f"video: expected a Video or uint8 (F, H, W, 3), got {_arguments.short(frames)}")
    at = [_arguments.integer("at", k, 1, len(frames) - 1) for k in _arguments.instance("at", at, Sequence, "frames")]
    if not at or at != sorted(set(at)):
        raise ValueError(f"at: expected at least one frame, each larger than the one before, got {at}")
    means = np.array([frame.mean((0, 1), dtype=np.float64) for frame in frames])
    changes = np.array([_change(frames[k - 1], frames[k], means[k - 1], means[k]) for k in range(1, len(frames))])
    others = np.delete(changes, np.array(at) - 1, axis=0)
    if not len(others):
        raise ValueError("at: every frame is a seam, so nothing is left to compare with")
    usual = Change(*np.median(others, axis=0).tolist())
    worst = Change(others[:, 0].max().item(), others[:, 1].min().item(), others[:, 2].max().item())
    first = means[: at[0]].mean(0)
    found = []
    for k, end in zip(at, [*at[1:], len(frames)], strict=True):
        change = Change(*changes[k - 1].tolist())
        found.append(
            Seam(
                frame=k,
                change=change,
                colour_ratio=max(change.colour, STILL) / max(usual.colour, STILL),
                motion_ratio=max(change.motion, STILL) / max(usual.motion, STILL),
                psnr_drop=usual.psnr - change.psnr,
                drift=tuple((means[k:end].mean(0) - first).tolist()),
            )
        )
    return Seams(usual, worst, tuple(found))


def _change(a: np.ndarray, b: np.ndarray, mean_a: np.ndarray, mean_b: np.ndarray) -> tuple[float, float, float]:
    apart = b.astype(np.int16) - a
    square = float(np.square(apart, dtype=np.int32).mean(dtype=np.float64))
    psnr = min(10 * math.log10(255**2 / square), 100.0) if square else 100.0
    return float(np.linalg.norm(mean_b - mean_a)), psnr, float(np.abs(apart).mean(dtype=np.float64))

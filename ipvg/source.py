"""What a video is conditioned on besides text: the VACE context of references, source video and mask."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from . import _arguments
from .guidance import Reference


@dataclass(frozen=True, eq=False)
class Source:
    """A VACE context and what it was made from. Make one with `Pipeline.encode_source` or from your own array.

    context: float32 (96, F, H/8, W/8): 16 inactive and 16 reactive latent channels, 64 mask channels; the reference
        slots come first in time. F = references + 1 + (frames - 1) / 4.
    references: how many slots there are, 0 or more. They are denoised with the rest and cut off before decoding.
    frames: of the video, 4n + 1. size: (width, height) in pixels, multiples of 16.
    Raises ValueError when these do not fit together.
    """

    context: np.ndarray
    references: int
    frames: int
    size: tuple[int, int]

    def __post_init__(self) -> None:
        check_size(self.size, self.frames)
        width, height = self.size
        references = _arguments.integer("references", self.references, 0, 1000)
        expected = (96, references + 1 + (self.frames - 1) // 4, height // 8, width // 8)
        context = np.asarray(self.context)
        if context.dtype.kind != "f":
            raise TypeError(f"context: expected floating point, got {context.dtype}")
        if context.shape == expected and not np.isfinite(context).all():
            raise ValueError("context: holds NaN or infinity")
        object.__setattr__(self, "context", np.ascontiguousarray(context, np.float32))
        if context.shape != expected:
            raise ValueError(
                f"context: {self.references} references, {self.frames} frames and size {width}x{height} make "
                f"{expected}, got {context.shape}"
            )

    @property
    def latent_shape(self) -> tuple[int, int, int, int]:
        """(16, F, h, w) of the latent that is denoised, reference slots included."""
        return (16, *self.context.shape[1:])

    def variant(self, reference: Reference) -> np.ndarray:
        """The context as a branch sees it: "present", "drop" (without the slots, shorter) or "absent" (slots all zero).

        The control part does not depend on the references, which are encoded apart, so no second encoding is due.
        """
        if reference == "present" or self.references == 0:
            return self.context
        if reference == "drop":
            return np.ascontiguousarray(self.context[:, self.references :])
        if reference == "absent":
            absent = self.context.copy()
            absent[:, : self.references] = 0
            return absent
        raise ValueError(f"reference: expected 'present', 'drop' or 'absent', got {reference!r}")


def check_size(size: tuple[int, int], frames: int) -> None:
    """ValueError or TypeError unless size = (width, height) are positive multiples of 16 and frames is 4n + 1."""
    try:
        width, height = size
    except (TypeError, ValueError):
        raise TypeError(f"size: expected (width, height), got {size!r}") from None
    for name, value in (("width", width), ("height", height), ("frames", frames)):
        _arguments.integer(name, value, 1, 1 << 16)
    if width < 16 or height < 16 or width % 16 or height % 16:
        near = tuple(max(16, round(v / 16) * 16) for v in (width, height))
        raise ValueError(f"size: expected multiples of 16, got {width}x{height}; try {near[0]}x{near[1]}")
    if frames < 1 or frames % 4 != 1:
        near_frames = max(1, round((frames - 1) / 4) * 4 + 1)
        raise ValueError(f"frames: expected 4n + 1 (1, 5, ..., 81), got {frames}; try {near_frames}")

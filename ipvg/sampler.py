"""The denoising loop."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from . import _core


def noise(seed: int, shape: Sequence[int]) -> np.ndarray:
    """Standard normal noise, float32, the same bits on every machine and device.

    Element i (C order) depends on (seed, i) alone: Philox4x32-10 and the inverse normal distribution, as
    csrc/base/random.h says. seed: 0 to 2**64 - 1. It is not torch's generator: to repeat a run of the original code,
    pass its noise instead. Raises TypeError / ValueError for a seed or shape that cannot work.
    """
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer):
        raise TypeError(f"seed: expected an integer, got {seed!r}")
    if not 0 <= seed < 2**64:
        raise ValueError(f"seed: expected 0 to 2**64 - 1, got {seed}")
    shape = tuple(shape)
    for size in shape:
        if isinstance(size, bool) or not isinstance(size, int | np.integer) or size < 0:
            raise ValueError(f"shape: expected sizes from 0, got {shape}")
    return _core.normals(int(seed), 0, 0, math.prod(shape)).reshape(shape)

"""The numbers behind the golden tensors: every weight and input of a parity case, from its name alone.

A golden file holds outputs only. Its JSON names each input by a recipe and a key; these functions turn that into the
same bits on any machine (integers, and float operations that are exact), so no weights need to be stored.

    seed(key)   first 8 bytes, little endian, of sha256(key in UTF-8)
    bits(i)     splitmix64, element i of the stream that starts at seed
    unit(i)     bits(i) >> 40, times 2**-24: a float32 in [0, 1) that is exact
"""

from __future__ import annotations

import hashlib
import math

import numpy as np

_GOLDEN_RATIO = 0x9E3779B97F4A7C15
_WORD = 2**64
_BLOCK = 1 << 20  # numbers made at a time: keeps the working set small for the large weights


def _top24(key: str, first: int, count: int) -> np.ndarray:
    """(count,) uint64 in [0, 2**24): the upper 24 bits of numbers first, first + 1, ... of the key's stream."""
    seed = int.from_bytes(hashlib.sha256(key.encode("utf-8")).digest()[:8], "little")
    # Unsigned arrays wrap around silently, which is what splitmix64 wants.
    z = np.arange(count, dtype=np.uint64)
    z *= np.uint64(_GOLDEN_RATIO)
    z += np.uint64((seed + (first + 1) * _GOLDEN_RATIO) % _WORD)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        z ^= z >> np.uint64(shift)
        z *= np.uint64(factor)
    z ^= z >> np.uint64(31)
    z >>= np.uint64(40)
    return z


def uniform(key: str, shape) -> np.ndarray:
    """float32 in [0, 1), C order."""
    return (_top24(key, 0, math.prod(shape)).astype(np.float32) * np.float32(2.0**-24)).reshape(shape)


def normal(key: str, shape) -> np.ndarray:
    """float32 with mean 0 and variance 1: twelve uniforms minus 6. The sum is exact, in integers, and rounded once."""
    count = math.prod(shape)
    out = np.empty(count, np.float32)
    for start in range(0, count, _BLOCK):
        n = min(_BLOCK, count - start)
        twelve = _top24(key, 12 * start, 12 * n).reshape(n, 12).sum(axis=1).astype(np.int64)
        out[start : start + n] = ((twelve - 6 * 2**24) * 2.0**-24).astype(np.float32)
    return out.reshape(shape)


def weight(name: str, shape, salt: str = "") -> np.ndarray:
    """float32: what the tensor of that OFFICIAL name and shape holds in every golden checkpoint.

    With r uniform in [-1, 1):
        norm scales (1-D ".weight", any ".gamma")        1 + 0.2 r
        ".modulation"                                    0.3 r
        token and relative position embeddings           r
        other 1-D tensors (biases)                       0.1 r
        everything else                                  r sqrt(3 / fan_in), variance 1 / fan_in
    """
    r = 2 * uniform(salt + name, shape) - 1
    if name.endswith(".gamma") or (len(shape) == 1 and name.endswith(".weight")):
        return 1 + np.float32(0.2) * r
    if name.endswith("modulation"):
        return np.float32(0.3) * r
    if name.endswith(("token_embedding.weight", "pos_embedding.embedding.weight")):
        return r
    if len(shape) == 1:
        return np.float32(0.1) * r
    return np.float32(math.sqrt(3.0 / math.prod(shape[1:]))) * r


def pixels(key: str, shape) -> np.ndarray:
    """uint8 (..., H, W, 3), smooth in space and moving slowly over the leading axes: six triangle waves of integers."""
    *lead, height, width, channels = shape
    k = [int(v) for v in _top24(key, 0, 64)]
    frame, y, x, channel = np.ogrid[: math.prod(lead), :height, :width, :channels]
    total = np.zeros((math.prod(lead), height, width, channels), np.int64)
    for wave in range(6):
        dy, dx, df, start = k[4 * wave : 4 * wave + 4]
        phase = y * (dy % 7 + 1) + x * (dx % 7 + 1) + frame * (df % 3 + 1) + channel * (start % 40) + start
        phase = phase % 64
        total += np.minimum(phase, 64 - phase) * (40 // (wave + 1))
    return (total * 255 // max(int(total.max()), 1)).astype(np.uint8).reshape(shape)


def box(key: str, shape) -> np.ndarray:
    """uint8 (F, H, W, 3): a moving box, a box of grey values and a few values around one half; 0 elsewhere.

    It exercises a mask's threshold, its grey values and its motion. The grey box holds channel 0 of `pixels`.
    """
    frames, height, width, _ = shape
    out = np.zeros(shape, np.uint8)
    grey = pixels(key, shape)[..., :1]
    for frame in range(frames):
        moving = slice(height // 4 + frame, min(3 * height // 4 + frame, height))
        out[frame, moving, width // 2 : 7 * width // 8] = 255
    rows, columns = slice(height // 4, 3 * height // 4), slice(width // 8, width // 4)
    out[:, rows, columns] = grey[:, rows, columns]
    out[:, :2, :8] = 124 + np.arange(8, dtype=np.uint8)[:, None]
    return out

"""The noise is a documented generator: anyone can redraw it from its description."""

import hashlib
import math
from statistics import NormalDist

import numpy as np
import pytest

from ipvg import _core
from ipvg.sampler import noise

MASK = 0xFFFFFFFF


def philox(counter, key):
    """Philox4x32-10 written out from its paper, in Python integers."""
    c, k = list(counter), list(key)
    for _ in range(10):
        a, b = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(b >> 32) ^ c[1] ^ k[0], b & MASK, (a >> 32) ^ c[3] ^ k[1], a & MASK]
        k = [(k[0] + 0x9E3779B9) & MASK, (k[1] + 0xBB67AE85) & MASK]
    return tuple(c)


@pytest.mark.parametrize(
    ("counter", "key", "expected"),  # the known answers that come with Random123
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((MASK,) * 4, (MASK,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_gives_its_known_answers(counter, key, expected):
    assert _core.philox(counter, key) == expected == philox(counter, key)


def word(seed, stream, i):
    block = i // 2
    w = philox((block & MASK, block >> 32, stream, 0), (seed & MASK, seed >> 32))
    return w[2 * (i % 2)] | w[2 * (i % 2) + 1] << 32


@pytest.mark.parametrize(("seed", "stream", "first"), [(2025, 0, 0), (2**64 - 1, 7, 2**33 + 1), (0, 0, 5)])
def test_elements_are_what_the_description_says(seed, stream, first):
    ours = _core.normals(seed, stream, first, 301)
    for n, value in enumerate(ours.tolist()):
        u = ((word(seed, stream, first + n) >> 12) + 0.5) * 2.0**-52
        # Python's inverse is the same published algorithm, with libm's logarithm.
        assert value == pytest.approx(NormalDist().inv_cdf(u), rel=1e-7)


def test_quantile_is_accurate_to_the_far_tails():
    points = [2.0**-53, 1e-15, 1e-11, 1e-7, 1e-3, 0.01, 0.0749, 0.0751, 0.3, 0.5, 0.7, 0.925]
    points += [0.9251, 0.999, 1 - 2.0**-53]
    for u in points:
        z = _core.normal_quantile(u)
        assert z == pytest.approx(NormalDist().inv_cdf(u), rel=2e-14, abs=1e-16)
        if u < 0.5:
            assert math.erfc(-z / math.sqrt(2)) / 2 == pytest.approx(u, rel=1e-12)
            assert _core.normal_quantile(0.5 + (0.5 - u)) == pytest.approx(-z, rel=1e-3 if u < 1e-12 else 1e-5)
    for bad in (0.0, 1.0, -0.1, math.nan):
        with pytest.raises(ValueError, match="u:"):
            _core.normal_quantile(bad)


def test_noise_is_normal():
    n = 1 << 20
    z = noise(2025, (16, n // 16)).ravel().astype(np.float64)
    # Standard errors of mean, variance, skewness and kurtosis of n normal draws; five of each.
    for value, expected, variance in ((z, 0, 1), (z**2, 1, 2), (z**3, 0, 15), (z**4, 3, 96)):
        assert abs(value.mean() - expected) < 5 * math.sqrt(variance / n)
    assert abs((z[:-1] * z[1:]).mean()) < 5 / math.sqrt(n)  # neighbours
    # Kolmogorov-Smirnov at 1 in 10^5.
    x = np.sort(z)[::64]
    cdf = np.array([NormalDist().cdf(v) for v in x])
    rank = np.arange(0, n, 64) / n
    assert np.abs(cdf - rank).max() < math.sqrt(-math.log(1e-5 / 2) / 2 / n) + 64 / n


def test_bits_never_change():
    """What a seed means is a promise: another compiler, machine or device must give these bytes."""
    z = noise(2025, (16, 21, 60, 104))
    assert z.dtype == np.float32 and z.shape == (16, 21, 60, 104)
    assert hashlib.sha256(z.tobytes()).hexdigest() == PROMISED


PROMISED = "0dbb6f90e77770a175d5ce2f11b9fc5ef3914323747ba13d8f214bd0940d32aa"


def test_a_seed_gives_one_stream_and_another_seed_another():
    assert noise(1, (4, 6)).tobytes() == noise(1, (24,)).tobytes() == noise(1, (48,))[:24].tobytes()
    assert not np.any(noise(1, (100,)) == noise(2, (100,)))
    assert np.array_equal(_core.normals(3, 0, 11, 20), noise(3, (31,))[11:])
    assert noise(0, ()).shape == () and noise(0, (0, 3)).shape == (0, 3)


@pytest.mark.parametrize(
    ("seed", "shape", "error"),
    [(-1, (2,), ValueError), (2**64, (2,), ValueError), (1.5, (2,), TypeError), (True, (2,), TypeError),
     (0, (-1,), ValueError), (0, (2.0,), TypeError)],
)  # fmt: skip
def test_seeds_and_shapes_that_cannot_work_say_so(seed, shape, error):
    with pytest.raises(error, match=r"seed|shape"):
        noise(seed, shape)

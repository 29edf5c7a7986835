/* 16- and 8-bit floats in software: rounded to nearest even from the bits of a float32, subnormals included. */
#ifndef FAKE_NARROW_H
#define FAKE_NARROW_H

#include <cuda_runtime.h>

/* The bits of |x| with `mantissa` bits of mantissa and exponent bias `bias`, without limits above. x is no NaN. */
inline unsigned emulator_narrow(float x, int mantissa, int bias)
{
    const unsigned bits = __float_as_uint(x) & 0x7fffffffu;
    const int exponent = (int)(bits >> 23) - 127, least = 1 - bias;
    const int shift = 23 - mantissa + (exponent < least ? least - exponent : 0);
    if (bits < 0x00800000u || shift > 24) return 0; /* a subnormal float32 is below half of the least of any of them */
    const unsigned full = (bits & 0x7fffffu) | 0x800000u, rest = full & ((1u << shift) - 1), half = 1u << (shift - 1);
    unsigned kept = full >> shift;
    kept += rest > half || (rest == half && (kept & 1));
    return exponent < least ? kept : ((unsigned)(exponent - least) << mantissa) + kept;
}

inline float emulator_widen(unsigned magnitude, int mantissa, int bias)
{
    const int exponent = (int)(magnitude >> mantissa);
    const unsigned m = magnitude & ((1u << mantissa) - 1);
    if (!exponent) return std::ldexp((float)m, 1 - bias - mantissa);
    return std::ldexp((float)(m | 1u << mantissa), exponent - bias - mantissa);
}

#endif

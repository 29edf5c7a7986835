#ifndef FAKE_CUDA_FP16_H
#define FAKE_CUDA_FP16_H

#include "narrow.h"

struct __half {
    unsigned short bits;
};
struct __half2 {
    __half x, y;
};

inline __half __ushort_as_half(unsigned short bits) { return {bits}; }
inline unsigned short __half_as_ushort(__half h) { return h.bits; }
inline float __half2float(__half h)
{
    const unsigned magnitude = h.bits & 0x7fffu;
    const float value = magnitude > 0x7c00u ? NAN : magnitude == 0x7c00u ? INFINITY : emulator_widen(magnitude, 10, 15);
    return h.bits & 0x8000u ? -value : value;
}
inline __half __float2half_rn(float x)
{
    if (std::isnan(x)) return {0x7fff};
    const unsigned bits = std::isinf(x) ? 0x7c00u : emulator_narrow(x, 10, 15);
    return {(unsigned short)((bits > 0x7c00u ? 0x7c00u : bits) | (std::signbit(x) ? 0x8000u : 0))};
}
inline __half2 __floats2half2_rn(float x, float y) { return {__float2half_rn(x), __float2half_rn(y)}; }

#endif

#ifndef FAKE_CUDA_FP8_H
#define FAKE_CUDA_FP8_H

#include "narrow.h"

typedef unsigned char __nv_fp8_storage_t;
typedef unsigned short __nv_fp8x2_storage_t;
typedef enum __nv_saturation_t { __NV_NOSAT, __NV_SATFINITE } __nv_saturation_t;
typedef enum __nv_fp8_interpretation_t { __NV_E4M3, __NV_E5M2 } __nv_fp8_interpretation_t;

/* E4M3, saturated: 448 is the greatest, 0x7f is NaN. The only form that is used. */
inline __nv_fp8_storage_t __nv_cvt_float_to_fp8(float x, __nv_saturation_t, __nv_fp8_interpretation_t)
{
    if (std::isnan(x)) return 0x7f;
    const unsigned bits = std::isinf(x) ? 0x7eu : emulator_narrow(x, 3, 7);
    return (unsigned char)((bits > 0x7eu ? 0x7eu : bits) | (std::signbit(x) ? 0x80u : 0));
}
inline __nv_fp8x2_storage_t __nv_cvt_float2_to_fp8x2(float2 x, __nv_saturation_t s, __nv_fp8_interpretation_t i)
{
    return (unsigned short)(__nv_cvt_float_to_fp8(x.x, s, i) | __nv_cvt_float_to_fp8(x.y, s, i) << 8);
}

#endif

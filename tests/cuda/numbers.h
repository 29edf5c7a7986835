/* Numbers of the float dtypes, for the stand-ins. */
#ifndef IPVG_TESTS_CUDA_NUMBERS_H
#define IPVG_TESTS_CUDA_NUMBERS_H

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "../../csrc/base/tensor.h"

static inline float number_e4m3(unsigned char b)
{
    const int e = b >> 3 & 15, m = b & 7;
    const float v = (b & 0x7f) == 0x7f ? NAN : e ? ldexpf((float)(8 + m), e - 10) : ldexpf((float)m, -9);
    return b & 0x80 ? -v : v;
}

static inline float number_read(const void *p, int64_t dtype, int64_t i)
{
    uint32_t bits;
    float x;
    if (dtype == IPVG_F32) return ((const float *)p)[i];
    if (dtype == IPVG_F16) return (float)((const _Float16 *)p)[i];
    if (dtype == IPVG_E4M3) return number_e4m3(((const unsigned char *)p)[i]);
    bits = (uint32_t)((const uint16_t *)p)[i] << 16;
    memcpy(&x, &bits, sizeof x);
    return x;
}

static inline void number_write(void *p, int64_t dtype, int64_t i, float x)
{
    uint32_t bits;
    if (dtype == IPVG_F32) {
        ((float *)p)[i] = x;
    } else if (dtype == IPVG_F16) {
        ((_Float16 *)p)[i] = (_Float16)x;
    } else { /* to nearest even; NaN stays NaN */
        memcpy(&bits, &x, sizeof bits);
        bits = x != x ? bits | 0x400000 : bits + 0x7fff + (bits >> 16 & 1);
        ((uint16_t *)p)[i] = (uint16_t)(bits >> 16);
    }
}

/* n of them widened; malloc'ed. */
static inline float *numbers_widen(const void *p, int64_t dtype, int64_t n)
{
    float *out = (float *)malloc((size_t)(n ? n : 1) * sizeof *out);
    if (!out) abort();
    for (int64_t i = 0; i < n; i++) out[i] = number_read(p, dtype, i);
    return out;
}

static inline float numbers_dot(const float *a, const float *b, int64_t n)
{
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < n; i++) sum += a[i] * b[i];
    return sum;
}

#endif

/* Reading and writing V neighbouring numbers of any dtype as float32. V = 8 is the fast way: 16-byte accesses, everything
 * aligned (see `wide` in launch.cuh); V = 1 and 2 take any address.
 *
 * The dtype is a value, not a template parameter: all threads of a launch take the same branch, which costs nothing beside
 * memory, and keeps each kernel to two instances. fetch() and widen() are apart so that loads are on their way together. */
#ifndef IPVG_KERNELS_NUMBER_CUH
#define IPVG_KERNELS_NUMBER_CUH

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>
#include <cuda_runtime.h>

#include "kernels.h"

typedef ipvg_k_array array;

#define E4M3_MAX 448.f
#define E4M3_LEAST 1e-34f /* a row below it becomes zeros: 448 / 1e-36 is infinite */

__host__ __device__ inline int64_t dtype_size(ipvg_k_dtype dtype)
{
    return dtype == IPVG_K_F32 ? 4 : dtype == IPVG_K_E4M3 ? 1 : 2;
}

/* ==== one number ==== */

__device__ inline float load_one(const array &x, int64_t at)
{
    if (x.dtype == IPVG_K_F32) return ((const float *)x.data)[at];
    if (x.dtype == IPVG_K_BF16) return __bfloat162float(((const __nv_bfloat16 *)x.data)[at]);
    return __half2float(((const __half *)x.data)[at]);
}

__device__ inline void store_one(const array &y, int64_t at, float v)
{
    if (y.dtype == IPVG_K_F32)
        ((float *)y.data)[at] = v;
    else if (y.dtype == IPVG_K_BF16)
        ((__nv_bfloat16 *)y.data)[at] = __float2bfloat16_rn(v);
    else if (y.dtype == IPVG_K_F16)
        ((__half *)y.data)[at] = __float2half_rn(v);
    else
        ((__nv_fp8_storage_t *)y.data)[at] = __nv_cvt_float_to_fp8(v, __NV_SATFINITE, __NV_E4M3);
}

/* v as y's dtype will hold it. */
__device__ inline float rounded(float v, ipvg_k_dtype dtype)
{
    if (dtype == IPVG_K_BF16) return __bfloat162float(__float2bfloat16_rn(v));
    if (dtype == IPVG_K_F16) return __half2float(__float2half_rn(v));
    return v;
}

/* ==== V numbers ==== */

template <int V>
struct raw {
    float v[V];
};
template <>
struct raw<8> {
    uint4 a, b; /* b: the second half of float32 */
};

template <int V>
__device__ inline raw<V> fetch(const array &x, int64_t at)
{
    raw<V> r;
#pragma unroll
    for (int i = 0; i < V; i++) r.v[i] = load_one(x, at + i);
    return r;
}
template <>
__device__ inline raw<8> fetch<8>(const array &x, int64_t at)
{
    const uint4 *p = (const uint4 *)((const char *)x.data + at * dtype_size(x.dtype));
    raw<8> r;
    r.a = p[0];
    r.b = x.dtype == IPVG_K_F32 ? p[1] : r.a;
    return r;
}

template <int V>
__device__ inline void widen(float (&v)[V], const raw<V> &r, ipvg_k_dtype)
{
#pragma unroll
    for (int i = 0; i < V; i++) v[i] = r.v[i];
}
template <>
__device__ inline void widen<8>(float (&v)[8], const raw<8> &r, ipvg_k_dtype dtype)
{
    const unsigned word[8] = {r.a.x, r.a.y, r.a.z, r.a.w, r.b.x, r.b.y, r.b.z, r.b.w};
    if (dtype == IPVG_K_F32) {
#pragma unroll
        for (int i = 0; i < 8; i++) v[i] = __uint_as_float(word[i]);
    } else if (dtype == IPVG_K_BF16) {
#pragma unroll
        for (int i = 0; i < 8; i++) v[i] = __uint_as_float(i % 2 ? word[i / 2] & 0xffff0000u : word[i / 2] << 16);
    } else {
#pragma unroll
        for (int i = 0; i < 8; i++)
            v[i] = __half2float(__ushort_as_half((unsigned short)(word[i / 2] >> (i % 2 * 16) & 0xffff)));
    }
}

template <int V>
__device__ inline void load(float (&v)[V], const array &x, int64_t at)
{
    widen<V>(v, fetch<V>(x, at), x.dtype);
}

/* From a vector, which no kernel writes that reads it: these loads may overtake stores. */
template <int V>
__device__ inline void load_vector(float (&v)[V], const array &x, int64_t at)
{
    if constexpr (V == 8) {
        const uint4 *p = (const uint4 *)((const char *)x.data + at * dtype_size(x.dtype));
        raw<8> r;
        r.a = __ldg(p);
        r.b = x.dtype == IPVG_K_F32 ? __ldg(p + 1) : r.a;
        widen<8>(v, r, x.dtype);
    } else {
        load<V>(v, x, at);
    }
}

/* From a vector that may be missing. */
template <int V>
__device__ inline void load_or(float (&v)[V], const array &x, int64_t at, float otherwise)
{
    if (x.data) {
        load_vector<V>(v, x, at);
    } else {
#pragma unroll
        for (int i = 0; i < V; i++) v[i] = otherwise;
    }
}

__device__ inline unsigned pack_bf16(float low, float high)
{
    const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    unsigned bits;
    memcpy(&bits, &pair, sizeof bits);
    return bits;
}

__device__ inline unsigned pack_f16(float low, float high)
{
    const __half2 pair = __floats2half2_rn(low, high);
    unsigned bits;
    memcpy(&bits, &pair, sizeof bits);
    return bits;
}

__device__ inline unsigned pack_e4m3(float a, float b, float c, float d)
{
    return (unsigned)__nv_cvt_float2_to_fp8x2(make_float2(a, b), __NV_SATFINITE, __NV_E4M3) |
           (unsigned)__nv_cvt_float2_to_fp8x2(make_float2(c, d), __NV_SATFINITE, __NV_E4M3) << 16;
}

__device__ inline uint4 pack_bf16(const float (&v)[8])
{
    return make_uint4(pack_bf16(v[0], v[1]), pack_bf16(v[2], v[3]), pack_bf16(v[4], v[5]), pack_bf16(v[6], v[7]));
}

template <int V>
__device__ inline void store(const array &y, int64_t at, const float (&v)[V])
{
#pragma unroll
    for (int i = 0; i < V; i++) store_one(y, at + i, v[i]);
}
template <>
__device__ inline void store<8>(const array &y, int64_t at, const float (&v)[8])
{
    char *p = (char *)y.data + at * dtype_size(y.dtype);
    if (y.dtype == IPVG_K_F32) {
        ((float4 *)p)[0] = make_float4(v[0], v[1], v[2], v[3]);
        ((float4 *)p)[1] = make_float4(v[4], v[5], v[6], v[7]);
    } else if (y.dtype == IPVG_K_BF16) {
        *(uint4 *)p = pack_bf16(v);
    } else if (y.dtype == IPVG_K_F16) {
        *(uint4 *)p =
            make_uint4(pack_f16(v[0], v[1]), pack_f16(v[2], v[3]), pack_f16(v[4], v[5]), pack_f16(v[6], v[7]));
    } else {
        *(uint2 *)p = make_uint2(pack_e4m3(v[0], v[1], v[2], v[3]), pack_e4m3(v[4], v[5], v[6], v[7]));
    }
}

/* v becomes what y then holds: y's dtype is one that is read. */
template <int V>
__device__ inline void store_rounded(const array &y, int64_t at, float (&v)[V])
{
    if constexpr (V == 8) {
        if (y.dtype == IPVG_K_BF16) { /* packed by twos, once: one at a time, conversions are slow */
            const uint4 bits = pack_bf16(v);
            *(uint4 *)((char *)y.data + at * 2) = bits;
            widen<8>(v, raw<8>{bits, bits}, IPVG_K_BF16);
            return;
        }
    }
#pragma unroll
    for (int i = 0; i < V; i++) v[i] = rounded(v[i], y.dtype);
    store<V>(y, at, v);
}

/* ==== functions ==== */

__device__ inline float silu_of(float x) { return x / (1.f + expf(-x)); }

/* The same to a few units in float32's last place, in a quarter of the instructions: for results of 16 bits. */
__device__ inline float silu_near(float x) { return __fdividef(x, 1.f + __expf(-x)); }

/* x (1 + tanh u) / 2 = x / (1 + e^(-2u)), u = sqrt(2/pi) (x + 0.044715 x^3): no cancellation for negative x. */
__device__ inline float gelu_of(float x)
{
    const float u = x * fmaf(x * x, 0.044715f, 1.f);
    return x / (1.f + expf(u * -1.5957691216f));
}

__device__ inline float act_of(float x, ipvg_k_act act)
{
    return act == IPVG_K_ACT_GELU_TANH ? gelu_of(x) : act == IPVG_K_ACT_SILU ? silu_of(x) : x;
}

#endif

/* A stand-in for nvcc: what a .cu file needs to be read by a plain C++ compiler and run on the CPU. */
#ifndef FAKE_CUDA_RUNTIME_H
#define FAKE_CUDA_RUNTIME_H

#include "../emulator.h"
#include "cuda_runtime_api.h"

#ifdef __cplusplus

#include <cmath>
#include <cstring>
#include <functional>
#include <iterator>
#include <tuple>

using std::isinf;
using std::isnan;

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(...)
#define __constant__
#define __shared__ static /* one block runs at a time */

struct uint3 {
    unsigned x, y, z;
};
struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
struct alignas(8) float2 {
    float x, y;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
struct alignas(8) uint2 {
    unsigned x, y;
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

/* ==== inside a kernel ==== */

extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;

extern "C" {
void __syncthreads(void);
/* The value of lane `from` of this warp; all lanes of `mask` call it together. */
uint64_t emulator_shuffle(unsigned mask, uint64_t value, int from);
int emulator_lane(void);
/* all[i] = the value of lane i; the whole warp calls it together. */
void emulator_exchange(uint64_t value, uint64_t all[32]);
/* The block's dynamic shared memory: NaN when a block begins, a guard page behind it. */
void *emulator_shared(void);
}

template <typename T>
inline T __shfl_sync(unsigned mask, T value, int from)
{
    static_assert(sizeof(T) <= 8, "a shuffle moves at most 8 bytes");
    uint64_t bits = 0;
    memcpy(&bits, &value, sizeof(T));
    bits = emulator_shuffle(mask, bits, from & 31);
    memcpy(&value, &bits, sizeof(T));
    return value;
}
template <typename T>
inline T __shfl_xor_sync(unsigned mask, T value, int lanes)
{
    return __shfl_sync(mask, value, emulator_lane() ^ lanes);
}
template <typename T>
inline T __shfl_down_sync(unsigned mask, T value, int lanes)
{
    const int from = emulator_lane() + lanes;
    return __shfl_sync(mask, value, from < 32 ? from : emulator_lane());
}
inline int __any_sync(unsigned mask, int yes)
{
    for (int step = 16; step; step /= 2) yes |= __shfl_xor_sync(mask, yes, step);
    return yes != 0;
}
inline void __syncwarp(unsigned mask = 0xffffffffu) { emulator_shuffle(mask, 0, emulator_lane()); }

template <typename To, typename From>
inline To emulator_bits(From from)
{
    static_assert(sizeof(To) == sizeof(From), "as many bits");
    To to;
    memcpy(&to, &from, sizeof to);
    return to;
}
inline float __uint_as_float(unsigned v) { return emulator_bits<float>(v); }
inline unsigned __float_as_uint(float v) { return emulator_bits<unsigned>(v); }
inline long long __double_as_longlong(double v) { return emulator_bits<long long>(v); }
inline double __longlong_as_double(long long v) { return emulator_bits<double>(v); }

/* Compile with -ffp-contract=off: each of these rounds once. */
template <class T>
inline T __ldg(const T *p)
{
    return *p;
}
inline float __expf(float v) { return expf(v); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dsub_rn(double a, double b) { return a - b; }
inline double __ddiv_rn(double a, double b) { return a / b; }
inline double __dsqrt_rn(double a) { return std::sqrt(a); }

/* ==== starting one ==== */

enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };
/* What a kernel may have of it without asking is not looked at. */
template <typename... P>
inline cudaError_t cudaFuncSetAttribute(void (*)(P...), cudaFuncAttribute, int bytes)
{
    return bytes >= 0 && bytes <= EMULATOR_SHARED ? cudaSuccess : cudaErrorInvalidValue;
}

struct cudaLaunchConfig_t {
    dim3 gridDim, blockDim;
    size_t dynamicSmemBytes;
    cudaStream_t stream;
    void *attrs;
    unsigned numAttrs;
};

/* Ends the process if an argument is host memory: a pointer, an array (kernels.h), or what has arrays in its `x`. */
template <typename T>
inline void emulator_argument(const T &, ...)
{
}
template <typename T>
inline void emulator_argument(T *const &p, int)
{
    emulator_device((const void *)p);
}
template <typename T>
inline auto emulator_argument(const T &array, int) -> decltype((void)array.data, (void)array.ld)
{
    emulator_device(array.data);
}
template <typename T>
inline auto emulator_argument(const T &many, int) -> decltype((void)std::begin(many.x), (void)many.x[0].ld)
{
    for (const auto &each : many.x) emulator_argument(each, 0);
}

cudaError_t emulator_launch(const cudaLaunchConfig_t &config, std::function<void()> kernel);

template <typename... P, typename... A>
inline cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t *config, void (*kernel)(P...), A &&...args)
{
    std::tuple<P...> given(args...);
    std::apply([](const P &...each) { (emulator_argument(each, 0), ...); }, given);
    return emulator_launch(*config, [kernel, given] { std::apply(kernel, given); });
}

#endif
#endif

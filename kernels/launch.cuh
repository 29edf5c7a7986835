/* Starting kernels, and how rows are shared out to threads. */
#ifndef IPVG_KERNELS_LAUNCH_CUH
#define IPVG_KERNELS_LAUNCH_CUH

#include "number.cuh"

/* Queues kernel(args...). No <<<>>>, so that a plain C++ compiler with a stand-in for the runtime reads these files too. With
 * `shared` bytes of dynamic shared memory: of more than 48 KiB the kernel has been told. */
template <typename... P, typename... A>
inline int launch_shared(void (*kernel)(P...), int64_t blocks, int threads, int shared, void *stream, A... args)
{
    if (blocks <= 0) return cudaSuccess;
    if (blocks > INT32_MAX) return cudaErrorInvalidValue;
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3((unsigned)blocks);
    config.blockDim = dim3((unsigned)threads);
    config.dynamicSmemBytes = (size_t)shared;
    config.stream = (cudaStream_t)stream;
    return (int)cudaLaunchKernelEx(&config, kernel, P(args)...);
}
template <typename... P, typename... A>
inline int launch(void (*kernel)(P...), int64_t blocks, int threads, void *stream, A... args)
{
    return launch_shared(kernel, blocks, threads, 0, stream, args...);
}

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

/* ==== may 16-byte accesses be used? ==== */

inline bool aligned(const array &a)
{
    return ((uintptr_t)a.data | (uintptr_t)(a.ld * dtype_size(a.dtype))) % (a.dtype == IPVG_K_E4M3 ? 8 : 16) == 0;
}
template <typename... A>
inline bool aligned(const array &a, const A &...more)
{
    return aligned(a) && aligned(more...);
}

/* Whether rows of d numbers, of these matrices and vectors (their ld: 0), can go 8 at a time. */
template <typename... A>
inline bool wide(int64_t d, const A &...arrays)
{
    return d % 8 == 0 && aligned(arrays...);
}

inline bool readable(const array &a) { return !a.data || (unsigned)a.dtype <= IPVG_K_F16; }
template <typename... A>
inline bool readable(const array &a, const A &...more)
{
    return readable(a) && readable(more...);
}

/* Whether all that are there have this dtype. Kernels with a parameter `Usual` then set the dtypes that 16-bit engines
 * use themselves, so that the compiler leaves out every branch on them. */
template <typename... A>
inline bool all_of(ipvg_k_dtype dtype, const A &...arrays)
{
    return ((!arrays.data || arrays.dtype == dtype) && ...);
}

/* A vector, or a flat array: its ld counts for nothing. */
inline array flat(array a)
{
    a.ld = 0;
    return a;
}

/* ==== teams: the threads that share a row ==== */

/* A kernel of teams says __launch_bounds__(TEAM_MOST, 1): 128 registers a thread, where 1024 threads would have 64. */
#define TEAM_MOST 512

/* 1, 2, ... 32 lanes of a warp, several teams a block; or a whole block of several warps. */
struct team_plan {
    int lanes, threads;
    int64_t blocks;
};

/* Threads of a team for rows of `chunks` pieces, of which a thread keeps `keep` in registers. */
__host__ __device__ constexpr int team_lanes(int64_t chunks, int keep)
{
    const int64_t want = (chunks + keep - 1) / keep;
    int lanes = 1;
    if (want > 32) return (int)(want > TEAM_MOST ? TEAM_MOST : (want + 31) / 32 * 32);
    while (lanes < want) lanes *= 2;
    return lanes;
}

inline team_plan plan_teams(int64_t rows, int64_t chunks, int keep)
{
    team_plan p;
    p.lanes = team_lanes(chunks, keep);
    p.threads = p.lanes > 32 ? p.lanes : 128;
    p.blocks = ceil_div(rows, p.threads / p.lanes);
    return p;
}

#endif

/* Products of a warp group, four warps, on compute capability 9.0: 64 rows of which each warp has 16 in registers, with tiles of
 * shared memory that the tensor cores read themselves. A tile there is rows of 64 bfloat16 as tile_piece<64> has them, from a
 * multiple of 1024 bytes on. */
#ifndef IPVG_KERNELS_GROUP_CUH
#define IPVG_KERNELS_GROUP_CUH

#include "tile.cuh"

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ == 900 && !defined(__CUDA_ARCH_FEAT_SM90_ALL)
#error "compile for sm_90a: these instructions are of 9.0 alone"
#endif

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

/* What this thread has written to shared memory is for the tensor cores to see; a barrier must follow. */
__device__ inline void group_sees() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

/* Before the first product that uses registers written since the last wait. */
__device__ inline void group_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

/* The products begun so far are done. */
__device__ inline void group_wait()
{
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
    asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
}

/* Results that group_wait waits for: no use of them moves before it. */
__device__ inline void group_result(float (&c)[8][4])
{
#pragma unroll
    for (int n = 0; n < 8; n++)
#pragma unroll
        for (int e = 0; e < 4; e++) asm volatile("" : "+f"(c[n][e])::"memory");
}

/* c (64, 64) = a (64, 16) b (16, 64), or += with `add`. b[k][n] lies in row n of the tile from column k on; Turned: in row k,
 * column n. c and a are a warp's as in multiply_tiles, c[n] the n-th eight columns. */
template <bool Turned>
__device__ inline void group_multiply(float (&c)[8][4], const unsigned (&a)[4], shared_at b, bool add)
{
    /* Eight rows are 1024 bytes; swapped in 128-byte rows. */
    const uint64_t where =
        (uint64_t)((b & 0x3ffff) >> 4) | (uint64_t)1 << 16 | (uint64_t)(1024 >> 4) << 32 | (uint64_t)1 << 62;
    asm volatile(
        "{\n"
        ".reg .pred p;\n"
        "setp.ne.b32 p, %37, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
        "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"
        "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31}, "
        "{%32,%33,%34,%35}, %36, p, 1, 1, %38;\n"
        "}\n"
        : "+f"(c[0][0]), "+f"(c[0][1]), "+f"(c[0][2]), "+f"(c[0][3]), "+f"(c[1][0]), "+f"(c[1][1]), "+f"(c[1][2]),
          "+f"(c[1][3]), "+f"(c[2][0]), "+f"(c[2][1]), "+f"(c[2][2]), "+f"(c[2][3]), "+f"(c[3][0]), "+f"(c[3][1]),
          "+f"(c[3][2]), "+f"(c[3][3]), "+f"(c[4][0]), "+f"(c[4][1]), "+f"(c[4][2]), "+f"(c[4][3]), "+f"(c[5][0]),
          "+f"(c[5][1]), "+f"(c[5][2]), "+f"(c[5][3]), "+f"(c[6][0]), "+f"(c[6][1]), "+f"(c[6][2]), "+f"(c[6][3]),
          "+f"(c[7][0]), "+f"(c[7][1]), "+f"(c[7][2]), "+f"(c[7][3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(where), "r"((int)add), "n"(Turned ? 1 : 0));
}

#elif defined(__CUDACC__) /* other GPUs: never started there */

__device__ inline void group_sees() {}
__device__ inline void group_begin() {}
__device__ inline void group_wait() {}
__device__ inline void group_result(float (&)[8][4]) {}
template <bool Turned>
__device__ inline void group_multiply(float (&)[8][4], const unsigned (&)[4], shared_at, bool)
{
}

#else

inline void group_sees() {}
inline void group_begin() {}
inline void group_wait() {}
inline void group_result(float (&)[8][4]) {}

template <bool Turned>
inline void group_multiply(float (&c)[8][4], const unsigned (&a)[4], shared_at b, bool add)
{
    unsigned mine[4] = {a[0], a[1], a[2], a[3]};
    uint64_t all[32];
    const int lane = emulator_lane(), g = lane / 4, t = 2 * (lane % 4);
    emulator_exchange((uint64_t)(uintptr_t)mine, all);
    for (int n = 0; n < 8; n++)
        for (int e = 0; e < 4; e++) {
            float sum = add ? c[n][e] : 0.f;
            for (int k = 0; k < 16; k++) {
                const unsigned p = ((const unsigned *)(uintptr_t)all[4 * g + k % 8 / 2])[e / 2 + k / 8 * 2];
                const int column = 8 * n + t + e % 2;
                shared_at at = b + (unsigned)(Turned ? k * 128 + column * 2 : column * 128 + k * 2);
                unsigned short q;
                at ^= (at >> 7 & 7) << 4;
                memcpy(&q, emulated(at), 2);
                sum += __uint_as_float(k % 2 ? p & 0xffff0000u : p << 16) * __uint_as_float((unsigned)q << 16);
            }
            c[n][e] = sum;
        }
    __syncwarp(); /* until then the others read `mine` */
}

#endif

#endif

/* Tensor cores, from compute capability 8.0 on: 16 x 16 tiles of 16-bit numbers from global through shared memory into the
 * registers of a warp, and their products. What is an instruction on a GPU is the same arithmetic from the same registers on
 * the emulated device, which so tests the layouts that these functions are used with.
 *
 * A tile in shared memory is rows of 64 or 128 bfloat16 from a multiple of their length on; the 16-byte pieces of row r are
 * swapped by r % 8 (tile_piece), so that neither copies nor load_tiles meet in a bank. */
#ifndef IPVG_KERNELS_TILE_CUH
#define IPVG_KERNELS_TILE_CUH

#include "number.cuh"

typedef unsigned shared_at; /* an address in shared memory */

template <int D>
__device__ inline unsigned tile_piece(int row, int piece)
{
    return (unsigned)(row * D * 2 + ((piece ^ (row & 7)) << 4));
}

#ifdef __CUDACC__

extern __shared__ __align__(1024) unsigned char dynamic_shared[];

/* The block's dynamic shared memory. */
__device__ inline shared_at shared_memory() { return (shared_at)__cvta_generic_to_shared(dynamic_shared); }

/* 16 bytes on their way to shared memory; zeros if they are not there. */
__device__ inline void copy_piece(shared_at to, const void *from, bool there)
{
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(there ? 16 : 0) : "memory");
}

/* Into the second-level cache, 128 bytes. */
__device__ inline void foresee(const void *line) { asm volatile("prefetch.global.L2 [%0];" ::"l"(line)); }

/* Until all that this thread has on its way is there; for others to see it, a barrier must follow. */
__device__ inline void copies_wait() { asm volatile("cp.async.wait_all;" ::: "memory"); }

/* Four 8 x 8 tiles: lane 8 i + r gives the address of row r of tile i; r[i] becomes elements 2 (lane % 4) and the next of row
 * lane / 4. Turned: of column lane / 4, rows 2 (lane % 4) and the next. */
__device__ inline void load_tiles(unsigned (&r)[4], shared_at row)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(row));
}
__device__ inline void load_tiles_turned(unsigned (&r)[4], shared_at row)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(row));
}

/* c (16, 8) += a (16, 16) b (16, 8). With g = lane / 4 and t = 2 (lane % 4), a lane has c[g][t..], c[g + 8][t..] (two each),
 * a[g][t..], a[g + 8][t..], a[g][t + 8..], a[g + 8][t + 8..] and b[t..][g], b[t + 8..][g]. */
__device__ inline void multiply_tiles(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1)
{
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
        "{%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/* 2^x to 2 units in the last place; 0 below 2^-126. */
__device__ inline float power_of_2(float x)
{
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

#else

inline shared_at shared_memory() { return 0; }

inline char *emulated(shared_at at) { return (char *)emulator_shared() + at; }

inline void copy_piece(shared_at to, const void *from, bool there)
{
    if (there)
        memcpy(emulated(to), from, 16);
    else
        memset(emulated(to), 0, 16);
}

inline void foresee(const void *) {}

inline void copies_wait() {}

inline void emulated_load(unsigned (&r)[4], shared_at row, bool turned)
{
    uint64_t rows[32];
    const int lane = emulator_lane(), g = lane / 4, t = 2 * (lane % 4);
    emulator_exchange(row, rows);
    for (int i = 0; i < 4; i++) {
        unsigned short pair[2];
        for (int e = 0; e < 2; e++)
            memcpy(&pair[e], emulated((shared_at)rows[8 * i + (turned ? t + e : g)]) + 2 * (turned ? g : t + e), 2);
        r[i] = pair[0] | (unsigned)pair[1] << 16;
    }
}
inline void load_tiles(unsigned (&r)[4], shared_at row) { emulated_load(r, row, false); }
inline void load_tiles_turned(unsigned (&r)[4], shared_at row) { emulated_load(r, row, true); }

inline void multiply_tiles(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1)
{
    struct fragments {
        unsigned a[4], b[2];
    } mine = {{a[0], a[1], a[2], a[3]}, {b0, b1}};
    uint64_t all[32];
    const int lane = emulator_lane(), g = lane / 4, t = 2 * (lane % 4);
    emulator_exchange((uint64_t)(uintptr_t)&mine, all);
    for (int k = 0; k < 16; k++) /* element k of a row lies in lane k % 8 / 2 of four */
        for (int i = 0; i < 4; i++) {
            const fragments *x = (const fragments *)(uintptr_t)all[4 * g + k % 8 / 2];
            const fragments *y = (const fragments *)(uintptr_t)all[4 * (t + i % 2) + k % 8 / 2];
            const unsigned p = x->a[i / 2 + k / 8 * 2], q = y->b[k / 8];
            c[i] +=
                __uint_as_float(k % 2 ? p & 0xffff0000u : p << 16) * __uint_as_float(k % 2 ? q & 0xffff0000u : q << 16);
        }
    __syncwarp(); /* until then the others read `mine` */
}

inline float power_of_2(float x) { return exp2f(x); }

#endif

#endif

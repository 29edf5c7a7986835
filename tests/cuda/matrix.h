/* Matrices in device memory for the tests of kernels: random numbers, odd sizes, any alignment, NaN wherever nobody should
 * read, and comparison of results. Works on a real device as on the emulated one. */
#ifndef IPVG_TESTS_CUDA_MATRIX_H
#define IPVG_TESTS_CUDA_MATRIX_H

#include <cuda_runtime_api.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../../csrc/ops/ops.h"
#include "../../kernels/kernels.h"
#include "numbers.h"

static ipvg_context ctx;
static ipvg_arena arena;
static ipvg_exec ex; /* the CPU's: the oracle */
static int failures;
static uint64_t seed = 1;

#define FAIL(...) (failures++, printf("FAIL " __VA_ARGS__), printf("\n"))

/* Runs an operation of the oracle. */
#define CPU(call)                                                        \
    do {                                                                 \
        ipvg_arena_plan(&arena);                                         \
        if ((call) != IPVG_OK) FAIL("plan: %s: %s", #call, ctx.error);   \
        ipvg_arena_reserve(&ctx, &ex.be->memory, &arena, arena.peak);    \
        if ((call) != IPVG_OK) FAIL("oracle: %s: %s", #call, ctx.error); \
    } while (0)

#define GPU(call)                                                                          \
    do {                                                                                   \
        const int error_ = (int)(call);                                                    \
        if (error_) FAIL("%s: %s", #call, cudaGetErrorName((cudaError_t)error_)), exit(1); \
    } while (0)

static double uniform(void)
{
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return (double)(seed >> 40) / 8388608.0 - 1.0;
}
static int pick(int low, int high) { return low + (int)((uniform() * 0.5 + 0.5) * (high - low + 1)); }
/* Not IPVG_K_F32: matrices are of this dtype and vectors float32, as an engine's are (`Usual` in the kernels). */
static ipvg_k_dtype usual = IPVG_K_F32;
static inline ipvg_k_dtype any_dtype(void) { return usual ? usual : (ipvg_k_dtype)pick(0, 2); }
static size_t size_of(ipvg_k_dtype dtype) { return dtype == IPVG_K_F32 ? 4 : dtype == IPVG_K_E4M3 ? 1 : 2; }

/* A width: often odd, often one that goes 8 at a time. */
static inline int width(int most) { return pick(0, 1) ? pick(1, most) : 8 * pick(1, (most + 7) / 8); }

typedef struct matrix {
    ipvg_k_array a;      /* on the device */
    ipvg_tensor t;       /* the same numbers as float32 on the host: (rows, d), contiguous */
    float *v;            /* of t */
    char *bits;          /* all bytes of the allocation, as they were or were read last */
    char *memory;        /* on the device */
    size_t bytes, first; /* of the allocation; where element 0 is */
    int64_t rows, d;
} matrix;

static void convert(void *y, ipvg_k_dtype to, const void *x, ipvg_k_dtype from, int64_t n)
{
    ipvg_tensor a = ipvg_tensor_of(y, (ipvg_dtype)to, n), b = ipvg_tensor_of((void *)(uintptr_t)x, (ipvg_dtype)from, n);
    if (ipvg_cast(&ex, &a, &b) != IPVG_OK) FAIL("%s", ctx.error);
}

static void upload(matrix *m) { GPU(cudaMemcpy(m->memory, m->bits, m->bytes, cudaMemcpyHostToDevice)); }

/* Puts m->v, rounded to the dtype, on the device; m->v becomes what it was rounded to. */
static void put(matrix *m)
{
    for (int64_t r = 0; r < m->rows; r++) {
        char *row = m->bits + m->first + (size_t)(r * m->a.ld) * size_of(m->a.dtype);
        convert(row, m->a.dtype, m->v + r * m->d, IPVG_K_F32, m->d);
        convert(m->v + r * m->d, IPVG_K_F32, row, m->a.dtype, m->d);
    }
    upload(m);
}

/* The allocation ends with the last number (or, aligned, less than 16 bytes behind it): a guard page follows it on the
 * emulated device. `fill`: numbers in (-scale, scale) around `middle`; otherwise NaN, as between the rows. */
static matrix make(int64_t rows, int64_t d, int64_t ld, ipvg_k_dtype dtype, bool align, bool fill, double scale,
                   double middle)
{
    matrix m = {.rows = rows, .d = d, .a = {NULL, dtype, ld}};
    const size_t needed = (size_t)((rows - 1) * ld + d) * size_of(dtype);
    m.bytes = (needed + 16 + 255) / 256 * 256;
    m.first = m.bytes - needed;
    if (align) m.first -= m.first % 16;
    m.bits = malloc(m.bytes);
    memset(m.bits, 0xff, m.bytes);
    m.v = malloc((size_t)(rows * d) * sizeof *m.v);
    m.t = ipvg_tensor_of(m.v, IPVG_F32, rows, d);
    for (int64_t i = 0; i < rows * d; i++) m.v[i] = fill ? (float)(scale * uniform() + middle) : NAN;
    GPU(cudaMalloc((void **)&m.memory, m.bytes));
    m.a.data = m.memory + m.first;
    if (fill)
        put(&m);
    else
        upload(&m);
    return m;
}

/* Random padding and alignment. `wide`: fit for the 16-byte way if d is. */
static inline matrix random_matrix(int64_t rows, int64_t d, bool wide, ipvg_k_dtype dtype, double scale, double middle)
{
    return make(rows, d, d + (wide ? 8 * pick(0, 2) : pick(0, 5)), dtype, wide, true, scale, middle);
}
static inline matrix result(int64_t rows, int64_t d, bool wide, ipvg_k_dtype dtype)
{
    return make(rows, d, d + (wide ? 8 * pick(0, 2) : pick(0, 5)), dtype, wide, false, 0, 0);
}
static inline matrix vector(int64_t n, bool wide)
{
    return make(1, n, n, usual ? IPVG_K_F32 : any_dtype(), wide, true, 1, 0);
}
static inline ipvg_tensor column(const matrix *m) { return ipvg_tensor_of(m->v, IPVG_F32, m->d); }

/* float32 host memory for what the oracle computes. */
static inline ipvg_tensor like(const matrix *m)
{
    return ipvg_tensor_of(malloc((size_t)(m->rows * m->d) * sizeof(float)), IPVG_F32, m->rows, m->d);
}

static void release(matrix *m)
{
    GPU(cudaFree(m->memory));
    free(m->bits);
    free(m->v);
}

/* Reads m back into m->v, and sees that nothing was written around its numbers. */
static void get(const char *name, matrix *m)
{
    const size_t size = size_of(m->a.dtype), row = (size_t)m->d * size, step = (size_t)m->a.ld * size;
    char *now = malloc(m->bytes);
    GPU(cudaMemcpy(now, m->memory, m->bytes, cudaMemcpyDeviceToHost));
    for (size_t i = 0; i < m->bytes; i++) {
        const bool inside = i >= m->first && (i - m->first) % step < row && (i - m->first) / step < (size_t)m->rows;
        if (inside || now[i] == m->bits[i]) continue;
        FAIL("%s: wrote around its result", name);
        break;
    }
    memcpy(m->bits, now, m->bytes);
    free(now);
    for (int64_t r = 0; r < m->rows; r++) {
        const char *from = m->bits + m->first + (size_t)r * step;
        if (m->a.dtype == IPVG_K_E4M3)
            for (int64_t c = 0; c < m->d; c++) m->v[r * m->d + c] = number_e4m3((unsigned char)from[c]);
        else
            convert(m->v + r * m->d, IPVG_K_F32, from, m->a.dtype, m->d);
    }
}

/* ---- judging ---- */

static struct {
    const char *name;
    double worst, bound; /* relative L2 in float32 */
    double excess;       /* 16-bit: the greatest distance beyond half a unit in the last place, relative to the rms */
    int times;
} table[64];

/* Half the distance between neighbours of |v| in a dtype. */
static double half_unit(double v, ipvg_k_dtype dtype)
{
    const int mantissa = dtype == IPVG_K_BF16 ? 7 : 10, least = dtype == IPVG_K_BF16 ? -126 : -14;
    int e;
    frexp(v, &e); /* |v| in [2^(e-1), 2^e) */
    return ldexp(0.5, (e - 1 < least ? least : e - 1) - mantissa);
}

/* m against `want`. float32: relative L2 within `bound`. 16 bits: every number within half a unit in the last place of what
 * float32 gives, plus what `bound` grants float32: one rounding, at the end. */
static inline void judge(const char *name, matrix *m, const float *want, double bound)
{
    double difference = 0, norm = 0, excess = 0;
    const int64_t n = m->rows * m->d;
    int i = 0;
    get(name, m);
    for (int64_t k = 0; k < n; k++) norm += (double)want[k] * want[k];
    const double rms = sqrt(norm / (double)n), floor = rms > 0 ? rms : 1;
    for (int64_t k = 0; k < n; k++) {
        const double off = fabs((double)m->v[k] - want[k]);
        difference += off * off;
        const double beyond = (off - half_unit(want[k], m->a.dtype)) / (fabs(want[k]) > floor ? fabs(want[k]) : floor);
        if (!(beyond <= excess)) excess = beyond;
    }
    const double relative = sqrt(difference / (norm > 0 ? norm : 1));
    while (table[i].name && strcmp(table[i].name, name)) i++;
    table[i].name = name, table[i].bound = bound, table[i].times++;
    if (m->a.dtype == IPVG_K_F32) {
        if (!(relative <= table[i].worst)) table[i].worst = relative;
        if (!(relative <= bound))
            FAIL("%s (%ld, %ld): relative L2 %.3g, bound %.3g", name, m->rows, m->d, relative, bound);
    } else {
        if (!(excess <= table[i].excess)) table[i].excess = excess;
        if (!(excess <= 8 * bound)) /* one number may be off by more than the mean of all */
            FAIL("%s (%ld, %ld) in dtype %d: %.3g beyond half a unit", name, m->rows, m->d, m->a.dtype, excess);
    }
}

/* m E4M3 with row scales against `want`: within half a unit of 3 bits of mantissa, or of its subnormals. */
static inline void judge_e4m3(const char *name, matrix *m, const float *scale, const float *want)
{
    const double before = 448 * 1e-6; /* of the number that is rounded: float32's own bound, of the row's largest */
    double worst = 0;
    get(name, m);
    for (int64_t r = 0; r < m->rows; r++) {
        double most = 0;
        for (int64_t c = 0; c < m->d; c++) most = fmax(most, fabs((double)want[r * m->d + c]));
        const double expected = most > 0 ? most / 448 : 1;
        if (!(fabs(scale[r] - expected) <= 1e-5 * expected))
            FAIL("%s: row %ld has scale %g, expected %g", name, r, scale[r], expected);
        for (int64_t c = 0; c < m->d; c++) {
            int e;
            const double v = (double)want[r * m->d + c] / scale[r];
            frexp(v, &e);
            const double unit = ldexp(1, (e - 1 < -6 ? -6 : e - 1) - 3);
            const double off = (fabs((double)m->v[r * m->d + c] - v) - before) / unit;
            if (!(off <= worst)) worst = off;
        }
    }
    if (!(worst <= 0.5)) FAIL("%s: %g units of E4M3", name, worst);
}

/* Exactly these numbers. */
static inline void judge_equal(const char *name, matrix *m, const float *want)
{
    get(name, m);
    for (int64_t k = 0; k < m->rows * m->d; k++)
        if (memcmp(&m->v[k], &want[k], sizeof(float)) && !(isnan(m->v[k]) && isnan(want[k]))) {
            FAIL("%s (%ld, %ld): number %ld is %a, expected %a", name, m->rows, m->d, k, (double)m->v[k],
                 (double)want[k]);
            return;
        }
}

#endif

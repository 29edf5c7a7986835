/* The AVX-512 instructions that csrc/ops/cpu uses, lane by lane, for a machine without them: so that its 16-wide loops are
 * tested everywhere. `make sanitize` defines IPVG_EMULATED_AVX512 where /proc/cpuinfo has no avx512f. */
#ifndef IPVG_TESTS_AVX512_H
#define IPVG_TESTS_AVX512_H

#include <immintrin.h>
#include <math.h>
#include <string.h>

#pragma GCC diagnostic ignored "-Wpsabi" /* every call is inlined */

typedef __m512 lanes;
typedef int words __attribute__((vector_size(64)));

#define LANES(name, args, expression)                     \
    static inline lanes emulated_##name args              \
    {                                                     \
        lanes y;                                          \
        for (int i = 0; i < 16; i++) y[i] = (expression); \
        return y;                                         \
    }

LANES(fmadd, (lanes a, lanes b, lanes c), fmaf(a[i], b[i], c[i]))
LANES(fnmadd, (lanes a, lanes b, lanes c), fmaf(-a[i], b[i], c[i]))
LANES(fmaddsub, (lanes a, lanes b, lanes c), fmaf(a[i], b[i], i % 2 ? c[i] : -c[i]))
LANES(max, (lanes a, lanes b), a[i] > b[i] ? a[i] : b[i])
LANES(min, (lanes a, lanes b), a[i] < b[i] ? a[i] : b[i])
LANES(round, (lanes a), rintf(a[i]))
LANES(even, (lanes a), a[i & ~1])
LANES(odd, (lanes a), a[i | 1])
LANES(permute, (lanes a, int how), a[(i & ~3) | (how >> 2 * (i & 3) & 3)])
LANES(set, (float x), x)

static inline lanes emulated_load(const void *p)
{
    lanes y;
    memcpy(&y, p, sizeof y);
    return y;
}
static inline void emulated_store(void *p, lanes x) { memcpy(p, &x, sizeof x); }
static inline words emulated_words(lanes a)
{
    words y;
    for (int i = 0; i < 16; i++) y[i] = (int)lrintf(a[i]);
    return y;
}
static inline float emulated_sum(lanes a) /* in halves, as the compilers do it */
{
    for (int half = 8; half; half /= 2)
        for (int i = 0; i < half; i++) a[i] += a[i + half];
    return a[0];
}
static inline float emulated_highest(lanes a)
{
    for (int i = 1; i < 16; i++) a[0] = a[i] > a[0] ? a[i] : a[0];
    return a[0];
}

#define _mm512_loadu_ps(p) emulated_load(p)
#define _mm512_storeu_ps(p, v) emulated_store(p, v)
#define _mm512_set1_ps(x) emulated_set(x)
#define _mm512_fmadd_ps(a, b, c) emulated_fmadd(a, b, c)
#define _mm512_fnmadd_ps(a, b, c) emulated_fnmadd(a, b, c)
#define _mm512_fmaddsub_ps(a, b, c) emulated_fmaddsub(a, b, c)
#define _mm512_mul_ps(a, b) ((a) * (b))
#define _mm512_max_ps(a, b) emulated_max(a, b)
#define _mm512_min_ps(a, b) emulated_min(a, b)
#undef _mm512_roundscale_ps
#define _mm512_roundscale_ps(v, how) ((void)sizeof(char[(how) == 0 ? 1 : -1]), emulated_round(v))
#define _mm512_moveldup_ps(v) emulated_even(v)
#define _mm512_movehdup_ps(v) emulated_odd(v)
#undef _mm512_permute_ps
#define _mm512_permute_ps(v, how) emulated_permute(v, how)
#define _mm512_reduce_add_ps(v) emulated_sum(v)
#define _mm512_reduce_max_ps(v) emulated_highest(v)
#define _mm512_cvtps_epi32(v) emulated_words(v)
#define _mm512_set1_epi32(x) ((words){0} + (x))
#define _mm512_add_epi32(a, b) ((words)(a) + (words)(b))
#undef _mm512_slli_epi32
#define _mm512_slli_epi32(a, n) ((words)(a) << (n))
#define _mm512_castsi512_ps(a) ((lanes)(a))

#endif

/* The loops of conv_loops.h for one instruction set. The including file defines ISA_LEVEL and CONV_TABLE. */
#include <math.h>

#include "conv_loops.h"
#include "target.h"

#include "simd.h"

/* The block of a product that stays in registers: ROWS x (VECS * VL). */
#if ISA_LEVEL == 4
#define ROWS 8 /* 24 sums, 3 columns and a broadcast in 32 registers; 96, 192 and 384 are multiples of 48 */
#define VECS 3
#else
#define ROWS 6 /* 12 sums, 2 columns and a broadcast in 16 registers */
#define VECS 2
#endif
#define COLUMNS (VECS * VL)

#define INLINE static inline __attribute__((always_inline))
#if defined(__clang__)
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 64")
#endif

/* ---- matrix product ---- */

INLINE void block(float *c, ptrdiff_t ldc, const float *a, ptrdiff_t lda, const float *b, int k, int rows, int vecs,
                  bool add)
{
    vf acc[ROWS][VECS];
    UNROLL for (int i = 0; i < rows; i++) UNROLL for (int j = 0; j < vecs; j++) acc[i][j] =
        add ? vload(c + i * ldc + j * VL) : vset(0.0f);
    for (int p = 0; p < k; p++) {
        vf bv[VECS];
        UNROLL for (int j = 0; j < vecs; j++) bv[j] = vload(b + (p * vecs + j) * VL);
        UNROLL for (int i = 0; i < rows; i++)
        {
            vf av = vset(a[i * lda + p]);
            UNROLL for (int j = 0; j < vecs; j++) acc[i][j] = vfma(av, bv[j], acc[i][j]);
        }
    }
    UNROLL for (int i = 0; i < rows; i++) UNROLL for (int j = 0; j < vecs; j++) vstore(c + i * ldc + j * VL, acc[i][j]);
}

INLINE void panel_product(float *c, ptrdiff_t ldc, const float *a, ptrdiff_t lda, const float *b, int m, int k,
                          int vecs, bool add)
{
    int i = 0;
    for (; i + ROWS <= m; i += ROWS) block(c + i * ldc, ldc, a + i * lda, lda, b, k, ROWS, vecs, add);
#define REST(r) \
    case r: block(c + i * ldc, ldc, a + i * lda, lda, b, k, (r) < ROWS ? (r) : 1, vecs, add); break;
    switch (m - i) {
        REST(1) REST(2) REST(3) REST(4) REST(5) REST(6) REST(7)
    }
#undef REST
}

/* k is cut so that a panel's part (K_BLOCK * panel floats) and ROWS rows of a stay in the first-level cache. */
#define K_BLOCK 384

static void gemm(float *c, ptrdiff_t ldc, const float *a, ptrdiff_t lda, const float *b, int m, int k, int n, bool add)
{
    for (int j = 0; j < n; j += COLUMNS) {
        int vecs = n - j < COLUMNS ? (n - j) / VL : VECS;
        const float *panel = b + (ptrdiff_t)j * k;
        for (int p = 0; p < k; p += K_BLOCK) {
            int kb = k - p < K_BLOCK ? k - p : K_BLOCK;
            const float *bp = panel + (ptrdiff_t)p * vecs * VL;
            bool more = add || p > 0;
            if (vecs == VECS)
                panel_product(c + j, ldc, a + p, lda, bp, m, kb, VECS, more);
            else if (vecs == 1)
                panel_product(c + j, ldc, a + p, lda, bp, m, kb, 1, more);
            else
                panel_product(c + j, ldc, a + p, lda, bp, m, kb, VECS > 2 ? 2 : 1, more);
        }
    }
}

/* ---- Winograd F(4x4, 3x3) at the points 0, +-3/4, +-3/2, infinity ----
 * These points keep float32 about twice as accurate as the usual 0, +-1, +-2 (relative L2 1.1e-6 against 2.3e-6 for Gaussian
 * data; the plain sum has 3e-7), and every constant below is exact in float32. With a = 3/4, b = 3/2: */
#define A1 0.75f
#define B1 1.5f
#define A2 0.5625f     /* a^2 */
#define B2 2.25f       /* b^2 */
#define A3 0.421875f   /* a^3 */
#define B3 3.375f      /* b^3 */
#define A2B2 1.265625f /* a^2 b^2 */
#define AABB 2.8125f   /* a^2 + b^2 */

/* (x^2 - a^2)(x^2 - b^2), x (x +- a)(x^2 - b^2), x (x +- b)(x^2 - a^2), x (x^2 - a^2)(x^2 - b^2) */
#define IN_6(t, d0, d1, d2, d3, d4, d5)                                           \
    do {                                                                          \
        vf e1 = vfma(vset(-B2), d2, d4), o1 = vset(A1) * vfma(vset(-B2), d1, d3); \
        vf e2 = vfma(vset(-A2), d2, d4), o2 = vset(B1) * vfma(vset(-A2), d1, d3); \
        t(0, vfma(vset(A2B2), d0, vfma(vset(-AABB), d2, d4)));                    \
        t(1, e1 + o1);                                                            \
        t(2, e1 - o1);                                                            \
        t(3, e2 + o2);                                                            \
        t(4, e2 - o2);                                                            \
        t(5, vfma(vset(A2B2), d1, vfma(vset(-AABB), d3, d5)));                    \
    } while (0)

static void tile_in(float *v, ptrdiff_t stride, const float *const pixel[IPVG_TILE_POINTS], int c)
{
    for (int i = 0; i < c; i += VL) {
        vf t[IPVG_TILE_IN][IPVG_TILE_IN];
        for (int x = 0; x < IPVG_TILE_IN; x++) {
            vf d[IPVG_TILE_IN];
            UNROLL for (int y = 0; y < IPVG_TILE_IN; y++) d[y] = vload_n(pixel[y * IPVG_TILE_IN + x] + i, c - i);
#define DOWN(n, value) t[n][x] = value
            IN_6(DOWN, d[0], d[1], d[2], d[3], d[4], d[5]);
        }
        for (int y = 0; y < IPVG_TILE_IN; y++) {
#define ACROSS(n, value) vstore(v + (y * IPVG_TILE_IN + n) * stride + i, value)
            IN_6(ACROSS, t[y][0], t[y][1], t[y][2], t[y][3], t[y][4], t[y][5]);
        }
    }
}

#define OUT_4(y, m0, m1, m2, m3, m4, m5)                           \
    do {                                                           \
        vf s1 = m1 + m2, d1 = m1 - m2, s2 = m3 + m4, d2 = m3 - m4; \
        y(0, m0 + s1 + s2);                                        \
        y(1, vfma(vset(B1), d2, vset(A1) * d1));                   \
        y(2, vfma(vset(B2), s2, vset(A2) * s1));                   \
        y(3, vfma(vset(B3), d2, vfma(vset(A3), d1, m5)));          \
    } while (0)

static void tile_out(float *rows, ptrdiff_t ld, const float *m, ptrdiff_t stride, int n)
{
    for (int i = 0; i < n; i += VL) {
        vf t[IPVG_TILE][IPVG_TILE_IN];
        for (int x = 0; x < IPVG_TILE_IN; x++) {
            const float *p = m + x * stride + i;
            ptrdiff_t s = IPVG_TILE_IN * stride;
            vf m0 = vload(p), m1 = vload(p + s), m2 = vload(p + 2 * s), m3 = vload(p + 3 * s), m4 = vload(p + 4 * s),
               m5 = vload(p + 5 * s);
#define UP(k, value) t[k][x] = value
            OUT_4(UP, m0, m1, m2, m3, m4, m5);
        }
        for (int y = 0; y < IPVG_TILE; y++) {
#define ALONG(k, value) vstore(rows + (y * IPVG_TILE + k) * ld + i, value)
            OUT_4(ALONG, t[y][0], t[y][1], t[y][2], t[y][3], t[y][4], t[y][5]);
        }
    }
}

/* Row i of G is (1, p, p^2) / product over the other points of (p - q); in double, rounded once. */
static void tile_weights(float *u, const float *w)
{
    static const double g[IPVG_TILE_IN][3] = {
        {1 / 1.265625, 0, 0},
        {-1 / 1.8984375, -0.75 / 1.8984375, -0.5625 / 1.8984375}, /* 2 a^2 (a^2 - b^2) = -1.8984375 */
        {-1 / 1.8984375, 0.75 / 1.8984375, -0.5625 / 1.8984375},
        {1 / 7.59375, 1.5 / 7.59375, 2.25 / 7.59375}, /* 2 b^2 (b^2 - a^2) = 7.59375 */
        {1 / 7.59375, -1.5 / 7.59375, 2.25 / 7.59375},
        {0, 0, 1}};
    double t[IPVG_TILE_IN][3][COLUMNS];
    for (int i = 0; i < IPVG_TILE_IN; i++)
        for (int x = 0; x < 3; x++)
            for (int n = 0; n < COLUMNS; n++)
                t[i][x][n] = g[i][0] * (double)w[x * COLUMNS + n] + g[i][1] * (double)w[(3 + x) * COLUMNS + n] +
                             g[i][2] * (double)w[(6 + x) * COLUMNS + n];
    for (int i = 0; i < IPVG_TILE_IN; i++)
        for (int j = 0; j < IPVG_TILE_IN; j++)
            for (int n = 0; n < COLUMNS; n++)
                u[(i * IPVG_TILE_IN + j) * COLUMNS + n] =
                    (float)(g[j][0] * t[i][0][n] + g[j][1] * t[i][1][n] + g[j][2] * t[i][2][n]);
}

/* ---- bias, residual, norm and SiLU ---- */

static void finish(float *y, float *z, float *row, const float *bias, const float *residual, const float *gamma, int n,
                   bool silu)
{
    vf sum = vset(0.0f);
    for (int i = 0; i < n; i += VL) {
        vf v = vload(row + i); /* zeros beyond n */
        if (bias) v += vload_n(bias + i, n - i);
        if (residual) v += vload_n(residual + i, n - i);
        if (y) vstore_n(y + i, v, n - i);
        vstore(row + i, v);
        sum = vfma(v, v, sum);
    }
    if (!z) return;
    float norm = sqrtf(vsum(sum));
    vf scale = vset(sqrtf((float)n) / (norm > 1e-12f ? norm : 1e-12f));
    for (int i = 0; i < n; i += VL) {
        vf v = vload(row + i) * scale * vload_n(gamma + i, n - i);
        vstore_n(z + i, silu ? vsilu(v) : v, n - i);
    }
}

const ipvg_conv_loops CONV_TABLE = {
    .lanes = VL,
    .panel = COLUMNS,
    .gemm = gemm,
    .tile_in = tile_in,
    .tile_out = tile_out,
    .tile_weights = tile_weights,
    .finish = finish,
};

#include "target_end.h"

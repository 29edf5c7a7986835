/* The inner loops of the convolutions, compiled once for each instruction set and chosen at run time. */
#ifndef IPVG_OPS_CPU_CONV_LOOPS_H
#define IPVG_OPS_CPU_CONV_LOOPS_H

#include <stdbool.h>
#include <stddef.h>

/* Winograd F(4x4, 3x3): a tile of 4x4 results comes from 6x6 inputs, through 36 small products. */
#define IPVG_TILE 4
#define IPVG_TILE_IN 6
#define IPVG_TILE_POINTS 36

typedef struct ipvg_conv_loops {
    int lanes; /* floats of a vector: rows of scratch are padded with zeros to this */
    int panel; /* columns of a packed panel of weights; a multiple of lanes */

    /* c (m, n) = [c +] a (m, k) b (k, n). b is packed in panels of `panel` columns, (k, width) each; the last one is as
     * wide as what is left, rounded up to lanes. n is a multiple of lanes. */
    void (*gemm)(float *c, ptrdiff_t ldc, const float *a, ptrdiff_t lda, const float *b, int m, int k, int n, bool add);

    /* The 36 points of one tile from its 36 input pixels of c channels: v[point * stride + channel]. Writes up to the
     * next multiple of lanes. */
    void (*tile_in)(float *v, ptrdiff_t stride, const float *const pixel[IPVG_TILE_POINTS], int c);
    /* And back: 16 result pixels, rows of ld floats, from m[point * stride + channel]; n a multiple of lanes. */
    void (*tile_out)(float *rows, ptrdiff_t ld, const float *m, ptrdiff_t stride, int n);
    /* u[point * panel + column] of the 3x3 kernels w[tap * panel + column], `panel` columns at once. */
    void (*tile_weights)(float *u, const float *w);

    /* One pixel of n channels: v = row + bias + residual goes to y; v / max(|v|, 1e-12) * sqrt(n) * gamma, through SiLU if
     * asked, to z. bias, residual, y, z may be NULL. Overwrites row (n rounded up to lanes). */
    void (*finish)(float *y, float *z, float *row, const float *bias, const float *residual, const float *gamma, int n,
                   bool silu);
} ipvg_conv_loops;

extern const ipvg_conv_loops ipvg_conv_loops_baseline, ipvg_conv_loops_v3, ipvg_conv_loops_v4;

#endif

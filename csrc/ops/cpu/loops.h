/* The inner loops of the CPU backend: serial, on plain float pointers, compiled once for each instruction set (loops_*.c
 * include loops_impl.h) and chosen at run time. Threads, checks and scratch are their callers' business. */
#ifndef IPVG_OPS_CPU_LOOPS_H
#define IPVG_OPS_CPU_LOOPS_H

#include <stdint.h>

#include "../backend.h"

typedef struct ipvg_loops {
    const char *isa; /* "x86-64", "x86-64-v3", "x86-64-v4" */

    /* One row of d columns. y may be x. */
    void (*layer_norm)(float *y, const float *x, const float *mul, const float *add, float plus, float eps,
                       int64_t d); /* y = LN(x) * (plus + mul) + add */
    void (*rms_norm)(float *y, const float *x, const float *w, float eps, int64_t d);
    void (*rms_norm_rope)(float *y, const float *x, const float *w, const float *rope, float eps, int64_t d,
                          int64_t head);
    void (*gate_add)(float *x, const float *y, const float *gate, int64_t d); /* gate NULL: 1 */
    void (*bias_act)(float *y, const float *bias, ipvg_act act, int64_t d);   /* y = act(y + bias); bias may be NULL */

    /* n numbers. */
    void (*gated_gelu)(float *y, const float *gate, const float *up, int64_t n);
    void (*silu)(float *y, const float *x, int64_t n);
    void (*combine)(float *y, int terms, const float *const *x, const float *weight, int64_t n);
    void (*widen)(float *y, const void *x, ipvg_dtype dtype, int64_t n);  /* from float32, bfloat16, float16 */
    void (*narrow)(void *y, const float *x, ipvg_dtype dtype, int64_t n); /* to them, nearest even */

    /* Attention of one head, on packed blocks (tile_impl.h); see attention.c. Queries go tile_rows together, keys and
     * columns of values tile_columns; missing ones are zeros. d of the last three is a multiple of tile_columns. */
    int tile_rows, tile_columns;
    void (*pack_queries)(float *dst, const float *q, int64_t rows, int64_t d, int64_t ld, float scale);
    void (*pack_keys)(float *dst, const float *k, int64_t keys, int64_t d, int64_t ld);
    void (*pack_values)(float *dst, const float *v, int64_t keys, int64_t d, int64_t ld);
    void (*scores)(float *s, const float *q, const float *k, int64_t rows, int64_t keys, int64_t d, int64_t lds);
    void (*softmax_step)(float *s, float *max, float *sum, float *o, int64_t rows, int64_t keys, int64_t d,
                         int64_t lds);
    void (*weighted)(float *o, const float *p, const float *v, int64_t rows, int64_t keys, int64_t d, int64_t ldp);
    void (*divide)(float *y, const float *x, float divisor, int64_t n);
} ipvg_loops;

extern const ipvg_loops ipvg_loops_baseline, ipvg_loops_v3, ipvg_loops_v4;

#endif

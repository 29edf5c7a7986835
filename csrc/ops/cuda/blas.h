/* Matrix products on the GPU. */
#ifndef IPVG_OPS_CUDA_BLAS_H
#define IPVG_OPS_CUDA_BLAS_H

#include "cuda.h"

/* y (rows, n) = act(alpha x (rows, k) w (n, k)^T + bias (n)), `batch` times. It is the key under which an
 * algorithm is remembered: all of one type, so that it has no padding. */
typedef struct ipvg_gemm {
    int64_t rows, n, k;
    int64_t ldx, ldw, ldy;          /* elements from row to row */
    int64_t batch;                  /* matrices ... */
    int64_t step_x, step_w, step_y; /* ... so many elements apart */
    int64_t in, out;                /* ipvg_dtype of x and w; of y and the bias. E4M3 in: out is bfloat16 */
    int64_t upright;                /* w is (k, n) instead: y = alpha x w */
    int64_t aligned;                /* set by ipvg_blas_gemm: bytes that divide all addresses, at most 16 */
    int64_t bias, gelu;             /* gelu: the tanh form, of 16-bit results only: exact enough for those */
} ipvg_gemm;

/* Where they are, in device memory. */
typedef struct ipvg_gemm_data {
    void *y;
    const void *x, *w, *bias;
    const float *scale_x, *scale_w; /* E4M3: (rows), (n): what the numbers of each row of x and w are times */
} ipvg_gemm_data;

ipvg_status ipvg_blas_new(ipvg_context *ctx, ipvg_blas **out, const ipvg_cuda *cuda);
void ipvg_blas_free(ipvg_blas **blas);
/* Sums in float32; float32 inputs are multiplied as such (no TF32). The same inputs give the same bytes for as long as the
 * cache of algorithms is kept. y must not be x, w or bias. */
ipvg_status ipvg_blas_gemm(ipvg_exec *ex, const ipvg_gemm *g, float alpha, const ipvg_gemm_data *data);

#endif

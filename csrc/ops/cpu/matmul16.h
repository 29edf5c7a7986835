/* y = x w^T on a CPU's bfloat16 units (AVX-512 BF16, AMX) through oneDNN's matmul; accumulated in float32. */
#ifndef IPVG_OPS_CPU_MATMUL16_H
#define IPVG_OPS_CPU_MATMUL16_H

#include <stddef.h>
#include <stdint.h>

#include "../../base/context.h"

typedef struct ipvg_matmul16 ipvg_matmul16;

/* *out stays NULL, and that is no error, where this CPU or this oneDNN has no such product. */
ipvg_status ipvg_matmul16_new(ipvg_context *ctx, ipvg_matmul16 **out);
void ipvg_matmul16_free(ipvg_matmul16 **m);

/* Bytes of scratch that the product of these sizes needs (weights reordered for the units, mostly). */
ipvg_status ipvg_matmul16_scratch(ipvg_context *ctx, const ipvg_matmul16 *m, size_t *bytes, int64_t ldy, int64_t rows,
                                  int64_t k, int64_t n);
/* y (rows, n) float32, x (rows, k) and w (n, k) bfloat16, contiguous but for y's rows, ldy apart. */
ipvg_status ipvg_matmul16_run(ipvg_context *ctx, const ipvg_matmul16 *m, float *y, int64_t ldy, const uint16_t *x,
                              const uint16_t *w, void *scratch, int64_t rows, int64_t k, int64_t n);

#endif

/* A stand-in for csrc/ops/cuda/blas.c on the emulated device: plain loops, queued as a kernel is. */
#include "../../csrc/ops/cuda/blas.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "emulator.h"
#include "numbers.h"

typedef struct job {
    ipvg_gemm g;
    float alpha;
    void *y;
    const void *x, *w, *bias;
} job;

ipvg_status ipvg_blas_new(ipvg_context *ctx, ipvg_blas **out, const ipvg_cuda *cuda)
{
    return (void)ctx, (void)cuda, *out = NULL, IPVG_OK;
}

void ipvg_blas_free(ipvg_blas **blas) { *blas = NULL; }

static float gelu(float x) { return 0.5f * x * (1 + tanhf(0.7978845608028654f * (x + 0.044715f * x * x * x))); }

static void work(void *user)
{
    const job *j = user;
    const ipvg_gemm *g = &j->g;
    float *row = malloc((size_t)g->k * sizeof *row);
    if (!row) abort();
    for (int64_t b = 0; b < g->batch; b++) {
        float *w = malloc((size_t)(g->n * g->k + 1) * sizeof *w); /* (n, k) */
        if (!w) abort();
        for (int64_t n = 0; n < g->n; n++)
            for (int64_t k = 0; k < g->k; k++)
                w[n * g->k + k] =
                    number_read(j->w, g->in, b * g->step_w + (g->upright ? k * g->ldw + n : n * g->ldw + k));
        for (int64_t r = 0; r < g->rows; r++) {
            for (int64_t k = 0; k < g->k; k++) row[k] = number_read(j->x, g->in, b * g->step_x + r * g->ldx + k);
            for (int64_t n = 0; n < g->n; n++) {
                float v = j->alpha * numbers_dot(row, w + n * g->k, g->k);
                if (g->bias) v += number_read(j->bias, g->out, n);
                number_write(j->y, g->out, b * g->step_y + r * g->ldy + n, g->gelu ? gelu(v) : v);
            }
        }
        free(w);
    }
    free(row);
}

ipvg_status ipvg_blas_gemm(ipvg_exec *ex, const ipvg_gemm *g, float alpha, void *y, const void *x, const void *w,
                           const void *bias)
{
    const void *const all[] = {y, x, w, bias};
    for (int i = 0; i < 4; i++) emulator_device(all[i]);
    job *j = malloc(sizeof *j);
    if (!j) return ipvg_fail(ex->ctx, IPVG_E_MEMORY, "no memory");
    *j = (job){*g, alpha, y, x, w, bias};
    return ipvg_cuda_check(ex->ctx, emulator_enqueue(ipvg_cuda_of(ex)->stream, work, free, j), "a product");
}

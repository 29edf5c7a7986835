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
    ipvg_gemm_data d;
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
    const ipvg_gemm_data *d = &j->d;
    const bool scaled = g->in == IPVG_E4M3;
    float *row = malloc((size_t)g->k * sizeof *row);
    if (!row) abort();
    for (int64_t b = 0; b < g->batch; b++) {
        float *w = malloc((size_t)(g->n * g->k + 1) * sizeof *w); /* (n, k) */
        if (!w) abort();
        for (int64_t n = 0; n < g->n; n++)
            for (int64_t k = 0; k < g->k; k++)
                w[n * g->k + k] =
                    number_read(d->w, g->in, b * g->step_w + (g->upright ? k * g->ldw + n : n * g->ldw + k));
        for (int64_t r = 0; r < g->rows; r++) {
            for (int64_t k = 0; k < g->k; k++) row[k] = number_read(d->x, g->in, b * g->step_x + r * g->ldx + k);
            for (int64_t n = 0; n < g->n; n++) {
                float v = j->alpha * numbers_dot(row, w + n * g->k, g->k);
                if (scaled) v *= d->scale_x[r] * d->scale_w[n];
                if (g->bias) v += number_read(d->bias, g->out, n);
                number_write(d->y, g->out, b * g->step_y + r * g->ldy + n, g->gelu ? gelu(v) : v);
            }
        }
        free(w);
    }
    free(row);
}

/* What cuBLASLt wants of 8-bit products on Hopper (its manual's table): lengths and rows in multiples of 16 bytes, scales for
 * both, a 16-bit result, no batch. */
static bool takes(const ipvg_gemm *g, const ipvg_gemm_data *d)
{
    if (g->in != IPVG_E4M3) return !d->scale_x && !d->scale_w;
    const uintptr_t all = (uintptr_t)d->x | (uintptr_t)d->w | (uintptr_t)d->y;
    return d->scale_x && d->scale_w && g->out == IPVG_BF16 && g->batch == 1 && !g->upright &&
           (g->k | g->n | g->ldx | g->ldw | 2 * g->ldy | (int64_t)all) % 16 == 0;
}

ipvg_status ipvg_blas_gemm(ipvg_exec *ex, const ipvg_gemm *g, float alpha, const ipvg_gemm_data *data)
{
    const void *const all[] = {data->y, data->x, data->w, data->bias, data->scale_x, data->scale_w};
    for (int i = 0; i < 6; i++) emulator_device(all[i]);
    if (!takes(g, data)) return ipvg_fail(ex->ctx, IPVG_E_UNSUPPORTED, "no algorithm for an 8-bit product");
    job *j = malloc(sizeof *j);
    if (!j) return ipvg_fail(ex->ctx, IPVG_E_MEMORY, "no memory");
    *j = (job){*g, alpha, *data};
    return ipvg_cuda_check(ex->ctx, emulator_enqueue(ipvg_cuda_of(ex)->stream, work, free, j), "a product");
}

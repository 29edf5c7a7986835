/* A stand-in for csrc/ops/cuda/dnn.c on the emulated device: plain loops, queued as a kernel is. */
#include "../../csrc/ops/cuda/dnn.h"

#include <math.h>
#include <stdlib.h>

#include "emulator.h"
#include "numbers.h"

#define WORKSPACE 4096 /* asked for, so that callers must bring it; the first byte is written */

ipvg_status ipvg_dnn_new(ipvg_context *ctx, ipvg_dnn **out, ipvg_cuda *cuda)
{
    return (void)ctx, (void)cuda, *out = NULL, IPVG_OK;
}

void ipvg_dnn_free(ipvg_dnn **dnn) { *dnn = NULL; }

/* ---- attention: heads of 16, 32, ... columns, so that both ways of attention.c come to run ---- */

typedef struct attention {
    ipvg_sdpa s;
    float scale;
    void *o, *workspace;
    const void *q, *k, *v;
} attention;

ipvg_status ipvg_dnn_sdpa_workspace(ipvg_exec *ex, size_t *bytes, const ipvg_sdpa *s)
{
    *bytes = WORKSPACE;
    if (s->d % 16 || s->dtype == IPVG_F32) return ipvg_fail(ex->ctx, IPVG_E_UNSUPPORTED, "no plan");
    return IPVG_OK;
}

static void attend(void *user)
{
    const attention *a = user;
    const ipvg_sdpa *s = &a->s;
    float *p = malloc((size_t)s->lk * sizeof *p);
    if (!p) abort();
    *(char *)a->workspace = 1;
    for (int64_t h = 0; h < s->heads; h++)
        for (int64_t i = 0; i < s->lq; i++) {
            float max = -INFINITY, sum = 0;
            for (int64_t j = 0; j < s->lk; j++) {
                float dot = 0;
                for (int64_t c = 0; c < s->d; c++)
                    dot += number_read(a->q, s->dtype, i * s->ldq + h * s->d + c) *
                           number_read(a->k, s->dtype, j * s->ldk + h * s->d + c);
                p[j] = a->scale * dot;
                if (p[j] > max) max = p[j];
            }
            for (int64_t j = 0; j < s->lk; j++) sum += p[j] = expf(p[j] - max);
            for (int64_t c = 0; c < s->d; c++) {
                float o = 0;
                for (int64_t j = 0; j < s->lk; j++) o += p[j] * number_read(a->v, s->dtype, j * s->ldv + h * s->d + c);
                number_write(a->o, s->dtype, i * s->ldo + h * s->d + c, o / sum);
            }
        }
    free(p);
}

ipvg_status ipvg_dnn_sdpa(ipvg_exec *ex, const ipvg_sdpa *s, float scale, void *o, const void *q, const void *k,
                          const void *v, void *workspace)
{
    const void *const all[] = {o, q, k, v, workspace};
    for (int i = 0; i < 5; i++) emulator_device(all[i]);
    attention *a = malloc(sizeof *a);
    if (!a) return ipvg_fail(ex->ctx, IPVG_E_MEMORY, "no memory");
    *a = (attention){*s, scale, o, workspace, q, k, v};
    return ipvg_cuda_check(ex->ctx, emulator_enqueue(ipvg_cuda_of(ex)->stream, attend, free, a), "attention");
}

/* ---- convolution ---- */

typedef struct convolution {
    ipvg_dnn_conv c;
    void *y, *workspace;
    const void *x, *w, *bias;
} convolution;

ipvg_status ipvg_dnn_conv_workspace(ipvg_exec *ex, size_t *bytes, const ipvg_dnn_conv *c)
{
    return (void)ex, (void)c, *bytes = WORKSPACE, IPVG_OK;
}

static double at(const convolution *v, const float *frames, const float *weights, int64_t k, int64_t row,
                 int64_t column)
{
    const ipvg_dnn_conv *c = &v->c;
    double sum = 0;
    for (int64_t t = 0; t < c->kt; t++)
        for (int64_t i = 0; i < c->kh; i++)
            for (int64_t j = 0; j < c->kw; j++) {
                int64_t y = row * c->stride + i - c->top, x = column * c->stride + j - c->left;
                if (y < 0 || y >= c->h || x < 0 || x >= c->w) continue;
                const int64_t in = ((t * c->h + y) * c->w + x) * c->cin,
                              w = (((k * c->kt + t) * c->kh + i) * c->kw + j) * c->cin;
                sum += (double)numbers_dot(frames + in, weights + w, c->cin);
            }
    return sum;
}

static void convolve(void *user)
{
    const convolution *v = user;
    const ipvg_dnn_conv *c = &v->c;
    const int64_t oh = (c->top + c->h + c->bottom - c->kh) / c->stride + 1,
                  ow = (c->left + c->w + c->right - c->kw) / c->stride + 1;
    float *frames = numbers_widen(v->x, c->dtype, c->kt * c->h * c->w * c->cin);
    float *weights = numbers_widen(v->w, c->dtype, c->cout * c->kt * c->kh * c->kw * c->cin);
    *(char *)v->workspace = 1;
#pragma omp parallel for
    for (int64_t row = 0; row < oh; row++)
        for (int64_t column = 0; column < ow; column++)
            for (int64_t k = 0; k < c->cout; k++) {
                double sum = at(v, frames, weights, k, row, column);
                if (c->bias) sum += (double)number_read(v->bias, c->dtype, k);
                number_write(v->y, c->dtype, (row * ow + column) * c->cout + k, (float)sum);
            }
    free(frames);
    free(weights);
}

ipvg_status ipvg_dnn_conv_run(ipvg_exec *ex, const ipvg_dnn_conv *c, void *y, const void *x, const void *w,
                              const void *bias, void *workspace)
{
    const void *const all[] = {y, x, w, bias, workspace};
    for (int i = 0; i < 5; i++) {
        emulator_device(all[i]);
        if ((uintptr_t)all[i] % 16) return ipvg_fail(ex->ctx, IPVG_E_BACKEND, "a convolution gets address %p", all[i]);
    }
    convolution *v = malloc(sizeof *v);
    if (!v) return ipvg_fail(ex->ctx, IPVG_E_MEMORY, "no memory");
    *v = (convolution){*c, y, workspace, x, w, bias};
    return ipvg_cuda_check(ex->ctx, emulator_enqueue(ipvg_cuda_of(ex)->stream, convolve, free, v), "a convolution");
}

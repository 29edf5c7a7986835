/* linear: y = act(x w^T + b). */
#include <omp.h>
#include <oneapi/dnnl/dnnl.h>

#include "cpu.h"

#define PANEL 512 /* rows of a 16-bit weight that are widened at a time */

ipvg_status ipvg_cpu_linear(ipvg_exec *ex, ipvg_tensor *y, const ipvg_tensor *x, const ipvg_tensor *w,
                            const ipvg_tensor *b, ipvg_act act)
{
    const ipvg_loops *loops = ipvg_cpu_loops(ex);
    size_t mark = ipvg_arena_mark(ex->arena);
    int64_t rows = x->shape[0], k = x->shape[1], n = w->shape[0];
    int64_t panel = w->dtype == IPVG_F32 || n < PANEL ? n : PANEL;
    int threads = ex->ctx->threads, before = omp_get_max_threads();
    const float *bias = NULL;
    void *wide = NULL;
    ipvg_status status;
    IPVG_TRY(ipvg_cpu_need_f32(ex, "linear", "x", x));
    IPVG_TRY(ipvg_cpu_need_f32(ex, "linear", "y", y));
    if (b) IPVG_TRY(ipvg_cpu_floats(ex, &bias, b));
    if (w->dtype != IPVG_F32) {
        if (w->dtype != IPVG_BF16 && w->dtype != IPVG_F16) {
            status = ipvg_fail(ex->ctx, IPVG_E_TYPE, "linear: w is %s, expected float32, bfloat16 or float16",
                               ipvg_dtype_name(w->dtype));
            goto done;
        }
        IPVG_TRY(ipvg_arena_alloc(ex->ctx, ex->arena, &wide, (size_t)(panel * k) * sizeof(float)));
    }
    if (ipvg_planning(ex) || rows == 0) goto done;
    omp_set_num_threads(threads); /* oneDNN asks OpenMP how many it may use */
    for (int64_t first = 0; first < n; first += panel) {
        int64_t count = n - first < panel ? n - first : panel;
        const float *weights = (const float *)w->data + first * k;
        float *out = (float *)y->data + first;
        if (wide) {
            loops->widen(wide, (const uint16_t *)w->data + first * k, w->dtype, count * k);
            weights = wide;
        }
        dnnl_status_t st = dnnl_sgemm('N', 'T', rows, count, k, 1.f, x->data, x->ld, weights, k, 0.f, out, y->ld);
        if (st != dnnl_success) {
            omp_set_num_threads(before);
            status = ipvg_fail(ex->ctx, IPVG_E_BACKEND, "oneDNN's sgemm failed with status %d", (int)st);
            goto done;
        }
        if (bias || act != IPVG_ACT_NONE) {
#pragma omp parallel for num_threads(threads) schedule(static) if (rows * count > 32768)
            for (int64_t r = 0; r < rows; r++) loops->bias_act(out + r * y->ld, bias ? bias + first : NULL, act, count);
        }
    }
    omp_set_num_threads(before);
done:
    ipvg_arena_reset(ex->arena, mark);
    return status;
}

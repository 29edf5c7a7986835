/* linear: y = act(x w^T + b).
 *
 * float32: oneDNN's sgemm; 16-bit weights are widened a panel at a time. bfloat16 (a backend made for it): x and w rounded to
 * bfloat16, products summed in float32, on the CPU's own units where it has them (matmul16.c); elsewhere the same
 * numbers by sgemm on the rounded values, since a product of two bfloat16 is exact in float32. */
#include <omp.h>
#include <oneapi/dnnl/dnnl.h>
#include <pthread.h>
#include <signal.h>

#include "cpu.h"

#define PANEL 512   /* rows of a weight that are converted at a time */
#define SLICE 16384 /* numbers that one turn of a conversion takes */

/* Either may be the other's memory only where the sizes agree. */
static void convert(ipvg_exec *ex, void *y, ipvg_dtype to, const void *x, ipvg_dtype from, int64_t n)
{
    const ipvg_loops *loops = ipvg_cpu_loops(ex);
    size_t in = ipvg_dtype_size(from), out = ipvg_dtype_size(to);
#pragma omp parallel for num_threads(ex->ctx->threads) schedule(static) if (n > 4 * SLICE)
    for (int64_t i = 0; i < n; i += SLICE) {
        int64_t count = n - i < SLICE ? n - i : SLICE;
        const char *src = (const char *)x + (size_t)i * in;
        char *dst = (char *)y + (size_t)i * out;
        if (to == IPVG_F32) {
            loops->widen((float *)dst, src, from, count);
        } else { /* to bfloat16, from float16 by way of float32 */
            float wide[SLICE];
            if (from != IPVG_F32) loops->widen(wide, src, from, count);
            loops->narrow(dst, from == IPVG_F32 ? (const float *)src : wide, to, count);
        }
    }
}

/* The rows of a strided float32 matrix rounded to bfloat16: as such, or widened again. */
static void round_rows(ipvg_exec *ex, void *y, ipvg_dtype to, const ipvg_tensor *x)
{
    const ipvg_loops *loops = ipvg_cpu_loops(ex);
    int64_t rows = x->shape[0], k = x->shape[1];
#pragma omp parallel for num_threads(ex->ctx->threads) schedule(static) if (rows * k > 4 * SLICE)
    for (int64_t r = 0; r < rows; r++)
        for (int64_t i = 0; i < k; i += 256) {
            int64_t count = k - i < 256 ? k - i : 256;
            const float *src = (const float *)x->data + r * x->ld + i;
            uint16_t half[256], *dst = to == IPVG_BF16 ? (uint16_t *)y + r * k + i : half;
            loops->narrow(dst, src, IPVG_BF16, count);
            if (to == IPVG_F32) loops->widen((float *)y + r * k + i, half, IPVG_BF16, count);
        }
}

/* oneDNN's gemm kernels use a block of the heap as their stack (uxlfoundation/oneDNN#4845; every release before March 2026):
 * a signal's frame would be written over what lies below it. So no thread of the team takes signals during a product;
 * they wait for its end. Workers never take them again, and those that oneDNN starts inherit the mask. */
static void signals_wait(sigset_t *before, int threads)
{
    static const int faults[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGSYS, SIGABRT};
    sigset_t all;
    sigfillset(&all);
    for (size_t i = 0; i < sizeof faults / sizeof *faults; i++) sigdelset(&all, faults[i]);
    pthread_sigmask(SIG_BLOCK, &all, before);
#pragma omp parallel num_threads(threads)
    {
        static _Thread_local bool waits; /* of a worker */
        if (omp_get_thread_num() && !waits) waits = !pthread_sigmask(SIG_BLOCK, &all, NULL);
    }
}

static ipvg_status sgemm(ipvg_exec *ex, float *y, int64_t ldy, const float *x, int64_t ldx, const float *w,
                         int64_t rows, int64_t k, int64_t n)
{
    dnnl_status_t st = dnnl_sgemm('N', 'T', rows, n, k, 1.f, x, ldx, w, k, 0.f, y, ldy);
    if (st == dnnl_success) return IPVG_OK;
    return ipvg_fail(ex->ctx, IPVG_E_BACKEND, "oneDNN's sgemm failed with status %d", (int)st);
}

ipvg_status ipvg_cpu_linear(ipvg_exec *ex, ipvg_tensor *y, const ipvg_tensor *x, const ipvg_tensor *w,
                            const ipvg_tensor *b, ipvg_act act, bool exact)
{
    const ipvg_cpu *cpu = ex->be->state;
    const bool half = ex->be->compute == IPVG_BF16 && !exact, native = half && cpu->matmul16;
    const ipvg_dtype dtype = native ? IPVG_BF16 : IPVG_F32; /* of the product's inputs */
    size_t mark = ipvg_arena_mark(ex->arena), size = ipvg_dtype_size(dtype);
    int64_t rows = x->shape[0], k = x->shape[1], n = w->shape[0];
    /* Weights are taken as they lie, unless the product wants another dtype or their values rounded. */
    const bool as_is = w->dtype == dtype, round = half && !native && w->dtype != IPVG_BF16;
    int64_t panel = (as_is && !round) || n < PANEL ? n : PANEL;
    int before = omp_get_max_threads();
    const float *bias = NULL;
    void *inputs = NULL, *panels = NULL, *rounded = NULL, *scratch = NULL;
    size_t scratch_bytes = 0;
    ipvg_status status;

    IPVG_TRY(ipvg_cpu_need_f32(ex, "linear", "x", x));
    IPVG_TRY(ipvg_cpu_need_f32(ex, "linear", "y", y));
    if (w->dtype != IPVG_F32 && w->dtype != IPVG_BF16 && w->dtype != IPVG_F16) {
        status = ipvg_fail(ex->ctx, IPVG_E_TYPE, "linear: w is %s, expected float32, bfloat16 or float16",
                           ipvg_dtype_name(w->dtype));
        goto done;
    }
    if (b) IPVG_TRY(ipvg_cpu_floats(ex, &bias, b));
    if (half) IPVG_TRY(ipvg_arena_alloc(ex->ctx, ex->arena, &inputs, (size_t)(rows * k) * size));
    if (round) IPVG_TRY(ipvg_arena_alloc(ex->ctx, ex->arena, &rounded, (size_t)(panel * k) * 2));
    if (!as_is || round) IPVG_TRY(ipvg_arena_alloc(ex->ctx, ex->arena, &panels, (size_t)(panel * k) * size));
    if (native && rows) { /* the last, smaller panel needs no more */
        IPVG_TRY(ipvg_matmul16_scratch(ex->ctx, cpu->matmul16, &scratch_bytes, y->ld, rows, k, panel));
        IPVG_TRY(ipvg_arena_alloc(ex->ctx, ex->arena, &scratch, scratch_bytes));
    }
    if (ipvg_planning(ex) || rows == 0) goto done;

    sigset_t signals;
    signals_wait(&signals, ex->ctx->threads);
    omp_set_num_threads(ex->ctx->threads); /* oneDNN asks OpenMP how many it may use */
    if (half) round_rows(ex, inputs, dtype, x);
    const void *left = half ? inputs : x->data;
    const int64_t ldx = half ? k : x->ld;
    for (int64_t first = 0; first < n; first += panel) {
        int64_t count = n - first < panel ? n - first : panel;
        const void *weights = (const char *)w->data + (size_t)(first * k) * ipvg_dtype_size(w->dtype);
        float *out = (float *)y->data + first;
        if (round) {
            convert(ex, rounded, IPVG_BF16, weights, w->dtype, count * k);
            convert(ex, panels, IPVG_F32, rounded, IPVG_BF16, count * k);
        } else if (!as_is) {
            convert(ex, panels, dtype, weights, w->dtype, count * k);
        }
        if (panels) weights = panels;
        status = native ? ipvg_matmul16_run(ex->ctx, cpu->matmul16, out, y->ld, left, weights, scratch, rows, k, count)
                        : sgemm(ex, out, y->ld, left, ldx, weights, rows, k, count);
        if (status != IPVG_OK) break;
        if (bias || act != IPVG_ACT_NONE) {
#pragma omp parallel for num_threads(ex->ctx->threads) schedule(static) if (rows * count > 32768)
            for (int64_t r = 0; r < rows; r++)
                cpu->loops->bias_act(out + r * y->ld, bias ? bias + first : NULL, act, count);
        }
    }
    omp_set_num_threads(before);
    pthread_sigmask(SIG_SETMASK, &signals, NULL);
done:
    ipvg_arena_reset(ex->arena, mark);
    return status;
}

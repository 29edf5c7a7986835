/* Row-wise and element-wise operations: checks of dtype, then threads over rows. Static schedules: same threads, same bytes. */
#include "cpu.h"

#define WORTH_THREADS 32768 /* numbers; below that a parallel region costs more than it saves */

static float *row(const ipvg_tensor *t, int64_t r) { return (float *)t->data + r * t->ld; }

static ipvg_status norm(ipvg_exec *ex, const char *op, ipvg_tensor *y, const ipvg_tensor *x, const ipvg_tensor *mul,
                        const ipvg_tensor *add, float plus, float eps)
{
    const ipvg_loops *loops = ipvg_cpu_loops(ex);
    size_t mark = ipvg_arena_mark(ex->arena);
    int64_t rows = x->shape[0], d = x->shape[1];
    const float *m, *a;
    ipvg_status status;
    IPVG_TRY(ipvg_cpu_need_f32(ex, op, "x", x));
    IPVG_TRY(ipvg_cpu_need_f32(ex, op, "y", y));
    IPVG_TRY(ipvg_cpu_floats(ex, &m, mul));
    IPVG_TRY(ipvg_cpu_floats(ex, &a, add));
    if (ipvg_planning(ex)) goto done;
#pragma omp parallel for num_threads(ex->ctx->threads) schedule(static) if (rows * d > WORTH_THREADS)
    for (int64_t r = 0; r < rows; r++) loops->layer_norm(row(y, r), row(x, r), m, a, plus, eps, d);
done:
    ipvg_arena_reset(ex->arena, mark);
    return status;
}

ipvg_status ipvg_cpu_norm_modulate(ipvg_exec *ex, ipvg_tensor *y, const ipvg_tensor *x, const ipvg_tensor *shift,
                                   const ipvg_tensor *scale, float eps)
{
    return norm(ex, "norm_modulate", y, x, scale, shift, 1.f, eps);
}

ipvg_status ipvg_cpu_layer_norm(ipvg_exec *ex, ipvg_tensor *y, const ipvg_tensor *x, const ipvg_tensor *w,
                                const ipvg_tensor *b, float eps)
{
    return norm(ex, "layer_norm", y, x, w, b, 0.f, eps);
}

ipvg_status ipvg_cpu_rms_norm(ipvg_exec *ex, ipvg_tensor *y, const ipvg_tensor *x, const ipvg_tensor *w, float eps)
{
    const ipvg_loops *loops = ipvg_cpu_loops(ex);
    size_t mark = ipvg_arena_mark(ex->arena);
    int64_t rows = x->shape[0], d = x->shape[1];
    const float *weight;
    ipvg_status status;
    IPVG_TRY(ipvg_cpu_need_f32(ex, "rms_norm", "x", x));
    IPVG_TRY(ipvg_cpu_need_f32(ex, "rms_norm", "y", y));
    IPVG_TRY(ipvg_cpu_floats(ex, &weight, w));
    if (ipvg_planning(ex)) goto done;
#pragma omp parallel for num_threads(ex->ctx->threads) schedule(static) if (rows * d > WORTH_THREADS)
    for (int64_t r = 0; r < rows; r++) loops->rms_norm(row(y, r), row(x, r), weight, eps, d);
done:
    ipvg_arena_reset(ex->arena, mark);
    return status;
}

ipvg_status ipvg_cpu_rms_norm_rope(ipvg_exec *ex, ipvg_tensor *y, const ipvg_tensor *x, const ipvg_tensor *w,
                                   const ipvg_tensor *rope, int heads, float eps)
{
    const ipvg_loops *loops = ipvg_cpu_loops(ex);
    size_t mark = ipvg_arena_mark(ex->arena);
    int64_t rows = x->shape[0], d = x->shape[1], head = d / heads;
    const float *weight, *turns = rope->data;
    ipvg_status status;
    IPVG_TRY(ipvg_cpu_need_f32(ex, "rms_norm_rope", "x", x));
    IPVG_TRY(ipvg_cpu_need_f32(ex, "rms_norm_rope", "y", y));
    IPVG_TRY(ipvg_cpu_need_f32(ex, "rms_norm_rope", "rope", rope));
    IPVG_TRY(ipvg_cpu_floats(ex, &weight, w));
    if (ipvg_planning(ex)) goto done;
#pragma omp parallel for num_threads(ex->ctx->threads) schedule(static) if (rows * d > WORTH_THREADS)
    for (int64_t r = 0; r < rows; r++)
        loops->rms_norm_rope(row(y, r), row(x, r), weight, turns + r * head, eps, d, head);
done:
    ipvg_arena_reset(ex->arena, mark);
    return status;
}

ipvg_status ipvg_cpu_gate_residual(ipvg_exec *ex, ipvg_tensor *x, const ipvg_tensor *y, const ipvg_tensor *gate)
{
    const ipvg_loops *loops = ipvg_cpu_loops(ex);
    size_t mark = ipvg_arena_mark(ex->arena);
    int64_t rows = x->shape[0], d = x->shape[1];
    const float *g = NULL;
    ipvg_status status;
    IPVG_TRY(ipvg_cpu_need_f32(ex, "gate_residual", "x", x));
    IPVG_TRY(ipvg_cpu_need_f32(ex, "gate_residual", "y", y));
    if (gate) IPVG_TRY(ipvg_cpu_floats(ex, &g, gate));
    if (ipvg_planning(ex)) goto done;
#pragma omp parallel for num_threads(ex->ctx->threads) schedule(static) if (rows * d > WORTH_THREADS)
    for (int64_t r = 0; r < rows; r++) loops->gate_add(row(x, r), row(y, r), g, d);
done:
    ipvg_arena_reset(ex->arena, mark);
    return status;
}

ipvg_status ipvg_cpu_gated_gelu(ipvg_exec *ex, ipvg_tensor *y, const ipvg_tensor *gate, const ipvg_tensor *up)
{
    const ipvg_loops *loops = ipvg_cpu_loops(ex);
    int64_t rows = y->shape[0], d = y->shape[1];
    ipvg_status status;
    IPVG_TRY(ipvg_cpu_need_f32(ex, "gated_gelu", "gate", gate));
    IPVG_TRY(ipvg_cpu_need_f32(ex, "gated_gelu", "up", up));
    IPVG_TRY(ipvg_cpu_need_f32(ex, "gated_gelu", "y", y));
    if (ipvg_planning(ex)) goto done;
#pragma omp parallel for num_threads(ex->ctx->threads) schedule(static) if (rows * d > WORTH_THREADS)
    for (int64_t r = 0; r < rows; r++) loops->gated_gelu(row(y, r), row(gate, r), row(up, r), d);
done:
    return status;
}

#define SLICE 16384 /* numbers of a flat tensor that one turn of the loop takes */

ipvg_status ipvg_cpu_silu(ipvg_exec *ex, ipvg_tensor *y, const ipvg_tensor *x)
{
    const ipvg_loops *loops = ipvg_cpu_loops(ex);
    int64_t n = ipvg_tensor_count(x);
    float *out = y->data;
    const float *in = x->data;
    ipvg_status status;
    IPVG_TRY(ipvg_cpu_need_f32(ex, "silu", "x", x));
    IPVG_TRY(ipvg_cpu_need_f32(ex, "silu", "y", y));
    if (ipvg_planning(ex)) goto done;
#pragma omp parallel for num_threads(ex->ctx->threads) schedule(static) if (n > WORTH_THREADS)
    for (int64_t i = 0; i < n; i += SLICE) loops->silu(out + i, in + i, n - i < SLICE ? n - i : SLICE);
done:
    return status;
}

ipvg_status ipvg_cpu_sums(ipvg_exec *ex, const ipvg_sum *sums, int count)
{
    const ipvg_loops *loops = ipvg_cpu_loops(ex);
    int64_t n = ipvg_tensor_count(sums->y);
    ipvg_status status;
    for (const ipvg_sum *s = sums; s < sums + count; s++) {
        IPVG_TRY(ipvg_cpu_need_f32(ex, "combine", "the result", s->y));
        for (int t = 0; t < s->n; t++) IPVG_TRY(ipvg_cpu_need_f32(ex, "combine", "a term", s->x[t]));
    }
    if (ipvg_planning(ex)) goto done;
#pragma omp parallel for num_threads(ex->ctx->threads) schedule(static) if (n > WORTH_THREADS)
    for (int64_t i = 0; i < n; i += SLICE)
        for (const ipvg_sum *s = sums; s < sums + count; s++) {
            const float *in[16];
            for (int t = 0; t < s->n; t++) in[t] = (const float *)s->x[t]->data + i;
            loops->combine((float *)s->y->data + i, s->n, in, s->weight, n - i < SLICE ? n - i : SLICE);
        }
done:
    return status;
}

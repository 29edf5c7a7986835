/* The table's entries that are one kernel of our own: dtypes are checked, scratch is taken, the kernel is queued. */
#include <math.h>
#include <string.h>

#include "cuda.h"

#define ARRAY(out, op, tensor) IPVG_TRY(ipvg_cuda_array(ex, (out), (op), (tensor)))
#define RESULT(out, op, tensor) IPVG_TRY(ipvg_cuda_result(ex, (out), (op), (tensor)))
#define LAUNCH(op, call) IPVG_TRY(ipvg_cuda_check(ex->ctx, (call), op))

static void *stream(const ipvg_exec *ex) { return ipvg_cuda_of(ex)->stream; }

/* ==== norms ==== */

static ipvg_status norm(ipvg_exec *ex, const char *op, ipvg_tensor *y, const ipvg_tensor *x, const ipvg_tensor *mul,
                        const ipvg_tensor *add, float plus, float eps)
{
    ipvg_k_array to, from, m, a;
    ipvg_status status;
    RESULT(&to, op, y);
    ARRAY(&from, op, x);
    ARRAY(&m, op, mul);
    ARRAY(&a, op, add);
    if (ipvg_planning(ex)) goto done;
    LAUNCH(op, ipvg_k_layer_norm(to, y->scale, from, m, a, plus, eps, x->shape[0], x->shape[1], stream(ex)));
done:
    return status;
}

ipvg_status ipvg_cuda_norm_modulate(ipvg_exec *ex, ipvg_tensor *y, const ipvg_tensor *x, const ipvg_tensor *shift,
                                    const ipvg_tensor *scale, float eps)
{
    return norm(ex, "norm_modulate", y, x, scale, shift, 1.f, eps);
}

ipvg_status ipvg_cuda_layer_norm(ipvg_exec *ex, ipvg_tensor *y, const ipvg_tensor *x, const ipvg_tensor *w,
                                 const ipvg_tensor *b, float eps)
{
    return norm(ex, "layer_norm", y, x, w, b, 0.f, eps);
}

ipvg_status ipvg_cuda_gate_residual_norm(ipvg_exec *ex, ipvg_tensor *h, ipvg_tensor *x, const ipvg_tensor *y,
                                         const ipvg_tensor *gate, const ipvg_tensor *mul, const ipvg_tensor *add,
                                         bool modulate, float eps)
{
    ipvg_k_array out, to, from, g, m, a;
    ipvg_status status;
    RESULT(&out, "gate_residual_norm", h);
    ARRAY(&to, "gate_residual_norm", x);
    ARRAY(&from, "gate_residual_norm", y);
    ARRAY(&g, "gate_residual_norm", gate);
    ARRAY(&m, "gate_residual_norm", mul);
    ARRAY(&a, "gate_residual_norm", add);
    if (ipvg_planning(ex)) goto done;
    LAUNCH("gate_residual_norm", ipvg_k_gate_residual_norm(out, h->scale, to, from, g, m, a, modulate ? 1.f : 0.f, eps,
                                                           x->shape[0], x->shape[1], stream(ex)));
done:
    return status;
}

ipvg_status ipvg_cuda_rms_norm(ipvg_exec *ex, ipvg_tensor *y, const ipvg_tensor *x, const ipvg_tensor *w, float eps)
{
    ipvg_k_array to, from, m;
    ipvg_status status;
    ARRAY(&to, "rms_norm", y);
    ARRAY(&from, "rms_norm", x);
    ARRAY(&m, "rms_norm", w);
    if (ipvg_planning(ex)) goto done;
    LAUNCH("rms_norm", ipvg_k_rms_norm(to, from, m, eps, x->shape[0], x->shape[1], stream(ex)));
done:
    return status;
}

ipvg_status ipvg_cuda_rms_norm_rope(ipvg_exec *ex, ipvg_tensor *y, const ipvg_tensor *x, const ipvg_tensor *w,
                                    const ipvg_tensor *rope, int heads, float eps)
{
    ipvg_k_array to, from, m;
    ipvg_status status;
    if (rope->dtype != IPVG_F32) return ipvg_fail(ex->ctx, IPVG_E_TYPE, "rms_norm_rope: rope must be float32");
    ARRAY(&to, "rms_norm_rope", y);
    ARRAY(&from, "rms_norm_rope", x);
    ARRAY(&m, "rms_norm_rope", w);
    if (ipvg_planning(ex)) goto done;
    LAUNCH("rms_norm_rope",
           ipvg_k_rms_norm_rope(to, from, m, rope->data, heads, eps, x->shape[0], x->shape[1], stream(ex)));
done:
    return status;
}

/* ==== element by element ==== */

ipvg_status ipvg_cuda_gate_residual(ipvg_exec *ex, ipvg_tensor *x, const ipvg_tensor *y, const ipvg_tensor *gate)
{
    ipvg_k_array to, from, g;
    ipvg_status status;
    ARRAY(&to, "gate_residual", x);
    ARRAY(&from, "gate_residual", y);
    ARRAY(&g, "gate_residual", gate);
    if (ipvg_planning(ex)) goto done;
    LAUNCH("gate_residual", ipvg_k_gate_residual(to, from, g, x->shape[0], x->shape[1], stream(ex)));
done:
    return status;
}

ipvg_status ipvg_cuda_gated_gelu(ipvg_exec *ex, ipvg_tensor *y, const ipvg_tensor *gate, const ipvg_tensor *up)
{
    ipvg_k_array to, g, u;
    ipvg_status status;
    ARRAY(&to, "gated_gelu", y);
    ARRAY(&g, "gated_gelu", gate);
    ARRAY(&u, "gated_gelu", up);
    if (ipvg_planning(ex)) goto done;
    LAUNCH("gated_gelu", ipvg_k_gated_gelu(to, g, u, y->shape[0], y->shape[1], stream(ex)));
done:
    return status;
}

ipvg_status ipvg_cuda_silu(ipvg_exec *ex, ipvg_tensor *y, const ipvg_tensor *x)
{
    ipvg_k_array to, from;
    ipvg_status status;
    ARRAY(&to, "silu", y);
    ARRAY(&from, "silu", x);
    if (ipvg_planning(ex)) goto done;
    LAUNCH("silu",
           ipvg_k_bias_act(to, from, (ipvg_k_array){0}, IPVG_K_ACT_SILU, ipvg_tensor_rows(x), x->ld, stream(ex)));
done:
    return status;
}

ipvg_status ipvg_cuda_sums(ipvg_exec *ex, const ipvg_sum *sums, int count)
{
    ipvg_k_array from[IPVG_SUMS][16];
    ipvg_k_sum to[IPVG_SUMS];
    ipvg_status status;
    for (int k = 0; k < count; k++) {
        to[k] = (ipvg_k_sum){.n = sums[k].n, .x = from[k], .weight = sums[k].weight};
        ARRAY(&to[k].y, "combine", sums[k].y);
        for (int i = 0; i < sums[k].n; i++) ARRAY(&from[k][i], "combine", sums[k].x[i]);
    }
    if (ipvg_planning(ex)) goto done;
    LAUNCH("combine", ipvg_k_sums(to, count, ipvg_tensor_count(sums->y), stream(ex)));
done:
    return status;
}

ipvg_status ipvg_cuda_multiply(ipvg_exec *ex, ipvg_tensor *y, const ipvg_tensor *x, const ipvg_tensor *f)
{
    ipvg_k_array to, a, b;
    ipvg_status status;
    ARRAY(&to, "multiply", y);
    ARRAY(&a, "multiply", x);
    ARRAY(&b, "multiply", f);
    if (ipvg_planning(ex)) goto done;
    LAUNCH("multiply", ipvg_k_multiply(to, a, b, ipvg_tensor_count(y), stream(ex)));
done:
    return status;
}

ipvg_status ipvg_cuda_cast(ipvg_exec *ex, ipvg_tensor *y, const ipvg_tensor *x)
{
    ipvg_k_array to, from;
    ipvg_status status;
    RESULT(&to, "cast", y);
    ARRAY(&from, "cast", x);
    if (ipvg_planning(ex)) goto done;
    if (y->dtype == IPVG_E4M3)
        LAUNCH("cast", ipvg_k_quantise_rows(to, y->scale, from, x->shape[0], x->shape[1], stream(ex)));
    else
        LAUNCH("cast", ipvg_k_cast(to, from, ipvg_tensor_rows(x), x->ndim ? x->shape[x->ndim - 1] : 1, stream(ex)));
done:
    return status;
}

/* ==== guidance ==== */

ipvg_status ipvg_cuda_gram(ipvg_exec *ex, double *gram, double *sum, int n, const ipvg_tensor *const *x)
{
    const int64_t count = ipvg_tensor_count(x[0]), numbers[] = {IPVG_K_GRAM_RESULT};
    size_t mark = ipvg_arena_mark(ex->arena);
    double host[IPVG_K_GRAM_RESULT];
    ipvg_k_array from[IPVG_GRAM_MAX];
    ipvg_tensor result;
    void *scratch;
    ipvg_status status;

    for (int i = 0; i < n; i++) ARRAY(&from[i], "gram", x[i]);
    IPVG_TRY(ipvg_arena_tensor(ex->ctx, ex->arena, &result, IPVG_F64, 1, numbers));
    IPVG_TRY(ipvg_arena_alloc(ex->ctx, ex->arena, &scratch, ipvg_k_gram_scratch(count)));
    if (ipvg_planning(ex)) goto done;
    LAUNCH("gram", ipvg_k_gram(result.data, scratch, n, from, count, stream(ex)));
    IPVG_TRY(ipvg_cuda_copy_out(ex, host, &result));
    for (int a = 0; a < n; a++) {
        if (sum) sum[a] = host[16 + a];
        for (int b = a; b < n; b++) gram[a * n + b] = gram[b * n + a] = host[4 * a + b];
    }
done:
    ipvg_arena_reset(ex->arena, mark);
    return status;
}

ipvg_status ipvg_cuda_blur_tokens(ipvg_exec *ex, ipvg_tensor *y, const ipvg_tensor *x, int64_t rows, int64_t cols,
                                  float sigma)
{
    const int64_t frames = x->shape[0] / (rows * cols), d = x->shape[1];
    size_t mark = ipvg_arena_mark(ex->arena);
    ipvg_k_array to, from;
    void *scratch;
    ipvg_status status;

    ARRAY(&to, "blur_tokens", y);
    ARRAY(&from, "blur_tokens", x);
    IPVG_TRY(ipvg_arena_alloc(ex->ctx, ex->arena, &scratch, ipvg_k_blur_scratch(frames, rows, cols, d)));
    if (ipvg_planning(ex)) goto done;
    LAUNCH("blur_tokens", ipvg_k_blur_tokens(to, from, scratch, sigma, frames, rows, cols, d, stream(ex)));
done:
    ipvg_arena_reset(ex->arena, mark);
    return status;
}

ipvg_status ipvg_cuda_nag(ipvg_exec *ex, ipvg_tensor *y, const ipvg_tensor *p, const ipvg_tensor *n, float scale,
                          float tau, float alpha)
{
    ipvg_k_array to, a, b;
    ipvg_status status;
    ARRAY(&to, "nag", y);
    ARRAY(&a, "nag", p);
    ARRAY(&b, "nag", n);
    if (ipvg_planning(ex)) goto done;
    LAUNCH("nag", ipvg_k_nag(to, a, b, scale, tau, alpha, p->shape[0], p->shape[1], stream(ex)));
done:
    return status;
}

/* ==== rows, patches ==== */

/* table and ids lie in host memory: the rows are brought together there and copied over. */
ipvg_status ipvg_cuda_gather_rows(ipvg_exec *ex, ipvg_tensor *y, const ipvg_tensor *table, const ipvg_tensor *ids)
{
    const int64_t count = ids->shape[0];
    const int32_t *id = ids->data;
    size_t mark = ipvg_arena_mark(ex->arena);
    ipvg_tensor rows;
    ipvg_k_array unused;
    ipvg_status status;

    ARRAY(&unused, "gather_rows", table);
    IPVG_TRY(ipvg_arena_tensor(ex->ctx, ex->arena, &rows, table->dtype, 2, y->shape));
    if (ipvg_planning(ex)) goto done;
    for (int64_t r = 0; r < count; r++)
        if (id[r] < 0 || id[r] >= table->shape[0]) {
            status = ipvg_fail(ex->ctx, IPVG_E_ARGUMENT, "id %d at position %lld is outside the table of %lld rows",
                               id[r], (long long)r, (long long)table->shape[0]);
            goto done;
        }
    IPVG_TRY(ipvg_cuda_rows_in(ex, &rows, table, id));
    IPVG_TRY(ipvg_cuda_cast(ex, y, &rows));
done:
    ipvg_arena_reset(ex->arena, mark);
    return status;
}

ipvg_status ipvg_cuda_patchify(ipvg_exec *ex, ipvg_tensor *tokens, const ipvg_tensor *latent)
{
    const int64_t *s = latent->shape;
    ipvg_k_array to, from;
    ipvg_status status;
    ARRAY(&to, "patchify", tokens);
    ARRAY(&from, "patchify", latent);
    if (ipvg_planning(ex)) goto done;
    LAUNCH("patchify", ipvg_k_patchify(to, from, s[0], s[1], s[2], s[3], stream(ex)));
done:
    return status;
}

ipvg_status ipvg_cuda_unpatchify(ipvg_exec *ex, ipvg_tensor *latent, const ipvg_tensor *tokens)
{
    const int64_t *s = latent->shape;
    ipvg_k_array to, from;
    ipvg_status status;
    ARRAY(&to, "unpatchify", latent);
    ARRAY(&from, "unpatchify", tokens);
    if (ipvg_planning(ex)) goto done;
    LAUNCH("unpatchify", ipvg_k_unpatchify(to, from, s[0], s[1], s[2], s[3], stream(ex)));
done:
    return status;
}

#include <stdio.h>

#include "dit_internal.h"

/* ==== weights ==== */

ipvg_status ipvg_dit_linear_take(ipvg_context *ctx, ipvg_dit_linear *linear, ipvg_weights *weights,
                                 const int64_t *shape, int ndim, const char *prefix)
{
    int64_t in = 1;
    ipvg_status status;

    IPVG_TRY(ipvg_weights_take(ctx, weights, &linear->w, shape, ndim, "%s.weight", prefix));
    IPVG_TRY(ipvg_weights_take(ctx, weights, &linear->b, shape, 1, "%s.bias", prefix));
    for (int i = 1; i < ndim; i++) in *= shape[i];
    linear->w = ipvg_tensor_of(linear->w.data, linear->w.dtype, shape[0], in);
done:
    return status;
}

static ipvg_status take_attention(ipvg_context *ctx, ipvg_dit_attention *a, ipvg_weights *weights, int64_t dim,
                                  const char *prefix, const char *which)
{
    const int64_t square[] = {dim, dim};
    ipvg_dit_linear *const linears[] = {&a->q, &a->k, &a->v, &a->o};
    char name[96];
    ipvg_status status;

    for (int i = 0; i < 4; i++) {
        snprintf(name, sizeof name, "%s.%s.%c", prefix, which, "qkvo"[i]);
        IPVG_TRY(ipvg_dit_linear_take(ctx, linears[i], weights, square, 2, name));
    }
    IPVG_TRY(ipvg_weights_take(ctx, weights, &a->norm_q, square, 1, "%s.%s.norm_q.weight", prefix, which));
    IPVG_TRY(ipvg_weights_take(ctx, weights, &a->norm_k, square, 1, "%s.%s.norm_k.weight", prefix, which));
done:
    return status;
}

ipvg_status ipvg_dit_block_take(ipvg_context *ctx, ipvg_dit_block *block, ipvg_weights *weights,
                                const ipvg_dit_config *config, const char *prefix)
{
    const int64_t dim = config->dim, six[] = {1, 6, dim}, up[] = {config->ffn_dim, dim},
                  down[] = {dim, config->ffn_dim};
    char name[64];
    ipvg_status status;

    IPVG_TRY(ipvg_weights_take(ctx, weights, &block->modulation, six, 3, "%s.modulation", prefix));
    block->modulation = ipvg_tensor_of(block->modulation.data, block->modulation.dtype, 6, dim);
    IPVG_TRY(take_attention(ctx, &block->self, weights, dim, prefix, "self_attn"));
    IPVG_TRY(take_attention(ctx, &block->cross, weights, dim, prefix, "cross_attn"));
    IPVG_TRY(ipvg_weights_take(ctx, weights, &block->norm3_w, &dim, 1, "%s.norm3.weight", prefix));
    IPVG_TRY(ipvg_weights_take(ctx, weights, &block->norm3_b, &dim, 1, "%s.norm3.bias", prefix));
    snprintf(name, sizeof name, "%s.ffn.0", prefix);
    IPVG_TRY(ipvg_dit_linear_take(ctx, &block->up, weights, up, 2, name));
    snprintf(name, sizeof name, "%s.ffn.2", prefix);
    IPVG_TRY(ipvg_dit_linear_take(ctx, &block->down, weights, down, 2, name));
done:
    return status;
}

ipvg_status ipvg_dit_linear_place(ipvg_placing *p, ipvg_dit_linear *linear, ipvg_dtype dtype)
{
    ipvg_status status;
    IPVG_TRY(ipvg_place(p, &linear->w, dtype));
    IPVG_TRY(ipvg_place(p, &linear->b, dtype == IPVG_E4M3 ? p->ex->be->activation : dtype));
done:
    return status;
}

ipvg_status ipvg_dit_block_place(ipvg_placing *p, ipvg_dit_block *b)
{
    const ipvg_dtype half = p->ex->be->activation, large = ipvg_dit_large(p->ex->be);
    ipvg_dit_attention *self = &b->self, *cross = &b->cross;
    ipvg_tensor *const w[] = {&self->q.w, &self->k.w, &self->v.w}, *const bias[] = {&self->q.b, &self->k.b, &self->v.b};
    ipvg_dit_linear *const linears[] = {&self->o,  &cross->q, &cross->o, &b->up, &b->down, /* 5 large ones */
                                        &cross->k, &cross->v};
    ipvg_tensor *const vectors[] = {&b->modulation, &self->norm_q, &self->norm_k, &cross->norm_q,
                                    &cross->norm_k, &b->norm3_w,   &b->norm3_b};
    ipvg_status status;

    IPVG_TRY(ipvg_place_joined(p, &self->qkv.w, w, 3, large));
    IPVG_TRY(ipvg_place_joined(p, &self->qkv.b, bias, 3, half));
    for (int i = 0; i < 7; i++) IPVG_TRY(ipvg_dit_linear_place(p, linears[i], i < 5 ? large : half));
    for (int i = 0; i < 7; i++) IPVG_TRY(ipvg_place(p, vectors[i], IPVG_F32));
done:
    return status;
}

/* ==== forward ==== */

ipvg_status ipvg_dit_modulation(ipvg_exec *ex, ipvg_tensor *out, const ipvg_tensor *modulation, const ipvg_tensor *e)
{
    ipvg_status status;

    IPVG_TRY(ipvg_arena_tensor(ex->ctx, ex->arena, out, IPVG_F32, 2, modulation->shape));
    IPVG_TRY(ipvg_cast(ex, out, modulation));
    if (e->shape[0] == out->shape[0]) {
        IPVG_TRY(ipvg_combine(ex, out, 2, (const ipvg_tensor *[]){out, e}, (const float[]){1.f, 1.f}));
        goto done;
    }
    for (int64_t r = 0; r < out->shape[0]; r++) {
        ipvg_tensor row = ipvg_tensor_slice(out, r, 1), add = ipvg_tensor_slice(e, 0, 1);
        IPVG_TRY(ipvg_combine(ex, &row, 2, (const ipvg_tensor *[]){&row, &add}, (const float[]){1.f, 1.f}));
    }
done:
    return status;
}

/* Row r of a modulation as a vector (D). */
static ipvg_tensor part(const ipvg_tensor *mod, int64_t r)
{
    ipvg_tensor row = ipvg_tensor_slice(mod, r, 1);
    return ipvg_tensor_of(row.data, IPVG_F32, mod->shape[1]);
}

/* h (L, D) = self_attention(n (L, D)) before its last linear. q (L, D) is scratch. */
static ipvg_status attend(ipvg_exec *ex, ipvg_tensor *h, ipvg_tensor *q, const ipvg_tensor *n, const ipvg_dit_block *b,
                          const ipvg_dit_given *given)
{
    const ipvg_dit_attention *a = &b->self;
    const ipvg_dit_config *c = given->config;
    const ipvg_tensor *rope = &given->context->rope;
    float qk_scale = 1.f / __builtin_sqrtf((float)(c->dim / c->heads));
    size_t mark = ipvg_arena_mark(ex->arena);
    ipvg_tensor qkv, columns, k, v;
    ipvg_status status;

    if (given->perturb == IPVG_DIT_IDENTITY) {
        IPVG_TRY(ipvg_dit_linear_run(ex, q, n, &a->v, IPVG_ACT_NONE));
        IPVG_TRY(ipvg_dit_copy(ex, h, q));
        goto done;
    }
    if (a->qkv.w.ndim) { /* one product, its columns in three */
        IPVG_TRY(ipvg_arena_tensor(ex->ctx, ex->arena, &qkv, h->dtype, 2, (const int64_t[]){h->shape[0], 3 * c->dim}));
        IPVG_TRY(ipvg_dit_linear_run(ex, &qkv, n, &a->qkv, IPVG_ACT_NONE));
        columns = ipvg_tensor_columns(&qkv, 0, c->dim);
        q = &columns;
        k = ipvg_tensor_columns(&qkv, c->dim, c->dim);
        v = ipvg_tensor_columns(&qkv, 2 * c->dim, c->dim);
    } else {
        IPVG_TRY(ipvg_arena_tensor(ex->ctx, ex->arena, &k, h->dtype, 2, h->shape));
        IPVG_TRY(ipvg_arena_tensor(ex->ctx, ex->arena, &v, h->dtype, 2, h->shape));
        IPVG_TRY(ipvg_dit_linear_run(ex, q, n, &a->q, IPVG_ACT_NONE));
        IPVG_TRY(ipvg_dit_linear_run(ex, &k, n, &a->k, IPVG_ACT_NONE));
        IPVG_TRY(ipvg_dit_linear_run(ex, &v, n, &a->v, IPVG_ACT_NONE));
    }
    IPVG_TRY(ipvg_rms_norm_rope(ex, q, q, &a->norm_q, rope, c->heads, c->eps));
    IPVG_TRY(ipvg_rms_norm_rope(ex, &k, &k, &a->norm_k, rope, c->heads, c->eps));
    if (given->perturb == IPVG_DIT_BLUR)
        IPVG_TRY(ipvg_blur_tokens(ex, q, q, given->context->height / 2, given->context->width / 2, given->blur));
    IPVG_TRY(ipvg_see(ex, q, "%s%d_q", b->kind, b->index));
    IPVG_TRY(ipvg_see(ex, &k, "%s%d_k", b->kind, b->index));
    IPVG_TRY(ipvg_attention(ex, h, q, &k, &v, c->heads, qk_scale, NULL, 1));
done:
    ipvg_arena_reset(ex->arena, mark);
    return status;
}

/* In what follows h and q (L, D) are scratch, and n (L, D) is what norms give and large products take: h again, unless that is
 * another dtype. */

/* x += gate * self_attention(n), n the modulated norm of x; then n = norm3(x). */
static ipvg_status self_attention(ipvg_exec *ex, ipvg_tensor *x, ipvg_tensor *n, ipvg_tensor *h, ipvg_tensor *q,
                                  const ipvg_tensor *mod, const ipvg_dit_block *b, const ipvg_dit_given *given)
{
    const ipvg_tensor shift = part(mod, 0), scale = part(mod, 1), gate = part(mod, 2);
    ipvg_status status;

    IPVG_TRY(ipvg_norm_modulate(ex, n, x, &shift, &scale, given->config->eps));
    IPVG_TRY(ipvg_see(ex, n, "%s%d_attn_in", b->kind, b->index));
    IPVG_TRY(attend(ex, h, q, n, b, given));
    IPVG_TRY(ipvg_see(ex, h, "%s%d_attn", b->kind, b->index));
    IPVG_TRY(ipvg_dit_linear_run(ex, q, h, &b->self.o, IPVG_ACT_NONE));
    IPVG_TRY(ipvg_see(ex, q, "%s%d_attn_out", b->kind, b->index));
    IPVG_TRY(ipvg_gate_residual_norm(ex, n, x, q, &gate, &b->norm3_w, &b->norm3_b, false, given->config->eps));
done:
    return status;
}

/* x += cross_attention(n), n = norm3(x): no modulation, no gate. Then n = the modulated norm of x, for the FFN. The text's
 * keys are normed and ready. */
static ipvg_status cross_attention(ipvg_exec *ex, ipvg_tensor *x, ipvg_tensor *n, ipvg_tensor *h, ipvg_tensor *q,
                                   const ipvg_tensor *mod, const ipvg_dit_block *b, const ipvg_dit_config *c,
                                   const ipvg_dit_words *words)
{
    const ipvg_tensor shift = part(mod, 3), scale = part(mod, 4);
    const ipvg_dit_attention *a = &b->cross;
    const ipvg_dit_nag *nag = words->nag;
    float qk_scale = 1.f / __builtin_sqrtf((float)(c->dim / c->heads));
    size_t mark = ipvg_arena_mark(ex->arena);
    ipvg_tensor away;
    ipvg_status status;

    IPVG_TRY(ipvg_see(ex, n, "%s%d_cross_in", b->kind, b->index));
    IPVG_TRY(ipvg_dit_linear_run(ex, q, n, &a->q, IPVG_ACT_NONE));
    IPVG_TRY(ipvg_rms_norm(ex, q, q, &a->norm_q, c->eps));
    IPVG_TRY(ipvg_attention(ex, h, q, &words->k, &words->v, c->heads, qk_scale, NULL, words->repeat));
    if (nag) {
        IPVG_TRY(ipvg_arena_tensor(ex->ctx, ex->arena, &away, x->dtype, 2, x->shape));
        IPVG_TRY(
            ipvg_attention(ex, &away, q, &words->nag_k, &words->nag_v, c->heads, qk_scale, NULL, words->nag_repeat));
        IPVG_TRY(ipvg_nag(ex, h, h, &away, nag->scale, nag->tau, nag->alpha));
    }
    IPVG_TRY(ipvg_dit_linear_run(ex, q, h, &a->o, IPVG_ACT_NONE));
    IPVG_TRY(ipvg_see(ex, q, "%s%d_cross_out", b->kind, b->index));
    IPVG_TRY(ipvg_gate_residual_norm(ex, n, x, q, NULL, &scale, &shift, true, c->eps));
done:
    ipvg_arena_reset(ex->arena, mark);
    return status;
}

/* x += gate * ffn(n), n the modulated norm of x. y (L, D) is scratch. */
static ipvg_status feed_forward(ipvg_exec *ex, ipvg_tensor *x, ipvg_tensor *n, ipvg_tensor *y, const ipvg_tensor *mod,
                                const ipvg_dit_block *b, const ipvg_dit_config *c)
{
    const ipvg_tensor gate = part(mod, 5);
    const int64_t tokens = x->shape[0], shape[] = {tokens < ex->be->ffn_rows ? tokens : ex->be->ffn_rows, c->ffn_dim};
    size_t mark = ipvg_arena_mark(ex->arena);
    ipvg_tensor inner;
    ipvg_status status;

    IPVG_TRY(ipvg_arena_tensor(ex->ctx, ex->arena, &inner, n->dtype, 2, shape));
    IPVG_TRY(ipvg_see(ex, n, "%s%d_ffn_in", b->kind, b->index));
    for (int64_t first = 0, count; first < tokens; first += count) {
        count = tokens - first < shape[0] ? tokens - first : shape[0];
        ipvg_tensor in = ipvg_tensor_slice(n, first, count), out = ipvg_tensor_slice(y, first, count);
        ipvg_tensor mid = ipvg_tensor_slice(&inner, 0, count);
        IPVG_TRY(ipvg_dit_linear_run(ex, &mid, &in, &b->up, IPVG_ACT_GELU_TANH));
        IPVG_TRY(ipvg_dit_linear_run(ex, &out, &mid, &b->down, IPVG_ACT_NONE));
    }
    IPVG_TRY(ipvg_see(ex, y, "%s%d_ffn_out", b->kind, b->index));
    IPVG_TRY(ipvg_gate_residual(ex, x, y, &gate));
done:
    ipvg_arena_reset(ex->arena, mark);
    return status;
}

ipvg_status ipvg_dit_block_forward(ipvg_exec *ex, ipvg_tensor *const *x, const ipvg_dit_block *b,
                                   const ipvg_dit_given *given, const ipvg_dit_words *words, int count)
{
    size_t mark = ipvg_arena_mark(ex->arena);
    const ipvg_dtype large = ipvg_dit_large(ex->be);
    ipvg_tensor mod, h, q, n;
    ipvg_status status;

    IPVG_TRY(ipvg_pace(ex));
    IPVG_TRY(ipvg_dit_modulation(ex, &mod, &b->modulation, &given->e0));
    IPVG_TRY(ipvg_arena_tensor(ex->ctx, ex->arena, &h, x[0]->dtype, 2, x[0]->shape));
    IPVG_TRY(ipvg_arena_tensor(ex->ctx, ex->arena, &q, x[0]->dtype, 2, x[0]->shape));
    n = h;
    if (large != h.dtype) IPVG_TRY(ipvg_arena_tensor(ex->ctx, ex->arena, &n, large, 2, x[0]->shape));
    IPVG_TRY(self_attention(ex, x[0], &n, &h, &q, &mod, b, given));
    for (int i = 1; i < count; i++) IPVG_TRY(ipvg_dit_copy(ex, x[i], x[0]));
    for (int i = 0; i < count; i++) {
        if (i) { /* n has been used up */
            IPVG_TRY(ipvg_pace(ex));
            IPVG_TRY(ipvg_layer_norm(ex, &n, x[i], &b->norm3_w, &b->norm3_b, given->config->eps));
        }
        IPVG_TRY(cross_attention(ex, x[i], &n, &h, &q, &mod, b, given->config, &words[i]));
        IPVG_TRY(feed_forward(ex, x[i], &n, &q, &mod, b, given->config));
    }
done:
    ipvg_arena_reset(ex->arena, mark);
    return status;
}

#include "ops.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>

/* ---- checks: one place, so that backends need none ---- */

static ipvg_status bad_shape(ipvg_exec *ex, const char *op, const char *what, const ipvg_tensor *t, const char *wanted)
{
    char found[96];
    return ipvg_fail(ex->ctx, IPVG_E_ARGUMENT, "%s: %s has shape %s, expected %s", op, what,
                     ipvg_shape_text(found, sizeof found, t->ndim, t->shape), wanted);
}

static bool is(const ipvg_tensor *t, int ndim, const int64_t *shape)
{
    if (t->ndim != ndim) return false;
    for (int i = 0; i < ndim; i++)
        if (shape[i] >= 0 && t->shape[i] != shape[i]) return false;
    return true;
}
#define IS(t, ...) is((t), (int)(sizeof((int64_t[]){__VA_ARGS__}) / sizeof(int64_t)), (const int64_t[]){__VA_ARGS__})

static bool same_shape(const ipvg_tensor *a, const ipvg_tensor *b) { return is(a, b->ndim, b->shape); }

static bool contiguous(const ipvg_tensor *t) { return t->ndim == 0 || t->ld == t->shape[t->ndim - 1]; }

#define NEED(cond, op, what, t, wanted) \
    if (!(cond)) return bad_shape(ex, op, what, t, wanted)
#define NEED_OP(entry, op) \
    if (!ex->be->entry)    \
    return ipvg_fail(ex->ctx, IPVG_E_UNSUPPORTED, "%s is not offered by the %s backend", op, ex->be->name)

/* ---- transformers ---- */

static ipvg_status linear(ipvg_exec *ex, ipvg_tensor *y, const ipvg_tensor *x, const ipvg_tensor *w,
                          const ipvg_tensor *b, ipvg_act act, bool exact)
{
    NEED(x->ndim == 2, "linear", "x", x, "(L, K)");
    NEED(w->ndim == 2 && w->shape[1] == x->shape[1] && contiguous(w), "linear", "w", w, "(N, K of x)");
    NEED(!b || IS(b, w->shape[0]), "linear", "b", b, "(N of w,)");
    NEED(IS(y, x->shape[0], w->shape[0]), "linear", "y", y, "(L of x, N of w)");
    NEED_OP(linear, "linear");
    return ex->be->linear(ex, y, x, w, b, act, exact);
}

ipvg_status ipvg_linear(ipvg_exec *ex, ipvg_tensor *y, const ipvg_tensor *x, const ipvg_tensor *w, const ipvg_tensor *b,
                        ipvg_act act)
{
    return linear(ex, y, x, w, b, act, false);
}

ipvg_status ipvg_linear_exact(ipvg_exec *ex, ipvg_tensor *y, const ipvg_tensor *x, const ipvg_tensor *w,
                              const ipvg_tensor *b, ipvg_act act)
{
    return linear(ex, y, x, w, b, act, true);
}

ipvg_status ipvg_attention(ipvg_exec *ex, ipvg_tensor *o, const ipvg_tensor *q, const ipvg_tensor *k,
                           const ipvg_tensor *v, int heads, float scale, const ipvg_tensor *bias, int64_t repeat)
{
    NEED(q->ndim == 2 && heads > 0 && q->shape[1] % heads == 0, "attention", "q", q, "(Lq, heads * d)");
    NEED(IS(k, -1, q->shape[1]) && k->shape[0] > 0, "attention", "k", k, "(Lk > 0, columns of q)");
    NEED(IS(v, k->shape[0], q->shape[1]), "attention", "v", v, "the shape of k");
    NEED(IS(o, q->shape[0], q->shape[1]), "attention", "o", o, "the shape of q");
    NEED(!bias || IS(bias, heads, q->shape[0] + k->shape[0] - 1), "attention", "bias", bias, "(heads, Lq + Lk - 1)");
    if (repeat < 1)
        return ipvg_fail(ex->ctx, IPVG_E_ARGUMENT, "attention: the last key counts %lld times, expected 1 or more",
                         (long long)repeat);
    NEED_OP(attention, "attention");
    return ex->be->attention(ex, o, q, k, v, heads, scale, bias, repeat);
}

ipvg_status ipvg_norm_modulate(ipvg_exec *ex, ipvg_tensor *y, const ipvg_tensor *x, const ipvg_tensor *shift,
                               const ipvg_tensor *scale, float eps)
{
    NEED(x->ndim == 2, "norm_modulate", "x", x, "(L, D)");
    NEED(IS(shift, x->shape[1]), "norm_modulate", "shift", shift, "(D of x,)");
    NEED(IS(scale, x->shape[1]), "norm_modulate", "scale", scale, "(D of x,)");
    NEED(same_shape(y, x), "norm_modulate", "y", y, "the shape of x");
    NEED_OP(norm_modulate, "norm_modulate");
    return ex->be->norm_modulate(ex, y, x, shift, scale, eps);
}

ipvg_status ipvg_layer_norm(ipvg_exec *ex, ipvg_tensor *y, const ipvg_tensor *x, const ipvg_tensor *w,
                            const ipvg_tensor *b, float eps)
{
    NEED(x->ndim == 2, "layer_norm", "x", x, "(L, D)");
    NEED(IS(w, x->shape[1]), "layer_norm", "w", w, "(D of x,)");
    NEED(IS(b, x->shape[1]), "layer_norm", "b", b, "(D of x,)");
    NEED(same_shape(y, x), "layer_norm", "y", y, "the shape of x");
    NEED_OP(layer_norm, "layer_norm");
    return ex->be->layer_norm(ex, y, x, w, b, eps);
}

ipvg_status ipvg_rms_norm(ipvg_exec *ex, ipvg_tensor *y, const ipvg_tensor *x, const ipvg_tensor *w, float eps)
{
    NEED(x->ndim == 2, "rms_norm", "x", x, "(L, D)");
    NEED(IS(w, x->shape[1]), "rms_norm", "w", w, "(D of x,)");
    NEED(same_shape(y, x), "rms_norm", "y", y, "the shape of x");
    NEED_OP(rms_norm, "rms_norm");
    return ex->be->rms_norm(ex, y, x, w, eps);
}

ipvg_status ipvg_rms_norm_rope(ipvg_exec *ex, ipvg_tensor *y, const ipvg_tensor *x, const ipvg_tensor *w,
                               const ipvg_tensor *rope, int heads, float eps)
{
    NEED(x->ndim == 2 && heads > 0 && x->shape[1] % (2 * heads) == 0, "rms_norm_rope", "x", x, "(L, heads * even d)");
    NEED(IS(w, x->shape[1]), "rms_norm_rope", "w", w, "(D of x,)");
    NEED(IS(rope, x->shape[0], x->shape[1] / heads / 2, 2), "rms_norm_rope", "rope", rope, "(L of x, d / 2, 2)");
    NEED(same_shape(y, x), "rms_norm_rope", "y", y, "the shape of x");
    NEED_OP(rms_norm_rope, "rms_norm_rope");
    return ex->be->rms_norm_rope(ex, y, x, w, rope, heads, eps);
}

ipvg_status ipvg_gate_residual(ipvg_exec *ex, ipvg_tensor *x, const ipvg_tensor *y, const ipvg_tensor *gate)
{
    NEED(x->ndim == 2, "gate_residual", "x", x, "(L, D)");
    NEED(same_shape(y, x), "gate_residual", "y", y, "the shape of x");
    NEED(!gate || IS(gate, x->shape[1]), "gate_residual", "gate", gate, "(D of x,)");
    NEED_OP(gate_residual, "gate_residual");
    return ex->be->gate_residual(ex, x, y, gate);
}

ipvg_status ipvg_gate_residual_norm(ipvg_exec *ex, ipvg_tensor *h, ipvg_tensor *x, const ipvg_tensor *y,
                                    const ipvg_tensor *gate, const ipvg_tensor *mul, const ipvg_tensor *add,
                                    bool modulate, float eps)
{
    ipvg_status status;

    if (ex->be->gate_residual_norm) {
        NEED(x->ndim == 2, "gate_residual_norm", "x", x, "(L, D)");
        NEED(same_shape(y, x), "gate_residual_norm", "y", y, "the shape of x");
        NEED(same_shape(h, x), "gate_residual_norm", "h", h, "the shape of x");
        NEED(!gate || IS(gate, x->shape[1]), "gate_residual_norm", "gate", gate, "(D of x,)");
        NEED(IS(mul, x->shape[1]), "gate_residual_norm", "mul", mul, "(D of x,)");
        NEED(IS(add, x->shape[1]), "gate_residual_norm", "add", add, "(D of x,)");
        return ex->be->gate_residual_norm(ex, h, x, y, gate, mul, add, modulate, eps);
    }
    IPVG_TRY(ipvg_gate_residual(ex, x, y, gate));
    IPVG_TRY(modulate ? ipvg_norm_modulate(ex, h, x, add, mul, eps) : ipvg_layer_norm(ex, h, x, mul, add, eps));
done:
    return status;
}

ipvg_status ipvg_gated_gelu(ipvg_exec *ex, ipvg_tensor *y, const ipvg_tensor *gate, const ipvg_tensor *up)
{
    NEED(gate->ndim == 2, "gated_gelu", "gate", gate, "(L, D)");
    NEED(same_shape(up, gate), "gated_gelu", "up", up, "the shape of gate");
    NEED(same_shape(y, gate), "gated_gelu", "y", y, "the shape of gate");
    NEED_OP(gated_gelu, "gated_gelu");
    return ex->be->gated_gelu(ex, y, gate, up);
}

ipvg_status ipvg_silu(ipvg_exec *ex, ipvg_tensor *y, const ipvg_tensor *x)
{
    NEED(same_shape(y, x) && contiguous(x) && contiguous(y), "silu", "y", y, "the shape of x, contiguous");
    NEED_OP(silu, "silu");
    return ex->be->silu(ex, y, x);
}

ipvg_status ipvg_combine(ipvg_exec *ex, ipvg_tensor *y, int n, const ipvg_tensor *const *x, const float *weight)
{
    return ipvg_sums(ex, &(ipvg_sum){y, n, x, weight}, 1);
}

ipvg_status ipvg_sums(ipvg_exec *ex, const ipvg_sum *sums, int count)
{
    if (count < 1 || count > IPVG_SUMS)
        return ipvg_fail(ex->ctx, IPVG_E_ARGUMENT, "combine: 1 to %d sums, got %d", IPVG_SUMS, count);
    for (const ipvg_sum *s = sums; s < sums + count; s++) {
        if (s->n < 1 || s->n > 16) return ipvg_fail(ex->ctx, IPVG_E_ARGUMENT, "combine: 1 to 16 terms, got %d", s->n);
        NEED(same_shape(s->y, sums->y), "combine", "a sum", s->y, "the shape of the first");
        for (int i = 0; i < s->n; i++)
            NEED(same_shape(s->x[i], s->y) && contiguous(s->x[i]), "combine", "a term", s->x[i],
                 "the shape of the result, contiguous");
    }
    NEED_OP(sums, "combine");
    return ex->be->sums(ex, sums, count);
}

/* ---- guidance ---- */

ipvg_status ipvg_multiply(ipvg_exec *ex, ipvg_tensor *y, const ipvg_tensor *x, const ipvg_tensor *f)
{
    NEED(same_shape(x, y) && contiguous(x) && contiguous(y), "multiply", "x", x, "the shape of y, contiguous");
    NEED(same_shape(f, y) && contiguous(f), "multiply", "f", f, "the shape of y, contiguous");
    NEED_OP(multiply, "multiply");
    return ex->be->multiply(ex, y, x, f);
}

ipvg_status ipvg_gram(ipvg_exec *ex, double *gram, double *sum, int n, const ipvg_tensor *const *x)
{
    if (n < 1 || n > IPVG_GRAM_MAX)
        return ipvg_fail(ex->ctx, IPVG_E_ARGUMENT, "gram: 1 to %d tensors, got %d", IPVG_GRAM_MAX, n);
    for (int i = 0; i < n; i++)
        NEED(same_shape(x[i], x[0]) && contiguous(x[i]), "gram", "a tensor", x[i],
             "the shape of the first, contiguous");
    NEED_OP(gram, "gram");
    return ex->be->gram(ex, gram, sum, n, x);
}

ipvg_status ipvg_blur_tokens(ipvg_exec *ex, ipvg_tensor *y, const ipvg_tensor *x, int64_t rows, int64_t cols,
                             float sigma)
{
    NEED(x->ndim == 2 && rows > 0 && cols > 0 && x->shape[0] % (rows * cols) == 0, "blur_tokens", "x", x,
         "(frames * rows * cols, D)");
    NEED(same_shape(y, x), "blur_tokens", "y", y, "the shape of x");
    if (!(sigma > 0)) return ipvg_fail(ex->ctx, IPVG_E_ARGUMENT, "blur_tokens: sigma must be above 0, got %g", sigma);
    NEED_OP(blur_tokens, "blur_tokens");
    return ex->be->blur_tokens(ex, y, x, rows, cols, sigma);
}

ipvg_status ipvg_nag(ipvg_exec *ex, ipvg_tensor *y, const ipvg_tensor *p, const ipvg_tensor *n, float scale, float tau,
                     float alpha)
{
    NEED(p->ndim == 2, "nag", "p", p, "(L, D)");
    NEED(same_shape(n, p), "nag", "n", n, "the shape of p");
    NEED(same_shape(y, p), "nag", "y", y, "the shape of p");
    NEED_OP(nag, "nag");
    return ex->be->nag(ex, y, p, n, scale, tau, alpha);
}

/* ---- rows, patches ---- */

ipvg_status ipvg_gather_rows(ipvg_exec *ex, ipvg_tensor *y, const ipvg_tensor *table, const ipvg_tensor *ids)
{
    NEED(table->ndim == 2, "gather_rows", "table", table, "(rows, D)");
    NEED(ids->ndim == 1 && ids->dtype == IPVG_I32, "gather_rows", "ids", ids, "(L,) int32");
    NEED(IS(y, ids->shape[0], table->shape[1]), "gather_rows", "y", y, "(L of ids, D of table)");
    NEED_OP(gather_rows, "gather_rows");
    return ex->be->gather_rows(ex, y, table, ids);
}

ipvg_status ipvg_patchify(ipvg_exec *ex, ipvg_tensor *tokens, const ipvg_tensor *latent)
{
    NEED(latent->ndim == 4 && latent->shape[2] % 2 == 0 && latent->shape[3] % 2 == 0, "patchify", "latent", latent,
         "(C, F, even h, even w)");
    NEED(IS(tokens, latent->shape[1] * (latent->shape[2] / 2) * (latent->shape[3] / 2), latent->shape[0] * 4),
         "patchify", "tokens", tokens, "(F * h/2 * w/2, 4 C)");
    NEED_OP(patchify, "patchify");
    return ex->be->patchify(ex, tokens, latent);
}

ipvg_status ipvg_unpatchify(ipvg_exec *ex, ipvg_tensor *latent, const ipvg_tensor *tokens)
{
    NEED(latent->ndim == 4 && latent->shape[2] % 2 == 0 && latent->shape[3] % 2 == 0, "unpatchify", "latent", latent,
         "(C, F, even h, even w)");
    NEED(IS(tokens, latent->shape[1] * (latent->shape[2] / 2) * (latent->shape[3] / 2), latent->shape[0] * 4),
         "unpatchify", "tokens", tokens, "(F * h/2 * w/2, 4 C)");
    NEED_OP(unpatchify, "unpatchify");
    return ex->be->unpatchify(ex, latent, tokens);
}

ipvg_status ipvg_cast(ipvg_exec *ex, ipvg_tensor *y, const ipvg_tensor *x)
{
    NEED(same_shape(y, x), "cast", "y", y, "the shape of x");
    NEED_OP(cast, "cast");
    return ex->be->cast(ex, y, x);
}

/* ---- video convolutions ---- */

ipvg_status ipvg_conv_prepare(ipvg_exec *ex, ipvg_conv *conv)
{
    const ipvg_tensor *w = &conv->w;
    NEED((w->ndim == 5 || w->ndim == 4) && contiguous(w), "conv", "w", w,
         "(Cout, Cin, kt, kh, kw) or (Cout, Cin, kh, kw)");
    NEED(IS(&conv->b, w->shape[0]), "conv", "b", &conv->b, "(Cout of w,)");
    if (conv->stride != 1 && conv->stride != 2)
        return ipvg_fail(ex->ctx, IPVG_E_ARGUMENT, "conv: stride 1 or 2, got %d", conv->stride);
    conv->kt = w->ndim == 5 ? (int)w->shape[2] : 1;
    conv->kh = (int)w->shape[w->ndim - 2];
    conv->kw = (int)w->shape[w->ndim - 1];
    conv->packed = NULL;
    NEED_OP(conv_prepare, "conv");
    return ex->be->conv_prepare(ex, conv);
}

void ipvg_conv_release(const ipvg_backend *be, ipvg_conv *conv)
{
    if (be && be->conv_release && conv->packed) be->conv_release(be, conv);
    conv->packed = NULL;
}

ipvg_status ipvg_conv_run(ipvg_exec *ex, const ipvg_conv_out *out, const ipvg_tensor *const *x, int n,
                          const ipvg_conv *c)
{
    if (n < 1 || n > c->kt) return ipvg_fail(ex->ctx, IPVG_E_ARGUMENT, "conv: 1 to %d frames, got %d", c->kt, n);
    for (int i = 0; i < n; i++) {
        NEED(IS(x[i], -1, -1, c->w.shape[1]) && contiguous(x[i]), "conv", "x", x[i], "(H, W, Cin of w)");
        NEED(same_shape(x[i], x[0]), "conv", "x", x[i], "the same in every frame");
    }
    int up = c->upsample ? 2 : 1;
    int64_t h = (up * x[0]->shape[0] + c->top + c->bottom - c->kh) / c->stride + 1;
    int64_t w = (up * x[0]->shape[1] + c->left + c->right - c->kw) / c->stride + 1;
    const ipvg_tensor *frames[] = {out->y, out->z, out->residual};
    for (int i = 0; i < 3; i++)
        NEED(!frames[i] || (IS(frames[i], h, w, c->w.shape[0]) && contiguous(frames[i])), "conv",
             "an output or the residual", frames[i], "what x, the kernel, the stride and the padding give");
    if (out->z)
        NEED(out->gamma && out->gamma->dtype == IPVG_F32 && ipvg_tensor_count(out->gamma) == c->w.shape[0], "conv",
             "gamma", out->gamma ? out->gamma : &c->b, "(Cout of w,) float32");
    return ex->be->conv(ex, out, x, n, c);
}

ipvg_status ipvg_norm_silu(ipvg_exec *ex, ipvg_tensor *y, const ipvg_tensor *x, const ipvg_tensor *gamma, bool silu)
{
    NEED(x->ndim >= 1 && gamma->dtype == IPVG_F32 && ipvg_tensor_count(gamma) == x->shape[x->ndim - 1], "norm_silu",
         "gamma", gamma, "(C of x,) float32");
    NEED(same_shape(y, x), "norm_silu", "y", y, "the shape of x");
    NEED_OP(norm_silu, "norm_silu");
    return ex->be->norm_silu(ex, y, x, gamma, silu);
}

ipvg_status ipvg_planes_new(ipvg_exec *ex, ipvg_tensor *room, int64_t h, int64_t w, int64_t c)
{
    const int64_t unit = IPVG_ALIGN / (int64_t)sizeof(float), shape[] = {2, (h * w * c + unit - 1) / unit * unit};
    ipvg_status status = IPVG_OK;
    *room = (ipvg_tensor){0};
    if (ex->be->host) return IPVG_OK;
    IPVG_TRY(ipvg_arena_tensor(ex->ctx, ex->arena, room, IPVG_F32, 2, shape));
    if (!ipvg_planning(ex)) IPVG_TRY(ex->be->planes_begin(ex));
done:
    return status;
}

/* Is a frame's place in it large enough? */
static bool holds(const ipvg_exec *ex, const ipvg_tensor *room, const ipvg_tensor *frame)
{
    return ex->be->host || (room->ndim == 2 && room->shape[1] >= ipvg_tensor_count(frame));
}

ipvg_status ipvg_planes_load(ipvg_exec *ex, ipvg_tensor *frame, const float *src, int64_t step, const ipvg_tensor *room)
{
    NEED(frame->ndim == 3 && (frame->dtype == ex->be->video || frame->dtype == IPVG_F32), "planes", "frame", frame,
         "(H, W, C)");
    NEED(holds(ex, room, frame), "planes", "room", room, "of this frame's size");
    if (!ex->be->host) return ex->be->planes_load(ex, frame, src, step, room);
    if (ipvg_planning(ex)) return IPVG_OK;
    const int64_t channels = frame->shape[2], pixels = frame->shape[0] * frame->shape[1];
    float *to = frame->data;
#pragma omp parallel for num_threads(ex->ctx->threads) schedule(static)
    for (int64_t i = 0; i < pixels; i++)
        for (int64_t c = 0; c < channels; c++) to[i * channels + c] = src[c * step + i];
    return IPVG_OK;
}

ipvg_status ipvg_planes_send(ipvg_exec *ex, int slot, const ipvg_tensor *frame, const ipvg_tensor *room)
{
    NEED(frame->ndim == 3 && frame->dtype == ex->be->video, "planes", "frame", frame, "(H, W, C)");
    NEED(holds(ex, room, frame), "planes", "room", room, "of this frame's size");
    return ex->be->host ? IPVG_OK : ex->be->planes_send(ex, slot, frame, room);
}

ipvg_status ipvg_planes_receive(ipvg_exec *ex, int slot, float *dst, int64_t step, const ipvg_tensor *frame)
{
    NEED(frame->ndim == 3 && frame->dtype == ex->be->video, "planes", "frame", frame, "(H, W, C)");
    if (!ex->be->host) return ex->be->planes_receive(ex, slot, dst, step, frame);
    if (ipvg_planning(ex)) return IPVG_OK;
    const int64_t channels = frame->shape[2], pixels = frame->shape[0] * frame->shape[1];
    const float *from = frame->data;
#pragma omp parallel for num_threads(ex->ctx->threads) schedule(static)
    for (int64_t i = 0; i < pixels; i++)
        for (int64_t c = 0; c < channels; c++) dst[c * step + i] = from[i * frame->ld + c];
    return IPVG_OK;
}

ipvg_status ipvg_bytes_send(ipvg_exec *ex, int slot, const ipvg_tensor *frame, const ipvg_tensor *room)
{
    NEED(frame->ndim == 3 && frame->dtype == ex->be->video, "bytes", "frame", frame, "(H, W, C)");
    NEED(holds(ex, room, frame), "bytes", "room", room, "of this frame's size");
    return ex->be->host ? IPVG_OK : ex->be->bytes_send(ex, slot, frame, room);
}

ipvg_status ipvg_bytes_receive(ipvg_exec *ex, int slot, uint8_t *dst, const ipvg_tensor *frame)
{
    const int64_t count = ipvg_tensor_count(frame);
    const float *from = frame->data;
    int odd = 0;
    if (ipvg_planning(ex)) return IPVG_OK;
    if (!ex->be->host) {
        ipvg_status status = ex->be->bytes_receive(ex, slot, dst, frame, &odd);
        if (status != IPVG_OK) return status;
    } else {
#pragma omp parallel for num_threads(ex->ctx->threads) schedule(static) reduction(| : odd)
        for (int64_t i = 0; i < count; i++) {
            const float x = from[i];
            const int finite = x - x == 0; /* of NaN and infinity it is NaN */
            odd |= !finite;
            dst[i] = !finite ? 0 : (uint8_t)rintf(((x < -1 ? -1 : x > 1 ? 1 : x) + 1) * 127.5f);
        }
    }
    if (odd) return ipvg_fail(ex->ctx, IPVG_E_ARGUMENT, "frames: NaN or infinity in a decoded frame");
    return IPVG_OK;
}

ipvg_status ipvg_see(ipvg_exec *ex, const ipvg_tensor *tensor, const char *fmt, ...)
{
    if (!ex->trace || ipvg_planning(ex)) return IPVG_OK;
    char name[64];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(name, sizeof name, fmt, ap);
    va_end(ap);
    return ex->trace->see(ex->trace->user, ex, name, tensor);
}

ipvg_status ipvg_pace(ipvg_exec *ex)
{
    ipvg_status status = IPVG_OK;
    if (ex->be->pace && !ipvg_planning(ex)) IPVG_TRY(ex->be->pace(ex));
    status = ipvg_check_cancel(ex->ctx);
done:
    return status;
}

void ipvg_backend_free(ipvg_backend **be)
{
    if (*be) (*be)->free(*be);
    *be = NULL;
}

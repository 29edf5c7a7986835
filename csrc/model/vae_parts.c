#include "vae_parts.h"

#include <math.h>

/* ==== memory ==== */

ipvg_status ipvg_vae_frame_new(ipvg_exec *ex, ipvg_tensor *out, int64_t h, int64_t w, int64_t c)
{
    return ipvg_arena_tensor(ex->ctx, ex->arena, out, ex->be->video, 3, (const int64_t[]){h, w, c});
}

ipvg_status ipvg_vae_frame_in(ipvg_exec *ex, ipvg_tensor *frame, const float *host)
{
    size_t mark = ipvg_arena_mark(ex->arena);
    ipvg_tensor wide;
    ipvg_status status;
    if (frame->dtype == IPVG_F32) return ex->be->copy_in(ex, frame, host);
    IPVG_TRY(ipvg_arena_tensor(ex->ctx, ex->arena, &wide, IPVG_F32, frame->ndim, frame->shape));
    IPVG_TRY(ex->be->copy_in(ex, &wide, host));
    IPVG_TRY(ipvg_cast(ex, frame, &wide));
done:
    ipvg_arena_reset(ex->arena, mark);
    return status;
}

ipvg_status ipvg_vae_receive(ipvg_exec *ex, parcel *last, parcel *came, const ipvg_tensor *frame)
{
    *came = *last;
    last->to = NULL;
    if (!came->to) return IPVG_OK;
    return came->step ? ipvg_planes_receive(ex, came->slot, came->to, came->step, frame)
                      : ipvg_bytes_receive(ex, came->slot, came->to, frame);
}

ipvg_status ipvg_vae_send(ipvg_exec *ex, parcel *last, parcel *came, const ipvg_tensor *frame, void *to, int64_t step,
                          const ipvg_tensor *room)
{
    const parcel next = {.to = to, .step = step, .slot = !last->slot};
    ipvg_status status;
    *came = (parcel){.to = NULL};
    IPVG_TRY(step ? ipvg_planes_send(ex, next.slot, frame, room) : ipvg_bytes_send(ex, next.slot, frame, room));
    if (ipvg_planning(ex)) goto done;
    if (ex->be->host) *last = next; /* it is to be received before another is written over the frame */
    IPVG_TRY(ipvg_vae_receive(ex, last, came, frame));
    if (!ex->be->host) *last = next;
done:
    return status;
}

ipvg_status ipvg_vae_gamma_new(ipvg_exec *ex, ipvg_tensor *out, const ipvg_tensor *gamma)
{
    ipvg_tensor flat = ipvg_tensor_of(gamma->data, gamma->dtype, gamma->shape[0]);
    ipvg_status status;
    IPVG_TRY(ipvg_arena_tensor(ex->ctx, ex->arena, out, IPVG_F32, 1, flat.shape));
    IPVG_TRY(ipvg_cast(ex, out, &flat));
done:
    return status;
}

ipvg_status ipvg_vae_ring_new(ipvg_exec *ex, ring *r, int64_t h, int64_t w, int64_t c)
{
    r->newest = r->count = 0;
    return ipvg_arena_tensor(ex->ctx, ex->arena, &r->slots, ex->be->video, 4, (const int64_t[]){HISTORY, h, w, c});
}

static ipvg_tensor slot(const ring *r, int i)
{
    ipvg_tensor t = ipvg_tensor_slice(&r->slots, i, 1);
    return ipvg_tensor_make(t.data, t.dtype, 3, t.shape + 1);
}

ipvg_tensor ipvg_vae_ring_push(ring *r)
{
    r->newest = (r->newest + 1) % HISTORY;
    if (r->count < HISTORY) r->count++;
    return slot(r, r->newest);
}

/* ==== convolutions ==== */

ipvg_conv ipvg_vae_conv(const pair *weights)
{
    int around = weights->w.shape[weights->w.ndim - 1] == 3;
    return (ipvg_conv){.w = weights->w,
                       .b = weights->b,
                       .stride = 1,
                       .top = around,
                       .bottom = around,
                       .left = around,
                       .right = around};
}

ipvg_status ipvg_vae_causal_new(ipvg_exec *ex, causal *c, const pair *weights, int64_t h, int64_t w)
{
    ipvg_status status;
    c->conv = ipvg_vae_conv(weights);
    IPVG_TRY(ipvg_conv_prepare(ex, &c->conv));
    IPVG_TRY(ipvg_vae_ring_new(ex, &c->in, h, w, weights->w.shape[1]));
done:
    return status;
}

ipvg_status ipvg_vae_causal_run(ipvg_exec *ex, const ipvg_conv_out *out, const causal *c)
{
    ipvg_tensor frame[HISTORY];
    const ipvg_tensor *x[HISTORY];
    int n = c->in.count < c->conv.kt ? c->in.count : c->conv.kt;
    for (int i = 0; i < n; i++) {
        frame[i] = slot(&c->in, (c->in.newest + HISTORY - (n - 1 - i)) % HISTORY);
        x[i] = &frame[i];
    }
    return ipvg_conv_run(ex, out, x, n, &c->conv);
}

ipvg_status ipvg_vae_frame_conv(ipvg_exec *ex, const ipvg_conv_out *out, const ipvg_tensor *x, const ipvg_conv *conv)
{
    return ipvg_conv_run(ex, out, &x, 1, conv);
}

ipvg_conv_out ipvg_vae_output(ipvg_tensor *y, const target *next)
{
    ipvg_conv_out o = {.y = y};
    if (next->wanted) {
        o.z = (ipvg_tensor *)&next->z;
        o.gamma = next->gamma;
        o.silu = next->silu;
    }
    return o;
}

/* ==== residual block ==== */

ipvg_status ipvg_vae_res_new(ipvg_exec *ex, res_block *r, const res_weights *weights, int64_t h, int64_t w)
{
    ipvg_status status;
    r->weights = weights;
    IPVG_TRY(ipvg_vae_gamma_new(ex, &r->norm1, &weights->norm1));
    IPVG_TRY(ipvg_vae_gamma_new(ex, &r->norm2, &weights->norm2));
    IPVG_TRY(ipvg_vae_causal_new(ex, &r->conv1, &weights->conv1, h, w));
    IPVG_TRY(ipvg_vae_causal_new(ex, &r->conv2, &weights->conv2, h, w));
    if (weights->in != weights->out) {
        r->shortcut = ipvg_vae_conv(&weights->shortcut);
        IPVG_TRY(ipvg_conv_prepare(ex, &r->shortcut));
    }
done:
    return status;
}

target ipvg_vae_res_target(res_block *r)
{
    return (target){.z = ipvg_vae_ring_push(&r->conv1.in), .gamma = &r->norm1, .silu = true, .wanted = true};
}

ipvg_status ipvg_vae_res_run(ipvg_exec *ex, ipvg_tensor *y, const ipvg_tensor *x, res_block *r, const target *next)
{
    ipvg_status status;
    target inner = {.z = ipvg_vae_ring_push(&r->conv2.in), .gamma = &r->norm2, .silu = true, .wanted = true};
    IPVG_TRY(ipvg_check_cancel(ex->ctx));
    ipvg_conv_out out = ipvg_vae_output(NULL, &inner);
    IPVG_TRY(ipvg_vae_causal_run(ex, &out, &r->conv1));
    if (r->weights->in != r->weights->out) {
        IPVG_TRY(ipvg_vae_frame_conv(ex, &(ipvg_conv_out){.y = y}, x, &r->shortcut));
        x = y;
    }
    out = ipvg_vae_output(y, next);
    out.residual = x;
    IPVG_TRY(ipvg_vae_causal_run(ex, &out, &r->conv2));
done:
    return status;
}

void ipvg_vae_res_end(const ipvg_backend *be, res_block *r)
{
    ipvg_conv_release(be, &r->conv1.conv);
    ipvg_conv_release(be, &r->conv2.conv);
    ipvg_conv_release(be, &r->shortcut);
}

/* ==== middle: block, attention within the frame, block ==== */

ipvg_status ipvg_vae_middle_new(ipvg_exec *ex, middle *m, const middle_weights *weights, int64_t h, int64_t w)
{
    ipvg_status status;
    m->weights = weights;
    IPVG_TRY(ipvg_vae_res_new(ex, &m->block[0], &weights->block[0], h, w));
    IPVG_TRY(ipvg_vae_gamma_new(ex, &m->norm, &weights->norm));
    IPVG_TRY(ipvg_vae_frame_new(ex, &m->input, h, w, weights->norm.shape[0]));
    IPVG_TRY(ipvg_vae_res_new(ex, &m->block[1], &weights->block[1], h, w));
done:
    return status;
}

/* x += proj(attention(qkv(input))), one head, every pixel to every pixel of its frame. */
static ipvg_status attend(ipvg_exec *ex, ipvg_tensor *x, const middle *m)
{
    int64_t c = m->input.shape[2], pixels = m->input.shape[0] * m->input.shape[1];
    size_t mark = ipvg_arena_mark(ex->arena);
    ipvg_tensor input = ipvg_tensor_of(m->input.data, x->dtype, pixels, c),
                rows = ipvg_tensor_of(x->data, x->dtype, pixels, c);
    ipvg_tensor qkv, o;
    ipvg_status status;
    IPVG_TRY(ipvg_arena_tensor(ex->ctx, ex->arena, &qkv, x->dtype, 2, (const int64_t[]){pixels, 3 * c}));
    IPVG_TRY(ipvg_arena_tensor(ex->ctx, ex->arena, &o, x->dtype, 2, (const int64_t[]){pixels, c}));
    IPVG_TRY(ipvg_linear_exact(ex, &qkv, &input, &m->weights->qkv.w, &m->weights->qkv.b, IPVG_ACT_NONE));
    ipvg_tensor q = ipvg_tensor_columns(&qkv, 0, c), k = ipvg_tensor_columns(&qkv, c, c),
                v = ipvg_tensor_columns(&qkv, 2 * c, c);
    IPVG_TRY(ipvg_attention(ex, &o, &q, &k, &v, 1, (float)(1.0 / sqrt((double)c)), NULL, 1));
    IPVG_TRY(ipvg_linear_exact(ex, &input, &o, &m->weights->proj.w, &m->weights->proj.b, IPVG_ACT_NONE));
    IPVG_TRY(ipvg_gate_residual(ex, &rows, &input, NULL));
done:
    ipvg_arena_reset(ex->arena, mark);
    return status;
}

ipvg_status ipvg_vae_middle_run(ipvg_exec *ex, ipvg_tensor *x, middle *m, const target *next)
{
    ipvg_status status;
    target attention = {.z = m->input, .gamma = &m->norm, .silu = false, .wanted = true};
    IPVG_TRY(ipvg_vae_res_run(ex, x, x, &m->block[0], &attention));
    IPVG_TRY(ipvg_see(ex, x, "middle.0"));
    IPVG_TRY(ipvg_check_cancel(ex->ctx));
    IPVG_TRY(attend(ex, x, m));
    IPVG_TRY(ipvg_see(ex, x, "middle.1"));
    target second = ipvg_vae_res_target(&m->block[1]);
    IPVG_TRY(ipvg_norm_silu(ex, &second.z, x, second.gamma, true));
    IPVG_TRY(ipvg_vae_res_run(ex, x, x, &m->block[1], next));
    IPVG_TRY(ipvg_see(ex, x, "middle.2"));
done:
    return status;
}

void ipvg_vae_middle_end(const ipvg_backend *be, middle *m)
{
    ipvg_vae_res_end(be, &m->block[0]);
    ipvg_vae_res_end(be, &m->block[1]);
}

/* ==== head ==== */

ipvg_status ipvg_vae_head_new(ipvg_exec *ex, head *o, const ipvg_tensor *norm, const pair *weights, int64_t h,
                              int64_t w)
{
    ipvg_status status;
    IPVG_TRY(ipvg_vae_gamma_new(ex, &o->norm, norm));
    IPVG_TRY(ipvg_vae_causal_new(ex, &o->conv, weights, h, w));
done:
    return status;
}

target ipvg_vae_head_target(head *o)
{
    return (target){.z = ipvg_vae_ring_push(&o->conv.in), .gamma = &o->norm, .silu = true, .wanted = true};
}

/* Causal video convolutions: the newest frames lie in a ring of kt slots (model/vae_parts.h), so they follow each other up to
 * a turn. Instead of moving frames, the weights are kept once for every turn, and the one that fits is taken. What cuDNN does
 * not do comes before (zeros for frames that are missing, padded channels, doubled pixels) or after (residual, norm, SiLU). */
#include <cuda_runtime_api.h>
#include <stdlib.h>
#include <string.h>

#include "dnn.h"

#define LAUNCH(op, call) IPVG_TRY(ipvg_cuda_check(ex->ctx, (call), op))

/* Weights in the arena: (turns, cout, kt, kh, kw, cin) in be->video, with both channel counts padded for tensor cores. */
typedef struct packed {
    int64_t cin, cout, turns;
    size_t turn_bytes;
    void *weights;
    ipvg_tensor bias; /* (cout, padded) */
} packed;

/* cuDNN's plans are for addresses that are multiples of this; frames of odd sizes follow each other without gaps. */
#define ALIGNED 16

static bool is_aligned(const ipvg_tensor *frame) { return ipvg_tensor_bytes(frame) % ALIGNED == 0; }

/* 16-bit: multiples of 8, which is what tensor cores take. */
static int64_t padded(int64_t channels, ipvg_dtype dtype)
{
    return dtype == IPVG_F32 ? channels : (channels + 7) / 8 * 8;
}

ipvg_status ipvg_cuda_conv_prepare(ipvg_exec *ex, ipvg_conv *conv)
{
    const ipvg_dtype dtype = ex->be->video;
    const int64_t cout = conv->w.shape[0], cin = conv->w.shape[1], plane = (int64_t)conv->kh * conv->kw;
    void *stream = ipvg_cuda_of(ex)->stream;
    packed p = {.cin = padded(cin, dtype), .cout = padded(cout, dtype), .turns = conv->kt}, *kept;
    ipvg_k_array from, bias, to = {.dtype = (ipvg_k_dtype)dtype}, padded_bias;
    ipvg_status status;

    IPVG_TRY(ipvg_cuda_array(ex, &from, "conv", &conv->w));
    IPVG_TRY(ipvg_cuda_array(ex, &bias, "conv", &conv->b));
    p.turn_bytes = (size_t)(p.cout * conv->kt * plane * p.cin) * ipvg_dtype_size(dtype);
    p.turn_bytes = (p.turn_bytes + ALIGNED - 1) / ALIGNED * ALIGNED;
    IPVG_TRY(ipvg_arena_alloc(ex->ctx, ex->arena, &p.weights, p.turn_bytes * (size_t)p.turns));
    IPVG_TRY(ipvg_arena_tensor(ex->ctx, ex->arena, &p.bias, dtype, 1, &p.cout));
    kept = malloc(sizeof *kept); /* in planning too: conv looks at it */
    if (!kept) return ipvg_fail(ex->ctx, IPVG_E_MEMORY, "conv: no memory");
    *kept = p;
    conv->packed = kept;
    if (ipvg_planning(ex)) goto done;
    for (int64_t turn = 0; turn < p.turns; turn++) {
        to.data = (char *)p.weights + (size_t)turn * p.turn_bytes;
        LAUNCH("conv weights", ipvg_k_conv_weights(to, from, cout, cin, conv->kt, plane, turn, p.cout, p.cin, stream));
    }
    IPVG_TRY(ipvg_cuda_array(ex, &padded_bias, "conv", &p.bias));
    bias.ld = 1; /* as planes of one pixel: the columns beyond cout become zero */
    LAUNCH("conv bias",
           ipvg_k_planes_to_pixels(padded_bias, bias, (ipvg_k_array){0}, (ipvg_k_array){0}, 1, cout, stream));
done:
    return status;
}

void ipvg_cuda_conv_release(const ipvg_backend *be, ipvg_conv *conv)
{
    (void)be;
    free(conv->packed);
}

/* The first of kt frames that follow each other, the n given ones being the newest, in the order of time from slot `turn` on;
 * NULL if they do not lie so. */
static const char *in_ring(const ipvg_tensor *const *x, int n, int64_t *turn)
{
    const ptrdiff_t bytes = (ptrdiff_t)ipvg_tensor_bytes(x[0]);
    const char *base = x[0]->data;
    for (int i = 1; i < n; i++)
        if ((const char *)x[i]->data < base) base = x[i]->data;
    for (int64_t first = 0; first < n; first++) { /* the slot of x[0] */
        bool fits = true;
        for (int i = 0; i < n; i++) fits = fits && (const char *)x[i]->data == base + (first + i) % n * bytes;
        if (!fits) continue;
        *turn = (n - first) % n; /* slot s holds frame (s - first) mod n */
        return base;
    }
    return NULL;
}

/* The input as cuDNN takes it: kt frames, oldest first, `cin` channels, doubled where `upsample`. */
static ipvg_status gather(ipvg_exec *ex, ipvg_tensor *out, const ipvg_tensor *const *x, int n, const ipvg_conv *conv,
                          const packed *p)
{
    const int64_t up = conv->upsample ? 2 : 1, h = x[0]->shape[0], w = x[0]->shape[1], c = x[0]->shape[2];
    void *stream = ipvg_cuda_of(ex)->stream;
    const int missing = conv->kt - n;
    ipvg_status status;

    IPVG_TRY(ipvg_arena_tensor(ex->ctx, ex->arena, out, x[0]->dtype, 4,
                               (const int64_t[]){conv->kt, up * h, up * w, p->cin}));
    if (ipvg_planning(ex)) goto done;
    if (missing || p->cin != c) {
        ipvg_tensor zeros = ipvg_tensor_slice(out, 0, p->cin != c ? conv->kt : missing);
        LAUNCH("zeros", cudaMemsetAsync(zeros.data, 0, ipvg_tensor_bytes(&zeros), stream));
    }
    for (int i = 0; i < n; i++) {
        ipvg_tensor frame = ipvg_tensor_slice(out, missing + i, 1);
        ipvg_k_array to, from;
        IPVG_TRY(ipvg_cuda_array(ex, &to, "conv", &frame));
        IPVG_TRY(ipvg_cuda_array(ex, &from, "conv", x[i]));
        if (conv->upsample)
            LAUNCH("upsample", ipvg_k_upsample(to, from, 2, 1, 1, h, w, c, stream));
        else
            LAUNCH("frames", ipvg_k_cast(to, from, h * w, c, stream));
    }
done:
    return status;
}

ipvg_status ipvg_cuda_conv(ipvg_exec *ex, const ipvg_conv_out *out, const ipvg_tensor *const *x, int n,
                           const ipvg_conv *conv)
{
    const packed *p = conv->packed;
    const ipvg_tensor *like = out->y ? out->y : out->z;
    const ipvg_dtype dtype = ex->be->video;
    /* The bias too, then, in the same pass. */
    const bool after = out->z || out->residual || p->cout != conv->w.shape[0] || !is_aligned(like);
    size_t mark = ipvg_arena_mark(ex->arena), bytes;
    ipvg_k_array y, z, v = {0}, bias = {0}, residual, gamma = {0};
    ipvg_tensor input, result;
    void *workspace = NULL;
    const char *frames = NULL;
    int64_t turn = 0;
    ipvg_status status;

    if (!like) return ipvg_fail(ex->ctx, IPVG_E_ARGUMENT, "conv: nothing to compute");
    const ipvg_tensor *all[] = {out->y, out->z, out->residual, x[0]};
    for (int i = 0; i < 4; i++)
        if (all[i] && all[i]->dtype != dtype)
            return ipvg_fail(ex->ctx, IPVG_E_TYPE, "conv: a frame is %s, expected %s", ipvg_dtype_name(all[i]->dtype),
                             ipvg_dtype_name(dtype));
    IPVG_TRY(ipvg_cuda_array(ex, &y, "conv", out->y));
    IPVG_TRY(ipvg_cuda_array(ex, &z, "conv", out->z));
    IPVG_TRY(ipvg_cuda_array(ex, &residual, "conv", out->residual));
    const int64_t up = conv->upsample ? 2 : 1, pixels = like->shape[0] * like->shape[1];
    const ipvg_dnn_conv shape = {.cin = p->cin,
                                 .cout = p->cout,
                                 .h = up * x[0]->shape[0],
                                 .w = up * x[0]->shape[1],
                                 .kt = conv->kt,
                                 .kh = conv->kh,
                                 .kw = conv->kw,
                                 .stride = conv->stride,
                                 .top = conv->top,
                                 .bottom = conv->bottom,
                                 .left = conv->left,
                                 .right = conv->right,
                                 .dtype = dtype,
                                 .bias = !after};
    /* Planning knows no addresses, and while a ring fills its frames have to be gathered: that counts. */
    if (n == conv->kt && !conv->upsample && p->cin == x[0]->shape[2] &&
        (n == 1 ? is_aligned(x[0]) : !ipvg_planning(ex)))
        frames = in_ring(x, n, &turn);
    if (!frames) {
        IPVG_TRY(gather(ex, &input, x, n, conv, p));
        frames = input.data;
    }
    if (after) IPVG_TRY(ipvg_arena_tensor(ex->ctx, ex->arena, &result, dtype, 2, (const int64_t[]){pixels, p->cout}));
    IPVG_TRY(ipvg_dnn_conv_workspace(ex, &bytes, &shape));
    if (bytes) IPVG_TRY(ipvg_arena_alloc(ex->ctx, ex->arena, &workspace, bytes));
    if (ipvg_planning(ex)) goto done;
    IPVG_TRY(ipvg_dnn_conv_run(ex, &shape, after ? result.data : out->y->data, frames,
                               (const char *)p->weights + (size_t)turn * p->turn_bytes, p->bias.data, workspace));
    if (!after) goto done;
    IPVG_TRY(ipvg_cuda_array(ex, &v, "conv", &result));
    IPVG_TRY(ipvg_cuda_array(ex, &bias, "conv", &p->bias));
    if (out->z) IPVG_TRY(ipvg_cuda_array(ex, &gamma, "conv", out->gamma));
    LAUNCH("conv_finish", ipvg_k_conv_finish(y, z, v, bias, residual, gamma, out->silu, pixels, conv->w.shape[0],
                                             ipvg_cuda_of(ex)->stream));
done:
    ipvg_arena_reset(ex->arena, mark);
    return status;
}

ipvg_status ipvg_cuda_norm_silu(ipvg_exec *ex, ipvg_tensor *y, const ipvg_tensor *x, const ipvg_tensor *gamma,
                                bool silu)
{
    ipvg_k_array to, from, g;
    const ipvg_k_array none = {0};
    ipvg_status status;
    IPVG_TRY(ipvg_cuda_array(ex, &to, "norm_silu", y));
    IPVG_TRY(ipvg_cuda_array(ex, &from, "norm_silu", x));
    IPVG_TRY(ipvg_cuda_array(ex, &g, "norm_silu", gamma));
    if (ipvg_planning(ex)) goto done;
    LAUNCH("norm_silu", ipvg_k_conv_finish(none, to, from, none, none, g, silu, ipvg_tensor_rows(x),
                                           x->shape[x->ndim - 1], ipvg_cuda_of(ex)->stream));
done:
    return status;
}

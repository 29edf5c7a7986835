/* The operations that models are made of. Each checks shapes and dtypes once, then calls the backend.
 *
 * Shapes: L rows (tokens), D columns. Activations are float32 on the CPU backend and what be->activation and be->video say
 * on a GPU; statistics and sums are float32 everywhere. Weights may be float32, bfloat16 or float16: on the CPU as the file
 * has them, widened on the way in; on a GPU as model/place.h has put them. x and y may be the same tensor where "in place"
 * is said. */
#ifndef IPVG_OPS_OPS_H
#define IPVG_OPS_OPS_H

#include "backend.h"

/* y (L, N) = act(x (L, K) w (N, K)^T + b (N) or NULL). x, y rows may be strided (ld). A bfloat16 backend rounds x and w
 * to bfloat16 and sums the products in float32. w in E4M3: x is E4M3, or is rounded to it by rows as ipvg_cast does; K and N
 * are multiples of 16; y may be E4M3, of what act gave. */
ipvg_status ipvg_linear(ipvg_exec *ex, ipvg_tensor *y, const ipvg_tensor *x, const ipvg_tensor *w, const ipvg_tensor *b,
                        ipvg_act act);
/* The same in float32 on every backend: for the timestep and the head, which the reference keeps out of bfloat16. (On a GPU
 * the tensors say it all: both give what x, w and y have as dtypes.) */
ipvg_status ipvg_linear_exact(ipvg_exec *ex, ipvg_tensor *y, const ipvg_tensor *x, const ipvg_tensor *w,
                              const ipvg_tensor *b, ipvg_act act);

/* o (Lq, H*d) = softmax(scale q k^T + bias) v, for each of H heads; q (Lq, H*d), k and v (Lk, H*d).
 * bias: NULL, or float32 (H, Lq + Lk - 1): entry [h][key - query + Lq - 1], the relative position bias of T5.
 * repeat >= 1: how many keys the last one stands for, all with its key and value. */
ipvg_status ipvg_attention(ipvg_exec *ex, ipvg_tensor *o, const ipvg_tensor *q, const ipvg_tensor *k,
                           const ipvg_tensor *v, int heads, float scale, const ipvg_tensor *bias, int64_t repeat);

/* y (L, D) = LN(x (L, D)) * (1 + scale (D)) + shift (D): layer norm without affine part, then modulation. This and the next
 * two results may be E4M3. */
ipvg_status ipvg_norm_modulate(ipvg_exec *ex, ipvg_tensor *y, const ipvg_tensor *x, const ipvg_tensor *shift,
                               const ipvg_tensor *scale, float eps);
/* y (L, D) = LN(x (L, D)) * w (D) + b (D). */
ipvg_status ipvg_layer_norm(ipvg_exec *ex, ipvg_tensor *y, const ipvg_tensor *x, const ipvg_tensor *w,
                            const ipvg_tensor *b, float eps);
/* y (L, D) = x / sqrt(mean(x^2) + eps) * w (D), over the whole row. In place allowed. */
ipvg_status ipvg_rms_norm(ipvg_exec *ex, ipvg_tensor *y, const ipvg_tensor *x, const ipvg_tensor *w, float eps);
/* The same, then rotary embedding: within each head of d = D / heads columns, complex pair j (columns 2j, 2j+1) of row
 * l turns by the angle whose (cos, sin) is rope[l][j]; rope float32 (L, d/2, 2). In place allowed. */
ipvg_status ipvg_rms_norm_rope(ipvg_exec *ex, ipvg_tensor *y, const ipvg_tensor *x, const ipvg_tensor *w,
                               const ipvg_tensor *rope, int heads, float eps);
/* x (L, D) += y (L, D) * gate (D); gate NULL: 1. */
ipvg_status ipvg_gate_residual(ipvg_exec *ex, ipvg_tensor *x, const ipvg_tensor *y, const ipvg_tensor *gate);
/* x (L, D) += y * gate, then h (L, D) = LN(x) as ipvg_norm_modulate (modulate: mul is scale, add is shift) or as
 * ipvg_layer_norm (mul is w, add is b): the same bytes as the two operations, with one reading of x less where a backend
 * has it. h may be y. */
ipvg_status ipvg_gate_residual_norm(ipvg_exec *ex, ipvg_tensor *h, ipvg_tensor *x, const ipvg_tensor *y,
                                    const ipvg_tensor *gate, const ipvg_tensor *mul, const ipvg_tensor *add,
                                    bool modulate, float eps);
/* y (L, D) = gelu_tanh(gate (L, D)) * up (L, D). y may be gate or up. */
ipvg_status ipvg_gated_gelu(ipvg_exec *ex, ipvg_tensor *y, const ipvg_tensor *gate, const ipvg_tensor *up);
/* y = x / (1 + exp(-x)), any shape. In place allowed. */
ipvg_status ipvg_silu(ipvg_exec *ex, ipvg_tensor *y, const ipvg_tensor *x);
/* y = sum_i weight[i] x[i], of one dtype, computed in float32, added from the left, 1 <= n <= 16; y may be one of x. Guidance and solvers are
 * this one operation. A weight of 0 drops its term (0 * inf must not make a NaN). */
ipvg_status ipvg_combine(ipvg_exec *ex, ipvg_tensor *y, int n, const ipvg_tensor *const *x, const float *weight);
/* 1 to IPVG_SUMS such sums of one shape, one after the other, so that a later one may read what an earlier one wrote: the same
 * bytes, on a GPU in one pass. */
#define IPVG_SUMS 4
ipvg_status ipvg_sums(ipvg_exec *ex, const ipvg_sum *sums, int count);
/* y = x * f, element by element, float32, any shape, contiguous. In place allowed. */
ipvg_status ipvg_multiply(ipvg_exec *ex, ipvg_tensor *y, const ipvg_tensor *x, const ipvg_tensor *f);
/* gram (n, n) = the inner products of x[0..n-1], sum (n) or NULL = the sum of each; on the host, added in double in one
 * order whatever the number of threads. All x float32 of one shape, contiguous; 1 <= n <= IPVG_GRAM_MAX. */
#define IPVG_GRAM_MAX 4
ipvg_status ipvg_gram(ipvg_exec *ex, double *gram, double *sum, int n, const ipvg_tensor *const *x);
/* y (F * rows * cols, D) = each frame of x blurred over its rows and columns: Gaussian of `sigma` tokens (> 0), cut after
 * ceil(6 sigma) / 2 of them, borders mirrored without repeating the edge; sigma INFINITY: the frame's mean. In place too. */
ipvg_status ipvg_blur_tokens(ipvg_exec *ex, ipvg_tensor *y, const ipvg_tensor *x, int64_t rows, int64_t cols,
                             float sigma);
/* Normalised attention guidance: g = scale p - (scale - 1) n by rows (L, D); where |g|_1 > tau |p|_1, g is shrunk to that;
 * y = alpha g + (1 - alpha) p. y may be p. */
ipvg_status ipvg_nag(ipvg_exec *ex, ipvg_tensor *y, const ipvg_tensor *p, const ipvg_tensor *n, float scale, float tau,
                     float alpha);
/* y (L, D) = table[ids (L) int32] in y's dtype; an id outside the table is IPVG_E_ARGUMENT. table and ids lie in host memory
 * on every backend: a few rows of the largest tensor of all are not worth its place on a GPU. */
ipvg_status ipvg_gather_rows(ipvg_exec *ex, ipvg_tensor *y, const ipvg_tensor *table, const ipvg_tensor *ids);
/* tokens (F*(h/2)*(w/2), C*4) from latent (C, F, h, w): token order frame, row, column; columns ordered (C, 2, 2), as the
 * weight of a (1,2,2) patch convolution flattens. */
ipvg_status ipvg_patchify(ipvg_exec *ex, ipvg_tensor *tokens, const ipvg_tensor *latent);
/* The way back after the head, whose columns are ordered (2, 2, C), channel fastest. */
ipvg_status ipvg_unpatchify(ipvg_exec *ex, ipvg_tensor *latent, const ipvg_tensor *tokens);
/* Once a block of a transformer or a frame of the VAE, instead of ipvg_check_cancel: obeys cancel(), and lets a GPU's queue
 * hold about one, so that this is soon. */
ipvg_status ipvg_pace(ipvg_exec *ex);
/* y = x with y's dtype; same shape. E4M3: each row (a weight's output channel) is divided by its greatest absolute number / 448,
 * its scale, and rounded to nearest even. */
ipvg_status ipvg_cast(ipvg_exec *ex, ipvg_tensor *y, const ipvg_tensor *x);

/* A causal convolution over video, channels last, that makes one frame from the newest frames before it. Weights as in
 * the checkpoint: (Cout, Cin, kt, kh, kw), or 4-D (Cout, Cin, kh, kw) with kt = 1; any weight dtype. */
typedef struct ipvg_conv {
    ipvg_tensor w, b;             /* b (Cout) */
    int stride;                   /* of rows and columns: 1 or 2 */
    int top, bottom, left, right; /* zeros around the frame */
    bool upsample;                /* the input frame is first doubled in rows and columns, nearest neighbour */
    int kt, kh, kw;               /* set by ipvg_conv_prepare, from w */
    void *packed;                 /* the backend's own form of w, in the arena */
} ipvg_conv;

/* What becomes of the frame v = conv + b [+ residual]. All (H', W', Cout) in be->video. */
typedef struct ipvg_conv_out {
    ipvg_tensor *y;              /* v; NULL if nobody wants it */
    ipvg_tensor *z;              /* norm_silu(v), as below; or NULL. It must not be an input or the residual */
    const ipvg_tensor *gamma;    /* of z */
    bool silu;                   /* of z */
    const ipvg_tensor *residual; /* or NULL; may be y */
} ipvg_conv_out;

/* Brings the weights into the backend's form, which lives in ex->arena until the arena is reset below it. */
ipvg_status ipvg_conv_prepare(ipvg_exec *ex, ipvg_conv *conv);
void ipvg_conv_release(const ipvg_backend *be, ipvg_conv *conv);
/* x: n frames (H, W, Cin), oldest first, 1 <= n <= kt. The kt - n frames before them count as zeros (and cost nothing). */
ipvg_status ipvg_conv_run(ipvg_exec *ex, const ipvg_conv_out *out, const ipvg_tensor *const *x, int n,
                          const ipvg_conv *conv);
/* y = x / max(|x|_2, 1e-12) * sqrt(C) * gamma (C, or (C, 1, ...)) over the last axis, then SiLU if asked. In place allowed. */
ipvg_status ipvg_norm_silu(ipvg_exec *ex, ipvg_tensor *y, const ipvg_tensor *x, const ipvg_tensor *gamma, bool silu);

/* Room in the arena for frames of h x w x c on their way in, or out, for as long as they are: two float32 ones. Empty where
 * memory is the host's. */
ipvg_status ipvg_planes_new(ipvg_exec *ex, ipvg_tensor *room, int64_t h, int64_t w, int64_t c);
/* frame (H, W, C), float32 or as the VAE keeps it, from float32 memory with channels first: src[c * step + pixel], which is
 * free at once if it is the host's; or it is the device's. */
ipvg_status ipvg_planes_load(ipvg_exec *ex, ipvg_tensor *frame, const float *src, int64_t step,
                             const ipvg_tensor *room);
/* The way back: dst[c * step + pixel], of a frame whose pixels may lie apart (`ld`: its first channels). What is sent goes while
 * the GPU computes on (the frame may be written again at once), and lies in one of two slots until it is received, unless it is
 * sent over. Where memory is the host's, nothing happens before `receive`, and it reads the frame. */
ipvg_status ipvg_planes_send(ipvg_exec *ex, int slot, const ipvg_tensor *frame, const ipvg_tensor *room);
ipvg_status ipvg_planes_receive(ipvg_exec *ex, int slot, float *dst, int64_t step, const ipvg_tensor *frame);
/* The same as bytes, channels last as they are: dst[i] = rint((min(max(x, -1), 1) + 1) * 127.5), in float32, ties to even.
 * IPVG_E_ARGUMENT, by receive: one is not finite. */
ipvg_status ipvg_bytes_send(ipvg_exec *ex, int slot, const ipvg_tensor *frame, const ipvg_tensor *room);
ipvg_status ipvg_bytes_receive(ipvg_exec *ex, int slot, uint8_t *dst, const ipvg_tensor *frame);

#endif

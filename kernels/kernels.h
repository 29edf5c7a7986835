/* Launchers of our own CUDA kernels, in plain C: who calls them needs no CUDA headers. Only csrc/ops/cuda/ does.
 *
 *     ipvg_k_array x = {ptr, IPVG_K_BF16, 1536}, y = ..., scale = {mod, IPVG_K_F32, 0}, shift = ...;
 *     int error = ipvg_k_layer_norm(y, NULL, x, scale, shift, 1.f, 1e-6f, rows, 1536, stream);
 *
 * All pointers are device memory. Every launcher queues its kernels on `stream` (a cudaStream_t) and returns a
 * cudaError_t: 0, what the launch said, or cudaErrorInvalidValue (1) for arguments that it does not take; it never waits
 * and never allocates. Nothing to do (rows or count 0) is success. No kernel adds floats atomically: same input, same
 * bytes, on any GPU of one architecture.
 *
 * Numbers are read as their dtype says, computed in float32 (sums that the CPU takes in double: in double) and rounded
 * once, to nearest even, when they are written. Any size, alignment and `ld` works; 16-byte aligned rows whose width is a
 * multiple of 8 take the fast way. "In place" means the same pointer, dtype and ld. */
#ifndef IPVG_KERNELS_H
#define IPVG_KERNELS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* The first three are ipvg_dtype's. E4M3 (8-bit float, finite up to 448) is written only where a launcher says so. */
typedef enum ipvg_k_dtype { IPVG_K_F32, IPVG_K_BF16, IPVG_K_F16, IPVG_K_E4M3 } ipvg_k_dtype;

/* A matrix whose row r begins at element r * ld; a vector or a flat array has no use for ld. {0}: none. */
typedef struct ipvg_k_array {
    void *data;
    ipvg_k_dtype dtype;
    int64_t ld;
} ipvg_k_array;

typedef enum ipvg_k_act { IPVG_K_ACT_NONE, IPVG_K_ACT_GELU_TANH, IPVG_K_ACT_SILU } ipvg_k_act; /* = ipvg_act */

/* ==== norms over whole rows: norm.cu ==== */

/* y (rows, d) = LN(x (rows, d)) * (plus + mul (d)) + add (d). norm_modulate: mul scale, add shift, plus 1; an affine layer
 * norm: plus 0. y of dtype E4M3 is quantised: its numbers times y_scale[row] are y; otherwise y_scale is NULL.
 * In place allowed. */
int ipvg_k_layer_norm(ipvg_k_array y, float *y_scale, ipvg_k_array x, ipvg_k_array mul, ipvg_k_array add, float plus,
                      float eps, int64_t rows, int64_t d, void *stream);
/* x (rows, d) += u (rows, d) * gate (d) or none, then y = LN(x) * (plus + mul) + add of the x that was written: the same
 * bytes as ipvg_k_gate_residual, then ipvg_k_layer_norm (if both go the fast way), with one reading of x less. */
int ipvg_k_gate_residual_norm(ipvg_k_array y, float *y_scale, ipvg_k_array x, ipvg_k_array u, ipvg_k_array gate,
                              ipvg_k_array mul, ipvg_k_array add, float plus, float eps, int64_t rows, int64_t d,
                              void *stream);
/* y = x / sqrt(mean(x^2) + eps) * w (d). In place allowed. */
int ipvg_k_rms_norm(ipvg_k_array y, ipvg_k_array x, ipvg_k_array w, float eps, int64_t rows, int64_t d, void *stream);
/* The same, then complex pair j of each head (columns 2j, 2j + 1 of d / heads) of row r turns by the angle whose (cos, sin)
 * is rope[r][j]; rope float32 (rows, d / heads / 2, 2). In place allowed. */
int ipvg_k_rms_norm_rope(ipvg_k_array y, ipvg_k_array x, ipvg_k_array w, const float *rope, int heads, float eps,
                         int64_t rows, int64_t d, void *stream);
/* y (rows, d) E4M3 and y_scale (rows): y * y_scale = x, y_scale = max |x| / 448 of the row; 1 for a row of zeros, or of
 * numbers below 1e-34, which become zeros. NaN stays NaN, alone; a row with an infinity becomes NaN, since its scale is
 * infinite. */
int ipvg_k_quantise_rows(ipvg_k_array y, float *y_scale, ipvg_k_array x, int64_t rows, int64_t d, void *stream);
/* g = scale p - (scale - 1) n by rows; where |g|_1 > tau |p|_1, g is shrunk to that; y = alpha g + (1 - alpha) p.
 * y may be p. */
int ipvg_k_nag(ipvg_k_array y, ipvg_k_array p, ipvg_k_array n, float scale, float tau, float alpha, int64_t rows,
               int64_t d, void *stream);

/* ==== softmax of an attention that keeps its scores: softmax.cu ==== */

/* p (heads, lq, lk) = softmax over keys of scale * s (heads, lq, lk) + bias; rows of s and p are ld apart, heads lq * ld.
 * bias: none, or float32 (heads, lq + lk - 1) with rows bias.ld apart: entry [h][key - query + lq - 1] (T5). A part of the
 * queries: `first` is the number of its first query, of `all` in total; then s and p hold lq rows a head and bias is
 * (heads, all + lk - 1). repeat >= 1: how many keys the last one stands for; p is the weight of them all. In place
 * allowed. */
int ipvg_k_softmax(ipvg_k_array p, ipvg_k_array s, ipvg_k_array bias, float scale, int heads, int64_t lq, int64_t lk,
                   int64_t first, int64_t all, int64_t repeat, void *stream);

/* ==== attention that keeps none: attention.cu ==== */

/* o (lq, heads d) = softmax over keys of (scale q k^T + bias) v for each head: q (lq, heads d), k and v (lk, heads d), all
 * bfloat16 with rows 16-byte aligned, d 64 or 128, scale > 0; bias: none, or with d 64 as above. The last key counts `repeat` times.
 * Other arguments are cudaErrorInvalidValue, before anything is queued. Scores are float32, their exponentials bfloat16. */
int ipvg_k_attention(ipvg_k_array o, ipvg_k_array q, ipvg_k_array k, ipvg_k_array v, ipvg_k_array bias, float scale,
                     int heads, int64_t d, int64_t lq, int64_t lk, int64_t repeat, void *stream);

/* ==== element by element: element.cu ==== */

/* x (rows, d) += y (rows, d) * gate (d); gate none: 1. */
int ipvg_k_gate_residual(ipvg_k_array x, ipvg_k_array y, ipvg_k_array gate, int64_t rows, int64_t d, void *stream);
/* y (rows, d) = gelu_tanh(gate) * up. y may be gate or up. */
int ipvg_k_gated_gelu(ipvg_k_array y, ipvg_k_array gate, ipvg_k_array up, int64_t rows, int64_t d, void *stream);
/* y (rows, d) = act(x + bias (d) or none): bias, GELU and SiLU that no GEMM took along. In place allowed. */
int ipvg_k_bias_act(ipvg_k_array y, ipvg_k_array x, ipvg_k_array bias, ipvg_k_act act, int64_t rows, int64_t d,
                    void *stream);
/* y (rows, d) = x in y's dtype. */
int ipvg_k_cast(ipvg_k_array y, ipvg_k_array x, int64_t rows, int64_t d, void *stream);
/* y (count) = sum_i weight[i] x[i] (count), 1 <= n <= 16, products rounded before they are added from the left: the bits of
 * the CPU. A weight of 0 drops its term. y may be one of x. x and weight are host arrays, read before the return. */
int ipvg_k_combine(ipvg_k_array y, int n, const ipvg_k_array *x, const float *weight, int64_t count, void *stream);
/* 1 to 4 of them one after the other, in one pass: a later one may read what an earlier one writes. */
typedef struct ipvg_k_sum {
    ipvg_k_array y;
    int n;
    const ipvg_k_array *x;
    const float *weight;
} ipvg_k_sum;
int ipvg_k_sums(const ipvg_k_sum *sums, int n, int64_t count, void *stream);
/* y (count) = x * f. In place allowed. */
int ipvg_k_multiply(ipvg_k_array y, ipvg_k_array x, ipvg_k_array f, int64_t count, void *stream);

/* ==== sums and blurs: guidance.cu ==== */

/* result (20 doubles): [4 a + b] the inner product of x[a] and x[b] for a <= b < n, [16 + a] the sum of x[a]; the others 0.
 * 1 <= n <= 4. In double, in an order that depends on `count` alone. x is a host array. */
#define IPVG_K_GRAM_RESULT 20
size_t ipvg_k_gram_scratch(int64_t count); /* bytes */
int ipvg_k_gram(double *result, void *scratch, int n, const ipvg_k_array *x, int64_t count, void *stream);
/* y (frames * rows * cols, d) = each frame of x blurred over its rows and columns: ipvg_blur_tokens. In place allowed. */
size_t ipvg_k_blur_scratch(int64_t frames, int64_t rows, int64_t cols, int64_t d); /* bytes */
int ipvg_k_blur_tokens(ipvg_k_array y, ipvg_k_array x, void *scratch, float sigma, int64_t frames, int64_t rows,
                       int64_t cols, int64_t d, void *stream);

/* ==== moving numbers: layout.cu ==== */

/* y (count, d) = table (table_rows, d)[ids (count)]. A row whose id is outside the table becomes NaN; bad, if not NULL,
 * becomes the first such place, or -1. */
int ipvg_k_gather_rows(ipvg_k_array y, int32_t *bad, ipvg_k_array table, const int32_t *ids, int64_t table_rows,
                       int64_t count, int64_t d, void *stream);
/* tokens (frames * h/2 * w/2, channels * 4), columns (channel, row, column) from latent (channels, frames, h, w). */
int ipvg_k_patchify(ipvg_k_array tokens, ipvg_k_array latent, int64_t channels, int64_t frames, int64_t h, int64_t w,
                    void *stream);
/* latent from tokens whose columns are (row, column, channel). */
int ipvg_k_unpatchify(ipvg_k_array latent, ipvg_k_array tokens, int64_t channels, int64_t frames, int64_t h, int64_t w,
                      void *stream);
/* out (count): elements first, first + 1, ... of a stream of standard normals; the bits of ipvg_normals. */
int ipvg_k_normals(float *out, uint64_t seed, uint32_t stream_number, uint64_t first, int64_t count, void *stream);

/* ==== video, channels last: video.cu. A pixel's channels are a row, so `ld` is the channels with padding ==== */

/* What follows a convolution, for pixels of `c` channels: v = x + bias (c) + residual; y = v; z = v / max(|v|_2, 1e-12) *
 * sqrt(c) * gamma (c), then SiLU if asked. bias, residual, y, z: any may be none; y may be x or the residual, z may be x.
 * The frames of a channels-last video follow each other, so several frames are one call, and z may point at frames 2.. of
 * the (2 + T)-frame input of the next convolution. Columns c .. ld of z and y are left alone. */
int ipvg_k_conv_finish(ipvg_k_array y, ipvg_k_array z, ipvg_k_array x, ipvg_k_array bias, ipvg_k_array residual,
                       ipvg_k_array gamma, bool silu, int64_t pixels, int64_t c, void *stream);
/* y (pixels, c .. y.ld zero) = x / div (c) + add (c): x is c planes of `pixels` numbers, x.ld apart. div, add: or none. */
int ipvg_k_planes_to_pixels(ipvg_k_array y, ipvg_k_array x, ipvg_k_array div, ipvg_k_array add, int64_t pixels,
                            int64_t c, void *stream);
/* y, c planes that are y.ld apart, = (x (pixels, c) - sub (c)) * mul (c). sub, mul: or none. */
int ipvg_k_pixels_to_planes(ipvg_k_array y, ipvg_k_array x, ipvg_k_array sub, ipvg_k_array mul, int64_t pixels,
                            int64_t c, void *stream);
/* y (count) = rint((min(max(x, -1), 1) + 1) * 127.5), ties to even; *odd, which is 0 before, = 1 if one is not finite. */
int ipvg_k_to_bytes(uint8_t *y, int32_t *odd, ipvg_k_array x, int64_t count, void *stream);
/* y (frames * time, space h, space w, c) from x (frames, h, w, time c): each pixel becomes space x space (nearest
 * neighbour); channels i c .. (i + 1) c of frame f become frame f * time + i (upsample3d). space, time: 1 or 2. */
int ipvg_k_upsample(ipvg_k_array y, ipvg_k_array x, int space, int time, int64_t frames, int64_t h, int64_t w,
                    int64_t c, void *stream);
/* y (frames, top + h + bottom, left + w + right, c) = x (frames, h, w, c) with zeros around. */
int ipvg_k_pad(ipvg_k_array y, ipvg_k_array x, int top, int bottom, int left, int right, int64_t frames, int64_t h,
               int64_t w, int64_t c, void *stream);
/* y (cout_padded, kt, plane, cin_padded) = the weights x (cout, cin, kt, plane) of a convolution, plane = kh * kw; zeros in
 * the padding. y's frame t is x's (t + rotate) % kt: for an input whose frames lie in a ring. */
int ipvg_k_conv_weights(ipvg_k_array y, ipvg_k_array x, int64_t cout, int64_t cin, int64_t kt, int64_t plane,
                        int64_t rotate, int64_t cout_padded, int64_t cin_padded, void *stream);

#ifdef __cplusplus
}
#endif

#endif

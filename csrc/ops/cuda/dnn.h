/* Attention and convolution on the GPU, by cuDNN. A shape has a plan, which is built once; planning asks for its workspace,
 * so plans exist before the first step. */
#ifndef IPVG_OPS_CUDA_DNN_H
#define IPVG_OPS_CUDA_DNN_H

#include "cuda.h"

/* o (lq, heads d) = softmax(scale q k^T) v for each head: fused, 16-bit. This and the next are keys, as ipvg_gemm. */
typedef struct ipvg_sdpa {
    int64_t batch; /* that many of all, one after the other */
    int64_t heads, lq, lk, d;
    int64_t ldq, ldk, ldv, ldo; /* elements from token to token */
    int64_t dtype;              /* ipvg_dtype: bfloat16 or float16 */
} ipvg_sdpa;

/* y (oh, ow, cout) = w * x + bias; x (kt, h, w, cin), w (cout, kt, kh, kw, cin), channels last. */
typedef struct ipvg_dnn_conv {
    int64_t cin, cout, h, w;
    int64_t kt, kh, kw, stride;
    int64_t top, bottom, left, right; /* zeros around the frame */
    int64_t dtype;                    /* ipvg_dtype of all; sums are float32. IPVG_F32: no TF32 */
    int64_t bias;
} ipvg_dnn_conv;

ipvg_status ipvg_dnn_new(ipvg_context *ctx, ipvg_dnn **out, ipvg_cuda *cuda);
void ipvg_dnn_free(ipvg_dnn **dnn);

/* *bytes = workspace that a run wants; IPVG_E_UNSUPPORTED if no plan can be built. */
ipvg_status ipvg_dnn_sdpa_workspace(ipvg_exec *ex, size_t *bytes, const ipvg_sdpa *s);
ipvg_status ipvg_dnn_sdpa(ipvg_exec *ex, const ipvg_sdpa *s, float scale, void *o, const void *q, const void *k,
                          const void *v, void *workspace);
ipvg_status ipvg_dnn_conv_workspace(ipvg_exec *ex, size_t *bytes, const ipvg_dnn_conv *c);
ipvg_status ipvg_dnn_conv_run(ipvg_exec *ex, const ipvg_dnn_conv *c, void *y, const void *x, const void *w,
                              const void *bias, void *workspace);

#endif

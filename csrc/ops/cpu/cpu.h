/* Inside the CPU backend: what its files share. */
#ifndef IPVG_OPS_CPU_CPU_H
#define IPVG_OPS_CPU_CPU_H

#include "../ops.h"
#include "loops.h"
#include "matmul16.h"

/* The backend's state. */
typedef struct ipvg_cpu {
    const ipvg_loops *loops; /* for this machine */
    ipvg_matmul16 *matmul16; /* NULL: a bfloat16 backend rounds and multiplies in float32 */
} ipvg_cpu;

static inline const ipvg_loops *ipvg_cpu_loops(const ipvg_exec *ex) { return ((const ipvg_cpu *)ex->be->state)->loops; }

/* IPVG_E_TYPE unless t is float32. */
ipvg_status ipvg_cpu_need_f32(ipvg_exec *ex, const char *op, const char *what, const ipvg_tensor *t);
/* The numbers of a contiguous float tensor of any dtype: its own memory, or widened into the arena. Before the planning
 * test of an operation: it takes scratch, and in planning leaves data that must not be read. */
ipvg_status ipvg_cpu_floats(ipvg_exec *ex, const float **out, const ipvg_tensor *t);

/* gemm.c */
ipvg_status ipvg_cpu_linear(ipvg_exec *ex, ipvg_tensor *y, const ipvg_tensor *x, const ipvg_tensor *w,
                            const ipvg_tensor *b, ipvg_act act, bool exact);
/* attention.c */
ipvg_status ipvg_cpu_attention(ipvg_exec *ex, ipvg_tensor *o, const ipvg_tensor *q, const ipvg_tensor *k,
                               const ipvg_tensor *v, int heads, float scale, const ipvg_tensor *bias, int64_t repeat);
/* rows.c */
ipvg_status ipvg_cpu_norm_modulate(ipvg_exec *ex, ipvg_tensor *y, const ipvg_tensor *x, const ipvg_tensor *shift,
                                   const ipvg_tensor *scale, float eps);
ipvg_status ipvg_cpu_layer_norm(ipvg_exec *ex, ipvg_tensor *y, const ipvg_tensor *x, const ipvg_tensor *w,
                                const ipvg_tensor *b, float eps);
ipvg_status ipvg_cpu_rms_norm(ipvg_exec *ex, ipvg_tensor *y, const ipvg_tensor *x, const ipvg_tensor *w, float eps);
ipvg_status ipvg_cpu_rms_norm_rope(ipvg_exec *ex, ipvg_tensor *y, const ipvg_tensor *x, const ipvg_tensor *w,
                                   const ipvg_tensor *rope, int heads, float eps);
ipvg_status ipvg_cpu_gate_residual(ipvg_exec *ex, ipvg_tensor *x, const ipvg_tensor *y, const ipvg_tensor *gate);
ipvg_status ipvg_cpu_gated_gelu(ipvg_exec *ex, ipvg_tensor *y, const ipvg_tensor *gate, const ipvg_tensor *up);
ipvg_status ipvg_cpu_silu(ipvg_exec *ex, ipvg_tensor *y, const ipvg_tensor *x);
ipvg_status ipvg_cpu_sums(ipvg_exec *ex, const ipvg_sum *sums, int count);
/* guidance.c */
ipvg_status ipvg_cpu_multiply(ipvg_exec *ex, ipvg_tensor *y, const ipvg_tensor *x, const ipvg_tensor *f);
ipvg_status ipvg_cpu_gram(ipvg_exec *ex, double *gram, double *sum, int n, const ipvg_tensor *const *x);
ipvg_status ipvg_cpu_blur_tokens(ipvg_exec *ex, ipvg_tensor *y, const ipvg_tensor *x, int64_t rows, int64_t cols,
                                 float sigma);
ipvg_status ipvg_cpu_nag(ipvg_exec *ex, ipvg_tensor *y, const ipvg_tensor *p, const ipvg_tensor *n, float scale,
                         float tau, float alpha);
/* layout.c */
ipvg_status ipvg_cpu_gather_rows(ipvg_exec *ex, ipvg_tensor *y, const ipvg_tensor *table, const ipvg_tensor *ids);
ipvg_status ipvg_cpu_patchify(ipvg_exec *ex, ipvg_tensor *tokens, const ipvg_tensor *latent);
ipvg_status ipvg_cpu_unpatchify(ipvg_exec *ex, ipvg_tensor *latent, const ipvg_tensor *tokens);
ipvg_status ipvg_cpu_cast(ipvg_exec *ex, ipvg_tensor *y, const ipvg_tensor *x);
/* conv.c */
ipvg_status ipvg_cpu_conv_prepare(ipvg_exec *ex, ipvg_conv *conv);
void ipvg_cpu_conv_release(const ipvg_backend *be, ipvg_conv *conv);
ipvg_status ipvg_cpu_conv(ipvg_exec *ex, const ipvg_conv_out *out, const ipvg_tensor *const *x, int n,
                          const ipvg_conv *conv);
ipvg_status ipvg_cpu_norm_silu(ipvg_exec *ex, ipvg_tensor *y, const ipvg_tensor *x, const ipvg_tensor *gamma,
                               bool silu);

#endif

/* Inside the CUDA backend: what its files share. Only blas.c and dnn*.c know NVIDIA's libraries, and only through blas.h and
 * dnn.h do the others reach them: so a machine without a GPU can put plain loops in their place (tests/cuda). */
#ifndef IPVG_OPS_CUDA_CUDA_H
#define IPVG_OPS_CUDA_CUDA_H

#include "../../../kernels/kernels.h"
#include "../ops.h"

typedef struct ipvg_blas ipvg_blas;
typedef struct ipvg_dnn ipvg_dnn;

/* What a process holds of a GPU before it allocates anything: CUDA's context and the libraries' kernels. */
#define IPVG_CUDA_CONTEXT ((size_t)768 << 20)
#ifndef IPVG_CUDA_LANES
#define IPVG_CUDA_LANES 14 /* threads that copy, at most */
#endif
#define IPVG_CUDA_SMALL 32              /* copies of biases and the like that may be under way */
#define IPVG_CUDA_PLANES 4              /* frames on their way: two that go out, then two that come in */
#define IPVG_CUDA_WORKSPACE (32u << 20) /* bytes that cuBLASLt may use; one per stream, so per backend */

/* The backend's state. One per device object: its own stream, libraries' handles and workspace, so that two threads with
 * a device object each do not meet. */
typedef struct ipvg_cuda {
    int device;       /* CUDA's number */
    void *stream;     /* cudaStream_t */
    void *mark;       /* cudaEvent_t: what another stream waits for */
    ipvg_meter meter; /* of the memory taken through this object */
    bool metered;     /* false: it is such another queue, without memory, workspace and libraries of its own */
    void *workspace;  /* IPVG_CUDA_WORKSPACE bytes */
    ipvg_blas *blas;
    ipvg_dnn *dnn;
    void *block[2]; /* cudaEvent_t: the starts of the last two blocks, see pace in backend.c */
    int64_t blocks;
    bool keeping; /* the stream takes a graph down: see graph.c */
    struct {
        void *data; /* pinned host memory: two pieces for each lane, then the small ones */
        void *done[2 * IPVG_CUDA_LANES + IPVG_CUDA_SMALL]; /* cudaEvent_t: a piece's last copy is */
        void *stream[IPVG_CUDA_LANES];                     /* cudaStream_t: of a lane's copies and casts */
        bool second[IPVG_CUDA_LANES];                      /* which of a lane's two is next */
        int lanes, turn, small; /* turn, small: which of all and of the small ones, where there is one thread */
    } ring;                     /* of copies, see copy.c */
    void *copies;               /* cudaStream_t: frames cross the bus there, beside the work, see planes.c */
    struct {
        void *data, *done; /* pinned host memory; cudaEvent_t: the frame is there */
        void *sorted;      /* cudaEvent_t: the GPU has made it, or has taken it over */
        size_t bytes;
    } planes[IPVG_CUDA_PLANES];
    int load; /* which of those that come in is next */
} ipvg_cuda;

static inline ipvg_cuda *ipvg_cuda_of(const ipvg_exec *ex) { return ex->be->state; }

/* The status of a CUDA runtime call or a kernel launcher; fails with `what` and CUDA's words. */
ipvg_status ipvg_cuda_check(ipvg_context *ctx, int error, const char *what);

/* memory.c, copy.c, planes.c */
ipvg_memory ipvg_cuda_memory(ipvg_cuda *cuda);
ipvg_status ipvg_cuda_copy_in(ipvg_exec *ex, ipvg_tensor *dst, const void *host_src);
ipvg_status ipvg_cuda_upload(ipvg_exec *ex, const ipvg_upload *uploads, int n);
ipvg_status ipvg_cuda_copy_out(ipvg_exec *ex, void *host_dst, const ipvg_tensor *src);
/* The rows of a table on the host that have these numbers, in this order. */
ipvg_status ipvg_cuda_rows_in(ipvg_exec *ex, ipvg_tensor *dst, const ipvg_tensor *table, const int32_t *rows);
void ipvg_cuda_ring_free(ipvg_cuda *cuda);
ipvg_status ipvg_cuda_planes_begin(ipvg_exec *ex);
ipvg_status ipvg_cuda_planes_load(ipvg_exec *ex, ipvg_tensor *frame, const float *src, int64_t step,
                                  const ipvg_tensor *room);
ipvg_status ipvg_cuda_planes_send(ipvg_exec *ex, int slot, const ipvg_tensor *frame, const ipvg_tensor *room);
ipvg_status ipvg_cuda_planes_receive(ipvg_exec *ex, int slot, float *dst, int64_t step, const ipvg_tensor *frame);
ipvg_status ipvg_cuda_bytes_send(ipvg_exec *ex, int slot, const ipvg_tensor *frame, const ipvg_tensor *room);
ipvg_status ipvg_cuda_bytes_receive(ipvg_exec *ex, int slot, uint8_t *dst, const ipvg_tensor *frame, int *odd);
void ipvg_cuda_planes_free(ipvg_cuda *cuda);

/* share.c */
bool ipvg_cuda_is_device(const void *p);
ipvg_status ipvg_cuda_follow(ipvg_exec *ex, void *stream);
ipvg_status ipvg_cuda_settle(ipvg_exec *ex);

/* graph.c */
ipvg_status ipvg_cuda_keep(ipvg_exec *ex);
void *ipvg_cuda_kept(ipvg_exec *ex);
ipvg_status ipvg_cuda_play(ipvg_exec *ex, void *kept);
void ipvg_cuda_drop(const ipvg_backend *be, void *kept);

/* A tensor as the kernels take it; t NULL: none. IPVG_E_TYPE unless it is float32, bfloat16 or float16. */
ipvg_status ipvg_cuda_array(ipvg_exec *ex, ipvg_k_array *out, const char *op, const ipvg_tensor *t);
/* The same of a result that may be E4M3 too: its scales are t->scale. */
ipvg_status ipvg_cuda_result(ipvg_exec *ex, ipvg_k_array *out, const char *op, const ipvg_tensor *t);

/* linear.c, attention.c, conv.c, rows.c: the table's entries, see ../ops.h */
ipvg_status ipvg_cuda_linear(ipvg_exec *ex, ipvg_tensor *y, const ipvg_tensor *x, const ipvg_tensor *w,
                             const ipvg_tensor *b, ipvg_act act, bool exact);
ipvg_status ipvg_cuda_attention(ipvg_exec *ex, ipvg_tensor *o, const ipvg_tensor *q, const ipvg_tensor *k,
                                const ipvg_tensor *v, int heads, float scale, const ipvg_tensor *bias, int64_t repeat);
ipvg_status ipvg_cuda_norm_modulate(ipvg_exec *ex, ipvg_tensor *y, const ipvg_tensor *x, const ipvg_tensor *shift,
                                    const ipvg_tensor *scale, float eps);
ipvg_status ipvg_cuda_layer_norm(ipvg_exec *ex, ipvg_tensor *y, const ipvg_tensor *x, const ipvg_tensor *w,
                                 const ipvg_tensor *b, float eps);
ipvg_status ipvg_cuda_rms_norm(ipvg_exec *ex, ipvg_tensor *y, const ipvg_tensor *x, const ipvg_tensor *w, float eps);
ipvg_status ipvg_cuda_rms_norm_rope(ipvg_exec *ex, ipvg_tensor *y, const ipvg_tensor *x, const ipvg_tensor *w,
                                    const ipvg_tensor *rope, int heads, float eps);
ipvg_status ipvg_cuda_gate_residual(ipvg_exec *ex, ipvg_tensor *x, const ipvg_tensor *y, const ipvg_tensor *gate);
ipvg_status ipvg_cuda_gate_residual_norm(ipvg_exec *ex, ipvg_tensor *h, ipvg_tensor *x, const ipvg_tensor *y,
                                         const ipvg_tensor *gate, const ipvg_tensor *mul, const ipvg_tensor *add,
                                         bool modulate, float eps);
ipvg_status ipvg_cuda_gated_gelu(ipvg_exec *ex, ipvg_tensor *y, const ipvg_tensor *gate, const ipvg_tensor *up);
ipvg_status ipvg_cuda_silu(ipvg_exec *ex, ipvg_tensor *y, const ipvg_tensor *x);
ipvg_status ipvg_cuda_sums(ipvg_exec *ex, const ipvg_sum *sums, int count);
ipvg_status ipvg_cuda_multiply(ipvg_exec *ex, ipvg_tensor *y, const ipvg_tensor *x, const ipvg_tensor *f);
ipvg_status ipvg_cuda_gram(ipvg_exec *ex, double *gram, double *sum, int n, const ipvg_tensor *const *x);
ipvg_status ipvg_cuda_blur_tokens(ipvg_exec *ex, ipvg_tensor *y, const ipvg_tensor *x, int64_t rows, int64_t cols,
                                  float sigma);
ipvg_status ipvg_cuda_nag(ipvg_exec *ex, ipvg_tensor *y, const ipvg_tensor *p, const ipvg_tensor *n, float scale,
                          float tau, float alpha);
ipvg_status ipvg_cuda_gather_rows(ipvg_exec *ex, ipvg_tensor *y, const ipvg_tensor *table, const ipvg_tensor *ids);
ipvg_status ipvg_cuda_patchify(ipvg_exec *ex, ipvg_tensor *tokens, const ipvg_tensor *latent);
ipvg_status ipvg_cuda_unpatchify(ipvg_exec *ex, ipvg_tensor *latent, const ipvg_tensor *tokens);
ipvg_status ipvg_cuda_cast(ipvg_exec *ex, ipvg_tensor *y, const ipvg_tensor *x);
ipvg_status ipvg_cuda_conv_prepare(ipvg_exec *ex, ipvg_conv *conv);
void ipvg_cuda_conv_release(const ipvg_backend *be, ipvg_conv *conv);
ipvg_status ipvg_cuda_conv(ipvg_exec *ex, const ipvg_conv_out *out, const ipvg_tensor *const *x, int n,
                           const ipvg_conv *conv);
ipvg_status ipvg_cuda_norm_silu(ipvg_exec *ex, ipvg_tensor *y, const ipvg_tensor *x, const ipvg_tensor *gamma,
                                bool silu);

#endif

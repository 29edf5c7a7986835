/* A backend is memory plus a table of semantic operations. Models call the checked front doors in ops.h, never the
 * table. An operation says what is meant (norm_modulate, not "multiply"), so that a GPU backend may fuse.
 *
 * Every entry takes its scratch from ex->arena first, then returns if ipvg_planning(ex), then computes: this is what
 * makes a forward's memory known before it runs (base/arena.h). Arguments have been checked by ops.c. */
#ifndef IPVG_OPS_BACKEND_H
#define IPVG_OPS_BACKEND_H

#include "../base/arena.h"
#include "../base/file.h"
#include "../base/meter.h"

typedef struct ipvg_backend ipvg_backend;

typedef struct ipvg_exec ipvg_exec;

/* Sees the intermediates of a forward by name. The tensor is live scratch in the backend's memory: copy it. Anything but
 * IPVG_OK stops the forward with it. */
typedef struct ipvg_trace {
    ipvg_status (*see)(void *user, ipvg_exec *ex, const char *name, const ipvg_tensor *tensor);
    void *user;
} ipvg_trace;

/* What a call runs with: passed first to every operation and every forward. */
struct ipvg_exec {
    ipvg_context *ctx;
    const ipvg_backend *be;
    ipvg_arena *arena;
    const ipvg_trace *trace; /* NULL: nobody looks */
};

static inline bool ipvg_planning(const ipvg_exec *ex) { return ex->arena->planning; }

/* Shows a tensor to the trace, if there is one: ipvg_see(ex, &x, "block%d_out", i). Nothing happens while planning. */
__attribute__((format(printf, 3, 4))) ipvg_status ipvg_see(ipvg_exec *ex, const ipvg_tensor *tensor, const char *fmt,
                                                           ...);

typedef enum ipvg_act { IPVG_ACT_NONE, IPVG_ACT_GELU_TANH, IPVG_ACT_SILU } ipvg_act;

/* y = sum_i weight[i] x[i]; see ipvg_combine. */
typedef struct ipvg_sum {
    ipvg_tensor *y;
    int n;
    const ipvg_tensor *const *x;
    const float *weight;
} ipvg_sum;

struct ipvg_conv; /* ops.h */
struct ipvg_conv_out;

#define IPVG_UPLOADS 64 /* that go together at most */

/* A tensor's bytes on the host and where they go, which is contiguous. */
typedef struct ipvg_upload {
    ipvg_tensor to;
    ipvg_dtype dtype;      /* of the bytes: they are cast if it is not to.dtype */
    const ipvg_file *file; /* they are there from `offset` on; */
    uint64_t offset;
    const void *data; /* file NULL: they are here */
} ipvg_upload;

struct ipvg_backend {
    const char *name;      /* "cpu", "cuda" */
    ipvg_dtype compute;    /* what ipvg_linear rounds its inputs to: IPVG_F32 (not at all) or IPVG_BF16; on a GPU also
                              IPVG_E4M3, where the weights are that */
    ipvg_dtype activation; /* what transformers keep their activations in: IPVG_F32, on a GPU also IPVG_BF16 */
    ipvg_dtype video;      /* what the VAE keeps its frames in: IPVG_F32, on a GPU also IPVG_F16 */
    int64_t ffn_rows;      /* tokens that pass a feed-forward net together: bounds its inner buffer */
    int64_t few_keys;      /* up to so many, attention whose last key stands for many is faster than over all of them */
    bool native;           /* the machine has units for it; otherwise the same numbers at float32's speed */
    bool host;             /* its memory is the host's: arrays and mapped weights are used in place */
    ipvg_memory memory;
    ipvg_meter *meter; /* of that memory; NULL where be->host */
    void *state;       /* the backend's own: streams, library handles */
    void (*free)(ipvg_backend *be);
    void (*begin)(const ipvg_backend *be); /* in the thread that is about to call; or NULL */
    ipvg_status (*pace)(ipvg_exec *ex);    /* what ipvg_pace says; or NULL */
    /* See replay.h. From `keep` to `kept` operations are kept instead of run; `kept` returns them, or NULL if the device could
     * not, and `play` queues them. NULL where there is nothing to gain, as in a state of more than `small` numbers. */
    int64_t small;
    ipvg_status (*keep)(ipvg_exec *ex);
    void *(*kept)(ipvg_exec *ex);
    ipvg_status (*play)(ipvg_exec *ex, void *kept);
    void (*drop)(const ipvg_backend *be, void *kept);
    /* A second queue of the same device, for copies and casts beside the computation; it has the memory and none of the
     * libraries. NULL where be->host. */
    ipvg_status (*lane)(const ipvg_backend *be, ipvg_context *ctx, ipvg_backend **out);
    /* What comes to the queue of ex->be from now on begins when all that is in the other's now is done. */
    ipvg_status (*after)(ipvg_exec *ex, const ipvg_backend *other);
    /* Both of a contiguous tensor's bytes; the host's side may be any memory and is free when they return. What comes in may
     * also lie in the device's own memory: then the copy is queued, and none is made of a tensor to itself. */
    ipvg_status (*copy_in)(ipvg_exec *ex, ipvg_tensor *dst, const void *host_src);
    ipvg_status (*copy_out)(ipvg_exec *ex, void *host_dst, const ipvg_tensor *src);
    /* The same of 1 to IPVG_UPLOADS tensors, none of which waits for the one before it. NULL where be->host. */
    ipvg_status (*upload)(ipvg_exec *ex, const ipvg_upload *uploads, int n);
    /* How others that use the same device meet this backend. NULL where be->host. */
    int device;                                         /* CUDA's number */
    void *stream;                                       /* all work is queued there */
    ipvg_status (*follow)(ipvg_exec *ex, void *stream); /* that stream waits for what has been queued */
    ipvg_status (*settle)(ipvg_exec *ex); /* waits for all that the device has been given, by others too */

    /* ipvg_planes_new (once its room is there), _load, _send, _receive, ipvg_bytes_send, _receive (odd: not finite); NULL where
     * be->host. */
    ipvg_status (*planes_begin)(ipvg_exec *ex);
    ipvg_status (*planes_load)(ipvg_exec *ex, ipvg_tensor *frame, const float *src, int64_t step,
                               const ipvg_tensor *room);
    ipvg_status (*planes_send)(ipvg_exec *ex, int slot, const ipvg_tensor *frame, const ipvg_tensor *room);
    ipvg_status (*planes_receive)(ipvg_exec *ex, int slot, float *dst, int64_t step, const ipvg_tensor *frame);
    ipvg_status (*bytes_send)(ipvg_exec *ex, int slot, const ipvg_tensor *frame, const ipvg_tensor *room);
    ipvg_status (*bytes_receive)(ipvg_exec *ex, int slot, uint8_t *dst, const ipvg_tensor *frame, int *odd);

    ipvg_status (*linear)(ipvg_exec *ex, ipvg_tensor *y, const ipvg_tensor *x, const ipvg_tensor *w,
                          const ipvg_tensor *b, ipvg_act act, bool exact);
    ipvg_status (*attention)(ipvg_exec *ex, ipvg_tensor *o, const ipvg_tensor *q, const ipvg_tensor *k,
                             const ipvg_tensor *v, int heads, float scale, const ipvg_tensor *bias, int64_t repeat);
    ipvg_status (*norm_modulate)(ipvg_exec *ex, ipvg_tensor *y, const ipvg_tensor *x, const ipvg_tensor *shift,
                                 const ipvg_tensor *scale, float eps);
    ipvg_status (*layer_norm)(ipvg_exec *ex, ipvg_tensor *y, const ipvg_tensor *x, const ipvg_tensor *w,
                              const ipvg_tensor *b, float eps);
    ipvg_status (*rms_norm)(ipvg_exec *ex, ipvg_tensor *y, const ipvg_tensor *x, const ipvg_tensor *w, float eps);
    ipvg_status (*rms_norm_rope)(ipvg_exec *ex, ipvg_tensor *y, const ipvg_tensor *x, const ipvg_tensor *w,
                                 const ipvg_tensor *rope, int heads, float eps);
    ipvg_status (*gate_residual)(ipvg_exec *ex, ipvg_tensor *x, const ipvg_tensor *y, const ipvg_tensor *gate);
    ipvg_status (*gate_residual_norm)(ipvg_exec *ex, ipvg_tensor *h, ipvg_tensor *x, const ipvg_tensor *y,
                                      const ipvg_tensor *gate, const ipvg_tensor *mul, const ipvg_tensor *add,
                                      bool modulate, float eps); /* or NULL: as two operations */
    ipvg_status (*gated_gelu)(ipvg_exec *ex, ipvg_tensor *y, const ipvg_tensor *gate, const ipvg_tensor *up);
    ipvg_status (*silu)(ipvg_exec *ex, ipvg_tensor *y, const ipvg_tensor *x);
    ipvg_status (*sums)(ipvg_exec *ex, const ipvg_sum *sums, int count);
    ipvg_status (*multiply)(ipvg_exec *ex, ipvg_tensor *y, const ipvg_tensor *x, const ipvg_tensor *f);
    ipvg_status (*gram)(ipvg_exec *ex, double *gram, double *sum, int n, const ipvg_tensor *const *x);
    ipvg_status (*blur_tokens)(ipvg_exec *ex, ipvg_tensor *y, const ipvg_tensor *x, int64_t rows, int64_t cols,
                               float sigma);
    ipvg_status (*nag)(ipvg_exec *ex, ipvg_tensor *y, const ipvg_tensor *p, const ipvg_tensor *n, float scale,
                       float tau, float alpha);
    ipvg_status (*gather_rows)(ipvg_exec *ex, ipvg_tensor *y, const ipvg_tensor *table, const ipvg_tensor *ids);
    ipvg_status (*patchify)(ipvg_exec *ex, ipvg_tensor *tokens, const ipvg_tensor *latent);
    ipvg_status (*unpatchify)(ipvg_exec *ex, ipvg_tensor *latent, const ipvg_tensor *tokens);
    ipvg_status (*cast)(ipvg_exec *ex, ipvg_tensor *y, const ipvg_tensor *x);

    /* Causal video convolutions, channels last; see ops.h. */
    ipvg_status (*conv_prepare)(ipvg_exec *ex, struct ipvg_conv *conv);
    void (*conv_release)(const ipvg_backend *be, struct ipvg_conv *conv);
    ipvg_status (*conv)(ipvg_exec *ex, const struct ipvg_conv_out *out, const ipvg_tensor *const *x, int n,
                        const struct ipvg_conv *conv);
    ipvg_status (*norm_silu)(ipvg_exec *ex, ipvg_tensor *y, const ipvg_tensor *x, const ipvg_tensor *gamma, bool silu);
};

/* A backend object holds no data of a model. */
ipvg_status ipvg_backend_cpu(ipvg_context *ctx, ipvg_backend **out, ipvg_dtype compute);
void ipvg_backend_free(ipvg_backend **be);

#endif

/* The parts that the VAE's encoder and decoder are built of: their weights, and what runs a frame through them. */
#ifndef IPVG_MODEL_VAE_PARTS_H
#define IPVG_MODEL_VAE_PARTS_H

#include "place.h"
#include "vae.h"

/* ---- weights, as taken from the file ---- */

typedef struct pair {
    ipvg_tensor w, b;
} pair;

typedef struct res_weights {
    int in, out;
    ipvg_tensor norm1, norm2; /* gamma (in, 1, 1, 1), (out, 1, 1, 1) */
    pair conv1, conv2;        /* (out, in, 3, 3, 3), (out, out, 3, 3, 3) */
    pair shortcut;            /* (out, in, 1, 1, 1) if in != out */
} res_weights;

typedef struct level_weights {
    int in, out, blocks, first; /* first: index of its first part in the file's flat list */
    res_weights block[IPVG_VAE_MAX_BLOCKS];
    bool resample, temporal; /* the way to the next level: in space, and in time */
    pair space;              /* encoder (out, out, 3, 3); decoder (out / 2, out, 3, 3) */
    pair time;               /* encoder (out, out, 3, 1, 1); decoder (2 out, out, 3, 1, 1) */
} level_weights;

typedef struct middle_weights {
    res_weights block[2];
    ipvg_tensor norm; /* (C, 1, 1) */
    pair qkv, proj;   /* as matrices: (3 C, C), (C, C) */
} middle_weights;

typedef struct half_weights { /* the encoder or the decoder */
    pair first;               /* conv1 */
    middle_weights middle;
    level_weights level[IPVG_VAE_MAX_LEVELS];
    ipvg_tensor head_norm;
    pair head;
} half_weights;

struct ipvg_vae {
    ipvg_vae_config config;
    const ipvg_weights *weights;
    ipvg_arena home; /* of weights in a backend's memory */
    float
        scale[IPVG_VAE_MAX_Z]; /* 1/std in float32: the reference multiplies by it, and divides by it on the way back */
    half_weights encoder, decoder;
    pair quant, post_quant; /* conv1 (2z, 2z, 1, 1, 1), conv2 (z, z, 1, 1, 1) */
};

/* ---- running parts: packed weights and history, in the arena ---- */

#define HISTORY 3 /* frames that a convolution sees */

/* The newest inputs of a convolution. */
typedef struct ring {
    ipvg_tensor slots; /* (HISTORY, H, W, C) */
    int newest, count; /* slot; frames so far, at most HISTORY */
} ring;

ipvg_status ipvg_vae_ring_new(ipvg_exec *ex, ring *r, int64_t h, int64_t w, int64_t c);
/* Forgets the oldest frame; the slot (H, W, C) of the new one is to be written. */
ipvg_tensor ipvg_vae_ring_push(ring *r);

/* A convolution with history; kt = 1 needs none. */
typedef struct causal {
    ipvg_conv conv;
    ring in;
} causal;

/* 3x3 around, or 1x1, from the weight's shape. h, w: of its input. */
ipvg_status ipvg_vae_causal_new(ipvg_exec *ex, causal *c, const pair *weights, int64_t h, int64_t w);
ipvg_status ipvg_vae_causal_run(ipvg_exec *ex, const ipvg_conv_out *out, const causal *c);
/* Any convolution of a single frame. */
ipvg_status ipvg_vae_frame_conv(ipvg_exec *ex, const ipvg_conv_out *out, const ipvg_tensor *x, const ipvg_conv *conv);

/* Where the next part wants norm_silu of what this one makes; z.data NULL: nowhere. (Planning gives fake pointers.) */
typedef struct target {
    ipvg_tensor z;
    const ipvg_tensor *gamma;
    bool silu, wanted;
} target;
static const target NOWHERE = {.wanted = false};

typedef struct res_block {
    const res_weights *weights;
    ipvg_tensor norm1, norm2; /* gamma, float32 */
    causal conv1, conv2;
    ipvg_conv shortcut;
} res_block;

ipvg_status ipvg_vae_res_new(ipvg_exec *ex, res_block *r, const res_weights *weights, int64_t h, int64_t w);
/* Pushes: whoever makes the block's input x must write its norm there. */
target ipvg_vae_res_target(res_block *r);
/* y = x + conv2(silu(norm2(conv1(silu(norm1 x))))); x may be y unless there is a shortcut. */
ipvg_status ipvg_vae_res_run(ipvg_exec *ex, ipvg_tensor *y, const ipvg_tensor *x, res_block *r, const target *next);
void ipvg_vae_res_end(const ipvg_backend *be, res_block *r);

typedef struct middle {
    const middle_weights *weights;
    res_block block[2];
    ipvg_tensor norm;  /* gamma, float32 */
    ipvg_tensor input; /* (H, W, C): norm of the attention's input */
} middle;

ipvg_status ipvg_vae_middle_new(ipvg_exec *ex, middle *m, const middle_weights *weights, int64_t h, int64_t w);
/* In place. Traces middle.0, middle.1, middle.2. */
ipvg_status ipvg_vae_middle_run(ipvg_exec *ex, ipvg_tensor *x, middle *m, const target *next);
void ipvg_vae_middle_end(const ipvg_backend *be, middle *m);

typedef struct head {
    causal conv;
    ipvg_tensor norm;
} head;

ipvg_status ipvg_vae_head_new(ipvg_exec *ex, head *o, const ipvg_tensor *norm, const pair *weights, int64_t h,
                              int64_t w);
target ipvg_vae_head_target(head *o);

/* A gamma as float32 (C). */
ipvg_status ipvg_vae_gamma_new(ipvg_exec *ex, ipvg_tensor *out, const ipvg_tensor *gamma);
ipvg_status ipvg_vae_frame_new(ipvg_exec *ex, ipvg_tensor *out, int64_t h, int64_t w, int64_t c);
/* frame (H, W, C) in the backend's dtype, from host float32. */
ipvg_status ipvg_vae_frame_in(ipvg_exec *ex, ipvg_tensor *frame, const float *host);
ipvg_conv ipvg_vae_conv(const pair *weights);

/* A result on its way to the caller's array, where it arrives while the next one is computed. */
typedef struct parcel {
    void *to;     /* where it belongs; NULL: nothing is under way */
    int64_t step; /* from channel to channel there, float32; 0: as bytes, channels last */
    int slot;     /* of ipvg_planes_send */
} parcel;

/* Sends frame (H, W, C) to `to`, and receives what was sent before it: *came. Where memory is the host's, that is the frame
 * itself. */
ipvg_status ipvg_vae_send(ipvg_exec *ex, parcel *last, parcel *came, const ipvg_tensor *frame, void *to, int64_t step,
                          const ipvg_tensor *room);
/* What was sent last, if it has not been received; frame: of the same shape. */
ipvg_status ipvg_vae_receive(ipvg_exec *ex, parcel *last, parcel *came, const ipvg_tensor *frame);

/* outputs, with an optional target */
ipvg_conv_out ipvg_vae_output(ipvg_tensor *y, const target *next);

#endif

#include <stdlib.h>

#include "vae_parts.h"

typedef struct level {
    const level_weights *weights;
    res_block block[IPVG_VAE_MAX_BLOCKS];
    ipvg_tensor in, x; /* (H, W, in), (H, W, out): the frame before the first block and after each; one, if in == out */
    ipvg_conv down;    /* halves rows and columns */
    causal time;       /* halves time; its history is at half the rows and columns */
    int waiting;       /* frames in that history that no output has covered yet */
} level;

struct ipvg_vae_encoder {
    const ipvg_vae *vae;
    int64_t height, width; /* of the frames */
    bool first;            /* the frame at hand is the video's first */
    causal conv1;
    level level[IPVG_VAE_MAX_LEVELS];
    middle middle;
    head head;
    ipvg_tensor moments, mu; /* (h, w, 2z): before and after conv1 of the whole model */
    ipvg_conv quant;
    ipvg_tensor mean;    /* (h, w, z): of mu; the other half of the channels is the log-variance, which nobody uses */
    ipvg_tensor *latent; /* the caller's, while next runs */
    int64_t at, start;
    parcel last;         /* the newest latent frame */
    ipvg_tensor in, out; /* room for frames, and for latent ones, on their way */
};

/* ==== begin, end ==== */

static ipvg_status level_new(ipvg_exec *ex, level *l, const level_weights *weights, int64_t h, int64_t w)
{
    ipvg_status status;
    l->weights = weights;
    IPVG_TRY(ipvg_vae_frame_new(ex, &l->x, h, w, weights->out));
    l->in = l->x;
    if (weights->in != weights->out) IPVG_TRY(ipvg_vae_frame_new(ex, &l->in, h, w, weights->in));
    for (int b = 0; b < weights->blocks; b++) IPVG_TRY(ipvg_vae_res_new(ex, &l->block[b], &weights->block[b], h, w));
    if (weights->resample) {
        l->down = ipvg_vae_conv(&weights->space);
        l->down.stride = 2;
        l->down.top = l->down.left = 0; /* one row below and one column to the right, none above or to the left */
        IPVG_TRY(ipvg_conv_prepare(ex, &l->down));
    }
    if (weights->temporal) IPVG_TRY(ipvg_vae_causal_new(ex, &l->time, &weights->time, h / 2, w / 2));
done:
    return status;
}

ipvg_status ipvg_vae_encoder_begin(ipvg_exec *ex, ipvg_vae_encoder **out, const ipvg_vae *vae, int64_t height,
                                   int64_t width)
{
    const half_weights *w = &vae->encoder;
    const ipvg_vae_config *c = &vae->config;
    ipvg_vae_encoder *e = NULL;
    int64_t t, h, wide;
    ipvg_status status;

    IPVG_TRY(ipvg_vae_latent_size(ex->ctx, vae, 1, height, width, &t, &h, &wide));
    if (!ipvg_planning(ex) && !w->first.w.data)
        return ipvg_fail(ex->ctx, IPVG_E_ARGUMENT, "VAE: these weights are shapes without data, for planning only");
    e = calloc(1, sizeof *e);
    if (!e) return ipvg_fail(ex->ctx, IPVG_E_MEMORY, "no memory for a VAE encoder");
    e->vae = vae;
    e->height = height;
    e->width = width;
    e->first = true;
    IPVG_TRY(ipvg_vae_causal_new(ex, &e->conv1, &w->first, height, width));
    for (int i = 0; i < c->levels; i++) IPVG_TRY(level_new(ex, &e->level[i], &w->level[i], height >> i, width >> i));
    IPVG_TRY(ipvg_vae_middle_new(ex, &e->middle, &w->middle, h, wide));
    IPVG_TRY(ipvg_vae_head_new(ex, &e->head, &w->head_norm, &w->head, h, wide));
    IPVG_TRY(ipvg_vae_frame_new(ex, &e->moments, h, wide, 2 * c->z_dim));
    IPVG_TRY(ipvg_vae_frame_new(ex, &e->mu, h, wide, 2 * c->z_dim));
    e->quant = ipvg_vae_conv(&vae->quant);
    IPVG_TRY(ipvg_conv_prepare(ex, &e->quant));
    e->mean = e->mu;
    e->mean.shape[2] = c->z_dim;
    IPVG_TRY(ipvg_planes_new(ex, &e->in, height, width, 3));
    IPVG_TRY(ipvg_planes_new(ex, &e->out, h, wide, c->z_dim));
    *out = e;
    e = NULL;
done:
    ipvg_vae_encoder_end(ex->be, &e);
    return status;
}

void ipvg_vae_encoder_end(const ipvg_backend *be, ipvg_vae_encoder **encoder)
{
    ipvg_vae_encoder *e = *encoder;
    if (!e) return;
    ipvg_conv_release(be, &e->conv1.conv);
    for (int i = 0; i < e->vae->config.levels; i++) {
        level *l = &e->level[i];
        for (int b = 0; b < e->vae->encoder.level[i].blocks; b++) ipvg_vae_res_end(be, &l->block[b]);
        ipvg_conv_release(be, &l->down);
        ipvg_conv_release(be, &l->time.conv);
    }
    ipvg_vae_middle_end(be, &e->middle);
    ipvg_conv_release(be, &e->head.conv.conv);
    ipvg_conv_release(be, &e->quant);
    free(e);
    *encoder = NULL;
}

/* ==== a frame on its way down ==== */

/* The latent frame that has come to the caller's array, if one has: (mu - mean) / std. */
static void normalise(const ipvg_vae_encoder *e, const parcel *came)
{
    const ipvg_vae_config *c = &e->vae->config;
    const int64_t pixels = e->mu.shape[0] * e->mu.shape[1];
    for (int z = 0; z < c->z_dim && came->to; z++) {
        float *plane = (float *)came->to + z * came->step;
        for (int64_t i = 0; i < pixels; i++) plane[i] = (plane[i] - c->mean[z]) * e->vae->scale[z];
    }
}

static ipvg_status emit(ipvg_exec *ex, ipvg_vae_encoder *e)
{
    const int64_t pixels = e->mu.shape[0] * e->mu.shape[1];
    float *to = ipvg_planning(ex) ? NULL : (float *)e->latent->data + e->at * pixels;
    parcel came;
    ipvg_status status;
    IPVG_TRY(ipvg_vae_causal_run(ex, &(ipvg_conv_out){.y = &e->moments}, &e->head.conv));
    IPVG_TRY(ipvg_see(ex, &e->moments, "head.2"));
    IPVG_TRY(ipvg_vae_frame_conv(ex, &(ipvg_conv_out){.y = &e->mu}, &e->moments, &e->quant));
    IPVG_TRY(ipvg_see(ex, &e->mu, "quant_conv"));
    IPVG_TRY(ipvg_vae_send(ex, &e->last, &came, &e->mean, to, e->latent->shape[1] * pixels, &e->out));
    normalise(e, &came);
done:
    e->at++;
    return status;
}

ipvg_status ipvg_vae_encoder_finish(ipvg_exec *ex, ipvg_vae_encoder *e)
{
    parcel came;
    ipvg_status status;
    IPVG_TRY(ipvg_vae_receive(ex, &e->last, &came, &e->mean));
    normalise(e, &came);
done:
    return status;
}

static ipvg_status level_run(ipvg_exec *ex, ipvg_vae_encoder *e, int index);

/* One frame becomes a quarter of its size; where time halves too, every second one makes a frame, together with the one
 * before the two. The video's first frame is passed on as it is and is that one for the next two. */
static ipvg_status resample(ipvg_exec *ex, ipvg_vae_encoder *e, int index)
{
    level *l = &e->level[index], *below = &e->level[index + 1];
    int name = l->weights->first + l->weights->blocks;
    ipvg_status status;
    if (l->weights->temporal) {
        ipvg_tensor small = ipvg_vae_ring_push(&l->time.in);
        IPVG_TRY(ipvg_vae_frame_conv(ex, &(ipvg_conv_out){.y = &small}, &l->x, &l->down));
        if (!e->first && ++l->waiting < 2) goto done;
        l->waiting = 0;
    }
    target next = ipvg_vae_res_target(&below->block[0]);
    ipvg_conv_out out = ipvg_vae_output(&below->in, &next);
    if (l->weights->temporal && !e->first) {
        IPVG_TRY(ipvg_vae_causal_run(ex, &out, &l->time));
        IPVG_TRY(ipvg_see(ex, &below->in, "downsamples.%d.time_conv", name));
    } else {
        IPVG_TRY(ipvg_vae_frame_conv(ex, &out, &l->x, &l->down));
    }
    IPVG_TRY(ipvg_see(ex, &below->in, "downsamples.%d", name));
    IPVG_TRY(level_run(ex, e, index + 1));
done:
    return status;
}

/* Runs the frame whose parts the caller has written: `in` of the level, and its norm in the first block's history. */
static ipvg_status level_run(ipvg_exec *ex, ipvg_vae_encoder *e, int index)
{
    level *l = &e->level[index];
    target next = NOWHERE;
    ipvg_status status;
    for (int b = 0; b < l->weights->blocks; b++) {
        bool last = b + 1 == l->weights->blocks;
        next = !last                  ? ipvg_vae_res_target(&l->block[b + 1])
               : l->weights->resample ? NOWHERE
                                      : ipvg_vae_res_target(&e->middle.block[0]);
        IPVG_TRY(ipvg_vae_res_run(ex, &l->x, b == 0 ? &l->in : &l->x, &l->block[b], &next));
        IPVG_TRY(ipvg_see(ex, &l->x, "downsamples.%d", l->weights->first + b));
    }
    if (l->weights->resample) {
        IPVG_TRY(resample(ex, e, index));
    } else {
        next = ipvg_vae_head_target(&e->head);
        IPVG_TRY(ipvg_vae_middle_run(ex, &l->x, &e->middle, &next));
        IPVG_TRY(ipvg_see(ex, &next.z, "head.1"));
        IPVG_TRY(emit(ex, e));
    }
done:
    return status;
}

ipvg_status ipvg_vae_encoder_next(ipvg_exec *ex, ipvg_vae_encoder *e, ipvg_tensor *latent, int64_t at, int *count,
                                  const ipvg_tensor *frames, int64_t index)
{
    int64_t pixels = e->height * e->width;
    ipvg_status status;

    if (frames->ndim != 4 || frames->shape[0] != 3 || index < 0 || index >= frames->shape[1] ||
        frames->shape[2] != e->height || frames->shape[3] != e->width)
        return ipvg_fail(ex->ctx, IPVG_E_ARGUMENT, "VAE: frame %lld of other shape than (3, T, %lld, %lld)",
                         (long long)index, (long long)e->height, (long long)e->width);
    if (latent->ndim != 4 || latent->shape[0] != e->vae->config.z_dim || at < 0 || at >= latent->shape[1] ||
        latent->shape[2] != e->mu.shape[0] || latent->shape[3] != e->mu.shape[1])
        return ipvg_fail(ex->ctx, IPVG_E_ARGUMENT, "VAE: no room for a latent frame of (%d, %lld, %lld)",
                         e->vae->config.z_dim, (long long)e->mu.shape[0], (long long)e->mu.shape[1]);
    e->latent = latent;
    e->at = e->start = at;
    ipvg_tensor pixel = ipvg_vae_ring_push(&e->conv1.in);
    const float *first = ipvg_planning(ex) ? NULL : (const float *)frames->data + index * pixels;
    IPVG_TRY(ipvg_pace(ex)); /* once a frame: the GPU takes longer for one than the host for the next */
    IPVG_TRY(ipvg_planes_load(ex, &pixel, first, frames->shape[1] * pixels, &e->in));
    ipvg_tensor *x = &e->level[0].in;
    target next = ipvg_vae_res_target(&e->level[0].block[0]);
    ipvg_conv_out out = ipvg_vae_output(x, &next);
    IPVG_TRY(ipvg_vae_causal_run(ex, &out, &e->conv1));
    IPVG_TRY(ipvg_see(ex, x, "conv1"));
    IPVG_TRY(level_run(ex, e, 0));
    e->first = false;
    *count = (int)(e->at - e->start);
done:
    e->latent = NULL;
    return status;
}

ipvg_status ipvg_vae_encode(ipvg_exec *ex, ipvg_tensor *latent, const ipvg_tensor *frames, const ipvg_vae *vae)
{
    ipvg_context *ctx = ex->ctx;
    ipvg_vae_encoder *e = NULL;
    size_t mark = ipvg_arena_mark(ex->arena);
    int64_t t, h, w, at = 0;
    ipvg_status status;

    if (frames->ndim != 4 || latent->ndim != 4)
        return ipvg_fail(ctx, IPVG_E_ARGUMENT, "VAE: frames (3, T, H, W) and latent (z, t, h, w) have four dimensions");
    IPVG_TRY(ipvg_vae_latent_size(ctx, vae, frames->shape[1], frames->shape[2], frames->shape[3], &t, &h, &w));
    if (latent->shape[1] != t || latent->shape[2] != h || latent->shape[3] != w)
        return ipvg_fail(ctx, IPVG_E_ARGUMENT,
                         "VAE: %lldx%lld frames, %lld of them, make a latent of (%lld, %lld, %lld)",
                         (long long)frames->shape[3], (long long)frames->shape[2], (long long)frames->shape[1],
                         (long long)t, (long long)h, (long long)w);
    IPVG_TRY(ipvg_vae_encoder_begin(ex, &e, vae, frames->shape[2], frames->shape[3]));
    for (int64_t i = 0; i < frames->shape[1]; i++) {
        int count = 0;
        if (ctx->progress && !ipvg_planning(ex)) ctx->progress(ctx->progress_user, (int)i, (int)frames->shape[1]);
        /* a frame that completes nothing writes nothing, but `at` must be a frame */
        IPVG_TRY(ipvg_vae_encoder_next(ex, e, latent, at < t ? at : t - 1, &count, frames, i));
        at += count;
    }
    IPVG_TRY(ipvg_vae_encoder_finish(ex, e));
    if (ctx->progress && !ipvg_planning(ex))
        ctx->progress(ctx->progress_user, (int)frames->shape[1], (int)frames->shape[1]);
done:
    ipvg_vae_encoder_end(ex->be, &e);
    ipvg_arena_reset(ex->arena, mark);
    return status;
}

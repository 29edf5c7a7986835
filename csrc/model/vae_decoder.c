#include <stdlib.h>

#include "vae_parts.h"

typedef struct level {
    const level_weights *weights;
    res_block block[IPVG_VAE_MAX_BLOCKS];
    ipvg_tensor in, x; /* (H, W, in), (H, W, out): the frame before the first block and after each; one, if in == out */
    causal time[2];    /* the two halves of the time convolution: its even and its odd frames. They share one history */
    ipvg_tensor moment; /* (H, W, out): a frame that time_up made */
    ipvg_conv up;       /* doubles rows and columns, then 3x3 */
} level;

struct ipvg_vae_decoder {
    const ipvg_vae *vae;
    int64_t h, w;                   /* of the latent */
    bool first;                     /* the latent frame at hand is the video's first */
    ipvg_tensor latent, post_quant; /* (h, w, z) */
    ipvg_conv quant;
    causal conv1;
    middle middle;
    level level[IPVG_VAE_MAX_LEVELS];
    head head;
    ipvg_tensor pixels;  /* (H, W, 3) */
    float *host;         /* (h, w, z): from the caller's array; NULL where the device does it: */
    pair denormalise;    /* (z, z), the standard deviations on its diagonal, and the means (z,) */
    ipvg_tensor *frames; /* the caller's, while next runs */
    int64_t at;
    parcel last;         /* the newest frame */
    ipvg_tensor in, out; /* room for latent frames, and for frames, on their way */
};

/* ==== begin, end ==== */

/* latent * std + mean as a product, for a device: its latents may lie there, and then stay there. */
static ipvg_status denormalise_new(ipvg_exec *ex, ipvg_vae_decoder *d)
{
    const ipvg_vae_config *c = &d->vae->config;
    const int64_t shape[] = {c->z_dim, c->z_dim};
    float std[IPVG_VAE_MAX_Z * IPVG_VAE_MAX_Z] = {0};
    ipvg_status status;
    for (int z = 0; z < c->z_dim; z++) std[z * c->z_dim + z] = 1.f / d->vae->scale[z];
    IPVG_TRY(ipvg_arena_tensor(ex->ctx, ex->arena, &d->denormalise.w, IPVG_F32, 2, shape));
    IPVG_TRY(ipvg_arena_tensor(ex->ctx, ex->arena, &d->denormalise.b, IPVG_F32, 1, shape));
    IPVG_TRY(ex->be->copy_in(ex, &d->denormalise.w, std));
    IPVG_TRY(ex->be->copy_in(ex, &d->denormalise.b, c->mean));
done:
    return status;
}

static ipvg_status level_new(ipvg_exec *ex, level *l, const level_weights *weights, int64_t h, int64_t w)
{
    ipvg_status status;
    l->weights = weights;
    IPVG_TRY(ipvg_vae_frame_new(ex, &l->x, h, w, weights->out));
    l->in = l->x;
    if (weights->in != weights->out) IPVG_TRY(ipvg_vae_frame_new(ex, &l->in, h, w, weights->in));
    for (int b = 0; b < weights->blocks; b++) IPVG_TRY(ipvg_vae_res_new(ex, &l->block[b], &weights->block[b], h, w));
    if (weights->temporal) {
        for (int i = 0; i < 2; i++) {
            pair half = {ipvg_tensor_slice(&weights->time.w, i * weights->out, weights->out),
                         ipvg_tensor_slice(&weights->time.b, i * weights->out, weights->out)};
            l->time[i].conv = ipvg_vae_conv(&half);
            IPVG_TRY(ipvg_conv_prepare(ex, &l->time[i].conv));
        }
        IPVG_TRY(ipvg_vae_ring_new(ex, &l->time[0].in, h, w, weights->out));
        IPVG_TRY(ipvg_vae_frame_new(ex, &l->moment, h, w, weights->out));
    }
    if (weights->resample) {
        l->up = ipvg_vae_conv(&weights->space);
        l->up.upsample = true;
        IPVG_TRY(ipvg_conv_prepare(ex, &l->up));
    }
done:
    return status;
}

ipvg_status ipvg_vae_decoder_begin(ipvg_exec *ex, ipvg_vae_decoder **out, const ipvg_vae *vae, int64_t height,
                                   int64_t width)
{
    const half_weights *w = &vae->decoder;
    const ipvg_vae_config *c = &vae->config;
    ipvg_vae_decoder *d = NULL;
    int64_t scale = ipvg_vae_space_stride(vae);
    ipvg_status status;

    if (height < 1 || width < 1 || height > 1 << 16 || width > 1 << 16)
        return ipvg_fail(ex->ctx, IPVG_E_ARGUMENT, "VAE: a latent of %lldx%lld cannot be decoded", (long long)height,
                         (long long)width);
    if (!ipvg_planning(ex) && !w->first.w.data)
        return ipvg_fail(ex->ctx, IPVG_E_ARGUMENT, "VAE: these weights are shapes without data, for planning only");
    d = calloc(1, sizeof *d);
    if (!d) return ipvg_fail(ex->ctx, IPVG_E_MEMORY, "no memory for a VAE decoder");
    d->vae = vae;
    d->h = height;
    d->w = width;
    d->first = true;
    IPVG_TRY(ipvg_vae_frame_new(ex, &d->latent, height, width, c->z_dim));
    IPVG_TRY(ipvg_vae_frame_new(ex, &d->post_quant, height, width, c->z_dim));
    d->quant = ipvg_vae_conv(&vae->post_quant);
    IPVG_TRY(ipvg_conv_prepare(ex, &d->quant));
    IPVG_TRY(ipvg_vae_causal_new(ex, &d->conv1, &w->first, height, width));
    IPVG_TRY(ipvg_vae_middle_new(ex, &d->middle, &w->middle, height, width));
    for (int i = 0; i < c->levels; i++) IPVG_TRY(level_new(ex, &d->level[i], &w->level[i], height << i, width << i));
    IPVG_TRY(ipvg_vae_head_new(ex, &d->head, &w->head_norm, &w->head, height * scale, width * scale));
    IPVG_TRY(ipvg_vae_frame_new(ex, &d->pixels, height * scale, width * scale, 3));
    IPVG_TRY(ipvg_planes_new(ex, &d->in, height, width, c->z_dim));
    IPVG_TRY(ipvg_planes_new(ex, &d->out, height * scale, width * scale, 3));
    if (!ex->be->host) {
        IPVG_TRY(denormalise_new(ex, d));
    } else if (!ipvg_planning(ex)) {
        d->host = malloc((size_t)(height * width * c->z_dim) * sizeof(float));
        if (!d->host) IPVG_TRY(ipvg_fail(ex->ctx, IPVG_E_MEMORY, "no memory for a latent frame"));
    }
    *out = d;
    d = NULL;
done:
    ipvg_vae_decoder_end(ex->be, &d);
    return status;
}

void ipvg_vae_decoder_end(const ipvg_backend *be, ipvg_vae_decoder **decoder)
{
    ipvg_vae_decoder *d = *decoder;
    if (!d) return;
    ipvg_conv_release(be, &d->quant);
    ipvg_conv_release(be, &d->conv1.conv);
    ipvg_vae_middle_end(be, &d->middle);
    for (int i = 0; i < d->vae->config.levels; i++) {
        level *l = &d->level[i];
        for (int b = 0; b < d->vae->decoder.level[i].blocks; b++) ipvg_vae_res_end(be, &l->block[b]);
        ipvg_conv_release(be, &l->time[0].conv);
        ipvg_conv_release(be, &l->time[1].conv);
        ipvg_conv_release(be, &l->up);
    }
    ipvg_conv_release(be, &d->head.conv.conv);
    free(d->host);
    free(d);
    *decoder = NULL;
}

/* ==== a frame on its way up ==== */

static ipvg_status emit(ipvg_exec *ex, ipvg_vae_decoder *d)
{
    const int64_t pixels = d->pixels.shape[0] * d->pixels.shape[1];
    const bool bytes = d->frames->dtype == IPVG_U8;
    void *to = NULL;
    parcel came;
    ipvg_status status;
    if (!ipvg_planning(ex)) to = (char *)d->frames->data + d->at * pixels * (bytes ? 3 : (int64_t)sizeof(float));
    IPVG_TRY(ipvg_vae_causal_run(ex, &(ipvg_conv_out){.y = &d->pixels}, &d->head.conv));
    IPVG_TRY(ipvg_see(ex, &d->pixels, "head.2"));
    IPVG_TRY(ipvg_vae_send(ex, &d->last, &came, &d->pixels, to, bytes ? 0 : d->frames->shape[1] * pixels, &d->out));
done:
    d->at++;
    return status;
}

ipvg_status ipvg_vae_decoder_finish(ipvg_exec *ex, ipvg_vae_decoder *d)
{
    parcel came;
    return ipvg_vae_receive(ex, &d->last, &came, &d->pixels);
}

static ipvg_status level_run(ipvg_exec *ex, ipvg_vae_decoder *d, int index);

/* One frame to the next level, twice as high and wide. */
static ipvg_status space_up(ipvg_exec *ex, ipvg_vae_decoder *d, int index, const ipvg_tensor *x)
{
    level *l = &d->level[index], *above = &d->level[index + 1];
    target next = ipvg_vae_res_target(&above->block[0]);
    ipvg_conv_out out = ipvg_vae_output(&above->in, &next);
    ipvg_status status;
    IPVG_TRY(ipvg_vae_frame_conv(ex, &out, x, &l->up));
    IPVG_TRY(ipvg_see(ex, &above->in, "upsamples.%d", l->weights->first + l->weights->blocks));
    IPVG_TRY(level_run(ex, d, index + 1));
done:
    return status;
}

/* Two frames of one. Its output channels are first those of the earlier frame, then those of the later. The video's first
 * latent frame is a single frame of video and never comes here, and the history starts empty after it: the reference calls
 * that 'Rep'. */
static ipvg_status time_up(ipvg_exec *ex, ipvg_vae_decoder *d, int index)
{
    level *l = &d->level[index];
    ipvg_status status;
    l->time[1].in = l->time[0].in;
    for (int i = 0; i < 2; i++) {
        IPVG_TRY(ipvg_vae_causal_run(ex, &(ipvg_conv_out){.y = &l->moment}, &l->time[i]));
        IPVG_TRY(ipvg_see(ex, &l->moment, "upsamples.%d.time_conv.%d", l->weights->first + l->weights->blocks, i));
        IPVG_TRY(space_up(ex, d, index, &l->moment));
    }
done:
    return status;
}

/* Runs the frame whose parts the caller has written: `in` of the level, and its norm in the first block's history. */
static ipvg_status level_run(ipvg_exec *ex, ipvg_vae_decoder *d, int index)
{
    level *l = &d->level[index];
    bool last_level = !l->weights->resample, double_time = l->weights->temporal && !d->first;
    ipvg_tensor y = l->x;
    target next = NOWHERE;
    ipvg_status status;
    for (int b = 0; b < l->weights->blocks; b++) {
        bool last = b + 1 == l->weights->blocks;
        next = !last ? ipvg_vae_res_target(&l->block[b + 1]) : last_level ? ipvg_vae_head_target(&d->head) : NOWHERE;
        if (last && double_time) y = ipvg_vae_ring_push(&l->time[0].in);
        IPVG_TRY(ipvg_vae_res_run(ex, &y, b == 0 ? &l->in : &l->x, &l->block[b], &next));
        IPVG_TRY(ipvg_see(ex, &y, "upsamples.%d", l->weights->first + b));
    }
    if (last_level) {
        IPVG_TRY(ipvg_see(ex, &next.z, "head.1"));
        IPVG_TRY(emit(ex, d));
    } else if (double_time) {
        IPVG_TRY(time_up(ex, d, index));
    } else {
        IPVG_TRY(space_up(ex, d, index, &y));
    }
done:
    return status;
}

/* One frame of the caller's latent to d->latent, its channels brought together and denormalised. */
static ipvg_status load(ipvg_exec *ex, ipvg_vae_decoder *d, const ipvg_tensor *latent, int64_t index)
{
    const ipvg_vae_config *c = &d->vae->config;
    const int64_t pixels = d->h * d->w, step = latent->shape[1] * pixels;
    const float *first = ipvg_planning(ex) ? NULL : (const float *)latent->data + index * pixels;
    size_t mark = ipvg_arena_mark(ex->arena);
    ipvg_tensor raw, x, y, made;
    ipvg_status status;

    if (ex->be->host) {
        for (int z = 0; z < c->z_dim && first; z++)
            for (int64_t i = 0; i < pixels; i++)
                d->host[i * c->z_dim + z] = first[z * step + i] / d->vae->scale[z] + c->mean[z];
        return ipvg_vae_frame_in(ex, &d->latent, d->host);
    }
    IPVG_TRY(ipvg_arena_tensor(ex->ctx, ex->arena, &raw, IPVG_F32, 3, d->latent.shape));
    IPVG_TRY(ipvg_arena_tensor(ex->ctx, ex->arena, &made, IPVG_F32, 3, d->latent.shape));
    IPVG_TRY(ipvg_planes_load(ex, &raw, first, step, &d->in));
    x = ipvg_tensor_of(raw.data, IPVG_F32, pixels, c->z_dim);
    y = ipvg_tensor_of(made.data, IPVG_F32, pixels, c->z_dim);
    IPVG_TRY(ipvg_linear_exact(ex, &y, &x, &d->denormalise.w, &d->denormalise.b, IPVG_ACT_NONE));
    IPVG_TRY(ipvg_cast(ex, &d->latent, &made));
done:
    ipvg_arena_reset(ex->arena, mark);
    return status;
}

ipvg_status ipvg_vae_decoder_next(ipvg_exec *ex, ipvg_vae_decoder *d, ipvg_tensor *frames, int64_t at, int *count,
                                  const ipvg_tensor *latent, int64_t index)
{
    const ipvg_vae_config *c = &d->vae->config;
    int64_t made = d->first ? 1 : ipvg_vae_time_stride(d->vae);
    ipvg_status status;

    if (latent->ndim != 4 || latent->shape[0] != c->z_dim || index < 0 || index >= latent->shape[1] ||
        latent->shape[2] != d->h || latent->shape[3] != d->w)
        return ipvg_fail(ex->ctx, IPVG_E_ARGUMENT, "VAE: latent frame %lld of other shape than (%d, t, %lld, %lld)",
                         (long long)index, c->z_dim, (long long)d->h, (long long)d->w);
    const bool bytes = frames->dtype == IPVG_U8;
    const int64_t *size = frames->shape + (bytes ? 0 : 1), channels = frames->shape[bytes ? 3 : 0];
    if (frames->ndim != 4 || channels != 3 || at < 0 || at + made > size[0] || size[1] != d->pixels.shape[0] ||
        size[2] != d->pixels.shape[1])
        return ipvg_fail(ex->ctx, IPVG_E_ARGUMENT, "VAE: no room for %lld frames of %lldx%lld", (long long)made,
                         (long long)d->pixels.shape[1], (long long)d->pixels.shape[0]);
    d->frames = frames;
    d->at = at;
    IPVG_TRY(ipvg_pace(ex)); /* once a latent frame; that a frame is sent paces those it makes */
    IPVG_TRY(load(ex, d, latent, index));
    ipvg_tensor z = ipvg_vae_ring_push(&d->conv1.in);
    IPVG_TRY(ipvg_vae_frame_conv(ex, &(ipvg_conv_out){.y = &z}, &d->latent, &d->quant));
    IPVG_TRY(ipvg_see(ex, &z, "post_quant_conv"));
    ipvg_tensor *x = &d->level[0].in;
    target next = ipvg_vae_res_target(&d->middle.block[0]);
    ipvg_conv_out out = ipvg_vae_output(x, &next);
    IPVG_TRY(ipvg_vae_causal_run(ex, &out, &d->conv1));
    IPVG_TRY(ipvg_see(ex, x, "conv1"));
    next = ipvg_vae_res_target(&d->level[0].block[0]);
    IPVG_TRY(ipvg_vae_middle_run(ex, x, &d->middle, &next));
    IPVG_TRY(level_run(ex, d, 0));
    d->first = false;
    *count = (int)made;
done:
    d->frames = NULL;
    return status;
}

ipvg_status ipvg_vae_decode(ipvg_exec *ex, ipvg_tensor *frames, const ipvg_tensor *latent, const ipvg_vae *vae)
{
    ipvg_context *ctx = ex->ctx;
    ipvg_vae_decoder *d = NULL;
    size_t mark = ipvg_arena_mark(ex->arena);
    int64_t t, h, w, at = 0;
    ipvg_status status;

    if (frames->ndim != 4 || latent->ndim != 4)
        return ipvg_fail(ctx, IPVG_E_ARGUMENT, "VAE: frames (3, T, H, W) and latent (z, t, h, w) have four dimensions");
    IPVG_TRY(ipvg_vae_latent_size(ctx, vae, frames->shape[1], frames->shape[2], frames->shape[3], &t, &h, &w));
    if (latent->shape[1] != t || latent->shape[2] != h || latent->shape[3] != w)
        return ipvg_fail(ctx, IPVG_E_ARGUMENT,
                         "VAE: %lldx%lld frames, %lld of them, come from a latent of (%lld, %lld, %lld)",
                         (long long)frames->shape[3], (long long)frames->shape[2], (long long)frames->shape[1],
                         (long long)t, (long long)h, (long long)w);
    IPVG_TRY(ipvg_vae_decoder_begin(ex, &d, vae, h, w));
    for (int64_t i = 0; i < t; i++) {
        int count = 0;
        if (ctx->progress && !ipvg_planning(ex)) ctx->progress(ctx->progress_user, (int)at, (int)frames->shape[1]);
        IPVG_TRY(ipvg_vae_decoder_next(ex, d, frames, at, &count, latent, i));
        at += count;
    }
    IPVG_TRY(ipvg_vae_decoder_finish(ex, d));
    if (ctx->progress && !ipvg_planning(ex)) ctx->progress(ctx->progress_user, (int)at, (int)at);
done:
    ipvg_vae_decoder_end(ex->be, &d);
    ipvg_arena_reset(ex->arena, mark);
    return status;
}

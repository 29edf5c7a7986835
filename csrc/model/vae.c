#include "vae.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "vae_parts.h"

const float ipvg_vae_wan_mean[16] = {-0.7571f, -0.7089f, -0.9113f, 0.1075f,  -0.1745f, 0.9653f,  -0.1517f, 1.5508f,
                                     0.4134f,  -0.0715f, 0.5517f,  -0.3632f, -0.1922f, -0.9497f, 0.2503f,  -0.2921f};
const float ipvg_vae_wan_std[16] = {2.8184f, 1.4541f, 2.3275f, 2.6558f, 1.2196f, 1.7708f, 2.6052f, 2.0743f,
                                    3.2687f, 2.1526f, 2.8652f, 1.5579f, 1.6382f, 1.1253f, 2.8251f, 1.9160f};

/* ==== config ==== */

static ipvg_status check_config(ipvg_context *ctx, const ipvg_vae_config *c)
{
    if (c->dim < 1 || c->dim > 1 << 14 || c->z_dim < 1 || c->z_dim > IPVG_VAE_MAX_Z)
        return ipvg_fail(ctx, IPVG_E_ARGUMENT, "VAE: dim %d or z_dim %d (at most %d) cannot work", c->dim, c->z_dim,
                         IPVG_VAE_MAX_Z);
    if (c->levels < 1 || c->levels > IPVG_VAE_MAX_LEVELS)
        return ipvg_fail(ctx, IPVG_E_ARGUMENT, "VAE: 1 to %d levels (dim_mult), got %d", IPVG_VAE_MAX_LEVELS,
                         c->levels);
    if (c->res_blocks < 1 || c->res_blocks >= IPVG_VAE_MAX_BLOCKS)
        return ipvg_fail(ctx, IPVG_E_ARGUMENT, "VAE: num_res_blocks 1 to %d, got %d", IPVG_VAE_MAX_BLOCKS - 1,
                         c->res_blocks);
    for (int i = 0; i < c->levels; i++) {
        if (c->dim_mult[i] < 1 || c->dim_mult[i] > 64)
            return ipvg_fail(ctx, IPVG_E_ARGUMENT, "VAE: dim_mult holds %d, expected 1 to 64", c->dim_mult[i]);
        if (i > 0 && c->dim * c->dim_mult[i] % 2)
            return ipvg_fail(ctx, IPVG_E_ARGUMENT, "VAE: the decoder halves %d channels", c->dim * c->dim_mult[i]);
    }
    for (int z = 0; z < c->z_dim; z++)
        if (!isfinite(c->mean[z]) || !isfinite(c->std[z]) || !(c->std[z] > 0))
            return ipvg_fail(ctx, IPVG_E_ARGUMENT, "VAE: mean and standard deviation of latent channel %d: %g, %g", z,
                             (double)c->mean[z], (double)c->std[z]);
    return IPVG_OK;
}

const ipvg_vae_config *ipvg_vae_get_config(const ipvg_vae *vae) { return &vae->config; }

int ipvg_vae_space_stride(const ipvg_vae *vae) { return 1 << (vae->config.levels - 1); }

int ipvg_vae_time_stride(const ipvg_vae *vae)
{
    int stride = 1;
    for (int i = 0; i + 1 < vae->config.levels; i++) stride <<= vae->config.temporal[i];
    return stride;
}

ipvg_status ipvg_vae_latent_size(ipvg_context *ctx, const ipvg_vae *vae, int64_t frames, int64_t height, int64_t width,
                                 int64_t *t, int64_t *h, int64_t *w)
{
    int space = ipvg_vae_space_stride(vae), time = ipvg_vae_time_stride(vae);
    if (frames < 1 || frames > 1 << 24 || (frames - 1) % time)
        return ipvg_fail(ctx, IPVG_E_ARGUMENT, "frames: expected %dn+1 (the VAE would drop the rest), got %lld", time,
                         (long long)frames);
    if (height < 1 || width < 1 || height > 1 << 16 || width > 1 << 16 || height % space || width % space)
        return ipvg_fail(ctx, IPVG_E_ARGUMENT,
                         "size: expected height and width in multiples of %d, got %lldx%lld (height x width)", space,
                         (long long)height, (long long)width);
    *t = (frames - 1) / time + 1;
    *h = height / space;
    *w = width / space;
    return IPVG_OK;
}

/* ==== weights ==== */

/* name.weight (out, in, kernel...) and name.bias (out) */
static ipvg_status take_pair(ipvg_context *ctx, ipvg_weights *w, pair *p, int out, int in, int ndim, const int *kernel,
                             const char *name)
{
    int64_t shape[IPVG_MAX_DIMS] = {out, in};
    ipvg_status status;
    for (int i = 2; i < ndim; i++) shape[i] = kernel[i - 2];
    IPVG_TRY(ipvg_weights_take(ctx, w, &p->w, shape, ndim, "%s.weight", name));
    IPVG_TRY(ipvg_weights_take(ctx, w, &p->b, shape, 1, "%s.bias", name));
done:
    return status;
}
#define K333 \
    5, (const int[]) { 3, 3, 3 }
#define K311 \
    5, (const int[]) { 3, 1, 1 }
#define K111 \
    5, (const int[]) { 1, 1, 1 }
#define K33 \
    4, (const int[]) { 3, 3 }
#define K11 \
    4, (const int[]) { 1, 1 }

static ipvg_status take_res(ipvg_context *ctx, ipvg_weights *w, res_weights *r, int in, int out, const char *name)
{
    const int64_t norm1[] = {in, 1, 1, 1}, norm2[] = {out, 1, 1, 1};
    char part[96];
    ipvg_status status;
    r->in = in;
    r->out = out;
    IPVG_TRY(ipvg_weights_take(ctx, w, &r->norm1, norm1, 4, "%s.residual.0.gamma", name));
    snprintf(part, sizeof part, "%s.residual.2", name);
    IPVG_TRY(take_pair(ctx, w, &r->conv1, out, in, K333, part));
    IPVG_TRY(ipvg_weights_take(ctx, w, &r->norm2, norm2, 4, "%s.residual.3.gamma", name));
    snprintf(part, sizeof part, "%s.residual.6", name);
    IPVG_TRY(take_pair(ctx, w, &r->conv2, out, out, K333, part));
    snprintf(part, sizeof part, "%s.shortcut", name);
    if (in != out) IPVG_TRY(take_pair(ctx, w, &r->shortcut, out, in, K111, part));
done:
    return status;
}

static ipvg_status take_middle(ipvg_context *ctx, ipvg_weights *w, middle_weights *m, int c, const char *half)
{
    const int64_t norm[] = {c, 1, 1};
    char name[64];
    ipvg_status status;
    snprintf(name, sizeof name, "%s.middle.0", half);
    IPVG_TRY(take_res(ctx, w, &m->block[0], c, c, name));
    IPVG_TRY(ipvg_weights_take(ctx, w, &m->norm, norm, 3, "%s.middle.1.norm.gamma", half));
    snprintf(name, sizeof name, "%s.middle.1.to_qkv", half);
    IPVG_TRY(take_pair(ctx, w, &m->qkv, 3 * c, c, K11, name));
    snprintf(name, sizeof name, "%s.middle.1.proj", half);
    IPVG_TRY(take_pair(ctx, w, &m->proj, c, c, K11, name));
    snprintf(name, sizeof name, "%s.middle.2", half);
    IPVG_TRY(take_res(ctx, w, &m->block[1], c, c, name));
    m->qkv.w = ipvg_tensor_of(m->qkv.w.data, m->qkv.w.dtype, 3 * c, c);
    m->proj.w = ipvg_tensor_of(m->proj.w.data, m->proj.w.dtype, c, c);
done:
    return status;
}

static ipvg_status take_encoder(ipvg_context *ctx, ipvg_weights *w, half_weights *e, const ipvg_vae_config *c)
{
    int channels = c->dim, part = 0;
    char name[64];
    ipvg_status status;
    IPVG_TRY(take_pair(ctx, w, &e->first, channels, 3, K333, "encoder.conv1"));
    for (int i = 0; i < c->levels; i++) {
        level_weights *l = &e->level[i];
        l->in = channels;
        l->out = channels = c->dim * c->dim_mult[i];
        l->blocks = c->res_blocks;
        l->first = part;
        for (int b = 0; b < l->blocks; b++) {
            snprintf(name, sizeof name, "encoder.downsamples.%d", part++);
            IPVG_TRY(take_res(ctx, w, &l->block[b], b ? l->out : l->in, l->out, name));
        }
        l->resample = i + 1 < c->levels;
        l->temporal = l->resample && c->temporal[i];
        snprintf(name, sizeof name, "encoder.downsamples.%d.resample.1", part);
        if (l->resample) IPVG_TRY(take_pair(ctx, w, &l->space, l->out, l->out, K33, name));
        snprintf(name, sizeof name, "encoder.downsamples.%d.time_conv", part++);
        if (l->temporal) IPVG_TRY(take_pair(ctx, w, &l->time, l->out, l->out, K311, name));
    }
    IPVG_TRY(take_middle(ctx, w, &e->middle, channels, "encoder"));
    IPVG_TRY(ipvg_weights_take(ctx, w, &e->head_norm, (const int64_t[]){channels, 1, 1, 1}, 4, "encoder.head.0.gamma"));
    IPVG_TRY(take_pair(ctx, w, &e->head, 2 * c->z_dim, channels, K333, "encoder.head.2"));
done:
    return status;
}

static ipvg_status take_decoder(ipvg_context *ctx, ipvg_weights *w, half_weights *d, const ipvg_vae_config *c)
{
    int channels = c->dim * c->dim_mult[c->levels - 1], part = 0;
    char name[64];
    ipvg_status status;
    IPVG_TRY(take_pair(ctx, w, &d->first, channels, c->z_dim, K333, "decoder.conv1"));
    IPVG_TRY(take_middle(ctx, w, &d->middle, channels, "decoder"));
    for (int i = 0; i < c->levels; i++) {
        level_weights *l = &d->level[i];
        l->in = channels;
        l->out = c->dim * c->dim_mult[c->levels - 1 - i];
        l->blocks = c->res_blocks + 1;
        l->first = part;
        for (int b = 0; b < l->blocks; b++) {
            snprintf(name, sizeof name, "decoder.upsamples.%d", part++);
            IPVG_TRY(take_res(ctx, w, &l->block[b], b ? l->out : l->in, l->out, name));
        }
        l->resample = i + 1 < c->levels;
        l->temporal = l->resample && c->temporal[c->levels - 2 - i];
        channels = l->out / 2;
        snprintf(name, sizeof name, "decoder.upsamples.%d.resample.1", part);
        if (l->resample) IPVG_TRY(take_pair(ctx, w, &l->space, channels, l->out, K33, name));
        snprintf(name, sizeof name, "decoder.upsamples.%d.time_conv", part++);
        if (l->temporal) IPVG_TRY(take_pair(ctx, w, &l->time, 2 * l->out, l->out, K311, name));
    }
    channels = d->level[c->levels - 1].out;
    IPVG_TRY(ipvg_weights_take(ctx, w, &d->head_norm, (const int64_t[]){channels, 1, 1, 1}, 4, "decoder.head.0.gamma"));
    IPVG_TRY(take_pair(ctx, w, &d->head, 3, channels, K333, "decoder.head.2"));
done:
    return status;
}

ipvg_status ipvg_vae_new(ipvg_context *ctx, ipvg_vae **out, const ipvg_vae_config *config, ipvg_weights *weights)
{
    ipvg_vae *v = NULL;
    ipvg_status status;
    IPVG_TRY(check_config(ctx, config));
    v = calloc(1, sizeof *v);
    if (!v) {
        status = ipvg_fail(ctx, IPVG_E_MEMORY, "no memory for a VAE");
        goto done;
    }
    v->config = *config;
    v->weights = weights;
    for (int z = 0; z < config->z_dim; z++) v->scale[z] = 1.0f / config->std[z];
    IPVG_TRY(take_encoder(ctx, weights, &v->encoder, config));
    IPVG_TRY(take_pair(ctx, weights, &v->quant, 2 * config->z_dim, 2 * config->z_dim, K111, "conv1"));
    IPVG_TRY(take_pair(ctx, weights, &v->post_quant, config->z_dim, config->z_dim, K111, "conv2"));
    IPVG_TRY(take_decoder(ctx, weights, &v->decoder, config));
    IPVG_TRY(ipvg_weights_all_taken(ctx, weights));
    *out = v;
    v = NULL;
done:
    ipvg_vae_free(&v);
    return status;
}

/* A convolution's weights in the frames' dtype; its bias comes with the padding that the backend wants, from float32. */
static ipvg_status place_pair(ipvg_placing *p, pair *c)
{
    ipvg_status status = IPVG_OK;
    if (!c->w.ndim) return IPVG_OK;
    IPVG_TRY(ipvg_place(p, &c->w, p->ex->be->video));
    IPVG_TRY(ipvg_place(p, &c->b, IPVG_F32));
done:
    return status;
}

static ipvg_status place_res(ipvg_placing *p, res_weights *r)
{
    pair *const pairs[] = {&r->conv1, &r->conv2, &r->shortcut};
    ipvg_status status;
    IPVG_TRY(ipvg_place(p, &r->norm1, IPVG_F32));
    IPVG_TRY(ipvg_place(p, &r->norm2, IPVG_F32));
    for (int i = 0; i < 3; i++) IPVG_TRY(place_pair(p, pairs[i]));
done:
    return status;
}

static ipvg_status place_half(ipvg_placing *p, half_weights *h, int levels)
{
    ipvg_tensor *const matrices[] = {&h->middle.qkv.w, &h->middle.qkv.b, &h->middle.proj.w, &h->middle.proj.b};
    ipvg_status status;
    IPVG_TRY(place_pair(p, &h->first));
    for (int i = 0; i < 2; i++) IPVG_TRY(place_res(p, &h->middle.block[i]));
    IPVG_TRY(ipvg_place(p, &h->middle.norm, IPVG_F32));
    for (int i = 0; i < 4; i++) IPVG_TRY(ipvg_place(p, matrices[i], p->ex->be->video));
    for (int i = 0; i < levels; i++) {
        level_weights *l = &h->level[i];
        for (int b = 0; b < l->blocks; b++) IPVG_TRY(place_res(p, &l->block[b]));
        IPVG_TRY(place_pair(p, &l->space));
        IPVG_TRY(place_pair(p, &l->time));
    }
    IPVG_TRY(ipvg_place(p, &h->head_norm, IPVG_F32));
    IPVG_TRY(place_pair(p, &h->head));
done:
    return status;
}

static ipvg_status place(ipvg_placing *p, void *model)
{
    ipvg_vae *v = model;
    ipvg_status status;
    p->weights = v->weights;
    IPVG_TRY(place_half(p, &v->encoder, v->config.levels));
    IPVG_TRY(place_half(p, &v->decoder, v->config.levels));
    IPVG_TRY(place_pair(p, &v->quant));
    IPVG_TRY(place_pair(p, &v->post_quant));
done:
    return status;
}

ipvg_status ipvg_vae_place(ipvg_exec *ex, ipvg_vae *vae)
{
    return ipvg_place_model(ex, &vae->home, place, vae, !vae->encoder.first.w.data);
}

void ipvg_vae_free(ipvg_vae **vae)
{
    if (*vae) ipvg_arena_free(&(*vae)->home);
    free(*vae);
    *vae = NULL;
}

/* ==== memory ==== */

ipvg_status ipvg_vae_memory(ipvg_context *ctx, const ipvg_backend *be, ipvg_vae_bytes *out, const ipvg_vae *vae,
                            int64_t frames, int64_t height, int64_t width)
{
    ipvg_arena arena = {0};
    ipvg_exec ex = {.ctx = ctx, .be = be, .arena = &arena};
    int64_t t, h, w;
    ipvg_status status;
    IPVG_TRY(ipvg_vae_latent_size(ctx, vae, frames, height, width, &t, &h, &w));
    /* A few frames pass every part once; the arena's peak does not depend on how many follow. */
    int64_t few = 1 + 2 * ipvg_vae_time_stride(vae), n = frames < few ? frames : few;
    ipvg_tensor video = ipvg_tensor_of(NULL, IPVG_F32, 3, n, height, width);
    ipvg_tensor latent =
        ipvg_tensor_of(NULL, IPVG_F32, vae->config.z_dim, (n - 1) / ipvg_vae_time_stride(vae) + 1, h, w);
    ipvg_arena_plan(&arena);
    IPVG_TRY(ipvg_vae_encode(&ex, &latent, &video, vae));
    out->encode = arena.peak;
    ipvg_arena_plan(&arena);
    IPVG_TRY(ipvg_vae_decode(&ex, &video, &latent, vae));
    out->decode = arena.peak;
    if (be->host)
        out->decode += (size_t)(h * w * vae->config.z_dim) * sizeof(float); /* a frame of the caller's latent */
    out->weights = vae->home.peak;
done:
    return status;
}

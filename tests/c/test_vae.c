/* The video VAE without Python: exact plan, streams in poisoned memory, every refused allocation, cancelling anywhere. Its
 * numbers are checked in tests/test_vae.py and by the parity tests. */
#include <math.h>
#include <stdarg.h>
#include <string.h>

#include "../../csrc/model/vae.h"
#include "check.h"

enum { DIM = 4, Z = 3, LEVELS = 3, H = 12, W = 8, MAX_TENSORS = 200 };

static const ipvg_vae_config config = {.dim = DIM,
                                       .z_dim = Z,
                                       .levels = LEVELS,
                                       .dim_mult = {1, 2, 3},
                                       .res_blocks = 1,
                                       .temporal = {false, true},
                                       .mean = {0.5f, -0.25f, 0},
                                       .std = {1, 2, 0.5f}};

static ipvg_context ctx;
static ipvg_backend *be;
static ipvg_arena arena;
static ipvg_exec ex;
static float numbers[4096];
static char names[MAX_TENSORS][64];
static ipvg_weight_source sources[MAX_TENSORS];
static size_t count;

/* ---- weights ---- */

__attribute__((format(printf, 2, 3))) static void source(const int64_t shape[IPVG_MAX_DIMS], const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(names[count], sizeof names[count], fmt, ap);
    va_end(ap);
    ipvg_weight_source *s = &sources[count];
    *s = (ipvg_weight_source){.name = names[count++], .data = numbers, .bytes = sizeof(float), .dtype = IPVG_F32};
    for (; s->ndim < IPVG_MAX_DIMS && shape[s->ndim]; s->ndim++) {
        s->shape[s->ndim] = shape[s->ndim];
        s->bytes *= (uint64_t)shape[s->ndim];
    }
    CHECK(count < MAX_TENSORS && s->bytes <= sizeof numbers);
}
#define SHAPE(...) ((const int64_t[IPVG_MAX_DIMS]){__VA_ARGS__})

static void conv(const char *name, int64_t out, int64_t in, int64_t kt, int64_t kh, int64_t kw)
{
    source(kt ? SHAPE(out, in, kt, kh, kw) : SHAPE(out, in, kh, kw), "%s.weight", name);
    source(SHAPE(out), "%s.bias", name);
}

static void res(const char *half, int part, int64_t in, int64_t out)
{
    char name[64];
    source(SHAPE(in, 1, 1, 1), "%s.%d.residual.0.gamma", half, part);
    snprintf(name, sizeof name, "%s.%d.residual.2", half, part);
    conv(name, out, in, 3, 3, 3);
    source(SHAPE(out, 1, 1, 1), "%s.%d.residual.3.gamma", half, part);
    snprintf(name, sizeof name, "%s.%d.residual.6", half, part);
    conv(name, out, out, 3, 3, 3);
    snprintf(name, sizeof name, "%s.%d.shortcut", half, part);
    if (in != out) conv(name, out, in, 1, 1, 1);
}

static void middle(const char *half, const char *attention, int64_t c)
{
    char name[64];
    res(half, 0, c, c);
    source(SHAPE(c, 1, 1), "%s.norm.gamma", attention);
    snprintf(name, sizeof name, "%s.to_qkv", attention);
    conv(name, 3 * c, c, 0, 1, 1);
    snprintf(name, sizeof name, "%s.proj", attention);
    conv(name, c, c, 0, 1, 1);
    res(half, 2, c, c);
}

static void describe(void)
{
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) numbers[i] = (float)(i * 37 % 101) / 505.0f - 0.09f;
    conv("encoder.conv1", 4, 3, 3, 3, 3);
    res("encoder.downsamples", 0, 4, 4);
    conv("encoder.downsamples.1.resample.1", 4, 4, 0, 3, 3);
    res("encoder.downsamples", 2, 4, 8);
    conv("encoder.downsamples.3.resample.1", 8, 8, 0, 3, 3);
    conv("encoder.downsamples.3.time_conv", 8, 8, 3, 1, 1);
    res("encoder.downsamples", 4, 8, 12);
    middle("encoder.middle", "encoder.middle.1", 12);
    source(SHAPE(12, 1, 1, 1), "encoder.head.0.gamma");
    conv("encoder.head.2", 2 * Z, 12, 3, 3, 3);
    conv("conv1", 2 * Z, 2 * Z, 1, 1, 1);
    conv("conv2", Z, Z, 1, 1, 1);
    conv("decoder.conv1", 12, Z, 3, 3, 3);
    middle("decoder.middle", "decoder.middle.1", 12);
    res("decoder.upsamples", 0, 12, 12);
    res("decoder.upsamples", 1, 12, 12);
    conv("decoder.upsamples.2.resample.1", 6, 12, 0, 3, 3);
    conv("decoder.upsamples.2.time_conv", 24, 12, 3, 1, 1);
    res("decoder.upsamples", 3, 6, 8);
    res("decoder.upsamples", 4, 8, 8);
    conv("decoder.upsamples.5.resample.1", 4, 8, 0, 3, 3);
    res("decoder.upsamples", 6, 4, 4);
    res("decoder.upsamples", 7, 4, 4);
    source(SHAPE(4, 1, 1, 1), "decoder.head.0.gamma");
    conv("decoder.head.2", 3, 4, 3, 3, 3);
}

/* ---- running ---- */

enum { FRAMES = 5, LATENTS = 3, PIXELS = 3 * FRAMES * H * W, LATENT = Z * LATENTS * (H / 4) * (W / 4) };

static ipvg_tensor video(float *p) { return ipvg_tensor_of(p, IPVG_F32, 3, FRAMES, H, W); }
static ipvg_tensor latent(float *p) { return ipvg_tensor_of(p, IPVG_F32, Z, LATENTS, H / 4, W / 4); }

static ipvg_status encode(const ipvg_vae *vae, float *z, const float *x)
{
    ipvg_tensor out = latent(z), in = video((float *)(uintptr_t)x);
    return ipvg_vae_encode(&ex, &out, &in, vae);
}

static ipvg_status decode(const ipvg_vae *vae, float *x, const float *z)
{
    ipvg_tensor out = video(x), in = latent((float *)(uintptr_t)z);
    return ipvg_vae_decode(&ex, &out, &in, vae);
}

/* An arena of exactly the planned size, less `lack`, full of NaN. */
static void reserve(size_t bytes, size_t lack)
{
    ipvg_arena_free(&arena);
    CHECK(ipvg_arena_reserve(&ctx, &be->memory, &arena, bytes - lack) == IPVG_OK);
    memset(arena.base, 0xff, arena.size);
}

static float frames[PIXELS], again[PIXELS], z[LATENT], z_again[LATENT];

static void the_plan_is_exact(const ipvg_vae *vae)
{
    ipvg_vae_bytes bytes;
    CHECK(ipvg_vae_memory(&ctx, be, &bytes, vae, FRAMES, H, W) == IPVG_OK);
    ipvg_arena_plan(&arena);
    CHECK(encode(vae, NULL, NULL) == IPVG_OK && arena.used == 0);
    size_t plan = arena.peak;
    CHECK(plan == bytes.encode);
    for (int i = 0; i < PIXELS; i++) frames[i] = (float)(i * 53 % 211) / 105.5f - 1;
    reserve(plan, IPVG_ALIGN);
    CHECK(encode(vae, z, frames) == IPVG_E_MEMORY && arena.used == 0);
    reserve(plan, 0);
    CHECK(encode(vae, z, frames) == IPVG_OK && arena.used == 0);
    for (int i = 0; i < LATENT; i++) CHECK(isfinite(z[i]));
    reserve(plan, 0);
    CHECK(encode(vae, z_again, frames) == IPVG_OK && memcmp(z, z_again, sizeof z) == 0);

    ipvg_arena_plan(&arena);
    CHECK(decode(vae, NULL, NULL) == IPVG_OK && arena.used == 0);
    plan = arena.peak;
    CHECK(plan + sizeof z / LATENTS == bytes.decode); /* a latent frame, from the caller's array */
    reserve(plan, IPVG_ALIGN);
    CHECK(decode(vae, frames, z) == IPVG_E_MEMORY && arena.used == 0);
    reserve(plan, 0);
    CHECK(decode(vae, frames, z) == IPVG_OK && arena.used == 0);
    for (int i = 0; i < PIXELS; i++) CHECK(isfinite(frames[i]));
    reserve(plan, 0);
    CHECK(decode(vae, again, z) == IPVG_OK && memcmp(frames, again, sizeof frames) == 0);
}

/* One latent frame, or what a frame completes, at a time, into a buffer of just that size. */
static void streams_give_the_same(const ipvg_vae *vae)
{
    ipvg_vae_decoder *d = NULL;
    ipvg_vae_encoder *e = NULL;
    float some[3 * 2 * H * W], one[Z * (H / 4) * (W / 4)];
    ipvg_tensor chunk = ipvg_tensor_of(some, IPVG_F32, 3, 2, H, W), in = latent(z), x = video(frames);
    ipvg_tensor small = ipvg_tensor_of(one, IPVG_F32, Z, 1, H / 4, W / 4);
    int made, at = 0;
    reserve(1 << 22, 0);
    CHECK(ipvg_vae_decoder_begin(&ex, &d, vae, H / 4, W / 4) == IPVG_OK);
    for (int i = 0; i < LATENTS; i++) {
        CHECK(ipvg_vae_decoder_next(&ex, d, &chunk, 0, &made, &in, i) == IPVG_OK && made == (i ? 2 : 1));
        for (int c = 0; c < 3; c++)
            CHECK(!memcmp(some + c * 2 * H * W, frames + (c * FRAMES + at) * H * W,
                          (size_t)(made * H * W) * sizeof(float)));
        at += made;
    }
    CHECK(ipvg_vae_decoder_next(&ex, d, &chunk, 0, &made, &in, LATENTS) == IPVG_E_ARGUMENT);
    CHECK(ipvg_vae_decoder_next(&ex, d, &chunk, 1, &made, &in, 1) == IPVG_E_ARGUMENT); /* no room for two */
    ipvg_vae_decoder_end(be, &d);
    CHECK(d == NULL);

    ipvg_arena_reset(&arena, 0);
    CHECK(encode(vae, z_again, frames) == IPVG_OK);
    CHECK(ipvg_vae_encoder_begin(&ex, &e, vae, H, W) == IPVG_OK);
    for (int i = 0, done = 0; i < FRAMES; i++) {
        CHECK(ipvg_vae_encoder_next(&ex, e, &small, 0, &made, &x, i) == IPVG_OK && made == (i % 2 == 0));
        for (int c = 0; c < Z && made; c++)
            CHECK(!memcmp(one + c * 6, z_again + (c * LATENTS + done) * 6, 6 * sizeof(float)));
        done += made;
    }
    CHECK(ipvg_vae_encoder_next(&ex, e, &small, 1, &made, &x, 0) == IPVG_E_ARGUMENT);
    ipvg_vae_encoder_end(be, &e);
    ipvg_vae_encoder_end(be, &e);
    ipvg_vae_decoder_end(be, &d);
}

static int polls_left;
static int poll(void *user) { return (void)user, polls_left-- == 0; }

static void cancelling_anywhere_leaves_it_usable(const ipvg_vae *vae)
{
    reserve(1 << 22, 0);
    int stop = 0;
    ctx.poll = poll;
    for (;; stop++) {
        polls_left = stop;
        ipvg_status status = decode(vae, again, z);
        CHECK(arena.used == 0);
        if (status == IPVG_OK) break;
        CHECK(status == IPVG_E_CANCELLED);
    }
    CHECK(stop > 3 * 9); /* once a block: three latent frames through at least nine */
    for (stop = 0; stop < 5; stop++) {
        polls_left = stop;
        CHECK(encode(vae, z_again, frames) == IPVG_E_CANCELLED && arena.used == 0);
    }
    ctx.poll = NULL;
    CHECK(decode(vae, again, z) == IPVG_OK && memcmp(frames, again, sizeof frames) == 0);
}

static void bad_calls_are_refused(const ipvg_vae *vae)
{
    int64_t t, h, w;
    ipvg_tensor x = video(frames), short_video = ipvg_tensor_of(frames, IPVG_F32, 3, 3, H, W), out = latent(z);
    ipvg_tensor flat = ipvg_tensor_of(z, IPVG_F32, LATENT);
    ipvg_vae_decoder *d = NULL;
    ipvg_vae_encoder *e = NULL;
    CHECK(ipvg_vae_encode(&ex, &out, &short_video, vae) == IPVG_E_ARGUMENT);
    CHECK(ipvg_vae_encode(&ex, &flat, &x, vae) == IPVG_E_ARGUMENT &&
          ipvg_vae_decode(&ex, &x, &flat, vae) == IPVG_E_ARGUMENT);
    CHECK(ipvg_vae_decode(&ex, &short_video, &out, vae) == IPVG_E_ARGUMENT);
    CHECK(ipvg_vae_decoder_begin(&ex, &d, vae, 0, 1) == IPVG_E_ARGUMENT && !d);
    CHECK(ipvg_vae_encoder_begin(&ex, &e, vae, H + 1, W) == IPVG_E_ARGUMENT && !e);
    CHECK(ipvg_vae_latent_size(&ctx, vae, 2, H, W, &t, &h, &w) == IPVG_E_ARGUMENT);
    CHECK(ipvg_vae_latent_size(&ctx, vae, INT64_MAX, H, W, &t, &h, &w) == IPVG_E_ARGUMENT);
    CHECK(ipvg_vae_latent_size(&ctx, vae, 7, H, W, &t, &h, &w) == IPVG_OK && t == 4 && h == 3 && w == 2);
}

static void bad_configs_are_refused(ipvg_weights *weights)
{
    ipvg_vae *vae = NULL;
    ipvg_vae_config c = config;
    c.levels = IPVG_VAE_MAX_LEVELS + 1;
    CHECK(ipvg_vae_new(&ctx, &vae, &c, weights) == IPVG_E_ARGUMENT);
    c = config, c.res_blocks = IPVG_VAE_MAX_BLOCKS;
    CHECK(ipvg_vae_new(&ctx, &vae, &c, weights) == IPVG_E_ARGUMENT);
    c = config, c.z_dim = IPVG_VAE_MAX_Z + 1;
    CHECK(ipvg_vae_new(&ctx, &vae, &c, weights) == IPVG_E_ARGUMENT);
    c = config, c.std[1] = 0;
    CHECK(ipvg_vae_new(&ctx, &vae, &c, weights) == IPVG_E_ARGUMENT);
    c = config, c.dim_mult[2] = 4;
    CHECK(ipvg_vae_new(&ctx, &vae, &c, weights) == IPVG_E_FORMAT && !vae);
}

int main(void)
{
    ipvg_weights *weights = NULL;
    ipvg_vae *vae = NULL;
    ipvg_context_init(&ctx, 2);
    CHECK(ipvg_backend_cpu(&ctx, &be, IPVG_F32) == IPVG_OK);
    ex = (ipvg_exec){.ctx = &ctx, .be = be, .arena = &arena};
    describe();
    CHECK(ipvg_weights_open(&ctx, &weights, sources, count) == IPVG_OK);
    ipvg_status status = ipvg_vae_new(&ctx, &vae, &config, weights);
    if (status != IPVG_OK) puts(ctx.error);
    CHECK(status == IPVG_OK && ipvg_vae_time_stride(vae) == 2 && ipvg_vae_space_stride(vae) == 4);
    the_plan_is_exact(vae);
    streams_give_the_same(vae);
    cancelling_anywhere_leaves_it_usable(vae);
    bad_calls_are_refused(vae);
    bad_configs_are_refused(weights);
    ipvg_vae_free(&vae);
    ipvg_vae_free(&vae);
    ipvg_weights_free(&weights);
    ipvg_arena_free(&arena);
    ipvg_backend_free(&be);
    puts("ok");
    return 0;
}

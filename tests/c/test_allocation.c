/* Every allocation of loading, text, VAE, context and sampling fails once: see failing.h. Those of pictures and video are in
 * test_allocation_io.c, of the network in test_remote.c, of the Python layer in tests/test_allocation.py. */
#include <fcntl.h>
#include <unistd.h>

#include "../../csrc/base/random.h"
#include "../../csrc/model/prepare.h"
#include "../../csrc/model/umt5.h"
#include "../../csrc/model/vae.h"
#include "../../csrc/sample/sampler.h"
#include "failing.h"

static ipvg_context ctx;
static ipvg_backend *be;
static ipvg_arena arena;
static ipvg_exec ex;

/* ---- three small models in one file ---- */

static const ipvg_umt5_config umt5_config = {30, 12, 8, 20, 2, 2, 32, 128, 1e-6f};
static const ipvg_vae_config vae_config = {.dim = 4,
                                           .z_dim = 4,
                                           .levels = 3,
                                           .dim_mult = {1, 2, 3},
                                           .res_blocks = 1,
                                           .temporal = {false, true},
                                           .std = {1, 2, 0.5f, 1}};
static const ipvg_dit_config dit_config = {.dim = 16,
                                           .heads = 2,
                                           .ffn_dim = 24,
                                           .layers = 2,
                                           .in_dim = 4,
                                           .out_dim = 4,
                                           .vace_in_dim = 6,
                                           .freq_dim = 8,
                                           .text_len = 7,
                                           .text_dim = 12,
                                           .eps = 1e-6f,
                                           .n_vace = 1,
                                           .vace_layers = {0}};
enum { UMT5, VAE, DIT, MODELS, MAX_TENSORS = 256, NUMBERS = 1 << 13 };

static char path[] = "/tmp/ipvg-test-allocation.XXXXXX";
static char names[MODELS][MAX_TENSORS][80];
static ipvg_weight_source sources[MODELS][MAX_TENSORS];
static size_t count[MODELS];
static ipvg_weights *weights[MODELS];
static ipvg_umt5 *umt5;
static ipvg_vae *vae;
static ipvg_dit *dit;

static ipvg_status make_model(int model)
{
    if (model == UMT5) return ipvg_umt5_new(&ctx, &umt5, &umt5_config, weights[model]);
    if (model == VAE) return ipvg_vae_new(&ctx, &vae, &vae_config, weights[model]);
    return ipvg_dit_new(&ctx, &dit, &dit_config, weights[model]);
}

static ipvg_status load(int model)
{
    ipvg_status status = ipvg_weights_open(&ctx, &weights[model], sources[model], count[model]);
    return status == IPVG_OK ? make_model(model) : status;
}

static void unload(int model)
{
    if (model == UMT5) ipvg_umt5_free(&umt5);
    if (model == VAE) ipvg_vae_free(&vae);
    if (model == DIT) ipvg_dit_free(&dit);
    ipvg_weights_free(&weights[model]);
}

/* A model names the first tensor that it misses, with its shape: so the list makes itself. All of them are the same bytes,
 * some from an odd offset, so that taking them needs a copy. */
static void describe(int model)
{
    while (load(model) != IPVG_OK) {
        size_t i = count[model]++;
        ipvg_weight_source *s = &sources[model][i];
        char shape[80];
        CHECK(i < MAX_TENSORS);
        CHECK(sscanf(ctx.error, "tensor '%79[^']' is missing: expected it with shape (%79[^)]", names[model][i],
                     shape) == 2);
        *s = (ipvg_weight_source){
            .name = names[model][i], .path = path, .offset = i % 9 == 4 ? 1 : 0, .dtype = IPVG_F32};
        for (char *at = strtok(shape, ", "); at; at = strtok(NULL, ", ")) s->shape[s->ndim++] = atoi(at);
        unload(model);
    }
    unload(model);
}

static void write_numbers(void)
{
    static float numbers[NUMBERS + 1];
    int fd = mkstemp(path);
    ipvg_normals(numbers, 1, 0, 0, NUMBERS);
    for (int i = 0; i < NUMBERS; i++) numbers[i] = 0.1f * (float)(1 + i % 3) + 0.01f * numbers[i];
    CHECK(fd >= 0 && write(fd, numbers, sizeof numbers) == (ssize_t)sizeof numbers && close(fd) == 0);
}

static ipvg_status loading(void *unused)
{
    ipvg_status status = IPVG_OK;
    (void)unused;
    for (int m = 0; m < MODELS; m++) {
        if (status == IPVG_OK) status = load(m);
        CHECK(status == IPVG_OK || !(m == UMT5 ? (void *)umt5 : m == VAE ? (void *)vae : (void *)dit));
        unload(m);
    }
    return status;
}

/* ---- text, VAE, pixels ---- */

enum { F = 3, H = 8, W = 8, TOKENS = 5, PIXELS = 3 * (2 * F - 1) * H * W, LATENT = 4 * F * (H / 4) * (W / 4) };

static float frames[PIXELS];

/* As every caller does it: plan, take the scratch, compute. Between two runs the scratch is given away. */
#define PLANNED(call)                                                                          \
    ipvg_arena_free(&arena);                                                                   \
    ipvg_arena_plan(&arena);                                                                   \
    ipvg_status status = call;                                                                 \
    if (status == IPVG_OK) status = ipvg_arena_reserve(&ctx, &be->memory, &arena, arena.peak); \
    if (status == IPVG_OK) status = call;                                                      \
    ipvg_arena_unplan(&arena);                                                                 \
    return status

static ipvg_status encoding_text(void *states)
{
    static int32_t ids[TOKENS] = {3, 1, 4, 1, 5};
    ipvg_tensor x = ipvg_tensor_of(ids, IPVG_I32, TOKENS), y = ipvg_tensor_of(states, IPVG_F32, TOKENS, 12);
    PLANNED(ipvg_umt5_encode(&ex, &y, &x, umt5));
}

static ipvg_status encoding(void *latent)
{
    ipvg_tensor x = ipvg_tensor_of(frames, IPVG_F32, 3, 2 * F - 1, H, W);
    ipvg_tensor z = ipvg_tensor_of(latent, IPVG_F32, 4, F, H / 4, W / 4);
    PLANNED(ipvg_vae_encode(&ex, &z, &x, vae));
}

static ipvg_status decoding(void *out)
{
    ipvg_tensor x = ipvg_tensor_of(out, IPVG_F32, 3, 2 * F - 1, H, W);
    ipvg_tensor z = ipvg_tensor_of(frames, IPVG_F32, 4, F, H / 4, W / 4);
    PLANNED(ipvg_vae_decode(&ex, &x, &z, vae));
}

static ipvg_status fitting(void *canvas)
{
    ipvg_status status = ipvg_fit_reference(&ctx, canvas, (const uint8_t *)frames, true, 8, 6, 5, 7);
    return status == IPVG_OK ? ipvg_fit_reference(&ctx, canvas, (const uint8_t *)frames, false, 8, 6, 5, 7) : status;
}

static ipvg_status covering(void *out) { return ipvg_cover_frames(&ctx, out, (const uint8_t *)frames, 2, 8, 6, 5, 9); }

static ipvg_status backends(void *unused)
{
    ipvg_status status = IPVG_OK;
    (void)unused;
    for (int i = 0; i < 2 && status == IPVG_OK; i++) {
        ipvg_backend *b = NULL;
        status = ipvg_backend_cpu(&ctx, &b, i ? IPVG_BF16 : IPVG_F32);
        CHECK((status == IPVG_OK) == (b != NULL));
        ipvg_backend_free(&b);
    }
    return status;
}

/* ---- sampling ---- */

enum { STEPS = 3, BRANCHES = 3 };

static ipvg_dit_text *text;
static ipvg_dit_context *context;
static ipvg_schedule *schedule;
static ipvg_sampler *sampler;

static ipvg_status conditioning(void *unused)
{
    ipvg_dit_text *a = NULL;
    ipvg_dit_context *b = NULL;
    ipvg_tensor states = ipvg_tensor_of(frames, IPVG_F32, TOKENS, 12);
    ipvg_tensor given = ipvg_tensor_of(frames, IPVG_F32, 6, F - 1, H / 4, W / 4);
    (void)unused;
    ipvg_arena_free(&arena);
    ipvg_status status = ipvg_dit_text_new(&ex, &a, dit, &states);
    if (status == IPVG_OK) status = ipvg_dit_context_new(&ex, &b, dit, &given, F);
    CHECK((status == IPVG_OK) == (a && b) && !arena.planning);
    if (status == IPVG_OK && !text)
        text = a, context = b;
    else
        ipvg_dit_text_free(be, &a), ipvg_dit_context_free(be, &b);
    return status;
}

static ipvg_status scheduling(void *unused)
{
    ipvg_schedule *s = NULL;
    (void)unused;
    ipvg_status status =
        ipvg_schedule_new(&ctx, &s, &(ipvg_schedule_config){.solver = IPVG_UNIPC, .steps = STEPS, .shift = 8});
    CHECK((status == IPVG_OK) == (s != NULL));
    if (status == IPVG_OK && !schedule)
        schedule = s;
    else
        ipvg_schedule_free(&s);
    return status;
}

/* Everything that a branch can have, and every kind of operation. */
static ipvg_status new_sampler(ipvg_sampler **out)
{
    const unsigned char run[2] = {IPVG_DIT_RUN, IPVG_DIT_SKIP}, blurred[2] = {IPVG_DIT_BLUR};
    const float some[1] = {0.7f};
    const ipvg_dit_branch plain = {.text = text, .context = context};
    const ipvg_dit_branch how = {.text = text,
                                 .context = context,
                                 .run = run,
                                 .perturb = blurred,
                                 .blur = 0.8f,
                                 .nag = {text, 2.f, 2.5f, 0.5f},
                                 .scale = some,
                                 .reference_scale = some,
                                 .reference_frames = 1};
    const ipvg_sampler_branch branches[BRANCHES] = {
        {.how = plain}, {.how = how}, {.how = plain, .field = true, .twin = 1}};
    const ipvg_guidance_operation operations[4] = {
        {.kind = IPVG_TCFG, .cond = 0, .uncond = 1},
        {.kind = IPVG_APG, .cond = 0, .uncond = 1, .x0 = true, .momentum = 0.5, .norm = 3},
        {.kind = IPVG_OPTIMAL_SCALE, .cond = 0, .uncond = 1},
        {.kind = IPVG_RESCALE, .cond = 0, .uncond = -1, .phi = 0.5}};
    const float weight[STEPS * BRANCHES] = {3, -2, 1, 3, -2, 1, 3, -2, 1};
    return ipvg_sampler_new(&ex, out, dit, schedule, BRANCHES, branches, weight, 4, operations);
}

static ipvg_status making_a_sampler(void *unused)
{
    ipvg_sampler *s = NULL;
    (void)unused;
    ipvg_arena_free(&arena);
    ipvg_status status = new_sampler(&s);
    CHECK((status == IPVG_OK) == (s != NULL) && !arena.planning);
    ipvg_sampler_free(be, &s);
    return status;
}

/* The first step of the one sampler, again and again; the scratch has been given away before each of its parts. */
static ipvg_status stepping(void *x)
{
    sampler->state.step = 0;
    sampler->seen = -1;
    sampler->now[1] = 0;
    memset(sampler->running[1][0].data, 0, LATENT * sizeof(float));
    CHECK(ipvg_sampler_set(&ex, sampler, frames) == IPVG_OK);
    ipvg_arena_free(&arena);
    ipvg_status status = ipvg_sampler_predict(&ex, sampler);
    CHECK(status == IPVG_OK || sampler->seen < 0);
    if (status == IPVG_OK) {
        ipvg_arena_free(&arena);
        status = ipvg_sampler_combine(&ex, sampler);
    }
    if (status == IPVG_OK) status = ipvg_sampler_advance(&ex, sampler);
    CHECK(sampler->state.step == (status == IPVG_OK));
    memcpy(x, sampler->state.x.data, LATENT * sizeof(float));
    return status;
}

int main(void)
{
    float latent[LATENT], video[PIXELS], states[TOKENS * 12];
    char nothing[1] = {0};
    uint8_t bytes[2 * 8 * 6 * 3];
    ipvg_context_init(&ctx, 2);
    CHECK(ipvg_backend_cpu(&ctx, &be, IPVG_F32) == IPVG_OK);
    ex = (ipvg_exec){.ctx = &ctx, .be = be, .arena = &arena};
    write_numbers();
    for (int i = 0; i < PIXELS; i++) frames[i] = (float)(i * 53 % 211) / 105.5f - 1;
    for (int m = 0; m < MODELS; m++) describe(m);
    EACH_FAILS(&ctx, backends, nothing, 4);
    EACH_FAILS(&ctx, loading, nothing, 200); /* the name of each tensor, each copy, tables, maps */
    for (int m = 0; m < MODELS; m++) CHECK(load(m) == IPVG_OK);
    EACH_FAILS(&ctx, encoding_text, states, 1);
    EACH_FAILS(&ctx, encoding, latent, 3);
    EACH_FAILS(&ctx, decoding, video, 4);
    EACH_FAILS(&ctx, fitting, video, 5);
    EACH_FAILS(&ctx, covering, bytes, 12);
    EACH_FAILS(&ctx, conditioning, nothing, 6);
    EACH_FAILS(&ctx, scheduling, nothing, 4);
    EACH_FAILS(&ctx, making_a_sampler, nothing, 13);
    CHECK(new_sampler(&sampler) == IPVG_OK);
    EACH_FAILS(&ctx, stepping, latent, 2);
    ipvg_sampler_free(be, &sampler);
    ipvg_schedule_free(&schedule);
    ipvg_dit_text_free(be, &text);
    ipvg_dit_context_free(be, &context);
    for (int m = 0; m < MODELS; m++) unload(m);
    ipvg_arena_free(&arena);
    ipvg_backend_free(&be);
    CHECK(unlink(path) == 0);
    return 0;
}

/* A forward of several branches: the bytes of separate forwards, and as few operations as there are different ones, counted
 * through the backend's table. Prints what the sharing saves at the sizes of Wan2.1-VACE 1.3B. */
#include <math.h>
#include <string.h>

#include "../../csrc/base/random.h"
#include "../../csrc/model/dit_internal.h"
#include "check.h"

static ipvg_context ctx;
static ipvg_backend *cpu, be; /* be: cpu with counted operations */
static ipvg_arena arena;
static ipvg_exec ex;

/* ---- operations that are counted ---- */

typedef struct counts {
    int64_t self, cross, linear; /* calls */
    double flops;                /* of attention and linear */
} counts;
static counts seen;

static ipvg_status counted_linear(ipvg_exec *e, ipvg_tensor *y, const ipvg_tensor *x, const ipvg_tensor *w,
                                  const ipvg_tensor *b, ipvg_act act, bool exact)
{
    seen.linear++;
    seen.flops += 2. * (double)x->shape[0] * (double)w->shape[0] * (double)w->shape[1];
    return cpu->linear(e, y, x, w, b, act, exact);
}

static ipvg_status counted_attention(ipvg_exec *e, ipvg_tensor *o, const ipvg_tensor *q, const ipvg_tensor *k,
                                     const ipvg_tensor *v, int heads, float scale, const ipvg_tensor *bias,
                                     int64_t repeat)
{
    *(k->shape[0] == q->shape[0] ? &seen.self : &seen.cross) += 1;
    seen.flops += 4. * (double)q->shape[0] * (double)k->shape[0] * (double)q->shape[1];
    return cpu->attention(e, o, q, k, v, heads, scale, bias, repeat);
}

/* ---- models: each names the first tensor that it misses, with its shape, so that the list makes itself ---- */

enum { MAX_TENSORS = 1600, NUMBERS = 1 << 13 };
static char names[MAX_TENSORS][80];
static ipvg_weight_source sources[MAX_TENSORS];
static float numbers[NUMBERS];

/* hollow: shapes without data. */
static ipvg_dit *model_of(const ipvg_dit_config *config, bool hollow, ipvg_weights **weights)
{
    ipvg_dit *dit = NULL;
    for (size_t count = 0;; count++) {
        ipvg_weight_source *s = &sources[count];
        char shape[80];
        CHECK(count < MAX_TENSORS && ipvg_weights_open(&ctx, weights, sources, count) == IPVG_OK);
        if (ipvg_dit_new(&ctx, &dit, config, *weights) == IPVG_OK) return dit;
        ipvg_weights_free(weights);
        CHECK(sscanf(ctx.error, "tensor '%79[^']' is missing: expected it with shape (%79[^)]", names[count], shape) ==
              2);
        *s = (ipvg_weight_source){.name = names[count], .dtype = IPVG_F32};
        uint64_t n = 1;
        for (char *at = shape; *at; at += *at == ',') n *= (uint64_t)(s->shape[s->ndim++] = strtoll(at, &at, 10));
        if (hollow) continue;
        CHECK(n <= NUMBERS / 2);
        s->data = numbers + count * 61 % (NUMBERS / 2); /* other numbers for each */
        s->bytes = n * sizeof(float);
    }
}

/* ---- the small one ---- */

enum { LAYERS = 4, VACE = 2, C = 4, F = 2, H = 4, W = 6, TOKENS = F * H * W / 4, COUNT = C * F * H * W, DIFFERENT = 3 };
static const ipvg_dit_config small = {.dim = 16,
                                      .heads = 2,
                                      .ffn_dim = 24,
                                      .layers = LAYERS,
                                      .in_dim = C,
                                      .out_dim = C,
                                      .vace_in_dim = 6,
                                      .freq_dim = 8,
                                      .text_len = 19,
                                      .text_dim = 12,
                                      .eps = 1e-6f,
                                      .n_vace = VACE,
                                      .vace_layers = {0, 2}};
static float x_data[COUNT], v_data[2][IPVG_DIT_BRANCHES][COUNT];
static ipvg_dit_text *texts[DIFFERENT];
static ipvg_dit_context *contexts[DIFFERENT];

typedef struct spec {
    ipvg_dit_branch how;
    unsigned char run[LAYERS], perturb[LAYERS];
    float scale[VACE], reference_scale[VACE];
} spec;

static uint64_t random_state = 1;
static int roll(int n) /* 0 to n - 1 */
{
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (int)((random_state >> 33) % (uint64_t)n);
}

/* Like the plain one in most things. */
static void draw(spec *s)
{
    static const float factor[] = {1.f, 1.f, 0.f, 0.5f};
    *s = (spec){
        .how = {.text = texts[roll(2) ? 0 : roll(DIFFERENT)], .context = contexts[roll(2) ? 0 : roll(DIFFERENT)]}};
    s->how.run = s->run;
    s->how.perturb = s->perturb;
    s->how.scale = s->scale;
    s->how.blur = roll(2) ? 0.7f : INFINITY;
    for (int i = 0; i < LAYERS; i++) {
        s->run[i] = (unsigned char)(roll(5) ? IPVG_DIT_RUN : roll(3));
        s->perturb[i] = (unsigned char)(roll(5) ? IPVG_DIT_ATTEND : roll(3));
    }
    for (int n = 0; n < VACE; n++) s->scale[n] = factor[roll(4)], s->reference_scale[n] = factor[roll(4)];
    if (roll(4) == 0) s->how.reference_frames = 1, s->how.reference_scale = s->reference_scale;
    if (roll(4) == 0) s->how.nag = (ipvg_dit_nag){texts[roll(DIFFERENT)], roll(2) ? 2.f : 3.f, 2.5f, 0.5f};
}

/* ---- what has to be computed: every operation named by all that went into it, each name counted once ---- */

static uint64_t done[4096];
static int done_count;

static uint64_t mix(uint64_t h, uint64_t x)
{
    h = (h ^ x) * 0x9E3779B97F4A7C15u;
    return h ^ (h >> 29);
}

static uint64_t mix_float(uint64_t h, float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return mix(h, bits);
}

static bool is_new(uint64_t name)
{
    for (int i = 0; i < done_count; i++)
        if (done[i] == name) return false;
    CHECK(done_count < (int)(sizeof done / sizeof *done));
    done[done_count++] = name;
    return true;
}

/* The name of a state after a block. */
static uint64_t block_of(counts *want, uint64_t state, const spec *s, int i)
{
    const int perturb = i < LAYERS ? s->perturb[i] : IPVG_DIT_ATTEND;
    state = mix(mix(state, (uint64_t)i), (uint64_t)perturb);
    if (perturb == IPVG_DIT_BLUR) state = mix_float(state, s->how.blur);
    if (is_new(state)) {
        want->self += perturb != IPVG_DIT_IDENTITY;
        want->linear += perturb == IPVG_DIT_IDENTITY ? 2 : 4;
    }
    state = mix(mix(state, (uint64_t)(uintptr_t)s->how.text), (uint64_t)(uintptr_t)s->how.nag.text);
    if (s->how.nag.text) state = mix_float(state, s->how.nag.scale);
    if (is_new(state)) {
        want->cross += s->how.nag.text ? 2 : 1;
        want->linear += 4; /* q, o, the feed-forward net's two */
    }
    return state;
}

static void expect(counts *want, const spec *s)
{
    const int frames = s->how.reference_frames;
    uint64_t x = 1, c;
    int needed = 0;

    if (is_new(x)) want->linear += 4; /* of the timestep three, the patches */
    for (int n = 0; n < VACE; n++)
        if (s->run[small.vace_layers[n]] != IPVG_DIT_SKIP &&
            (s->scale[n] != 0 || (frames && s->reference_scale[n] != 0)))
            needed = n + 1;
    c = mix(2, (uint64_t)(uintptr_t)s->how.context);
    if (needed && is_new(c)) want->linear++;
    for (int i = 0, n = 0; i < LAYERS; i++) {
        const bool hinted = n < VACE && small.vace_layers[n] == i;
        if (hinted && n < needed) c = block_of(want, c, s, LAYERS + n);
        if (s->run[i] == IPVG_DIT_RUN) x = block_of(want, x, s, i);
        if (!hinted) continue;
        const float own = frames ? s->reference_scale[n] : s->scale[n];
        if (s->run[i] != IPVG_DIT_SKIP && (s->scale[n] != 0 || own != 0)) {
            if (is_new(mix(c, 3))) want->linear++;
            x = mix(mix_float(mix_float(mix(x, c), s->scale[n]), own), (uint64_t)frames);
        }
        n++;
    }
    if (is_new(mix(x, 4))) want->linear++; /* the head */
}

/* ---- tests ---- */

static int polls, polls_left;
static int count_polls(void *user)
{
    (void)user;
    return ++polls == polls_left;
}

static ipvg_status forward(int which, const ipvg_dit *dit, const spec *s, int count)
{
    const ipvg_dit_branch *branch[IPVG_DIT_BRANCHES];
    ipvg_tensor v[IPVG_DIT_BRANCHES], *velocity[IPVG_DIT_BRANCHES], x = ipvg_tensor_of(x_data, IPVG_F32, C, F, H, W);
    for (int b = 0; b < count; b++) {
        v[b] = ipvg_tensor_of(v_data[which][b], IPVG_F32, C, F, H, W);
        velocity[b] = &v[b];
        branch[b] = &s[b].how;
    }
    ipvg_arena_plan(&arena);
    CHECK(ipvg_dit_forward(&ex, velocity, &x, 500, dit, branch, count, NULL) == IPVG_OK);
    CHECK(ipvg_arena_reserve(&ctx, &be.memory, &arena, arena.peak) == IPVG_OK);
    memset(arena.base, 0xff, arena.size); /* NaN: what is read has been written */
    seen = (counts){0};
    polls = 0;
    ctx.poll = count_polls;
    ipvg_status status = ipvg_dit_forward(&ex, velocity, &x, 500, dit, branch, count, NULL);
    ctx.poll = NULL;
    return status;
}

static void together_is_one_by_one(const ipvg_dit *dit)
{
    spec s[IPVG_DIT_BRANCHES];
    int64_t shared = 0, separate = 0;
    for (int round = 0; round < 400; round++) {
        const int count = 1 + roll(round % 8 ? 4 : IPVG_DIT_BRANCHES);
        counts want = {0};
        for (int b = 0; b < count; b++) {
            draw(&s[b]);
            CHECK(forward(0, dit, &s[b], 1) == IPVG_OK);
            memcpy(v_data[1][b], v_data[0][0], sizeof v_data[1][b]);
            separate += seen.linear;
        }
        done_count = 0;
        for (int b = 0; b < count; b++) expect(&want, &s[b]);
        if (round % 16 == 0) { /* stopped on the way; then as if nothing had been */
            polls_left = 1 + roll(6);
            ipvg_status status = forward(0, dit, s, count);
            CHECK(status == (polls < polls_left ? IPVG_OK : IPVG_E_CANCELLED) && polls <= polls_left);
            polls_left = 0;
        }
        CHECK(forward(0, dit, s, count) == IPVG_OK && arena.used == 0);
        for (int b = 0; b < count; b++) {
            for (int i = 0; i < COUNT; i++) CHECK(isfinite(v_data[0][b][i]));
            CHECK(memcmp(v_data[0][b], v_data[1][b], sizeof v_data[0][b]) == 0);
        }
        CHECK(seen.self == want.self && seen.cross == want.cross && seen.linear == want.linear);
        shared += seen.linear;
    }
    CHECK(shared < separate);
}

static void wrong_branches_are_refused(const ipvg_dit *dit)
{
    spec s[2];
    ipvg_tensor x = ipvg_tensor_of(x_data, IPVG_F32, C, F, H, W), *velocity[17];
    const ipvg_dit_branch *branch[17];
    draw(&s[0]);
    for (int b = 0; b < 17; b++) velocity[b] = &x, branch[b] = &s[0].how;
    CHECK(ipvg_dit_forward(&ex, velocity, &x, 500, dit, branch, 0, NULL) == IPVG_E_ARGUMENT);
    CHECK(ipvg_dit_forward(&ex, velocity, &x, 500, dit, branch, 17, NULL) == IPVG_E_ARGUMENT);
    draw(&s[1]);
    s[1].how.reference_frames = F + 1;
    branch[1] = &s[1].how;
    CHECK(ipvg_dit_forward(&ex, velocity, &x, 500, dit, branch, 2, NULL) == IPVG_E_ARGUMENT && arena.used == 0);
}

/* ---- the real one, planned ---- */

static ipvg_dit_config wan(void)
{
    ipvg_dit_config c = {1536, 12, 8960, 30, 16, 16, 96, 256, 512, 4096, 1e-6f, 15, {0}};
    for (int n = 0; n < 15; n++) c.vace_layers[n] = 2 * n;
    return c;
}

/* TFLOP of the forward, planned. */
static double cost(const ipvg_dit *dit, const ipvg_dit_branch *const *branch, int count)
{
    ipvg_tensor x = ipvg_tensor_of(NULL, IPVG_F32, 16, 22, 60, 104), *velocity[IPVG_DIT_BRANCHES];
    for (int b = 0; b < count; b++) velocity[b] = &x;
    seen = (counts){0};
    ipvg_arena_plan(&arena);
    CHECK(ipvg_dit_forward(&ex, velocity, &x, 500, dit, branch, count, NULL) == IPVG_OK);
    ipvg_arena_unplan(&arena);
    return seen.flops / 1e12;
}

static void what_it_saves(void)
{
    const ipvg_dit_config config = wan();
    ipvg_weights *weights = NULL;
    ipvg_dit *dit = model_of(&config, true, &weights);
    ipvg_dit_text text[2];
    ipvg_dit_context context[2];
    for (int i = 0; i < 2; i++) {
        text[i] = (ipvg_dit_text){dit, ipvg_tensor_of(NULL, IPVG_F32, 45, 2, 512, 1536), 1};
        context[i] = (ipvg_dit_context){.dit = dit, .frames = 22, .height = 60, .width = 104};
        context[i].tokens = ipvg_tensor_of(NULL, IPVG_F32, 34320, 1536);
        context[i].rope = ipvg_tensor_of(NULL, IPVG_F32, 34320, 64, 2);
    }
    unsigned char second[30] = {0}, ninth[30] = {0};
    second[2] = ninth[9] = IPVG_DIT_SKIP;
    const ipvg_dit_branch cond = {.text = &text[0], .context = &context[0]};
    const ipvg_dit_branch uncond = {.text = &text[1], .context = &context[0]};
    const ipvg_dit_branch weak = {.text = &text[0], .context = &context[1], .run = second};
    const ipvg_dit_branch figure = {.text = &text[1], .context = &context[0], .run = second};
    const ipvg_dit_branch skip = {.text = &text[0], .context = &context[0], .run = ninth};
    const struct {
        const char *name;
        const ipvg_dit_branch *branch[3];
    } rule[] = {{"cfg", {&cond, &uncond}},
                {"tpige_code, tpige_aligned", {&cond, &uncond, &weak}},
                {"tpige_figure", {&cond, &uncond, &figure}},
                {"cfg + stg_r(blocks=[9])", {&cond, &uncond, &skip}}};

    printf("1.3B, 832x480, 81 frames, a reference (34320 tokens); TFLOP of a step\n");
    for (size_t i = 0; i < sizeof rule / sizeof *rule; i++) {
        const int count = rule[i].branch[2] ? 3 : 2;
        double separate = 0, shared = cost(dit, rule[i].branch, count);
        for (int b = 0; b < count; b++) separate += cost(dit, &rule[i].branch[b], 1);
        printf("%-26s separate %.1f, shared %.1f: %.1f (%.1f %%) saved\n", rule[i].name, separate, shared,
               separate - shared, 100 * (1 - shared / separate));
        CHECK(shared < separate);
    }
    ipvg_dit_free(&dit);
    ipvg_weights_free(&weights);
}

int main(void)
{
    ipvg_weights *weights = NULL;
    ipvg_context_init(&ctx, 1); /* many small forwards: threads would only wait for each other */
    CHECK(ipvg_backend_cpu(&ctx, &cpu, IPVG_F32) == IPVG_OK);
    be = *cpu;
    be.linear = counted_linear;
    be.attention = counted_attention;
    ex = (ipvg_exec){.ctx = &ctx, .be = &be, .arena = &arena};
    ipvg_normals(numbers, 1, 0, 0, NUMBERS);
    for (int i = 0; i < NUMBERS; i++) numbers[i] *= 0.3f;
    memcpy(x_data, numbers, sizeof x_data);
    ipvg_dit *dit = model_of(&small, false, &weights);
    for (int i = 0; i < DIFFERENT; i++) {
        ipvg_tensor states = ipvg_tensor_of(numbers + 100 * i, IPVG_F32, 2 + i, 12);
        ipvg_tensor given = ipvg_tensor_of(numbers + 200 * i, IPVG_F32, 6, i == 1 ? F - 1 : F, H, W);
        CHECK(ipvg_dit_text_new(&ex, &texts[i], dit, &states) == IPVG_OK);
        CHECK(ipvg_dit_context_new(&ex, &contexts[i], dit, &given, F) == IPVG_OK);
    }
    together_is_one_by_one(dit);
    wrong_branches_are_refused(dit);
    for (int i = 0; i < DIFFERENT; i++) {
        ipvg_dit_text_free(&be, &texts[i]);
        ipvg_dit_context_free(&be, &contexts[i]);
    }
    ipvg_dit_free(&dit);
    ipvg_weights_free(&weights);
    ipvg_arena_free(&arena);
    what_it_saves();
    ipvg_backend_free(&cpu);
    puts("ok");
    return 0;
}

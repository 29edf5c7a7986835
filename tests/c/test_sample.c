/* Schedule, noise and sampler without Python: a copy of the state is a fork, a step takes no memory, every failed
 * allocation is an error and leaves nothing behind. The numbers are checked in tests/test_schedule.py and test_sampler.py. */
#include <math.h>
#include <string.h>

#include "../../csrc/base/random.h"
#include "../../csrc/sample/sampler.h"
#include "check.h"

static ipvg_context ctx;
static ipvg_backend *cpu, be; /* be: cpu with counted memory */
static ipvg_arena arena;
static ipvg_exec ex;

/* ---- memory that counts and fails ---- */

static int allocations, fail_at = -1;

static ipvg_status counted_alloc(const ipvg_memory *m, ipvg_context *c, void **out, size_t bytes)
{
    (void)m;
    if (allocations++ == fail_at) return ipvg_fail(c, IPVG_E_MEMORY, "no memory, as arranged");
    return ipvg_host_memory.alloc(&ipvg_host_memory, c, out, bytes);
}

static void counted_free(const ipvg_memory *m, void *p)
{
    (void)m;
    ipvg_host_memory.free(&ipvg_host_memory, p);
}

/* ---- a transformer of one block ---- */

enum { DIM = 16, FFN = 24, TEXT = 12, FREQ = 8, CHANNELS = 4, VACE_IN = 6, MAX_SOURCES = 128, BIGGEST = 6 * DIM * DIM };

static const ipvg_dit_config config = {.dim = DIM,
                                       .heads = 2,
                                       .ffn_dim = FFN,
                                       .layers = 1,
                                       .in_dim = CHANNELS,
                                       .out_dim = CHANNELS,
                                       .vace_in_dim = VACE_IN,
                                       .freq_dim = FREQ,
                                       .text_len = 7,
                                       .text_dim = TEXT,
                                       .eps = 1e-6f,
                                       .n_vace = 1,
                                       .vace_layers = {0}};
static float numbers[BIGGEST];
static char names[MAX_SOURCES][64];
static ipvg_weight_source sources[MAX_SOURCES];
static int source_count;

static void source(const char *prefix, const char *name, int ndim, const int64_t *shape)
{
    ipvg_weight_source *s = &sources[source_count];
    size_t count = 1;
    *s = (ipvg_weight_source){.name = names[source_count], .data = numbers, .dtype = IPVG_F32, .ndim = ndim};
    for (int i = 0; i < ndim; i++) count *= (size_t)(s->shape[i] = shape[i]);
    CHECK(count <= BIGGEST);
    s->bytes = count * sizeof(float);
    snprintf(names[source_count++], sizeof names[0], "%s%s", prefix, name);
}

static void linear(const char *prefix, const char *name, int64_t out, int64_t in)
{
    char full[64];
    snprintf(full, sizeof full, "%s.weight", name);
    source(prefix, full, 2, (int64_t[]){out, in});
    snprintf(full, sizeof full, "%s.bias", name);
    source(prefix, full, 1, &out);
}

static void patch(const char *name, int64_t in)
{
    char full[64];
    snprintf(full, sizeof full, "%s.weight", name);
    source("", full, 5, (int64_t[]){DIM, in, 1, 2, 2});
    snprintf(full, sizeof full, "%s.bias", name);
    source("", full, 1, (int64_t[]){DIM});
}

static void block(const char *prefix)
{
    static const char *const attention[] = {"self_attn", "cross_attn"}, *const part[] = {"q", "k", "v", "o"};
    char name[64];
    for (int a = 0; a < 2; a++) {
        for (int p = 0; p < 4; p++) {
            snprintf(name, sizeof name, "%s.%s", attention[a], part[p]);
            linear(prefix, name, DIM, DIM);
        }
        for (int p = 0; p < 2; p++) {
            snprintf(name, sizeof name, "%s.norm_%s.weight", attention[a], part[p]);
            source(prefix, name, 1, (int64_t[]){DIM});
        }
    }
    source(prefix, "norm3.weight", 1, (int64_t[]){DIM});
    source(prefix, "norm3.bias", 1, (int64_t[]){DIM});
    linear(prefix, "ffn.0", FFN, DIM);
    linear(prefix, "ffn.2", DIM, FFN);
    source(prefix, "modulation", 3, (int64_t[]){1, 6, DIM});
}

static void describe(void)
{
    ipvg_normals(numbers, 1, 0, 0, BIGGEST);
    for (int i = 0; i < BIGGEST; i++) numbers[i] *= 0.2f;
    patch("patch_embedding", CHANNELS);
    patch("vace_patch_embedding", VACE_IN);
    linear("", "text_embedding.0", DIM, TEXT);
    linear("", "text_embedding.2", DIM, DIM);
    linear("", "time_embedding.0", DIM, FREQ);
    linear("", "time_embedding.2", DIM, DIM);
    linear("", "time_projection.1", 6 * DIM, DIM);
    block("blocks.0.");
    block("vace_blocks.0.");
    linear("vace_blocks.0.", "before_proj", DIM, DIM);
    linear("vace_blocks.0.", "after_proj", DIM, DIM);
    linear("", "head.head", 4 * CHANNELS, DIM);
    source("", "head.modulation", 3, (int64_t[]){1, 2, DIM});
}

/* ---- tests ---- */

enum { FRAMES = 3, SIDE = 4, COUNT = CHANNELS * FRAMES * SIDE * SIDE, STEPS = 5 };

static const int64_t latent_shape[4] = {CHANNELS, FRAMES, SIDE, SIDE};
static float start[COUNT];

static ipvg_schedule *schedule_of(ipvg_solver solver, int steps)
{
    ipvg_schedule *s = NULL;
    CHECK(ipvg_schedule_new(&ctx, &s, &(ipvg_schedule_config){.solver = solver, .steps = steps, .shift = 16}) ==
          IPVG_OK);
    return s;
}

static void noise_can_be_drawn_in_pieces(void)
{
    float whole[101], pieces[101];
    ipvg_normals(whole, 2025, 3, 7, 101);
    for (int i = 0, n = 1; i < 101; i += n, n = n % 5 + 1)
        ipvg_normals(pieces + i, 2025, 3, 7 + (uint64_t)i, n < 101 - i ? n : 101 - i);
    CHECK(memcmp(whole, pieces, sizeof whole) == 0);
    CHECK(ipvg_normal_quantile(0.5) == 0 && fabs(ipvg_normal_quantile(0.975) - 1.959963984540054) < 1e-15);
}

static void bad_schedules_are_refused(void)
{
    static const ipvg_schedule_config bad[] = {
        {.steps = 0, .shift = 1},   {.steps = IPVG_MAX_STEPS + 1, .shift = 1},
        {.steps = 1, .shift = 0},   {.steps = 1, .shift = -3},
        {.steps = 1, .shift = NAN}, {.steps = 1, .shift = INFINITY},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        ipvg_schedule *s = (ipvg_schedule *)start;
        CHECK(ipvg_schedule_new(&ctx, &s, &bad[i]) == IPVG_E_ARGUMENT && !s);
    }
}

static void advance(const ipvg_schedule *s, ipvg_schedule_state *state, uint64_t seed)
{
    float v[COUNT];
    ipvg_normals(v, seed, 0, (uint64_t)state->step * COUNT, COUNT);
    ipvg_tensor velocity = ipvg_tensor_make(v, IPVG_F32, 4, latent_shape);
    CHECK(ipvg_schedule_advance(&ex, s, state, &velocity) == IPVG_OK);
}

/* At every step: copy the memory and the step number, go on differently, and come back: the run is as if never left. */
static void a_copy_of_the_state_is_a_fork(ipvg_solver solver)
{
    ipvg_schedule *s = schedule_of(solver, STEPS);
    size_t bytes = ipvg_schedule_state_bytes(COUNT);
    char *memory = malloc(bytes), *copy = malloc(bytes);
    CHECK(memory && copy);
    float expected[COUNT];
    for (int fork = -1; fork < STEPS; fork++) {
        memset(memory, 0xff, bytes); /* history that does not exist yet is NaN: it must not be looked at */
        ipvg_schedule_state state = ipvg_schedule_state_at(memory, 4, latent_shape);
        memcpy(state.x.data, start, sizeof start);
        while (state.step < STEPS) {
            if (state.step == fork) {
                memcpy(copy, memory, bytes);
                ipvg_schedule_state other = ipvg_schedule_state_at(copy, 4, latent_shape);
                other.step = state.step;
                while (other.step < STEPS) advance(s, &other, 9);
                CHECK(memcmp(other.x.data, expected, sizeof expected) != 0);
            }
            advance(s, &state, 8);
        }
        if (fork < 0) memcpy(expected, state.x.data, sizeof expected);
        CHECK(memcmp(state.x.data, expected, sizeof expected) == 0);
        for (int i = 0; i < COUNT; i++) CHECK(isfinite(expected[i]));
        ipvg_tensor velocity = ipvg_tensor_make(expected, IPVG_F32, 4, latent_shape);
        CHECK(ipvg_schedule_advance(&ex, s, &state, &velocity) == IPVG_E_ARGUMENT);
    }
    free(memory);
    free(copy);
    ipvg_schedule_free(&s);
    ipvg_schedule_free(&s); /* a second time is harmless */
}

static int polls, polls_left;

static int count_polls(void *user)
{
    (void)user;
    return ++polls == polls_left;
}

static void the_sampler_steps_without_memory(const ipvg_dit *dit, const ipvg_dit_text *text,
                                             const ipvg_dit_context *context)
{
    ipvg_schedule *s = schedule_of(IPVG_UNIPC, STEPS);
    const unsigned char run[1] = {IPVG_DIT_SKIP};
    const float scale[1] = {0.5f};
    const ipvg_dit_branch plain = {.text = text, .context = context};
    const ipvg_sampler_branch branches[2] = {{.how = plain},
                                             {.how = {.text = text, .context = context, .run = run, .scale = scale}}};
    float weight[STEPS * 2], expected[COUNT];
    for (int k = 0; k < STEPS; k++) weight[2 * k] = k % 2 ? 1.f : 3.f, weight[2 * k + 1] = k % 2 ? 0.f : -2.f;

    ipvg_sampler *sampler = NULL;
    int failures = 0;
    for (fail_at = 0;; fail_at++) { /* each allocation of the backend fails once */
        ipvg_arena_free(&arena);
        allocations = 0;
        if (ipvg_sampler_new(&ex, &sampler, dit, s, 2, branches, weight, 0, NULL) == IPVG_OK) break;
        CHECK(!sampler && strstr(ctx.error, "as arranged"));
        failures++;
    }
    CHECK(failures >= 2);
    fail_at = -1;
    CHECK(ipvg_sampler_set(&ex, sampler, start) == IPVG_OK);
    allocations = 0;
    while (sampler->state.step < STEPS) CHECK(ipvg_sampler_step(&ex, sampler) == IPVG_OK);
    CHECK(allocations == 0);
    CHECK(sampler->forwards == 8); /* 3 steps of 2, 2 steps of 1 */
    CHECK(ipvg_sampler_step(&ex, sampler) == IPVG_E_ARGUMENT);
    memcpy(expected, sampler->state.x.data, sizeof expected);
    ipvg_sampler_free(&be, &sampler);
    ipvg_sampler_free(&be, &sampler);

    /* Cancelled at every step, it goes on to the same bytes. */
    CHECK(ipvg_sampler_new(&ex, &sampler, dit, s, 2, branches, weight, 0, NULL) == IPVG_OK);
    CHECK(ipvg_sampler_set(&ex, sampler, start) == IPVG_OK);
    for (int k = 0; k < STEPS; k++) {
        atomic_store(&ctx.cancel, 1);
        CHECK(ipvg_sampler_step(&ex, sampler) == IPVG_E_CANCELLED && sampler->state.step == k);
        CHECK(ipvg_sampler_step(&ex, sampler) == IPVG_OK);
    }
    CHECK(memcmp(expected, sampler->state.x.data, sizeof expected) == 0);
    ipvg_sampler_free(&be, &sampler);

    /* Within one block: the check that sees the cancel is the last one made, wherever in the step it comes. */
    CHECK(ipvg_sampler_new(&ex, &sampler, dit, s, 2, branches, weight, 0, NULL) == IPVG_OK);
    CHECK(ipvg_sampler_set(&ex, sampler, start) == IPVG_OK);
    ctx.poll = count_polls;
    for (polls_left = 1;; polls_left = polls + 1) {
        polls = 0;
        ipvg_status status = ipvg_sampler_step(&ex, sampler);
        if (status == IPVG_OK) break;
        CHECK(status == IPVG_E_CANCELLED && polls == polls_left && sampler->state.step == 0);
    }
    CHECK(polls == 2 && sampler->state.step == 1); /* a VACE and a main block; the second branch skips its own */
    ctx.poll = NULL;
    while (sampler->state.step < STEPS) CHECK(ipvg_sampler_step(&ex, sampler) == IPVG_OK);
    CHECK(memcmp(expected, sampler->state.x.data, sizeof expected) == 0);
    ipvg_sampler_free(&be, &sampler);

    weight[3] = INFINITY;
    CHECK(ipvg_sampler_new(&ex, &sampler, dit, s, 2, branches, weight, 0, NULL) == IPVG_E_ARGUMENT && !sampler);
    CHECK(ipvg_sampler_new(&ex, &sampler, dit, s, 0, branches, weight, 0, NULL) == IPVG_E_ARGUMENT);
    CHECK(ipvg_sampler_new(&ex, &sampler, dit, s, IPVG_SAMPLER_BRANCHES + 1, branches, weight, 0, NULL) ==
          IPVG_E_ARGUMENT);
    ipvg_schedule_free(&s);
}

/* The same with everything that a branch can have and an operation of each kind; one state copied into a second run. */
static void operations_take_no_memory_either(const ipvg_dit *dit, const ipvg_dit_text *text,
                                             const ipvg_dit_context *context)
{
    ipvg_schedule *s = schedule_of(IPVG_UNIPC, STEPS);
    const unsigned char blurred[1] = {IPVG_DIT_BLUR};
    const float none[1] = {0.f}, some[1] = {0.7f};
    const ipvg_dit_branch plain = {.text = text, .context = context};
    const ipvg_dit_branch how = {.text = text,
                                 .context = context,
                                 .perturb = blurred,
                                 .blur = 0.8f,
                                 .nag = {text, 2.f, 2.5f, 0.5f},
                                 .scale = none,
                                 .reference_scale = none,
                                 .reference_frames = 1};
    const ipvg_sampler_branch branches[3] = {{.how = plain}, {.how = how}, {.how = plain, .field = true, .twin = 1}};
    const ipvg_guidance_operation operations[4] = {
        {.kind = IPVG_TCFG, .cond = 0, .uncond = 1},
        {.kind = IPVG_APG, .cond = 0, .uncond = 1, .x0 = true, .momentum = 0.5, .norm = 3},
        {.kind = IPVG_OPTIMAL_SCALE, .cond = 0, .uncond = 1},
        {.kind = IPVG_RESCALE, .cond = 0, .uncond = -1, .phi = 0.5}};
    ipvg_sampler *sampler = NULL, *other = NULL;
    float weight[STEPS * 3], expected[COUNT];
    int failures = 0;

    for (int k = 0; k < STEPS; k++) weight[3 * k] = 3.f, weight[3 * k + 1] = -2.f, weight[3 * k + 2] = 1.f;
    for (fail_at = 0;; fail_at++) {
        ipvg_arena_free(&arena);
        allocations = 0;
        if (ipvg_sampler_new(&ex, &sampler, dit, s, 3, branches, weight, 4, operations) == IPVG_OK) break;
        CHECK(!sampler && strstr(ctx.error, "as arranged"));
        failures++;
    }
    CHECK(failures >= 2);
    fail_at = -1;
    CHECK(ipvg_sampler_set(&ex, sampler, start) == IPVG_OK);
    CHECK(ipvg_sampler_set_field(&ex, sampler, 2, start) == IPVG_OK);
    CHECK(ipvg_sampler_set_field(&ex, sampler, 0, start) == IPVG_E_ARGUMENT);
    CHECK(ipvg_sampler_new(&ex, &other, dit, s, 3, branches, weight, 4, operations) == IPVG_OK);
    CHECK(ipvg_sampler_set_field(&ex, other, 2, start) == IPVG_OK);
    allocations = 0;
    for (int k = 0; k < STEPS; k++) {
        if (k == 1)
            ipvg_sampler_set_scale(&be, sampler, 1, some, some); /* its hint counts from here on: was it planned? */
        if (k == 2) {
            for (int i = 0; ipvg_sampler_state(sampler, i); i++)
                memcpy(ipvg_sampler_state(other, i)->data, ipvg_sampler_state(sampler, i)->data, sizeof expected);
            other->state.step = k;
            ipvg_sampler_set_scale(&be, other, 1, some, some);
        }
        CHECK(ipvg_sampler_combine(&ex, sampler) == IPVG_E_ARGUMENT && ipvg_sampler_advance(&ex, sampler) != IPVG_OK);
        atomic_store(&ctx.cancel, 1);
        CHECK(ipvg_sampler_predict(&ex, sampler) == IPVG_E_CANCELLED);
        CHECK(ipvg_sampler_predict(&ex, sampler) == IPVG_OK);
        CHECK(ipvg_sampler_combine(&ex, sampler) == IPVG_OK);
        CHECK(ipvg_sampler_combine(&ex, sampler) == IPVG_OK); /* again: the running difference must not move twice */
        CHECK(ipvg_sampler_advance(&ex, sampler) == IPVG_OK);
    }
    memcpy(expected, sampler->state.x.data, sizeof expected);
    while (other->state.step < STEPS) CHECK(ipvg_sampler_step(&ex, other) == IPVG_OK);
    CHECK(allocations == 0 && memcmp(expected, other->state.x.data, sizeof expected) == 0);
    CHECK(other->forwards == 2 * (STEPS - 2)); /* the twin costs none */
    for (int i = 0; i < COUNT; i++) CHECK(isfinite(expected[i]));
    ipvg_sampler_free(&be, &sampler);
    ipvg_sampler_free(&be, &other);

    ipvg_guidance_operation bad = {.kind = IPVG_APG, .cond = 0, .uncond = 3};
    CHECK(ipvg_sampler_new(&ex, &sampler, dit, s, 3, branches, weight, 1, &bad) == IPVG_E_ARGUMENT && !sampler);
    bad.uncond = 0;
    CHECK(ipvg_sampler_new(&ex, &sampler, dit, s, 3, branches, weight, 1, &bad) == IPVG_E_ARGUMENT);
    ipvg_schedule_free(&s);
}

int main(void)
{
    ipvg_context_init(&ctx, 2);
    CHECK(ipvg_backend_cpu(&ctx, &cpu, IPVG_F32) == IPVG_OK);
    be = *cpu;
    be.memory = (ipvg_memory){counted_alloc, counted_free, NULL};
    ex = (ipvg_exec){.ctx = &ctx, .be = &be, .arena = &arena};
    ipvg_normals(start, 5, 0, 0, COUNT);
    noise_can_be_drawn_in_pieces();
    bad_schedules_are_refused();
    for (int solver = IPVG_UNIPC; solver <= IPVG_EULER; solver++) a_copy_of_the_state_is_a_fork((ipvg_solver)solver);

    ipvg_weights *weights = NULL;
    ipvg_dit *dit = NULL;
    ipvg_dit_text *text = NULL;
    ipvg_dit_context *context = NULL;
    describe();
    CHECK(ipvg_weights_open(&ctx, &weights, sources, (size_t)source_count) == IPVG_OK);
    CHECK(ipvg_dit_new(&ctx, &dit, &config, weights) == IPVG_OK);
    ipvg_tensor states = ipvg_tensor_of(numbers, IPVG_F32, 3, TEXT);
    ipvg_tensor vace = ipvg_tensor_of(numbers, IPVG_F32, VACE_IN, FRAMES - 1, SIDE, SIDE);
    CHECK(ipvg_dit_text_new(&ex, &text, dit, &states) == IPVG_OK);
    CHECK(ipvg_dit_context_new(&ex, &context, dit, &vace, FRAMES) == IPVG_OK);
    the_sampler_steps_without_memory(dit, text, context);
    operations_take_no_memory_either(dit, text, context);

    ipvg_dit_context_free(&be, &context);
    ipvg_dit_text_free(&be, &text);
    ipvg_dit_free(&dit);
    ipvg_weights_free(&weights);
    ipvg_arena_free(&arena);
    ipvg_backend_free(&cpu);
    puts("ok");
    return 0;
}

/* The DiT without Python: the plan is exact, the loop allocates nothing, every allocation may fail, errors leave nothing
 * behind. Its numbers are checked in tests/test_dit.py and by the parity tests. */
#include <math.h>
#include <string.h>

#include "../../csrc/model/dit.h"
#include "check.h"

enum {
    DIM = 12,
    FFN = 20,
    LAYERS = 3,
    VACE = 2,
    IN = 3,
    CONTEXT = 5,
    TEXT = 6,
    F = 2,
    H = 4,
    W = 6,
    MAX_TENSORS = 200
};

static const ipvg_dit_config config = {.dim = DIM,
                                       .heads = 2,
                                       .ffn_dim = FFN,
                                       .layers = LAYERS,
                                       .in_dim = IN,
                                       .out_dim = IN,
                                       .vace_in_dim = CONTEXT,
                                       .freq_dim = 8,
                                       .text_len = 19,
                                       .text_dim = TEXT,
                                       .eps = 1e-6f,
                                       .n_vace = VACE,
                                       .vace_layers = {0, 2}};

static ipvg_context ctx;
static ipvg_backend *be;
static ipvg_arena arena;
static ipvg_exec ex;
static float numbers[6 * DIM * DIM];
static char names[MAX_TENSORS][64];
static ipvg_weight_source sources[MAX_TENSORS];
static int count;

/* ---- weights ---- */

static void tensor(const char *name, int ndim, const int64_t *shape)
{
    int64_t n = 1;
    ipvg_weight_source *s = &sources[count];
    snprintf(names[count], sizeof names[count], "%s", name);
    *s = (ipvg_weight_source){.name = names[count++], .data = numbers, .dtype = IPVG_F32, .ndim = ndim};
    for (int i = 0; i < ndim; i++) n *= s->shape[i] = shape[i];
    s->bytes = (uint64_t)n * sizeof(float);
    CHECK((size_t)n <= sizeof numbers / sizeof *numbers);
}

static void linear(const char *name, int64_t out, int64_t in, bool patch)
{
    char full[96];
    snprintf(full, sizeof full, "%s.weight", name);
    tensor(full, patch ? 5 : 2, (const int64_t[]){out, in, 1, 2, 2});
    snprintf(full, sizeof full, "%s.bias", name);
    tensor(full, 1, &out);
}

static void block(const char *prefix)
{
    static const char *const square[] = {"self_attn.q",  "self_attn.k",  "self_attn.v",  "self_attn.o",
                                         "cross_attn.q", "cross_attn.k", "cross_attn.v", "cross_attn.o"};
    static const char *const rows[] = {"self_attn.norm_q.weight",
                                       "self_attn.norm_k.weight",
                                       "cross_attn.norm_q.weight",
                                       "cross_attn.norm_k.weight",
                                       "norm3.weight",
                                       "norm3.bias"};
    char name[96];
    for (int i = 0; i < 8; i++) snprintf(name, sizeof name, "%s.%s", prefix, square[i]), linear(name, DIM, DIM, false);
    for (int i = 0; i < 6; i++)
        snprintf(name, sizeof name, "%s.%s", prefix, rows[i]), tensor(name, 1, (const int64_t[]){DIM});
    snprintf(name, sizeof name, "%s.modulation", prefix), tensor(name, 3, (const int64_t[]){1, 6, DIM});
    snprintf(name, sizeof name, "%s.ffn.0", prefix), linear(name, FFN, DIM, false);
    snprintf(name, sizeof name, "%s.ffn.2", prefix), linear(name, DIM, FFN, false);
}

static void describe(void)
{
    char name[64];
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) numbers[i] = (float)(i * 37 % 101) / 101.f - 0.4f;
    linear("patch_embedding", DIM, IN, true), linear("vace_patch_embedding", DIM, CONTEXT, true);
    linear("text_embedding.0", DIM, TEXT, false), linear("text_embedding.2", DIM, DIM, false);
    linear("time_embedding.0", DIM, 8, false), linear("time_embedding.2", DIM, DIM, false);
    linear("time_projection.1", 6 * DIM, DIM, false), linear("head.head", 4 * IN, DIM, false);
    linear("vace_blocks.0.before_proj", DIM, DIM, false), tensor("head.modulation", 3, (const int64_t[]){1, 2, DIM});
    for (int i = 0; i < LAYERS; i++) snprintf(name, sizeof name, "blocks.%d", i), block(name);
    for (int i = 0; i < VACE; i++) {
        snprintf(name, sizeof name, "vace_blocks.%d", i), block(name);
        snprintf(name, sizeof name, "vace_blocks.%d.after_proj", i), linear(name, DIM, DIM, false);
    }
}

/* ---- allocation that counts and fails ---- */

static int allocations, fail_at = -1;

static ipvg_status counting_alloc(const ipvg_memory *m, ipvg_context *c, void **out, size_t bytes)
{
    *out = NULL;
    if (allocations++ == fail_at) return ipvg_fail(c, IPVG_E_MEMORY, "test");
    return ipvg_host_memory.alloc(m, c, out, bytes);
}

/* ---- tests ---- */

static float x_data[IN * F * H * W], v_data[IN * F * H * W], again[IN * F * H * W], text_data[3 * TEXT];
static float context_data[CONTEXT * F * H * W];
static ipvg_dit *dit;
static ipvg_dit_text *text;
static ipvg_dit_context *context;

static ipvg_status prepare(void)
{
    ipvg_tensor states = ipvg_tensor_of(text_data, IPVG_F32, 3, TEXT);
    ipvg_tensor given = ipvg_tensor_of(context_data, IPVG_F32, CONTEXT, 1, H, W); /* a frame short */
    ipvg_status status = ipvg_dit_text_new(&ex, &text, dit, &states);
    return status != IPVG_OK ? status : ipvg_dit_context_new(&ex, &context, dit, &given, F);
}

static ipvg_status at(ipvg_tensor *v, ipvg_tensor *x, double t, const ipvg_dit_branch *branch)
{
    ipvg_dit_branch whole = branch ? *branch : (ipvg_dit_branch){0};
    whole.text = text, whole.context = context;
    return ipvg_dit_forward(&ex, &v, x, t, dit, (const ipvg_dit_branch *const[]){&whole}, 1, NULL);
}

static ipvg_status forward(float *out, const ipvg_dit_branch *branch)
{
    ipvg_tensor x = ipvg_tensor_of(x_data, IPVG_F32, IN, F, H, W), v = ipvg_tensor_of(out, IPVG_F32, IN, F, H, W);
    return at(&v, &x, 500, branch);
}

static void the_plan_is_exact_and_a_forward_allocates_nothing(void)
{
    ipvg_dit_bytes bytes;
    ipvg_arena_plan(&arena);
    CHECK(forward(NULL, NULL) == IPVG_OK && arena.used == 0);
    size_t peak = arena.peak;
    CHECK(ipvg_dit_memory(&ctx, be, &bytes, dit, &(ipvg_dit_job){F, H, W, .branches = 1, .hints = 1}) == IPVG_OK &&
          bytes.scratch >= peak);
    ipvg_arena_free(&arena);
    CHECK(ipvg_arena_reserve(&ctx, &be->memory, &arena, peak) == IPVG_OK);
    allocations = 0;
    CHECK(forward(v_data, NULL) == IPVG_OK && arena.used == 0);
    CHECK(forward(again, NULL) == IPVG_OK && allocations == 0);
    CHECK(memcmp(v_data, again, sizeof v_data) == 0);
    for (size_t i = 0; i < sizeof v_data / sizeof *v_data; i++) CHECK(isfinite(v_data[i]));
    ipvg_arena_free(&arena);
    CHECK(ipvg_arena_reserve(&ctx, &be->memory, &arena, peak - IPVG_ALIGN) == IPVG_OK);
    CHECK(forward(again, NULL) == IPVG_E_MEMORY && arena.used == 0);
}

static void no_branch_needs_more_than_the_plain_one(void)
{
    ipvg_arena_plan(&arena);
    CHECK(forward(NULL, NULL) == IPVG_OK);
    size_t peak = arena.peak;
    for (int i = 0; i < 27; i++) {
        unsigned char run[LAYERS] = {i % 3, i / 3 % 3, i / 9 % 3};
        float scale[VACE] = {(float)(i % 2), (float)(i / 2 % 2)};
        ipvg_dit_branch branch = {.run = run, .scale = scale};
        ipvg_arena_reserve(&ctx, &be->memory, &arena, peak);
        CHECK(forward(again, &branch) == IPVG_OK && arena.used == 0);
    }
}

static void cancel_and_wrong_shapes_leave_it_usable(void)
{
    ipvg_tensor x = ipvg_tensor_of(x_data, IPVG_F32, IN, F, H, W), v = ipvg_tensor_of(again, IPVG_F32, IN, F, W, H);
    atomic_store(&ctx.cancel, 1);
    CHECK(forward(again, NULL) == IPVG_E_CANCELLED && arena.used == 0);
    CHECK(at(&v, &x, 500, NULL) == IPVG_E_ARGUMENT);
    CHECK(at(&x, &x, NAN, NULL) == IPVG_E_ARGUMENT);
    CHECK(forward(again, NULL) == IPVG_OK && memcmp(v_data, again, sizeof v_data) == 0);
}

/* What fails while it plans must not leave the arena planning: a copy made next would quietly not be made. */
static void what_fails_while_planning_stops_planning(void)
{
    ipvg_weights *weights = NULL;
    ipvg_dit *wrong = NULL;
    ipvg_dit_text *none = NULL;
    ipvg_dit_context *no_context = NULL;
    ipvg_tensor states = ipvg_tensor_of(text_data, IPVG_F32, 3, TEXT);
    ipvg_tensor given = ipvg_tensor_of(context_data, IPVG_F32, CONTEXT, 1, H, W);
    atomic_store(&ctx.cancel, 1);
    CHECK(ipvg_dit_text_new(&ex, &none, dit, &states) == IPVG_E_CANCELLED && !none && !arena.planning);
    int i = 0;
    while (strcmp(names[i], "vace_patch_embedding.weight")) i++;
    sources[i].dtype = IPVG_I32; /* which no product takes */
    CHECK(ipvg_weights_open(&ctx, &weights, sources, (size_t)count) == IPVG_OK);
    CHECK(ipvg_dit_new(&ctx, &wrong, &config, weights) == IPVG_OK);
    CHECK(ipvg_dit_context_new(&ex, &no_context, wrong, &given, F) == IPVG_E_TYPE && !no_context && !arena.planning);
    sources[i].dtype = IPVG_F32;
    ipvg_dit_free(&wrong);
    ipvg_weights_free(&weights);
    CHECK(forward(again, NULL) == IPVG_OK && memcmp(v_data, again, sizeof v_data) == 0);
}

static void every_allocation_may_fail(void)
{
    for (fail_at = 0;; fail_at++) {
        ipvg_dit_text_free(be, &text);
        ipvg_dit_context_free(be, &context);
        ipvg_arena_free(&arena);
        allocations = 0;
        if (prepare() == IPVG_OK) break;
        CHECK(strcmp(ctx.error, "test") == 0 && (!text || !context));
    }
    CHECK(fail_at >= 3); /* scratch, text, context */
    fail_at = -1;
}

static void a_wrong_tensor_is_named(void)
{
    for (int i = 0; i < count; i++) {
        ipvg_weights *weights = NULL;
        ipvg_dit *none = NULL;
        ipvg_weight_source saved = sources[i];
        sources[i].shape[saved.ndim - 1]++;
        sources[i].data = NULL, sources[i].bytes = 0;
        CHECK(ipvg_weights_open(&ctx, &weights, sources, (size_t)count) == IPVG_OK);
        CHECK(ipvg_dit_new(&ctx, &none, &config, weights) == IPVG_E_FORMAT && !none);
        CHECK(strstr(ctx.error, names[i]));
        ipvg_weights_free(&weights);
        sources[i] = saved;
    }
}

int main(void)
{
    ipvg_weights *weights = NULL;
    ipvg_context_init(&ctx, 2);
    CHECK(ipvg_backend_cpu(&ctx, &be, IPVG_F32) == IPVG_OK);
    be->memory.alloc = counting_alloc;
    ex = (ipvg_exec){.ctx = &ctx, .be = be, .arena = &arena};
    describe();
    for (size_t i = 0; i < sizeof x_data / sizeof *x_data; i++) x_data[i] = (float)(i % 7) - 3;
    for (size_t i = 0; i < sizeof context_data / sizeof *context_data; i++) context_data[i] = (float)(i % 5) - 2;
    for (size_t i = 0; i < sizeof text_data / sizeof *text_data; i++) text_data[i] = (float)(i % 3) - 1;
    CHECK(ipvg_weights_open(&ctx, &weights, sources, (size_t)count) == IPVG_OK);
    CHECK(ipvg_dit_new(&ctx, &dit, &config, weights) == IPVG_OK);
    CHECK(prepare() == IPVG_OK);
    the_plan_is_exact_and_a_forward_allocates_nothing();
    no_branch_needs_more_than_the_plain_one();
    cancel_and_wrong_shapes_leave_it_usable();
    what_fails_while_planning_stops_planning();
    every_allocation_may_fail();
    ipvg_dit_text_free(be, &text);
    ipvg_dit_context_free(be, &context);
    ipvg_dit_free(&dit);
    ipvg_weights_free(&weights);
    a_wrong_tensor_is_named();
    ipvg_arena_free(&arena);
    ipvg_backend_free(&be);
    puts("ok");
    return 0;
}

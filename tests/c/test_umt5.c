/* umT5 without Python: the plan is exact, errors leave nothing behind. Its numbers are checked in tests/test_umt5.py and by
 * the parity tests. */
#include <math.h>
#include <string.h>

#include "../../csrc/model/umt5.h"
#include "check.h"

enum {
    LAYERS = 2,
    DIM = 12,
    ATTN = 8,
    HEADS = 2,
    FFN = 20,
    VOCAB = 30,
    PER_BLOCK = 10,
    TENSORS = 2 + LAYERS * PER_BLOCK
};

static const ipvg_umt5_config config = {VOCAB, DIM, ATTN, FFN, HEADS, LAYERS, 32, 128, 1e-6f};

static ipvg_context ctx;
static ipvg_backend *be;
static ipvg_arena arena;
static ipvg_exec ex;
static float numbers[VOCAB * DIM];
static char names[TENSORS][64];
static ipvg_weight_source sources[TENSORS];

static void source(int i, const char *name, int64_t rows, int64_t columns)
{
    snprintf(names[i], sizeof names[i], "%s", name);
    size_t bytes = (size_t)(rows * (columns ? columns : 1)) * sizeof(float);
    sources[i] = (ipvg_weight_source){.name = names[i],
                                      .data = numbers,
                                      .bytes = bytes,
                                      .dtype = IPVG_F32,
                                      .ndim = columns ? 2 : 1,
                                      .shape = {rows, columns}};
}

static void describe(void)
{
    static const struct {
        const char *name;
        int rows, columns;
    } block[PER_BLOCK] = {{"norm1", DIM, 0},     {"attn.q", ATTN, DIM},    {"attn.k", ATTN, DIM},
                          {"attn.v", ATTN, DIM}, {"attn.o", DIM, ATTN},    {"pos_embedding.embedding", 32, HEADS},
                          {"norm2", DIM, 0},     {"ffn.gate.0", FFN, DIM}, {"ffn.fc1", FFN, DIM},
                          {"ffn.fc2", DIM, FFN}};
    char name[64];
    for (int i = 0; i < VOCAB * DIM; i++) numbers[i] = (float)(i * 37 % 101) / 101.0f - 0.4f;
    source(0, "token_embedding.weight", VOCAB, DIM);
    source(1, "norm.weight", DIM, 0);
    for (int i = 0; i < LAYERS * PER_BLOCK; i++) {
        snprintf(name, sizeof name, "blocks.%d.%s.weight", i / PER_BLOCK, block[i % PER_BLOCK].name);
        source(2 + i, name, block[i % PER_BLOCK].rows, block[i % PER_BLOCK].columns);
    }
}

static ipvg_status encode(const ipvg_umt5 *umt5, float *states, const int32_t *ids, int64_t tokens)
{
    ipvg_tensor x = ipvg_tensor_of((void *)(uintptr_t)ids, IPVG_I32, tokens);
    ipvg_tensor y = ipvg_tensor_of(states, IPVG_F32, tokens, DIM);
    return ipvg_umt5_encode(&ex, &y, &x, umt5);
}

static size_t plan(const ipvg_umt5 *umt5, int64_t tokens)
{
    ipvg_arena_plan(&arena);
    CHECK(encode(umt5, NULL, NULL, tokens) == IPVG_OK && arena.used == 0);
    return arena.peak;
}

static void the_plan_is_exact(const ipvg_umt5 *umt5)
{
    float states[40 * DIM], again[40 * DIM];
    int32_t ids[40];
    for (int i = 0; i < 40; i++) ids[i] = i % VOCAB;
    for (int64_t tokens = 1; tokens <= 40; tokens += 13) {
        size_t bytes = plan(umt5, tokens);
        ipvg_arena_free(&arena);
        CHECK(ipvg_arena_reserve(&ctx, &be->memory, &arena, bytes) == IPVG_OK);
        CHECK(encode(umt5, states, ids, tokens) == IPVG_OK && arena.used == 0);
        CHECK(encode(umt5, again, ids, tokens) == IPVG_OK);
        CHECK(memcmp(states, again, (size_t)tokens * DIM * sizeof(float)) == 0);
        for (int i = 0; i < tokens * DIM; i++) CHECK(isfinite(states[i]));
        ipvg_arena_free(&arena);
        CHECK(ipvg_arena_reserve(&ctx, &be->memory, &arena, bytes - IPVG_ALIGN) == IPVG_OK);
        CHECK(encode(umt5, states, ids, tokens) == IPVG_E_MEMORY && arena.used == 0);
    }
}

static void bad_input_is_refused(const ipvg_umt5 *umt5)
{
    float states[3 * DIM];
    ipvg_arena_reserve(&ctx, &be->memory, &arena, plan(umt5, 3));
    CHECK(encode(umt5, states, (const int32_t[]){1, VOCAB, 2}, 3) == IPVG_E_ARGUMENT);
    CHECK(encode(umt5, states, (const int32_t[]){1, -1, 2}, 3) == IPVG_E_ARGUMENT);
    CHECK(encode(umt5, states, (const int32_t[]){1}, 0) == IPVG_E_ARGUMENT);
    CHECK(encode(umt5, states, (const int32_t[]){1}, IPVG_UMT5_MAX_TOKENS + 1) == IPVG_E_ARGUMENT);
    atomic_store(&ctx.cancel, 1);
    CHECK(encode(umt5, states, (const int32_t[]){1, 2, 3}, 3) == IPVG_E_CANCELLED);
    CHECK(arena.used == 0 && encode(umt5, states, (const int32_t[]){1, 2, 3}, 3) == IPVG_OK);
}

static void shapes_without_data_plan_only(size_t bytes)
{
    ipvg_weights *weights = NULL;
    ipvg_umt5 *umt5 = NULL;
    float states[DIM];
    for (int i = 0; i < TENSORS; i++) sources[i].data = NULL, sources[i].bytes = 0;
    CHECK(ipvg_weights_open(&ctx, &weights, sources, TENSORS) == IPVG_OK);
    CHECK(ipvg_umt5_new(&ctx, &umt5, &config, weights) == IPVG_OK);
    CHECK(plan(umt5, 20) == bytes);
    ipvg_arena_reserve(&ctx, &be->memory, &arena, arena.peak);
    CHECK(encode(umt5, states, (const int32_t[]){1}, 1) == IPVG_E_ARGUMENT);
    ipvg_umt5_free(&umt5);
    ipvg_weights_free(&weights);
}

static void a_wrong_tensor_is_named(void)
{
    for (int i = 0; i < TENSORS; i++) {
        ipvg_weights *weights = NULL;
        ipvg_umt5 *umt5 = NULL;
        ipvg_weight_source saved = sources[i];
        sources[i].shape[0]--;
        sources[i].bytes = saved.bytes / (size_t)saved.shape[0] * (size_t)sources[i].shape[0];
        CHECK(ipvg_weights_open(&ctx, &weights, sources, TENSORS) == IPVG_OK);
        CHECK(ipvg_umt5_new(&ctx, &umt5, &config, weights) == IPVG_E_FORMAT && !umt5);
        CHECK(strstr(ctx.error, names[i]));
        ipvg_weights_free(&weights);
        sources[i] = saved;
    }
}

static void a_wrong_config_is_refused(ipvg_weights *weights)
{
    ipvg_umt5_config bad[6];
    for (int i = 0; i < 6; i++) bad[i] = config;
    bad[0].heads = 3;
    bad[1].layers = IPVG_UMT5_MAX_LAYERS + 1;
    bad[2].buckets = 30;
    bad[3].max_distance = 8;
    bad[4].eps = 0;
    bad[5].dim = 0;
    for (int i = 0; i < 6; i++) {
        ipvg_umt5 *umt5 = NULL;
        CHECK(ipvg_umt5_new(&ctx, &umt5, &bad[i], weights) == IPVG_E_ARGUMENT && !umt5);
    }
}

static void buckets(void)
{
    CHECK(ipvg_umt5_bucket(0, 32, 128) == 0 && ipvg_umt5_bucket(-7, 32, 128) == 7 &&
          ipvg_umt5_bucket(7, 32, 128) == 23);
    CHECK(ipvg_umt5_bucket(-8, 32, 128) == 8 && ipvg_umt5_bucket(-128, 32, 128) == 15);
    for (int d = -2000; d <= 2000; d++) CHECK(ipvg_umt5_bucket(d, 32, 128) / 16 == (d > 0));
}

int main(void)
{
    ipvg_weights *weights = NULL;
    ipvg_umt5 *umt5 = NULL;
    ipvg_context_init(&ctx, 2);
    CHECK(ipvg_backend_cpu(&ctx, &be, IPVG_F32) == IPVG_OK);
    ex = (ipvg_exec){.ctx = &ctx, .be = be, .arena = &arena};
    describe();
    CHECK(ipvg_weights_open(&ctx, &weights, sources, TENSORS) == IPVG_OK);
    CHECK(ipvg_umt5_new(&ctx, &umt5, &config, weights) == IPVG_OK);
    buckets();
    the_plan_is_exact(umt5);
    bad_input_is_refused(umt5);
    a_wrong_tensor_is_named();
    a_wrong_config_is_refused(weights);
    shapes_without_data_plan_only(plan(umt5, 20));
    ipvg_umt5_free(&umt5);
    ipvg_weights_free(&weights);
    ipvg_arena_free(&arena);
    ipvg_backend_free(&be);
    puts("ok");
    return 0;
}

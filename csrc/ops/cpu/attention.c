/* Softmax attention in blocks of queries and keys: no (Lq, Lk) matrix, one pass over the keys with a running maximum.
 *
 * A few heads at a time, so that their packed keys and values need little scratch: first all threads pack, then each takes
 * blocks of queries. Whoever takes a block computes the same bytes, so threads need no fixed shares. */
#include <math.h>
#include <omp.h>
#include <string.h>

#include "cpu.h"

#define QUERIES 126 /* of a block: a multiple of every tile_rows (6, 14) */
#define KEYS 256 /* of a block: a multiple of every tile_columns; q, s, o and a block of k or v fit a 512 KiB cache */
#define GAP 16   /* floats between rows of s, so that they do not share a cache set */

typedef struct job {
    const ipvg_loops *loops;
    const ipvg_tensor *q, *k, *v, *bias;
    ipvg_tensor *o;
    int64_t lq, lk, d, wide; /* wide: d rounded up to whole tiles */
    float scale, last;       /* last: what the last key's scores get on top */
} job;

static int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }
static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

static const float *at(const ipvg_tensor *t, int64_t row, int64_t column)
{
    return (const float *)t->data + row * t->ld + column;
}

/* Floats of one head's packed keys, then its values. */
static int64_t keys_size(const job *j) { return round_up(j->lk, j->loops->tile_columns) * j->d; }
static int64_t values_size(const job *j) { return j->lk * j->wide; }

/* Floats of a thread's scratch: packed queries, scores, sums of values. */
static int64_t thread_size(const job *j) { return QUERIES * (j->d + KEYS + GAP + j->wide); }

static void pack_block(const job *j, float *packed, int64_t head, int64_t key)
{
    int64_t count = least(KEYS, j->lk - key);
    j->loops->pack_keys(packed + key * j->d, at(j->k, key, head * j->d), count, j->d, j->k->ld);
    j->loops->pack_values(packed + keys_size(j) + key * j->wide, at(j->v, key, head * j->d), count, j->d, j->v->ld);
}

/* The output rows of up to QUERIES queries of one head. */
static void attend(const job *j, const float *packed, float *scratch, int64_t head, int64_t first)
{
    const ipvg_loops *loops = j->loops;
    const int64_t rows = least(QUERIES, j->lq - first), lds = KEYS + GAP;
    float *q = scratch, *s = q + QUERIES * j->d, *sums = s + QUERIES * lds;
    float max[QUERIES], sum[QUERIES] = {0};

    for (int64_t r = 0; r < rows; r++) max[r] = -INFINITY;
    memset(sums, 0, (size_t)(rows * j->wide) * sizeof(float));
    loops->pack_queries(q, at(j->q, first, head * j->d), rows, j->d, j->q->ld, j->scale);
    for (int64_t key = 0; key < j->lk; key += KEYS) {
        int64_t keys = least(KEYS, j->lk - key);
        loops->scores(s, q, packed + key * j->d, rows, keys, j->d, lds);
        for (int64_t r = 0; j->bias && r < rows; r++) {
            const float *b = at(j->bias, head, key - (first + r) + j->lq - 1);
            for (int64_t c = 0; c < keys; c++) s[r * lds + c] += b[c];
        }
        if (key + keys == j->lk && j->last != 0.f)
            for (int64_t r = 0; r < rows; r++) s[r * lds + keys - 1] += j->last;
        loops->softmax_step(s, max, sum, sums, rows, keys, j->wide, lds);
        loops->weighted(sums, s, packed + keys_size(j) + key * j->wide, rows, keys, j->wide, lds);
    }
    for (int64_t r = 0; r < rows; r++)
        loops->divide((float *)at(j->o, first + r, head * j->d), sums + r * j->wide, sum[r], j->d);
}

ipvg_status ipvg_cpu_attention(ipvg_exec *ex, ipvg_tensor *o, const ipvg_tensor *q, const ipvg_tensor *k,
                               const ipvg_tensor *v, int heads, float scale, const ipvg_tensor *bias, int64_t repeat)
{
    const ipvg_tensor *const all[] = {q, k, v, o, bias};
    static const char *const names[] = {"q", "k", "v", "o", "bias"};
    size_t mark = ipvg_arena_mark(ex->arena);
    int threads = ex->ctx->threads;
    job j = {.loops = ipvg_cpu_loops(ex), .q = q, .k = k, .v = v, .bias = bias, .o = o, .scale = scale};
    void *packed, *scratch;
    ipvg_status status;

    j.lq = q->shape[0], j.lk = k->shape[0], j.d = q->shape[1] / heads;
    j.last = logf((float)repeat); /* repeat e^s = e^(s + log repeat) */
    j.wide = round_up(j.d, j.loops->tile_columns);
    const int64_t q_blocks = (j.lq + QUERIES - 1) / QUERIES, k_blocks = (j.lk + KEYS - 1) / KEYS;
    const int64_t per_head = keys_size(&j) + values_size(&j), per_thread = thread_size(&j);
    /* Heads that are packed together: enough for several blocks of queries a thread. */
    const int64_t group = q_blocks ? least(heads, (4 * threads + q_blocks - 1) / q_blocks) : 1;
    for (int i = 0; i < 5; i++)
        if (all[i]) IPVG_TRY(ipvg_cpu_need_f32(ex, "attention", names[i], all[i]));
    IPVG_TRY(ipvg_arena_alloc(ex->ctx, ex->arena, &packed, (size_t)(group * per_head) * sizeof(float)));
    IPVG_TRY(ipvg_arena_alloc(ex->ctx, ex->arena, &scratch, (size_t)(threads * per_thread) * sizeof(float)));
    if (ipvg_planning(ex)) goto done;
#pragma omp parallel num_threads(threads) if (heads * j.lq * j.lk * j.d > 1000000)
    for (int64_t head = 0; head < heads; head += group) {
        int64_t count = least(group, heads - head);
#pragma omp for schedule(static)
        for (int64_t i = 0; i < count * k_blocks; i++)
            pack_block(&j, (float *)packed + i / k_blocks * per_head, head + i / k_blocks, i % k_blocks * KEYS);
#pragma omp for schedule(dynamic)
        for (int64_t i = 0; i < count * q_blocks; i++)
            attend(&j, (float *)packed + i / q_blocks * per_head, (float *)scratch + omp_get_thread_num() * per_thread,
                   head + i / q_blocks, i % q_blocks * QUERIES);
    }
done:
    ipvg_arena_reset(ex->arena, mark);
    return status;
}

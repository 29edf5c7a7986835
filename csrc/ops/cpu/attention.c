/* Softmax attention in blocks of queries and keys: no (Lq, Lk) matrix, one pass over the keys with a running maximum. */
#include <math.h>
#include <omp.h>
#include <string.h>

#include "cpu.h"

#define QUERIES 64
#define KEYS 128

ipvg_status ipvg_cpu_attention(ipvg_exec *ex, ipvg_tensor *o, const ipvg_tensor *q, const ipvg_tensor *k,
                               const ipvg_tensor *v, int heads, float scale, const ipvg_tensor *bias)
{
    const ipvg_loops *loops = ipvg_cpu_loops(ex);
    size_t mark = ipvg_arena_mark(ex->arena);
    int64_t lq = q->shape[0], lk = k->shape[0], d = q->shape[1] / heads, blocks = (lq + QUERIES - 1) / QUERIES;
    int threads = ex->ctx->threads;
    size_t per_thread = (size_t)(QUERIES * (KEYS + d));
    void *scratch;
    ipvg_status status;
    IPVG_TRY(ipvg_cpu_need_f32(ex, "attention", "q", q));
    IPVG_TRY(ipvg_cpu_need_f32(ex, "attention", "k", k));
    IPVG_TRY(ipvg_cpu_need_f32(ex, "attention", "v", v));
    IPVG_TRY(ipvg_cpu_need_f32(ex, "attention", "o", o));
    if (bias) IPVG_TRY(ipvg_cpu_need_f32(ex, "attention", "bias", bias));
    IPVG_TRY(ipvg_arena_alloc(ex->ctx, ex->arena, &scratch, per_thread * (size_t)threads * sizeof(float)));
    if (ipvg_planning(ex)) goto done;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t task = 0; task < heads * blocks; task++) {
        int64_t head = task / blocks, first = task % blocks * QUERIES;
        int64_t rows = lq - first < QUERIES ? lq - first : QUERIES;
        float *s = (float *)scratch + per_thread * (size_t)omp_get_thread_num(), *acc = s + QUERIES * KEYS;
        float max[QUERIES], sum[QUERIES] = {0};
        for (int64_t r = 0; r < rows; r++) max[r] = -INFINITY;
        memset(acc, 0, (size_t)(rows * d) * sizeof(float));
        for (int64_t key = 0; key < lk; key += KEYS) {
            int64_t keys = lk - key < KEYS ? lk - key : KEYS;
            loops->scores(s, (const float *)q->data + first * q->ld + head * d,
                          (const float *)k->data + key * k->ld + head * d, scale, rows, keys, d, q->ld, k->ld, KEYS);
            if (bias) {
                for (int64_t r = 0; r < rows; r++) {
                    const float *b = (const float *)bias->data + head * bias->ld + key - (first + r) + lq - 1;
                    for (int64_t c = 0; c < keys; c++) s[r * KEYS + c] += b[c];
                }
            }
            loops->softmax_step(s, max, sum, acc, rows, keys, d, KEYS, d);
            loops->weighted(acc, s, (const float *)v->data + key * v->ld + head * d, rows, keys, d, KEYS, v->ld, d);
        }
        for (int64_t r = 0; r < rows; r++)
            for (int64_t i = 0; i < d; i++)
                ((float *)o->data)[(first + r) * o->ld + head * d + i] = acc[r * d + i] / sum[r];
    }
done:
    ipvg_arena_reset(ex->arena, mark);
    return status;
}

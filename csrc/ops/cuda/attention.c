/* Attention, in bfloat16: over few keys or with umT5's position bias our own fused one, else cuDNN's. What neither takes goes
 * as scores, softmax, values over as many queries at a time as SCORES allows: float32, odd head sizes; and wide heads. */
#include "blas.h"
#include "dnn.h"

#define SCORES ((int64_t)256 << 20) /* bytes of the score matrix */
#define FEW 64   /* keys: up to here our own kernel is as fast as cuDNN (H200: 73 us and 78 of 34320 queries) */
#define WIDE 256 /* columns of a head: with 384 cuDNN reaches 60 TFLOP/s (H200: 1 ms for 6240 queries and keys) */

typedef struct job {
    ipvg_tensor *o;
    const ipvg_tensor *q, *k, *v, *bias;
    int64_t heads, d, repeat; /* repeat: what the last key counts */
    float scale;
} job;

static bool aligned(const ipvg_tensor *t) { return (uintptr_t)t->data % 16 == 0 && t->ld % 8 == 0; }

static bool is_ours(const job *j)
{
    return j->q->dtype == IPVG_BF16 && (j->d == 64 || (j->d == 128 && !j->bias)) && j->scale > 0 &&
           (j->bias || j->repeat > 1 || j->k->shape[0] <= FEW) && aligned(j->o) && aligned(j->q) && aligned(j->k) &&
           aligned(j->v);
}

static ipvg_status ours(ipvg_exec *ex, const job *j)
{
    const int64_t lq = j->q->shape[0], lk = j->k->shape[0];
    ipvg_k_array o, q, k, v, bias;
    ipvg_status status;

    if (ipvg_planning(ex)) return IPVG_OK;
    IPVG_TRY(ipvg_cuda_array(ex, &o, "attention", j->o));
    IPVG_TRY(ipvg_cuda_array(ex, &q, "attention", j->q));
    IPVG_TRY(ipvg_cuda_array(ex, &k, "attention", j->k));
    IPVG_TRY(ipvg_cuda_array(ex, &v, "attention", j->v));
    IPVG_TRY(ipvg_cuda_array(ex, &bias, "attention", j->bias));
    IPVG_TRY(ipvg_cuda_check(
        ex->ctx,
        ipvg_k_attention(o, q, k, v, bias, j->scale, (int)j->heads, j->d, lq, lk, j->repeat, ipvg_cuda_of(ex)->stream),
        "attention"));
done:
    return status;
}

/* Tried by asking for its plan: what cuDNN takes depends on the GPU. */
static ipvg_status fused(ipvg_exec *ex, const job *j, bool *done)
{
    size_t mark = ipvg_arena_mark(ex->arena), bytes;
    const ipvg_sdpa s = {.batch = 1,
                         .heads = j->heads,
                         .lq = j->q->shape[0],
                         .lk = j->k->shape[0],
                         .d = j->d,
                         .ldq = j->q->ld,
                         .ldk = j->k->ld,
                         .ldv = j->v->ld,
                         .ldo = j->o->ld,
                         .dtype = j->q->dtype};
    void *workspace = NULL;
    ipvg_status status;

    *done = false;
    if (j->bias || j->repeat > 1 || j->q->dtype == IPVG_F32 || j->d % 8) return IPVG_OK;
    status = ipvg_dnn_sdpa_workspace(ex, &bytes, &s);
    if (status == IPVG_E_UNSUPPORTED) return IPVG_OK;
    if (status != IPVG_OK) return status;
    *done = true;
    if (bytes) IPVG_TRY(ipvg_arena_alloc(ex->ctx, ex->arena, &workspace, bytes));
    if (ipvg_planning(ex)) goto done;
    IPVG_TRY(ipvg_dnn_sdpa(ex, &s, j->scale, j->o->data, j->q->data, j->k->data, j->v->data, workspace));
done:
    ipvg_arena_reset(ex->arena, mark);
    return status;
}

static void *at(const ipvg_tensor *t, int64_t row, int64_t column)
{
    return (char *)t->data + (size_t)(row * t->ld + column) * ipvg_dtype_size(t->dtype);
}

/* `heads` heads from `head` on, `rows` queries from `first` on. */
static ipvg_status part(ipvg_exec *ex, const job *j, void *scores, void *weights, int64_t head, int64_t heads,
                        int64_t first, int64_t rows)
{
    const int64_t lk = j->k->shape[0], d = j->d, column = head * d;
    const ipvg_k_dtype dtype = (ipvg_k_dtype)j->q->dtype;
    const ipvg_k_array s = {scores, IPVG_K_F32, lk}, p = {weights, dtype, lk};
    ipvg_k_array bias = {0};
    ipvg_status status;

    const ipvg_gemm product = {.rows = rows,
                               .n = lk,
                               .k = d,
                               .ldx = j->q->ld,
                               .ldw = j->k->ld,
                               .ldy = lk,
                               .batch = heads,
                               .step_x = d,
                               .step_w = d,
                               .step_y = rows * lk,
                               .in = j->q->dtype,
                               .out = IPVG_F32};
    const ipvg_gemm_data of_product = {.y = scores, .x = at(j->q, first, column), .w = at(j->k, 0, column)};
    IPVG_TRY(ipvg_blas_gemm(ex, &product, 1.f, &of_product));
    if (j->bias) bias = (ipvg_k_array){at(j->bias, head, 0), IPVG_K_F32, j->bias->ld};
    IPVG_TRY(ipvg_cuda_check(ex->ctx,
                             ipvg_k_softmax(p, s, bias, j->scale, (int)heads, rows, lk, first, j->q->shape[0],
                                            j->repeat, ipvg_cuda_of(ex)->stream),
                             "softmax"));
    const ipvg_gemm sum = {.rows = rows,
                           .n = d,
                           .k = lk,
                           .ldx = lk,
                           .ldw = j->v->ld,
                           .ldy = j->o->ld,
                           .batch = heads,
                           .step_x = rows * lk,
                           .step_w = d,
                           .step_y = d,
                           .in = j->q->dtype,
                           .out = j->o->dtype,
                           .upright = 1};
    const ipvg_gemm_data of_sum = {.y = at(j->o, first, column), .x = weights, .w = at(j->v, 0, column)};
    IPVG_TRY(ipvg_blas_gemm(ex, &sum, 1.f, &of_sum));
done:
    return status;
}

static ipvg_status in_steps(ipvg_exec *ex, const job *j)
{
    const int64_t lq = j->q->shape[0], lk = j->k->shape[0], row = lk * (int64_t)sizeof(float);
    const int64_t all = j->heads * lq * row, most = SCORES > row ? SCORES : row, bytes = all < most ? all : most;
    size_t mark = ipvg_arena_mark(ex->arena);
    /* Whole heads if one fits, else part of the queries of one. `bytes` may be more than they fill, so that fewer keys never
     * take more memory. */
    int64_t heads = bytes / (lq * row), rows = lq;
    void *scores, *weights;
    ipvg_status status;

    if (heads < 1) heads = 1, rows = bytes / row;
    IPVG_TRY(ipvg_arena_alloc(ex->ctx, ex->arena, &scores, (size_t)bytes));
    weights = scores;
    if (j->q->dtype != IPVG_F32)
        IPVG_TRY(ipvg_arena_alloc(ex->ctx, ex->arena, &weights,
                                  (size_t)bytes / sizeof(float) * ipvg_dtype_size(j->q->dtype)));
    if (ipvg_planning(ex)) goto done;
    for (int64_t head = 0; head < j->heads; head += heads)
        for (int64_t first = 0; first < lq; first += rows)
            IPVG_TRY(part(ex, j, scores, weights, head, j->heads - head < heads ? j->heads - head : heads, first,
                          lq - first < rows ? lq - first : rows));
done:
    ipvg_arena_reset(ex->arena, mark);
    return status;
}

ipvg_status ipvg_cuda_attention(ipvg_exec *ex, ipvg_tensor *o, const ipvg_tensor *q, const ipvg_tensor *k,
                                const ipvg_tensor *v, int heads, float scale, const ipvg_tensor *bias, int64_t repeat)
{
    const job j = {.o = o,
                   .q = q,
                   .k = k,
                   .v = v,
                   .bias = bias,
                   .heads = heads,
                   .d = q->shape[1] / heads,
                   .repeat = repeat,
                   .scale = scale};
    bool did = false;
    ipvg_status status;

    if (k->dtype != q->dtype || v->dtype != q->dtype || o->dtype != q->dtype || (bias && bias->dtype != IPVG_F32))
        return ipvg_fail(ex->ctx, IPVG_E_TYPE, "attention: q, k, v and o must be of one dtype and a bias float32");
    if (q->shape[0] == 0) return IPVG_OK;
    if (is_ours(&j)) return ours(ex, &j);
    if (j.d <= WIDE) IPVG_TRY(fused(ex, &j, &did));
    if (!did) IPVG_TRY(in_steps(ex, &j));
done:
    return status;
}

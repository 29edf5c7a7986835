/* Matrix products by cuBLASLt. Row-major y = x w^T is its column-major y^T = w^T' x^T', the TN form: A is w, B is x.
 *
 * The library offers several algorithms for a shape and guesses an order. The first TRIED are timed once, on the data of the
 * first call, and the fastest is remembered (choices.h). The fastest in a burst may draw more power than a GPU is allowed for
 * long: those that are near it run again, by turns, at the limit, while they keep up. Algorithms that add partial sums in an
 * order of their own (split-K) are left out, so that results can be reproduced. */
#include "blas.h"

#include <cublasLt.h>
#include <cuda_runtime_api.h>
#include <stdlib.h>
#include <string.h>

#include "choices.h"

#define TRIED 24     /* algorithms */
#define REPEATS 3    /* timed runs of each, after one that does not count */
#define NEAR 1.08f   /* of the least time: who runs again */
#define BEHIND 1.02f /* of the least sum of turns: who runs no more */
#define LONG 0.1f    /* ms: shorter products wait for other things than power */
#define STRETCH 50   /* ms of a turn */
#define TURNS 4      /* the first, which brings the GPU to its limit, does not count */
#define MANY 8192    /* rows for which every product has algorithms */
#define NUMBERS(type) ((int)(sizeof(type) / sizeof(int64_t)))

struct ipvg_blas {
    cublasLtHandle_t handle;
    const ipvg_cuda *cuda;
    ipvg_choices choices; /* a cublasLtMatmulAlgo_t each */
    bool tune;
};

static ipvg_status check(ipvg_context *ctx, cublasStatus_t s, const char *what)
{
    if (s == CUBLAS_STATUS_SUCCESS) return IPVG_OK;
    return ipvg_fail(ctx, s == CUBLAS_STATUS_ALLOC_FAILED ? IPVG_E_MEMORY : IPVG_E_BACKEND, "cuBLASLt: %s: %s", what,
                     cublasLtGetStatusName(s));
}

/* ==== new, free ==== */

ipvg_status ipvg_blas_new(ipvg_context *ctx, ipvg_blas **out, const ipvg_cuda *cuda)
{
    ipvg_blas *b = calloc(1, sizeof *b);
    ipvg_status status;

    *out = NULL;
    if (!b) return ipvg_fail(ctx, IPVG_E_MEMORY, "no memory for cuBLASLt");
    b->cuda = cuda;
    b->tune = ipvg_choices_wanted();
    IPVG_TRY(check(ctx, cublasLtCreate(&b->handle), "its start"));
    ipvg_choices_open(&b->choices, "gemm", NUMBERS(ipvg_gemm), NUMBERS(cublasLtMatmulAlgo_t), cuda->device,
                      cublasLtGetVersion(), b->tune);
    *out = b;
    b = NULL;
done:
    ipvg_blas_free(&b);
    return status;
}

void ipvg_blas_free(ipvg_blas **blas)
{
    if (!*blas) return;
    if ((*blas)->handle) cublasLtDestroy((*blas)->handle);
    ipvg_choices_close(&(*blas)->choices);
    free(*blas);
    *blas = NULL;
}

/* ==== a product ==== */

typedef struct product {
    cublasLtMatmulDesc_t operation;
    cublasLtMatrixLayout_t a, b, d; /* w, x, y */
    cublasLtMatmulPreference_t preference;
    const ipvg_gemm_data *data;
    float alpha;
} product;

static cudaDataType_t type_of(int64_t dtype)
{
    return dtype == IPVG_BF16   ? CUDA_R_16BF
           : dtype == IPVG_F16  ? CUDA_R_16F
           : dtype == IPVG_E4M3 ? CUDA_R_8F_E4M3
                                : CUDA_R_32F;
}

static ipvg_status layout(ipvg_context *ctx, cublasLtMatrixLayout_t *out, int64_t dtype, int64_t rows, int64_t columns,
                          int64_t ld, int64_t batch, int64_t step)
{
    const int32_t count = (int32_t)batch;
    ipvg_status status;
    IPVG_TRY(
        check(ctx, cublasLtMatrixLayoutCreate(out, type_of(dtype), (uint64_t)rows, (uint64_t)columns, ld), "a layout"));
    if (batch == 1) goto done;
    IPVG_TRY(check(ctx,
                   cublasLtMatrixLayoutSetAttribute(*out, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &count, sizeof count),
                   "a batch"));
    IPVG_TRY(check(
        ctx, cublasLtMatrixLayoutSetAttribute(*out, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, &step, sizeof step),
        "a batch"));
done:
    return status;
}

/* Largest power of two up to 16 (what a vector load needs) that divides all addresses. */
static int64_t alignment(const ipvg_gemm_data *d)
{
    int64_t n = 16;
    while (((uintptr_t)d->x | (uintptr_t)d->w | (uintptr_t)d->y) % (uint64_t)n) n /= 2;
    return n;
}

static ipvg_status describe(ipvg_context *ctx, product *p, const ipvg_gemm *g)
{
    const cublasOperation_t transposed = g->upright ? CUBLAS_OP_N : CUBLAS_OP_T;
    const cublasLtEpilogue_t epilogue = g->gelu   ? (g->bias ? CUBLASLT_EPILOGUE_GELU_BIAS : CUBLASLT_EPILOGUE_GELU)
                                        : g->bias ? CUBLASLT_EPILOGUE_BIAS
                                                  : CUBLASLT_EPILOGUE_DEFAULT;
    const cudaDataType_t bias_type = type_of(g->out);
    const uint32_t no_splits = CUBLASLT_REDUCTION_SCHEME_NONE, aligned = (uint32_t)g->aligned;
    const size_t workspace = IPVG_CUDA_WORKSPACE;
    const cublasLtMatmulMatrixScale_t by_rows = CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F;
    const int8_t fast = 1;
    ipvg_status status;

    /* COMPUTE_32F, not its FAST_TF32 form: float32 stays float32. */
    IPVG_TRY(check(ctx, cublasLtMatmulDescCreate(&p->operation, CUBLAS_COMPUTE_32F, CUDA_R_32F), "a description"));
#define SET(attribute, value)                                                                                         \
    IPVG_TRY(check(                                                                                                   \
        ctx, cublasLtMatmulDescSetAttribute(p->operation, CUBLASLT_MATMUL_DESC_##attribute, &(value), sizeof(value)), \
        #attribute))
    SET(TRANSA, transposed);
    SET(EPILOGUE, epilogue);
    if (g->bias) {
        SET(BIAS_POINTER, p->data->bias);
        SET(BIAS_DATA_TYPE, bias_type);
    }
    if (g->in == IPVG_E4M3) {
        SET(A_SCALE_MODE, by_rows);
        SET(B_SCALE_MODE, by_rows);
        SET(A_SCALE_POINTER, p->data->scale_w);
        SET(B_SCALE_POINTER, p->data->scale_x);
        SET(FAST_ACCUM,
            fast); /* sums of fewer bits, as the peers' forwards have them: test_engine.c says how far off */
    }
#undef SET
    IPVG_TRY(
        layout(ctx, &p->a, g->in, g->upright ? g->n : g->k, g->upright ? g->k : g->n, g->ldw, g->batch, g->step_w));
    IPVG_TRY(layout(ctx, &p->b, g->in, g->k, g->rows, g->ldx, g->batch, g->step_x));
    IPVG_TRY(layout(ctx, &p->d, g->out, g->n, g->rows, g->ldy, g->batch, g->step_y));
    IPVG_TRY(check(ctx, cublasLtMatmulPreferenceCreate(&p->preference), "a preference"));
#define SET(attribute, value)                                                                                      \
    IPVG_TRY(check(ctx,                                                                                            \
                   cublasLtMatmulPreferenceSetAttribute(p->preference, CUBLASLT_MATMUL_PREF_##attribute, &(value), \
                                                        sizeof(value)),                                            \
                   #attribute))
    SET(MAX_WORKSPACE_BYTES, workspace);
    SET(REDUCTION_SCHEME_MASK, no_splits);
    SET(MIN_ALIGNMENT_A_BYTES, aligned);
    SET(MIN_ALIGNMENT_B_BYTES, aligned);
    SET(MIN_ALIGNMENT_C_BYTES, aligned);
    SET(MIN_ALIGNMENT_D_BYTES, aligned);
#undef SET
done:
    return status;
}

static void forget(product *p)
{
    if (p->preference) cublasLtMatmulPreferenceDestroy(p->preference);
    if (p->a) cublasLtMatrixLayoutDestroy(p->a);
    if (p->b) cublasLtMatrixLayoutDestroy(p->b);
    if (p->d) cublasLtMatrixLayoutDestroy(p->d);
    if (p->operation) cublasLtMatmulDescDestroy(p->operation);
}

static cublasStatus_t multiply(const ipvg_blas *b, const product *p, const cublasLtMatmulAlgo_t *algorithm)
{
    const float zero = 0;
    const ipvg_gemm_data *d = p->data;
    return cublasLtMatmul(b->handle, p->operation, &p->alpha, d->w, p->a, d->x, p->b, &zero, d->y, p->d, d->y, p->d,
                          algorithm, b->cuda->workspace, IPVG_CUDA_WORKSPACE, b->cuda->stream);
}

/* Milliseconds of one of `repeats` runs; infinite if it fails. */
static float duration(const ipvg_blas *b, const product *p, const cublasLtMatmulAlgo_t *algorithm, int repeats,
                      cudaEvent_t start, cudaEvent_t end)
{
    float ms = __builtin_inff();
    if (multiply(b, p, algorithm) != CUBLAS_STATUS_SUCCESS) return ms;
    cudaEventRecord(start, b->cuda->stream);
    for (int i = 0; i < repeats; i++) multiply(b, p, algorithm);
    cudaEventRecord(end, b->cuda->stream);
    if (cudaEventSynchronize(end) != cudaSuccess || cudaEventElapsedTime(&ms, start, end) != cudaSuccess)
        return __builtin_inff();
    return ms / (float)repeats;
}

static int least_of(const float *ms, int count)
{
    int best = 0;
    for (int i = 1; i < count; i++)
        if (ms[i] < ms[best]) best = i;
    return best;
}

/* All turns together may take seconds: a cancelled call ends between two. */
static ipvg_status fastest(ipvg_context *ctx, int *best, const ipvg_blas *b, const product *p,
                           const cublasLtMatmulHeuristicResult_t *found, int count, cudaEvent_t start, cudaEvent_t end)
{
    float ms[TRIED], sum[TRIED];
    ipvg_status status = IPVG_OK;
    int near = 0;

    for (int i = 0; i < count; i++) ms[i] = duration(b, p, &found[i].algo, REPEATS, start, end);
    *best = least_of(ms, count);
    for (int i = 0; i < count; i++) {
        const bool again = ms[i] <= NEAR * ms[*best];
        sum[i] = again ? 0 : __builtin_inff();
        near += again;
    }
    if (near < 2 || ms[*best] < LONG) goto done;
    for (int turn = 0; turn < TURNS; turn++) {
        for (int i = 0; i < count; i++) {
            if (sum[i] == __builtin_inff()) continue;
            IPVG_TRY(ipvg_check_cancel(ctx));
            const float one = duration(b, p, &found[i].algo, 1 + (int)(STRETCH / ms[i]), start, end);
            if (turn) sum[i] += one;
        }
        *best = least_of(sum, count);
        for (int i = 0; i < count; i++)
            if (sum[i] > BEHIND * sum[*best]) sum[i] = __builtin_inff();
    }
done:
    return status;
}

/* What the library offers for a product, the best guess first. */
static bool offered(const ipvg_blas *b, const product *p, cublasLtMatmulHeuristicResult_t *found, int *count,
                    cublasStatus_t *status)
{
    *status = cublasLtMatmulAlgoGetHeuristic(b->handle, p->operation, p->a, p->b, p->d, p->d, p->preference,
                                             b->tune ? TRIED : 1, found, count);
    return *status == CUBLAS_STATUS_SUCCESS && *count > 0;
}

/* For few rows with long sums of 8 bits the library offers none that leave the sums whole. No algorithm
 * belongs to a number of rows: what it offers for many, it may take for these. */
static bool offered_for_many(ipvg_context *ctx, const ipvg_blas *b, const product *p, const ipvg_gemm *g,
                             cublasLtMatmulHeuristicResult_t *found, int *count)
{
    product many = {.data = p->data, .alpha = p->alpha};
    ipvg_gemm larger = *g;
    cublasStatus_t asked;
    int of_many = 0;

    *count = 0;
    larger.rows = MANY;
    if (describe(ctx, &many, &larger) == IPVG_OK) offered(b, &many, found, &of_many, &asked);
    forget(&many);
    for (int i = 0; i < of_many; i++) {
        cublasLtMatmulHeuristicResult_t here; /* its algorithm is not set */
        if (cublasLtMatmulAlgoCheck(b->handle, p->operation, p->a, p->b, p->d, p->d, &found[i].algo, &here) ==
                CUBLAS_STATUS_SUCCESS &&
            here.workspaceSize <= IPVG_CUDA_WORKSPACE)
            found[(*count)++] = found[i];
    }
    return *count > 0;
}

static ipvg_status choose(ipvg_context *ctx, ipvg_blas *b, cublasLtMatmulAlgo_t *out, const ipvg_gemm *g,
                          const product *p)
{
    cublasLtMatmulHeuristicResult_t found[TRIED];
    cudaEvent_t start = NULL, end = NULL;
    cublasStatus_t asked;
    int count = 0, best = 0;
    ipvg_status status = IPVG_OK;

    if (!offered(b, p, found, &count, &asked)) {
        if (asked != CUBLAS_STATUS_NOT_SUPPORTED) IPVG_TRY(check(ctx, asked, "the choice of an algorithm"));
        if (!offered_for_many(ctx, b, p, g, found, &count)) {
            status =
                ipvg_fail(ctx, IPVG_E_UNSUPPORTED, "cuBLASLt: no algorithm for (%lld, %lld) x (%lld, %lld) of %s%s",
                          (long long)g->rows, (long long)g->k, (long long)g->k, (long long)g->n,
                          ipvg_dtype_name((ipvg_dtype)g->in), g->in == IPVG_E4M3 ? "; try dtype='bfloat16'" : "");
            goto done;
        }
    }
    if (b->tune && count > 1) {
        IPVG_TRY(ipvg_cuda_check(ctx, cudaEventCreate(&start), "an event"));
        IPVG_TRY(ipvg_cuda_check(ctx, cudaEventCreate(&end), "an event"));
        IPVG_TRY(fastest(ctx, &best, b, p, found, count, start, end));
    }
    *out = found[best].algo;
done:
    if (start) cudaEventDestroy(start);
    if (end) cudaEventDestroy(end);
    return status;
}

ipvg_status ipvg_blas_gemm(ipvg_exec *ex, const ipvg_gemm *g, float alpha, const ipvg_gemm_data *data)
{
    ipvg_blas *b = ipvg_cuda_of(ex)->blas;
    product p = {.data = data, .alpha = alpha};
    ipvg_gemm key = *g;
    cublasLtMatmulAlgo_t algorithm;
    const int64_t *known;
    ipvg_status status;

    key.aligned = alignment(data);
    known = ipvg_choices_get(&b->choices, &key);
    if (known) memcpy(&algorithm, known, sizeof algorithm);
    IPVG_TRY(describe(ex->ctx, &p, &key));
    if (known && multiply(b, &p, &algorithm) == CUBLAS_STATUS_SUCCESS) goto done;
    /* New, or remembered in a file that this library does not agree with. */
    IPVG_TRY(choose(ex->ctx, b, &algorithm, &key, &p));
    IPVG_TRY(check(ex->ctx, multiply(b, &p, &algorithm), "a product"));
    ipvg_choices_put(&b->choices, &key, &algorithm);
done:
    forget(&p);
    return status;
}

/* Matrix products by cuBLASLt. Row-major y = x w^T is its column-major y^T = w^T' x^T', the TN form: A is w, B is x.
 *
 * The library offers several algorithms for a shape and guesses an order. The first TRIED are timed once, on the data of the
 * first call, and the fastest is remembered: in this process, and in a file of the user's cache for this GPU and this version
 * of the library. IPVG_CUDA_TUNE=0 takes the library's first guess. Algorithms that add partial sums in an order of their own
 * (split-K) are left out, so that results can be reproduced. */
#include "blas.h"

#include <cublasLt.h>
#include <cuda_runtime_api.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define TRIED 12  /* algorithms */
#define REPEATS 3 /* timed runs of each, after one that does not count */
#define KEY_NUMBERS ((int)(sizeof(ipvg_gemm) / sizeof(int64_t)))

typedef struct entry {
    ipvg_gemm key;
    cublasLtMatmulAlgo_t algorithm;
} entry;

struct ipvg_blas {
    cublasLtHandle_t handle;
    const ipvg_cuda *cuda;
    entry *entries;
    int count, capacity;
    char file[1024]; /* of remembered algorithms; empty: none */
    bool tune;
};

static ipvg_status check(ipvg_context *ctx, cublasStatus_t s, const char *what)
{
    if (s == CUBLAS_STATUS_SUCCESS) return IPVG_OK;
    return ipvg_fail(ctx, s == CUBLAS_STATUS_ALLOC_FAILED ? IPVG_E_MEMORY : IPVG_E_BACKEND, "cuBLASLt: %s: %s", what,
                     cublasLtGetStatusName(s));
}

/* ==== the file of algorithms: a line a shape, numbers in hexadecimal, the key's first ==== */

static entry *add(ipvg_blas *b, const ipvg_gemm *key)
{
    if (b->count == b->capacity) {
        int capacity = b->capacity ? 2 * b->capacity : 32;
        entry *entries = realloc(b->entries, (size_t)capacity * sizeof *entries);
        if (!entries) return NULL;
        b->entries = entries;
        b->capacity = capacity;
    }
    b->entries[b->count] = (entry){.key = *key};
    return &b->entries[b->count++];
}

static entry *find(const ipvg_blas *b, const ipvg_gemm *key)
{
    for (int i = 0; i < b->count; i++)
        if (memcmp(&b->entries[i].key, key, sizeof *key) == 0) return &b->entries[i];
    return NULL;
}

/* <cache>/ipvg/gemm-<GPU>-<cuBLASLt version>.txt; its folders are made. */
static void name_file(ipvg_blas *b)
{
    const char *cache = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
    struct cudaDeviceProp properties;
    char folder[512], own[520], gpu[96];
    size_t n = 0;
    int size;

    if (cudaGetDeviceProperties(&properties, b->cuda->device) != cudaSuccess) return;
    for (const char *c = properties.name; *c && n + 1 < sizeof gpu; c++)
        gpu[n++] = (*c >= 'a' && *c <= 'z') || (*c >= 'A' && *c <= 'Z') || (*c >= '0' && *c <= '9') ? *c : '-';
    gpu[n] = 0;
    if (cache && cache[0])
        size = snprintf(folder, sizeof folder, "%s", cache);
    else if (home && home[0])
        size = snprintf(folder, sizeof folder, "%s/.cache", home);
    else
        return;
    if (size >= (int)sizeof folder - 6) return;
    mkdir(folder, 0777);
    snprintf(own, sizeof own, "%s/ipvg", folder);
    if (mkdir(own, 0777) && errno != EEXIST) return;
    size = snprintf(b->file, sizeof b->file, "%s/gemm-%s-%zu.txt", own, gpu, cublasLtGetVersion());
    if (size >= (int)sizeof b->file) b->file[0] = 0;
}

/* What does not read as expected is passed over: the shape is timed again. The library checks an algorithm before it runs. */
static void load(ipvg_blas *b)
{
    FILE *f = b->file[0] ? fopen(b->file, "r") : NULL;
    char line[1024];
    while (f && fgets(line, sizeof line, f)) {
        uint64_t numbers[KEY_NUMBERS + 8];
        int read = 0, used, wanted = KEY_NUMBERS + 8;
        const char *at = line;
        while (read < wanted && sscanf(at, "%" SCNx64 "%n", &numbers[read], &used) == 1) at += used, read++;
        if (read < wanted) continue;
        ipvg_gemm key;
        memcpy(&key, numbers, sizeof key);
        entry *e = find(b, &key) ? NULL : add(b, &key);
        if (e) memcpy(e->algorithm.data, numbers + KEY_NUMBERS, sizeof e->algorithm.data);
    }
    if (f) fclose(f);
}

/* Written beside it and renamed, so that no reader sees half a file. What another process added meanwhile is read first. */
static void save(ipvg_blas *b)
{
    char temporary[1100];
    if (!b->file[0]) return;
    load(b);
    snprintf(temporary, sizeof temporary, "%s.%ld", b->file, (long)getpid());
    FILE *f = fopen(temporary, "w");
    if (!f) return;
    for (int i = 0; i < b->count; i++) {
        int64_t key[KEY_NUMBERS];
        memcpy(key, &b->entries[i].key, sizeof key);
        for (int k = 0; k < KEY_NUMBERS; k++) fprintf(f, "%" PRIx64 " ", (uint64_t)key[k]);
        for (int k = 0; k < 8; k++)
            fprintf(f, "%" PRIx64 "%c", (uint64_t)b->entries[i].algorithm.data[k], k < 7 ? ' ' : '\n');
    }
    if (fclose(f) || rename(temporary, b->file)) unlink(temporary);
}

/* ==== new, free ==== */

ipvg_status ipvg_blas_new(ipvg_context *ctx, ipvg_blas **out, const ipvg_cuda *cuda)
{
    const char *tune = getenv("IPVG_CUDA_TUNE");
    ipvg_blas *b = calloc(1, sizeof *b);
    ipvg_status status;

    *out = NULL;
    if (!b) return ipvg_fail(ctx, IPVG_E_MEMORY, "no memory for cuBLASLt");
    b->cuda = cuda;
    b->tune = !tune || strcmp(tune, "0");
    IPVG_TRY(check(ctx, cublasLtCreate(&b->handle), "its start"));
    if (b->tune) {
        name_file(b);
        load(b);
    }
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
    free((*blas)->entries);
    free(*blas);
    *blas = NULL;
}

/* ==== a product ==== */

typedef struct product {
    cublasLtMatmulDesc_t operation;
    cublasLtMatrixLayout_t a, b, d; /* w, x, y */
    cublasLtMatmulPreference_t preference;
    const void *w, *x;
    void *y;
    float alpha;
} product;

static cudaDataType_t type_of(int64_t dtype)
{
    return dtype == IPVG_BF16 ? CUDA_R_16BF : dtype == IPVG_F16 ? CUDA_R_16F : CUDA_R_32F;
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
static int64_t alignment(const product *p)
{
    int64_t n = 16;
    while (((uintptr_t)p->x | (uintptr_t)p->w | (uintptr_t)p->y) % (uint64_t)n) n /= 2;
    return n;
}

static ipvg_status describe(ipvg_context *ctx, product *p, const ipvg_gemm *g, const void *bias)
{
    const cublasOperation_t transposed = g->upright ? CUBLAS_OP_N : CUBLAS_OP_T;
    const cublasLtEpilogue_t epilogue = g->gelu   ? (g->bias ? CUBLASLT_EPILOGUE_GELU_BIAS : CUBLASLT_EPILOGUE_GELU)
                                        : g->bias ? CUBLASLT_EPILOGUE_BIAS
                                                  : CUBLASLT_EPILOGUE_DEFAULT;
    const cudaDataType_t bias_type = type_of(g->out);
    const uint32_t no_splits = CUBLASLT_REDUCTION_SCHEME_NONE, aligned = (uint32_t)g->aligned;
    const size_t workspace = IPVG_CUDA_WORKSPACE;
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
        SET(BIAS_POINTER, bias);
        SET(BIAS_DATA_TYPE, bias_type);
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
    return cublasLtMatmul(b->handle, p->operation, &p->alpha, p->w, p->a, p->x, p->b, &zero, p->y, p->d, p->y, p->d,
                          algorithm, b->cuda->workspace, IPVG_CUDA_WORKSPACE, b->cuda->stream);
}

/* Milliseconds of one run; infinite if it fails. */
static float duration(const ipvg_blas *b, const product *p, const cublasLtMatmulAlgo_t *algorithm, cudaEvent_t start,
                      cudaEvent_t end)
{
    float ms = __builtin_inff();
    if (multiply(b, p, algorithm) != CUBLAS_STATUS_SUCCESS) return ms;
    cudaEventRecord(start, b->cuda->stream);
    for (int i = 0; i < REPEATS; i++) multiply(b, p, algorithm);
    cudaEventRecord(end, b->cuda->stream);
    if (cudaEventSynchronize(end) != cudaSuccess || cudaEventElapsedTime(&ms, start, end) != cudaSuccess)
        return __builtin_inff();
    return ms / REPEATS;
}

static ipvg_status choose(ipvg_context *ctx, ipvg_blas *b, cublasLtMatmulAlgo_t *out, const ipvg_gemm *g,
                          const product *p)
{
    cublasLtMatmulHeuristicResult_t found[TRIED];
    cudaEvent_t start = NULL, end = NULL;
    int count = 0, best = 0;
    float least = __builtin_inff();
    ipvg_status status;

    IPVG_TRY(check(ctx,
                   cublasLtMatmulAlgoGetHeuristic(b->handle, p->operation, p->a, p->b, p->d, p->d, p->preference,
                                                  b->tune ? TRIED : 1, found, &count),
                   "no algorithm for this shape"));
    if (count == 0) {
        status = ipvg_fail(ctx, IPVG_E_UNSUPPORTED, "cuBLASLt: no algorithm for (%lld, %lld) x (%lld, %lld)",
                           (long long)g->rows, (long long)g->k, (long long)g->k, (long long)g->n);
        goto done;
    }
    if (b->tune && count > 1) {
        IPVG_TRY(ipvg_cuda_check(ctx, cudaEventCreate(&start), "an event"));
        IPVG_TRY(ipvg_cuda_check(ctx, cudaEventCreate(&end), "an event"));
        for (int i = 0; i < count; i++) {
            float ms = duration(b, p, &found[i].algo, start, end);
            if (ms < least) least = ms, best = i;
        }
    }
    *out = found[best].algo;
    entry *e = add(b, g);
    if (e) e->algorithm = *out;
    if (e && b->tune) save(b);
done:
    if (start) cudaEventDestroy(start);
    if (end) cudaEventDestroy(end);
    return status;
}

ipvg_status ipvg_blas_gemm(ipvg_exec *ex, const ipvg_gemm *g, float alpha, void *y, const void *x, const void *w,
                           const void *bias)
{
    ipvg_blas *b = ipvg_cuda_of(ex)->blas;
    product p = {.w = w, .x = x, .y = y, .alpha = alpha};
    ipvg_gemm key = *g;
    cublasLtMatmulAlgo_t algorithm;
    entry *known;
    ipvg_status status;

    key.aligned = alignment(&p);
    known = find(b, &key);
    IPVG_TRY(describe(ex->ctx, &p, &key, bias));
    if (known && multiply(b, &p, &known->algorithm) == CUBLAS_STATUS_SUCCESS) goto done;
    /* New, or remembered in a file that this library does not agree with: whatever stood there is not used again. */
    if (known) known->key.rows = -1;
    IPVG_TRY(choose(ex->ctx, b, &algorithm, &key, &p));
    IPVG_TRY(check(ex->ctx, multiply(b, &p, &algorithm), "a product"));
done:
    forget(&p);
    return status;
}

/* What this GPU's cuBLASLt takes of 8-bit products, at the sizes of the 1.3B model: scales for each row and channel or one for
 * all, a bias, GELU, short or long sums. A line each: how many algorithms it offers and the fastest's time, or which attribute
 * or request was refused; relative L2 against double on the same E4M3 numbers, spread around 0 and of one sign.
 *
 *     tests/cuda/gpu.sh fp8
 *
 * Exit 1: what the engine asks for (csrc/ops/cuda/blas.c) is not offered. */
#include <cublasLt.h>
#include <cuda_runtime_api.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "numbers.h"

#define OFFERS 8
#define SAMPLED 6
#define WORKSPACE ((size_t)32 << 20)

typedef struct variant {
    const char *name;
    cublasLtMatmulMatrixScale_t scales;
    cublasLtEpilogue_t epilogue;
    int8_t fast;
    cudaDataType_t out;
} variant;

#define ROWS CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F
#define ONE CUBLASLT_MATMUL_MATRIX_SCALE_SCALAR_32F
#define ENGINES 2 /* the first: what the engine asks for */
static const variant variants[] = {
    {"by rows, bias, short sums: the engine's", ROWS, CUBLASLT_EPILOGUE_BIAS, 1, CUDA_R_16BF},
    {"the same and GELU: the engine's", ROWS, CUBLASLT_EPILOGUE_GELU_BIAS, 1, CUDA_R_16BF},
    {"by rows, bias, long sums", ROWS, CUBLASLT_EPILOGUE_BIAS, 0, CUDA_R_16BF},
    {"by rows, short sums", ROWS, CUBLASLT_EPILOGUE_DEFAULT, 1, CUDA_R_16BF},
    {"by rows, long sums", ROWS, CUBLASLT_EPILOGUE_DEFAULT, 0, CUDA_R_16BF},
    {"by rows, short sums, float32 out", ROWS, CUBLASLT_EPILOGUE_DEFAULT, 1, CUDA_R_32F},
    {"one scale, bias, short sums", ONE, CUBLASLT_EPILOGUE_BIAS, 1, CUDA_R_16BF},
    {"one scale, bias, long sums", ONE, CUBLASLT_EPILOGUE_BIAS, 0, CUDA_R_16BF},
};

typedef struct work {
    int64_t rows, n, k;
    unsigned char *x, *w; /* device: (rows, k), (n, k) */
    float *scale;         /* device: powers of 2, for rows and for n */
    void *y, *workspace, *bias;
    double *want; /* (SAMPLED, n): products of the numbers in some rows of y */
} work;

static cublasLtHandle_t handle;
static uint64_t seed = 1;

static void gpu(cudaError_t error, const char *what)
{
    if (error == cudaSuccess) return;
    printf("%s: %s\n", what, cudaGetErrorString(error));
    exit(2);
}

static uint32_t draw(void)
{
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(seed >> 40);
}

static unsigned char nearest(double v)
{
    unsigned char best = 0;
    for (int b = 0; b < 0x7f; b++)
        if (fabs(number_e4m3((unsigned char)b) - fabs(v)) < fabs(number_e4m3(best) - fabs(v))) best = (unsigned char)b;
    return v < 0 ? best | 0x80 : best;
}

/* Normal numbers, 100 to a standard deviation (a row's scale would make its greatest 448); or their sizes. */
static void fill(unsigned char *bytes, int64_t count, int one_sign)
{
    unsigned char table[4096];
    for (int i = 0; i < 4096; i++) {
        const double u = (draw() + 1.0) / 16777217.0, angle = 2 * 3.141592653589793 * draw() / 16777216.0;
        const double v = 100 * sqrt(-2 * log(u)) * cos(angle);
        table[i] = nearest(one_sign ? fabs(v) : v);
    }
    for (int64_t i = 0; i < count; i++) bytes[i] = table[draw() & 4095];
}

static float scale_of(int64_t i) { return ldexpf(1, -(int)(i % 3)); }

static int64_t sample(const work *j, int s) { return s * (j->rows - 1) / (SAMPLED - 1); }

static void oracle(work *j, const unsigned char *x, const unsigned char *w)
{
    float value[256], *a = malloc((size_t)j->k * sizeof *a);
    for (int i = 0; i < 256; i++) value[i] = number_e4m3((unsigned char)i);
    for (int s = 0; s < SAMPLED; s++) {
        for (int64_t k = 0; k < j->k; k++) a[k] = value[x[sample(j, s) * j->k + k]];
        for (int64_t n = 0; n < j->n; n++) {
            double sum = 0;
            for (int64_t k = 0; k < j->k; k++) sum += (double)a[k] * (double)value[w[n * j->k + k]];
            j->want[s * j->n + n] = sum;
        }
    }
    free(a);
}

/* Of the sampled rows, y in the device's memory against double. */
static double error_of(const work *j, const variant *v)
{
    const size_t size = v->out == CUDA_R_32F ? 4 : 2;
    const int64_t dtype = v->out == CUDA_R_32F ? IPVG_F32 : IPVG_BF16;
    char *row = malloc((size_t)j->n * size);
    double off = 0, norm = 0;
    for (int s = 0; s < SAMPLED; s++) {
        const int64_t r = sample(j, s);
        gpu(cudaMemcpy(row, (char *)j->y + (size_t)(r * j->n) * size, (size_t)j->n * size, cudaMemcpyDeviceToHost),
            "y");
        for (int64_t n = 0; n < j->n; n++) {
            double want = j->want[s * j->n + n];
            if (v->scales == ROWS) want *= (double)scale_of(r) * scale_of(n);
            if (v->epilogue == CUBLASLT_EPILOGUE_GELU_BIAS) /* far from 0 it is the number or 0 */
                want = want > 0 ? want : 0;
            off += pow(number_read(row, dtype, n) - want, 2), norm += want * want;
        }
    }
    free(row);
    return sqrt(off / norm);
}

typedef struct matmul {
    cublasLtMatmulDesc_t d;
    cublasLtMatrixLayout_t a, b, c;
    cublasLtMatmulPreference_t p;
} matmul;

/* The first thing that is refused, or NULL. */
static const char *describe(matmul *m, const work *j, const variant *v, cublasStatus_t *status)
{
    const cublasOperation_t transposed = CUBLAS_OP_T;
    const cudaDataType_t half = CUDA_R_16BF;
    const uint32_t no_splits = CUBLASLT_REDUCTION_SCHEME_NONE;
    const size_t workspace = WORKSPACE;
    const float *scale = j->scale;
#define SET(what, value)                                                                                        \
    if ((*status = cublasLtMatmulDescSetAttribute(m->d, CUBLASLT_MATMUL_DESC_##what, &(value), sizeof(value)))) \
    return #what
    if ((*status = cublasLtMatmulDescCreate(&m->d, CUBLAS_COMPUTE_32F, CUDA_R_32F))) return "a description";
    SET(TRANSA, transposed);
    SET(EPILOGUE, v->epilogue);
    if (v->epilogue != CUBLASLT_EPILOGUE_DEFAULT) {
        SET(BIAS_POINTER, j->bias);
        SET(BIAS_DATA_TYPE, half);
    }
    SET(A_SCALE_MODE, v->scales);
    SET(B_SCALE_MODE, v->scales);
    SET(A_SCALE_POINTER, scale);
    SET(B_SCALE_POINTER, scale);
    SET(FAST_ACCUM, v->fast);
    if ((*status = cublasLtMatrixLayoutCreate(&m->a, CUDA_R_8F_E4M3, (uint64_t)j->k, (uint64_t)j->n, j->k)) ||
        (*status = cublasLtMatrixLayoutCreate(&m->b, CUDA_R_8F_E4M3, (uint64_t)j->k, (uint64_t)j->rows, j->k)) ||
        (*status = cublasLtMatrixLayoutCreate(&m->c, v->out, (uint64_t)j->n, (uint64_t)j->rows, j->n)) ||
        (*status = cublasLtMatmulPreferenceCreate(&m->p)) ||
        (*status = cublasLtMatmulPreferenceSetAttribute(m->p, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace,
                                                        sizeof workspace)) ||
        (*status = cublasLtMatmulPreferenceSetAttribute(m->p, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &no_splits,
                                                        sizeof no_splits)))
        return "a layout or a preference";
    return NULL;
}

static cublasStatus_t multiply(const matmul *m, const work *j, const cublasLtMatmulAlgo_t *algorithm)
{
    const float one = 1, zero = 0;
    return cublasLtMatmul(handle, m->d, &one, j->w, m->a, j->x, m->b, &zero, j->y, m->c, j->y, m->c, algorithm,
                          j->workspace, WORKSPACE, 0);
}

/* The fastest algorithm's milliseconds; which one it is. */
static float fastest(const matmul *m, const work *j, const cublasLtMatmulHeuristicResult_t *found, int count, int *best)
{
    cudaEvent_t start, end;
    float least = INFINITY, ms;
    cudaEventCreate(&start), cudaEventCreate(&end);
    for (int i = 0; i < count; i++) {
        if (multiply(m, j, &found[i].algo)) continue;
        cudaEventRecord(start, 0);
        for (int r = 0; r < 5; r++) multiply(m, j, &found[i].algo);
        cudaEventRecord(end, 0);
        gpu(cudaEventSynchronize(end), "a product");
        cudaEventElapsedTime(&ms, start, end);
        if (ms / 5 < least) least = ms / 5, *best = i;
    }
    cudaEventDestroy(start), cudaEventDestroy(end);
    return least;
}

/* A line on the screen; 1: it is offered, computes and is right. */
static int attempt(const work *j, const variant *v, int one_sign)
{
    cublasLtMatmulHeuristicResult_t found[OFFERS];
    cublasStatus_t status = CUBLAS_STATUS_SUCCESS;
    matmul m = {0};
    int count = 0, best = -1, good = 0;
    const char *refused = describe(&m, j, v, &status);
    if (!refused &&
        (status = cublasLtMatmulAlgoGetHeuristic(handle, m.d, m.a, m.b, m.c, m.c, m.p, OFFERS, found, &count)))
        refused = "the request for algorithms";
    printf("  %-9s %-40s ", one_sign ? "one sign" : "around 0", v->name);
    if (refused) {
        printf("REFUSED %s: %s\n", refused, cublasLtGetStatusName(status));
    } else {
        const float ms = fastest(&m, j, found, count, &best);
        if (best < 0) {
            printf("%d offered, NONE RUNS\n", count);
        } else {
            multiply(&m, j, &found[best].algo);
            gpu(cudaDeviceSynchronize(), v->name);
            const double error = error_of(j, v);
            printf("%d offered, number %d: %7.3f ms, %5.0f TFLOP/s, error %.2e\n", count, best, (double)ms,
                   2e-9 * (double)j->rows * (double)j->n * (double)j->k / (double)ms, error);
            good = error < 3e-2;
        }
    }
    if (m.p) cublasLtMatmulPreferenceDestroy(m.p);
    if (m.a) cublasLtMatrixLayoutDestroy(m.a);
    if (m.b) cublasLtMatrixLayoutDestroy(m.b);
    if (m.c) cublasLtMatrixLayoutDestroy(m.c);
    if (m.d) cublasLtMatmulDescDestroy(m.d);
    return good;
}

static int size(const char *name, int64_t rows, int64_t n, int64_t k)
{
    work j = {.rows = rows, .n = n, .k = k};
    const int64_t most = rows > n ? rows : n;
    unsigned char *x = malloc((size_t)(rows * k)), *w = malloc((size_t)(n * k));
    float *scale = malloc((size_t)most * sizeof *scale);
    int bad = 0;
    printf("%s: (%ld, %ld) x (%ld, %ld)\n", name, (long)rows, (long)k, (long)k, (long)n);
    j.want = malloc((size_t)(SAMPLED * n) * sizeof *j.want);
    fill(w, n * k, 0);
    for (int64_t i = 0; i < most; i++) scale[i] = scale_of(i);
    gpu(cudaMalloc((void **)&j.x, (size_t)(rows * k)), "x");
    gpu(cudaMalloc((void **)&j.w, (size_t)(n * k)), "w");
    gpu(cudaMalloc((void **)&j.scale, (size_t)most * sizeof *scale), "scales");
    gpu(cudaMalloc(&j.y, (size_t)(rows * n) * 4), "y");
    gpu(cudaMalloc(&j.bias, (size_t)n * 2), "a bias");
    gpu(cudaMalloc(&j.workspace, WORKSPACE), "a workspace");
    gpu(cudaMemset(j.bias, 0, (size_t)n * 2), "a bias");
    gpu(cudaMemcpy(j.w, w, (size_t)(n * k), cudaMemcpyHostToDevice), "w");
    gpu(cudaMemcpy(j.scale, scale, (size_t)most * sizeof *scale, cudaMemcpyHostToDevice), "scales");
    for (int one_sign = 0; one_sign < 2; one_sign++) {
        fill(x, rows * k, one_sign);
        oracle(&j, x, w);
        gpu(cudaMemcpy(j.x, x, (size_t)(rows * k), cudaMemcpyHostToDevice), "x");
        for (int i = 0; i < (int)(sizeof variants / sizeof *variants); i++)
            bad += !attempt(&j, &variants[i], one_sign) && i < ENGINES;
    }
    cudaFree(j.x), cudaFree(j.w), cudaFree(j.scale), cudaFree(j.y), cudaFree(j.bias), cudaFree(j.workspace);
    free(x), free(w), free(scale), free(j.want);
    return bad;
}

int main(void)
{
    int bad = 0;
    if (cublasLtCreate(&handle)) return printf("cuBLASLt does not start\n"), 2;
    printf("cuBLASLt %zu\n", cublasLtGetVersion());
    bad += size("small", 48, 128, 256);
    bad += size("qkv", 34320, 4608, 1536);
    bad += size("up", 34320, 8960, 1536);
    bad += size("down", 34320, 1536, 8960);
    cublasLtDestroy(handle);
    printf(
        bad ? "what the engine asks for was refused or wrong %d times\n" : "ok: what the engine asks for is offered\n",
        bad);
    return bad != 0;
}

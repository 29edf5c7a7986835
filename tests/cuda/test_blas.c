/* How csrc/ops/cuda/blas.c chooses among a library's algorithms: the library is played here, with a card that runs an algorithm
 * of many watts fast in a burst and slower once it is at its power limit. */
#include <cuda_runtime_api.h>

#define cudaEventRecord record
#define cudaEventElapsedTime elapsed
static int record(cudaEvent_t event, cudaStream_t stream);
static int elapsed(float *ms, cudaEvent_t start, cudaEvent_t end);

#include "../../csrc/ops/cuda/blas.c"
#include "../../csrc/ops/cuda/choices.c"
#include "../../csrc/ops/ops.h"

static int failures;

#define CHECK(condition) \
    if (!(condition)) failures++, printf("FAIL %s:%d: %s\n", __FILE__, __LINE__, #condition)

ipvg_status ipvg_cuda_check(ipvg_context *ctx, int error, const char *what)
{
    return error == cudaSuccess ? IPVG_OK : ipvg_fail(ctx, IPVG_E_BACKEND, "%s", what);
}

/* ==== the card ==== */

#define BURST 100.0 /* ms of work until it is at its limit */

typedef struct played {
    double burst, limit; /* ms of a product; 0: it fails */
    uint64_t least_rows; /* below these it is not offered */
    size_t workspace;
} played;

static const played *library; /* the algorithms, the one it likes best first */
static int played_count, offers, runs[8], last;
static double now, marks[2];
static int mark;
static atomic_int *cancel_at_once;

static int record(cudaEvent_t event, cudaStream_t stream)
{
    (void)event, (void)stream;
    marks[mark++ % 2] = now;
    return cudaSuccess;
}

static int elapsed(float *ms, cudaEvent_t start, cudaEvent_t end)
{
    (void)start, (void)end;
    *ms = (float)(marks[(mark + 1) % 2] - marks[mark % 2]);
    return cudaSuccess;
}

/* ==== the library ==== */

struct cublasLtMatrixLayoutOpaque {
    uint64_t cols;
};

size_t cublasLtGetVersion(void) { return 1; }
const char *cublasLtGetStatusName(cublasStatus_t status) { return status ? "an error" : "none"; }
cublasStatus_t cublasLtCreate(cublasLtHandle_t *handle) { return *handle = &now, CUBLAS_STATUS_SUCCESS; }
cublasStatus_t cublasLtDestroy(cublasLtHandle_t handle) { return (void)handle, CUBLAS_STATUS_SUCCESS; }

cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t *out, cublasComputeType_t compute, cudaDataType_t scale)
{
    (void)compute, (void)scale;
    return *out = malloc(1), CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t desc) { return free(desc), CUBLAS_STATUS_SUCCESS; }
cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t desc, cublasLtMatmulDescAttributes_t which,
                                              const void *value, size_t size)
{
    return (void)desc, (void)which, (void)value, (void)size, CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t *out, cudaDataType type, uint64_t rows, uint64_t cols,
                                          int64_t ld)
{
    (void)type, (void)rows, (void)ld;
    *out = malloc(sizeof **out);
    (*out)->cols = cols;
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t layout)
{
    return free(layout), CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatrixLayoutSetAttribute(cublasLtMatrixLayout_t layout, cublasLtMatrixLayoutAttribute_t which,
                                                const void *value, size_t size)
{
    return (void)layout, (void)which, (void)value, (void)size, CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t *out)
{
    return *out = malloc(1), CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t preference)
{
    return free(preference), CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t preference,
                                                    cublasLtMatmulPreferenceAttributes_t which, const void *value,
                                                    size_t size)
{
    return (void)preference, (void)which, (void)value, (void)size, CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t handle, cublasLtMatmulDesc_t desc,
                                              cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                                              cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
                                              cublasLtMatmulPreference_t preference, int wanted,
                                              cublasLtMatmulHeuristicResult_t found[], int *count)
{
    (void)handle, (void)desc, (void)a, (void)c, (void)d, (void)preference;
    offers++;
    *count = 0;
    for (int i = 0; i < played_count && *count < wanted; i++)
        if (b->cols >= library[i].least_rows)
            found[(*count)++] = (cublasLtMatmulHeuristicResult_t){.algo = {{(uint64_t)i}}};
    return *count ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_NOT_SUPPORTED;
}

cublasStatus_t cublasLtMatmulAlgoCheck(cublasLtHandle_t handle, cublasLtMatmulDesc_t desc, cublasLtMatrixLayout_t a,
                                       cublasLtMatrixLayout_t b, cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
                                       const cublasLtMatmulAlgo_t *algo, cublasLtMatmulHeuristicResult_t *result)
{
    (void)handle, (void)desc, (void)a, (void)b, (void)c, (void)d;
    result->workspaceSize = library[algo->data[0]].workspace;
    return library[algo->data[0]].burst > 0 ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_NOT_SUPPORTED;
}

cublasStatus_t cublasLtMatmul(cublasLtHandle_t handle, cublasLtMatmulDesc_t desc, const void *alpha, const void *a,
                              cublasLtMatrixLayout_t a_layout, const void *b, cublasLtMatrixLayout_t b_layout,
                              const void *beta, const void *c, cublasLtMatrixLayout_t c_layout, void *d,
                              cublasLtMatrixLayout_t d_layout, const cublasLtMatmulAlgo_t *algo, void *workspace,
                              size_t workspace_size, cudaStream_t stream)
{
    (void)handle, (void)desc, (void)alpha, (void)a, (void)a_layout, (void)b, (void)b_layout, (void)beta, (void)c;
    (void)c_layout, (void)d, (void)d_layout, (void)workspace, (void)workspace_size, (void)stream;
    last = (int)algo->data[0];
    if (last >= played_count || library[last].burst == 0) return CUBLAS_STATUS_EXECUTION_FAILED;
    now += now < BURST ? library[last].burst : library[last].limit;
    runs[last]++;
    if (cancel_at_once && now > BURST) *cancel_at_once = 1;
    return CUBLAS_STATUS_SUCCESS;
}

/* ==== choosing ==== */

static ipvg_context ctx;
static ipvg_cuda cuda;

/* A product of so many rows, by a library of `count` algorithms; how it ended. */
static ipvg_status multiplied(const played *algorithms, int count, int64_t rows)
{
    ipvg_backend be = {.state = &cuda};
    ipvg_exec ex = {.ctx = &ctx, .be = &be};
    const ipvg_gemm g = {
        .rows = rows, .n = 16, .k = 16, .ldx = 16, .ldw = 16, .ldy = 16, .batch = 1, .in = IPVG_E4M3, .out = IPVG_BF16};
    const ipvg_gemm_data data = {.y = (void *)16, .x = (void *)32, .w = (void *)48};
    library = algorithms;
    played_count = count;
    offers = last = 0;
    now = 0;
    memset(runs, 0, sizeof runs);
    return ipvg_blas_gemm(&ex, &g, 1.f, &data);
}
#define MULTIPLIED(algorithms, rows) multiplied(algorithms, (int)(sizeof(algorithms) / sizeof *(algorithms)), rows)

static void the_fastest_at_the_limit(void)
{
    static const played three[] = {{2.0, 2.4, 0, 0}, {2.1, 2.2, 0, 0}, {2.5, 2.0, 0, 0}}, broken[] = {{0, 0, 0, 0}};
    CHECK(MULTIPLIED(three, 100) == IPVG_OK && last == 1); /* the third was too slow in the burst to be asked again */
    CHECK(runs[2] == 1 + REPEATS && runs[1] > runs[0]);    /* and the first fell behind */
    CHECK(MULTIPLIED(three, 100) == IPVG_OK && last == 1 && offers == 0 && runs[1] == 1); /* remembered */
    CHECK(MULTIPLIED(broken, 100) == IPVG_E_BACKEND); /* not what this library has */
    static const played failing[] = {{0, 0, 0, 0}, {3, 3, 0, 0}}, short_ones[] = {{.02, .03, 0, 0}, {.0201, .02, 0, 0}};
    CHECK(MULTIPLIED(failing, 101) == IPVG_OK && last == 1);
    CHECK(MULTIPLIED(short_ones, 102) == IPVG_OK && last == 0); /* they never come near the limit */
}

static void what_is_offered_for_many_rows(void)
{
    static const played some[] = {{0, 0, MANY, 0}, {1, 1, MANY, IPVG_CUDA_WORKSPACE + 1}, {2, 2, MANY, 0}};
    static const played none[] = {{0, 0, MANY, 0}, {1, 1, MANY + 1, 0}};
    CHECK(MULTIPLIED(some, 15) == IPVG_OK && last == 2 && offers == 2 && !runs[1]);
    CHECK(MULTIPLIED(some, 15) == IPVG_OK && last == 2 && offers == 0);
    CHECK(MULTIPLIED(none, 14) == IPVG_E_UNSUPPORTED && strstr(ctx.error, "(14, 16) x (16, 16) of fp8; try dtype="));
}

static void cancelled_between_turns(void)
{
    static const played two[] = {{2, 2, 0, 0}, {2, 2, 0, 0}};
    cancel_at_once = &ctx.cancel;
    CHECK(MULTIPLIED(two, 200) == IPVG_E_CANCELLED && now < BURST + 2 * STRETCH);
    cancel_at_once = NULL;
    CHECK(MULTIPLIED(two, 200) == IPVG_OK && offers == 1); /* nothing was remembered */
}

int main(void)
{
    char folder[] = "/tmp/ipvg-blas-XXXXXX", command[64];
    ipvg_blas *again = NULL;
    if (!mkdtemp(folder)) return 1;
    setenv("XDG_CACHE_HOME", folder, 1);
    ipvg_context_init(&ctx, 1);
    CHECK(ipvg_blas_new(&ctx, &cuda.blas, &cuda) == IPVG_OK);
    the_fastest_at_the_limit();
    what_is_offered_for_many_rows();
    cancelled_between_turns();

    CHECK(ipvg_blas_new(&ctx, &again, &cuda) == IPVG_OK); /* another process */
    ipvg_blas_free(&cuda.blas);
    cuda.blas = again;
    static const played three[] = {{2.0, 2.4, 0, 0}, {2.1, 2.2, 0, 0}, {2.5, 2.0, 0, 0}};
    CHECK(MULTIPLIED(three, 100) == IPVG_OK && last == 1 && offers == 0);
    ipvg_blas_free(&cuda.blas);
    snprintf(command, sizeof command, "rm -r %s", folder);
    CHECK(system(command) == 0);
    puts(failures ? "failed" : "ok");
    return failures != 0;
}

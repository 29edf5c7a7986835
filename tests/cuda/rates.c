/* How near our own kernels come to the rate at which this GPU copies, at the sizes of the models in 16 bits: the transformers'
 * at 480p, 81 frames and a reference, the autoencoder's a frame. Twice each: alone, and between matrix products that hold the
 * GPU at its power limit, where its clock is lower and what counts is instructions; so they run in a forward.
 *
 *     tests/cuda/gpu.sh rates
 *
 * Quantising, of fp8 alone, is timed on parts as csrc/ops/cuda/linear.c makes them, whose numbers the caches may still hold. */
#include <cublas_v2.h>
#include <cuda_runtime_api.h>
#include <stdio.h>
#include <stdlib.h>

#include "../../kernels/kernels.h"

#define TOKENS ((int64_t)34320)
#define PLACE ((size_t)352 << 20) /* bytes: a (TOKENS, 5120) fits */
#define PLACES 11
#define RUNS 20
#define SIDE 8192      /* of the product */
#define WARM 1500      /* products before anything is timed between them: about two seconds */
#define PART_ROWS 2816 /* of what is quantised at a time */

typedef struct model {
    const char *name;
    int64_t dim, ffn, heads;
    int blocks, hints;
} model;

static const model models[] = {{"1.3B", 1536, 8960, 12, 45, 15}, {"14B", 5120, 13824, 40, 48, 8}};
static const model *m;
static char *memory; /* of the device */
static cublasHandle_t blas;
static cudaEvent_t before, after;
static double copied[2], sums[2]; /* GB/s of a copy; ms of a forward */

static void gpu(int error, const char *what)
{
    if (error == cudaSuccess) return;
    printf("%s: %s\n", what, cudaGetErrorString((cudaError_t)error));
    exit(1);
}

/* A matrix in the device's memory, from a place of PLACE bytes on. */
static ipvg_k_array matrix(int place, ipvg_k_dtype dtype, int64_t ld)
{
    return (ipvg_k_array){memory + (size_t)place * PLACE, dtype, ld};
}

static int copy(void)
{
    return (int)cudaMemcpyAsync(memory + PLACE, memory, (size_t)(TOKENS * m->dim) * 2, cudaMemcpyDeviceToDevice, 0);
}

/* ==== the transformer's ==== */

#define X matrix(0, IPVG_K_BF16, m->dim)
#define Y matrix(1, IPVG_K_BF16, m->dim)
#define N matrix(2, IPVG_K_BF16, m->dim)
#define N8 matrix(2, IPVG_K_E4M3, m->dim)
#define Q matrix(3, IPVG_K_BF16, 3 * m->dim) /* and two places more; F too */
#define F matrix(3, IPVG_K_BF16, m->ffn)
#define VECTOR matrix(6, IPVG_K_F32, 0)
#define ROPE ((float *)matrix(7, IPVG_K_F32, 0).data)

static int norm(void) { return ipvg_k_layer_norm(N, NULL, X, VECTOR, VECTOR, 1, 1e-6f, TOKENS, m->dim, 0); }
static int norm8(void) { return ipvg_k_layer_norm(N8, ROPE, X, VECTOR, VECTOR, 1, 1e-6f, TOKENS, m->dim, 0); }
static int rms(void) { return ipvg_k_rms_norm(Y, Y, VECTOR, 1e-6f, TOKENS, m->dim, 0); }
static int gate(void) { return ipvg_k_gate_residual(X, Y, VECTOR, TOKENS, m->dim, 0); }
static int quantise(void) { return ipvg_k_quantise_rows(N8, ROPE, X, TOKENS, m->dim, 0); }
static int rope(void) { return ipvg_k_rms_norm_rope(Q, Q, VECTOR, ROPE, (int)m->heads, 1e-6f, TOKENS, m->dim, 0); }
static int gate_norm(void)
{
    return ipvg_k_gate_residual_norm(N, NULL, X, Y, VECTOR, VECTOR, VECTOR, 1, 1e-6f, TOKENS, m->dim, 0);
}
static int gate_norm8(void)
{
    return ipvg_k_gate_residual_norm(N8, ROPE, X, Y, VECTOR, VECTOR, VECTOR, 1, 1e-6f, TOKENS, m->dim, 0);
}
static int hint(void)
{
    return ipvg_k_combine(X, 2, (const ipvg_k_array[]){X, Y}, (const float[]){1, 1}, TOKENS * m->dim, 0);
}
/* The same memory for each part, as the product would write it. */
static int quantise_parts(void)
{
    int error = 0;
    for (int64_t first = 0; first < TOKENS && !error; first += PART_ROWS) {
        const int64_t rows = TOKENS - first < PART_ROWS ? TOKENS - first : PART_ROWS;
        const ipvg_k_array to = {(char *)memory + first * m->ffn, IPVG_K_E4M3, m->ffn};
        error = ipvg_k_quantise_rows(to, ROPE + first, F, rows, m->ffn, 0);
    }
    return error;
}

/* ==== the autoencoder's: a frame of 480 rows, of 240 with twice the channels, of 120 with four times ==== */

static int64_t channels;
static int64_t pixels(void) { return (int64_t)480 * 832 * 96 * 96 / (channels * channels); }
static int finish(bool residual)
{
    const ipvg_k_array none = {0}, v = matrix(0, IPVG_K_F16, channels), z = matrix(1, IPVG_K_F16, channels),
                       y = matrix(2, IPVG_K_F16, channels), r = matrix(3, IPVG_K_F16, channels);
    return ipvg_k_conv_finish(residual ? y : none, z, v, matrix(6, IPVG_K_F16, 0), residual ? r : none, VECTOR, true,
                              pixels(), channels, 0);
}
static int finish_plain(void) { return finish(false); }
static int finish_residual(void) { return finish(true); }

/* ==== timing ==== */

static void product(void)
{
    const float one = 1, zero = 0;
    const void *a = memory + 8 * PLACE, *b = memory + 9 * PLACE;
    if (cublasGemmEx(blas, CUBLAS_OP_T, CUBLAS_OP_N, SIDE, SIDE, SIDE, &one, a, CUDA_R_16BF, SIDE, b, CUDA_R_16BF, SIDE,
                     &zero, memory + 10 * PLACE, CUDA_R_16BF, SIDE, CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT))
        printf("cublasGemmEx failed\n"), exit(1);
}

/* Milliseconds of a run. */
static double timed(int (*run)(void), bool loaded, const char *name)
{
    double sum = 0;
    float ms;
    for (int i = 0; i < RUNS; i++) {
        if (loaded) product();
        cudaEventRecord(before, 0);
        gpu(run(), name);
        cudaEventRecord(after, 0);
        gpu((int)cudaEventSynchronize(after), name);
        cudaEventElapsedTime(&ms, before, after);
        sum += (double)ms;
    }
    return sum / RUNS;
}

/* A run moves `bytes`; a forward makes it so many times. */
static void line(const char *name, int (*run)(void), int times, double bytes)
{
    printf("%-5s %-32s %3d x %6.0f MB", m ? m->name : "VAE", name, times, bytes * 1e-6);
    gpu(run(), name);
    for (int loaded = 0; loaded < 2; loaded++) {
        const double ms = timed(run, loaded, name), rate = bytes / ms * 1e-6;
        if (run == copy) copied[loaded] = rate;
        sums[loaded] += times * ms;
        printf("   %s %7.1f us, %5.0f GB/s, %3.0f %% of a copy", loaded ? "between products" : "alone", ms * 1e3, rate,
               100 * rate / copied[loaded]);
    }
    printf("\n");
}

/* Numbers of 16 bits in a whole place: zeros would cost little power. */
static void draw(int place)
{
    const int64_t count = (int64_t)(PLACE / 4);
    const ipvg_k_array drawn = matrix(PLACES - 1, IPVG_K_F32, count), half = matrix(place, IPVG_K_BF16, count);
    gpu(ipvg_k_normals(drawn.data, 1, (uint32_t)place, 0, count, 0), "numbers");
    gpu(ipvg_k_cast(half, drawn, 1, count, 0), "numbers");
    gpu((int)cudaMemcpy((char *)half.data + PLACE / 2, half.data, PLACE / 2, cudaMemcpyDeviceToDevice), "numbers");
}

int main(void)
{
    gpu((int)cudaMalloc((void **)&memory, PLACES * PLACE), "memory");
    gpu((int)cudaEventCreate(&before) || (int)cudaEventCreate(&after), "events");
    if (cublasCreate(&blas)) return printf("cublasCreate failed\n"), 1;
    for (int place = 0; place < PLACES - 1; place++) draw(place);
    for (int i = 0; i < WARM; i++) product();
    for (m = models; m < models + 2; m++) {
        const double unit = (double)(TOKENS * m->dim) * 2, table = (double)TOKENS * 128 * 4;
        sums[0] = sums[1] = 0;
        line("copy", copy, 0, 2 * unit);
        line("norm, modulated", norm, m->blocks, 2 * unit);
        line("RMS norm and RoPE of q or k", rope, 2 * m->blocks, 2 * unit + table);
        line("gate, residual, norm", gate_norm, 2 * m->blocks, 4 * unit);
        line("RMS norm", rms, m->blocks, 2 * unit);
        line("gate, residual", gate, m->blocks, 3 * unit);
        line("hint added", hint, m->hints, 3 * unit);
        printf("%s together: %.2f ms a forward alone, %.2f between products\n", m->name, sums[0], sums[1]);
        line("norm, modulated, to fp8", norm8, m->blocks, 1.5 * unit);
        line("gate, residual, norm, to fp8", gate_norm8, 2 * m->blocks, 3.5 * unit);
        line("quantise", quantise, 2 * m->blocks, 1.5 * unit);
        line("quantise FFN in parts", quantise_parts, m->blocks, 1.5 * (double)(TOKENS * m->ffn) * 2);
    }
    m = NULL;
    for (channels = 96; channels <= 384; channels *= 2) {
        const double unit = (double)(pixels() * channels) * 2;
        char name[64];
        snprintf(name, sizeof name, "norm, SiLU, %d channels", (int)channels);
        line(name, finish_plain, 1, 2 * unit);
        snprintf(name, sizeof name, "with residual, %d channels", (int)channels);
        line(name, finish_residual, 1, 4 * unit);
    }
    cublasDestroy(blas);
    cudaFree(memory);
    return 0;
}

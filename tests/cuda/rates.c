/* How near the kernels of the transformer come to the rate at which this GPU copies: at the sizes of 1.3B, 480p, 81 frames and a
 * reference, in bfloat16. A line each: how often a forward runs it, its bytes and time, its rate and what a forward spends on it.
 * Quantising, of fp8 alone, is timed on parts as csrc/ops/cuda/linear.c makes them, whose numbers the caches may still hold.
 *
 *     tests/cuda/gpu.sh rates
 */
#include <cuda_runtime_api.h>
#include <stdio.h>
#include <stdlib.h>

#include "../../kernels/kernels.h"

#define TOKENS ((int64_t)34320)
#define DIM ((int64_t)1536)
#define FFN ((int64_t)8960)
#define HEADS 12
#define BLOCKS 45
#define HINTS 15
#define RUNS 20

static char *memory;        /* of the device */
static double copied, sums; /* GB/s of a copy; ms of a forward */

static void gpu(int error, const char *what)
{
    if (error == cudaSuccess) return;
    printf("%s: %s\n", what, cudaGetErrorString((cudaError_t)error));
    exit(1);
}

/* A matrix of its own in the device's memory: 256 MiB for each place. */
static ipvg_k_array matrix(int place, ipvg_k_dtype dtype, int64_t ld)
{
    return (ipvg_k_array){memory + ((int64_t)place << 28), dtype, ld};
}

static int run(int kind)
{
    const ipvg_k_array x = matrix(0, IPVG_K_BF16, DIM), y = matrix(1, IPVG_K_BF16, DIM),
                       n = matrix(2, IPVG_K_BF16, DIM);
    const ipvg_k_array q = matrix(3, IPVG_K_BF16, 3 * DIM), vector = matrix(6, IPVG_K_F32, 0);
    const ipvg_k_array wide = matrix(3, IPVG_K_BF16, FFN), n8 = matrix(2, IPVG_K_E4M3, DIM),
                       wide8 = matrix(0, IPVG_K_E4M3, FFN);
    float *const rope = (float *)matrix(7, IPVG_K_F32, 0).data, *const scale = rope;
    const float one[] = {1, 1};
    int error = 0;

    switch (kind) {
    case 0: return cudaMemcpyAsync(y.data, x.data, (size_t)(TOKENS * DIM) * 2, cudaMemcpyDeviceToDevice, 0);
    case 1: return ipvg_k_layer_norm(n, NULL, x, vector, vector, 1, 1e-6f, TOKENS, DIM, 0);
    case 2: return ipvg_k_rms_norm_rope(q, q, vector, rope, HEADS, 1e-6f, TOKENS, DIM, 0);
    case 3: return ipvg_k_gate_residual_norm(n, NULL, x, y, vector, vector, vector, 1, 1e-6f, TOKENS, DIM, 0);
    case 4: return ipvg_k_rms_norm(y, y, vector, 1e-6f, TOKENS, DIM, 0);
    case 5: return ipvg_k_gate_residual(x, y, vector, TOKENS, DIM, 0);
    case 6: return ipvg_k_combine(x, 2, (const ipvg_k_array[]){x, y}, one, TOKENS * DIM, 0);
    case 7: return ipvg_k_layer_norm(n8, scale, x, vector, vector, 1, 1e-6f, TOKENS, DIM, 0);
    case 8: return ipvg_k_gate_residual_norm(n8, scale, x, y, vector, vector, vector, 1, 1e-6f, TOKENS, DIM, 0);
    case 9: return ipvg_k_quantise_rows(n8, scale, x, TOKENS, DIM, 0);
    default: /* the same memory for each part of `kind` rows, as the product would write it */
        for (int64_t first = 0; first < TOKENS && !error; first += kind) {
            const int64_t rows = TOKENS - first < kind ? TOKENS - first : kind;
            const ipvg_k_array to = {(char *)wide8.data + first * FFN, IPVG_K_E4M3, FFN};
            error = ipvg_k_quantise_rows(to, scale + first, wide, rows, FFN, 0);
        }
        return error;
    }
}

/* passes: how often the bytes of a bfloat16 (rows, d) are read or written. */
static void line(const char *name, int kind, int times, double passes, int64_t d)
{
    const double bytes = passes * (double)(TOKENS * d) * 2;
    cudaEvent_t start, end;
    float ms;
    gpu(run(kind), name);
    gpu(cudaEventCreate(&start) || cudaEventCreate(&end), "events");
    cudaEventRecord(start, 0);
    for (int i = 0; i < RUNS; i++) gpu(run(kind), name);
    cudaEventRecord(end, 0);
    gpu(cudaEventSynchronize(end), name);
    cudaEventElapsedTime(&ms, start, end);
    ms /= RUNS;
    const double rate = bytes / (double)ms * 1e-6;
    if (kind == 0) copied = rate;
    sums += times * (double)ms;
    printf(
        "%-34s %3d x %6.0f MB, %7.4f ms, %5.0f GB/s, %3.0f %% of a copy; a forward %6.2f ms, %6.2f at a copy's rate\n",
        name, times, bytes * 1e-6, (double)ms, rate, 100 * rate / copied, times * (double)ms,
        times * bytes / copied * 1e-6);
    cudaEventDestroy(start), cudaEventDestroy(end);
}

int main(void)
{
    const double rope = 2 + 4. * 64 / (double)DIM; /* its table is float32 (tokens, 64, 2): so many numbers a row */
    gpu(cudaMalloc((void **)&memory, (size_t)8 << 28), "memory");
    gpu(cudaMemset(memory, 0, (size_t)8 << 28), "memory");
    line("copy", 0, 0, 2, DIM);
    line("norm, modulated", 1, BLOCKS, 2, DIM);
    line("RMS norm and RoPE of q or k", 2, 2 * BLOCKS, rope, DIM);
    line("gate, residual, norm", 3, 2 * BLOCKS, 4, DIM);
    line("RMS norm", 4, BLOCKS, 2, DIM);
    line("gate, residual", 5, BLOCKS, 3, DIM);
    line("hint added", 6, HINTS, 3, DIM);
    printf("together %.2f ms a forward\n", sums);
    line("norm, modulated, to fp8", 7, BLOCKS, 1.5, DIM);
    line("gate, residual, norm, to fp8", 8, 2 * BLOCKS, 3.5, DIM);
    line("quantise", 9, 2 * BLOCKS, 1.5, DIM);
    line("quantise FFN, 8192 rows at a time", 8192, BLOCKS, 1.5, FFN);
    line("quantise FFN, 1408 rows at a time", 1408, BLOCKS, 1.5, FFN);
    cudaFree(memory);
    return 0;
}

/* Attention's three ways (csrc/ops/cuda/attention.c) at the sizes of the real models, bfloat16: microseconds of cuDNN's, of
 * our own kernel and of scores, softmax and values in steps; relative L2 of each against float64, on some rows.
 *
 *     tests/cuda/gpu.sh attention
 *
 * Exit 1: one is wrong. */
#include "../../csrc/ops/cuda/attention.c"

#include <cuda_runtime_api.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../../csrc/ops/cuda/device.h"
#include "numbers.h"

#define SAMPLED 7
#define REPEATS 20
#define BOUND 5e-3 /* of 16-bit attention */

static ipvg_context ctx;
static ipvg_arena arena;
static ipvg_exec ex;
static int failures;

static void gpu(cudaError_t error, const char *what)
{
    if (error == cudaSuccess) return;
    printf("%s: %s\n", what, cudaGetErrorString(error));
    exit(2);
}

static void must(ipvg_status status)
{
    if (status == IPVG_OK) return;
    printf("%s\n", ctx.error);
    exit(2);
}

/* (rows, columns) normal numbers times `scale`. */
static ipvg_tensor normals(ipvg_dtype dtype, int64_t rows, int64_t columns, float scale)
{
    static uint64_t stream;
    enum { AT_ONCE = 1 << 24 };
    ipvg_tensor t = ipvg_tensor_of(NULL, dtype, rows, columns);
    const int64_t count = rows * columns;
    float *drawn;
    gpu(cudaMalloc(&t.data, ipvg_tensor_bytes(&t)), "memory");
    gpu(cudaMalloc((void **)&drawn, AT_ONCE * sizeof *drawn), "memory");
    for (int64_t i = 0; i < count; i += AT_ONCE) {
        const int64_t n = count - i < AT_ONCE ? count - i : AT_ONCE;
        const ipvg_k_array from = {drawn, IPVG_K_F32, 1};
        const ipvg_k_array to = {(char *)t.data + (size_t)i * ipvg_dtype_size(dtype), (ipvg_k_dtype)dtype, 1};
        gpu((cudaError_t)ipvg_k_normals(drawn, 1, (uint32_t)stream, (uint64_t)i, n, NULL), "numbers");
        gpu((cudaError_t)ipvg_k_combine(to, 1, &from, &scale, n, NULL), "numbers");
    }
    stream++;
    gpu(cudaDeviceSynchronize(), "numbers");
    cudaFree(drawn);
    return t;
}

static float *fetch(const ipvg_tensor *t, int64_t row, int64_t rows)
{
    const int64_t columns = t->shape[1];
    const size_t size = ipvg_dtype_size(t->dtype);
    void *bytes = malloc((size_t)(rows * columns) * size);
    gpu(cudaMemcpy(bytes, (char *)t->data + (size_t)(row * columns) * size, (size_t)(rows * columns) * size,
                   cudaMemcpyDeviceToHost),
        "a result");
    float *v = numbers_widen(bytes, t->dtype, rows * columns);
    free(bytes);
    return v;
}

static int64_t sample(int64_t rows, int i) { return i * (rows - 1) / (SAMPLED - 1); }

/* want (SAMPLED, heads d) */
static void oracle(double *want, const job *j)
{
    const int64_t lq = j->q->shape[0], lk = j->k->shape[0], width = j->heads * j->d;
    float *k = fetch(j->k, 0, lk), *v = fetch(j->v, 0, lk), *bias = j->bias ? fetch(j->bias, 0, j->heads) : NULL;
    double *p = malloc((size_t)lk * sizeof *p);
    for (int s = 0; s < SAMPLED; s++) {
        const int64_t row = sample(lq, s);
        float *q = fetch(j->q, row, 1);
        for (int64_t h = 0; h < j->heads; h++) {
            double most = -INFINITY, sum = 0, *o = want + s * width + h * j->d;
            for (int64_t i = 0; i < lk; i++) {
                p[i] = 0;
                for (int64_t c = h * j->d; c < (h + 1) * j->d; c++) p[i] += (double)q[c] * (double)k[i * width + c];
                p[i] *= (double)j->scale;
                if (bias) p[i] += (double)bias[h * (lq + lk - 1) + i - row + lq - 1];
                most = fmax(most, p[i]);
            }
            for (int64_t i = 0; i < lk; i++) sum += p[i] = exp(p[i] - most) * (i == lk - 1 ? (double)j->repeat : 1);
            for (int64_t c = 0; c < j->d; c++) {
                o[c] = 0;
                for (int64_t i = 0; i < lk; i++) o[c] += p[i] * (double)v[i * width + h * j->d + c];
                o[c] /= sum;
            }
        }
        free(q);
    }
    free(k), free(v), free(bias), free(p);
}

static double error_of(const job *j, const double *want)
{
    const int64_t width = j->heads * j->d;
    double off = 0, norm = 0;
    for (int s = 0; s < SAMPLED; s++) {
        float *o = fetch(j->o, sample(j->q->shape[0], s), 1);
        for (int64_t c = 0; c < width; c++) {
            off += pow((double)o[c] - want[s * width + c], 2);
            norm += want[s * width + c] * want[s * width + c];
        }
        free(o);
    }
    return sqrt(off / norm);
}

static bool taken;
static ipvg_status by_cudnn(ipvg_exec *e, const job *j) { return fused(e, j, &taken); }

static void measure(const char *name, ipvg_status (*way)(ipvg_exec *, const job *), const job *j, const double *want)
{
    const cudaStream_t stream = ex.be->stream;
    cudaEvent_t start, end;
    float ms, least = INFINITY;
    ipvg_arena_plan(&arena);
    taken = true;
    must(way(&ex, j));
    const size_t peak = arena.peak;
    ipvg_arena_free(&arena);
    if (!taken) {
        printf("  %-8s does not take it\n", name);
        return;
    }
    must(ipvg_arena_reserve(&ctx, &ex.be->memory, &arena, peak));
    gpu(cudaMemset(j->o->data, 0xff, ipvg_tensor_bytes(j->o)), "a result");
    gpu(cudaEventCreate(&start), "an event"), gpu(cudaEventCreate(&end), "an event");
    for (int turn = 0; turn < 4; turn++) { /* the first one warms up */
        gpu(cudaEventRecord(start, stream), "an event");
        for (int i = 0; i < REPEATS; i++) must(way(&ex, j));
        gpu(cudaEventRecord(end, stream), "an event");
        gpu(cudaEventSynchronize(end), name);
        gpu(cudaEventElapsedTime(&ms, start, end), "an event");
        if (turn && ms < least) least = ms;
    }
    const double error = want ? error_of(j, want) : 0, us = 1e3 * (double)least / REPEATS,
                 flop = 4.0 * (double)(j->q->shape[0] * j->k->shape[0] * j->heads * j->d),
                 bytes = 2.0 * (double)ipvg_tensor_bytes(j->o);
    const bool wrong = !(error <= BOUND);
    failures += wrong;
    printf("  %-8s %9.1f us  %4.0f TFLOP/s  q and o %4.2f TB/s", name, us, flop / us * 1e-6, bytes / us * 1e-6);
    if (want) printf("  error %.1e%s", error, wrong ? "  WRONG" : "");
    printf("\n");
    cudaEventDestroy(start), cudaEventDestroy(end);
}

static void size(int64_t heads, int64_t d, int64_t lq, int64_t lk, bool biased, int64_t repeat)
{
    const int64_t width = heads * d;
    ipvg_tensor q = normals(IPVG_BF16, lq, width, 1), k = normals(IPVG_BF16, lk, width, 1);
    ipvg_tensor v = normals(IPVG_BF16, lk, width, 1), o = normals(IPVG_BF16, lq, width, 1), bias = {0};
    if (biased) bias = normals(IPVG_F32, heads, lq + lk - 1, 2);
    const job j = {.o = &o,
                   .q = &q,
                   .k = &k,
                   .v = &v,
                   .bias = biased ? &bias : NULL,
                   .heads = heads,
                   .d = d,
                   .repeat = repeat,
                   .scale = 1 / sqrtf((float)d)};
    double *want = malloc((size_t)(SAMPLED * width) * sizeof *want);
    oracle(want, &j);
    printf("%ld x %ld, %ld heads of %ld%s, last key %ld times\n", (long)lq, (long)lk, (long)heads, (long)d,
           biased ? ", bias" : "", (long)repeat);
    if (repeat == 1) measure("cuDNN", by_cudnn, &j, want);
    if (d <= 128) measure("ours", ours, &j, want);
    if (repeat == 1 && lq * heads < 1000000) measure("steps", in_steps, &j, want);
    fflush(stdout);
    cudaFree(q.data), cudaFree(k.data), cudaFree(v.data), cudaFree(o.data), cudaFree(bias.data);
    free(want);
}

/* Does it cost how far apart rows lie? q, k and v as columns of one product, as the transformer has them, and each alone. */
static void strided(int64_t heads, int64_t tokens)
{
    const int64_t width = heads * 128;
    ipvg_tensor qkv = normals(IPVG_BF16, tokens, 3 * width, 1), o = normals(IPVG_BF16, tokens, width, 1), part[3];
    job j = {
        .o = &o, .q = &part[0], .k = &part[1], .v = &part[2], .heads = heads, .d = 128, .repeat = 1, .scale = 0.09f};
    printf("%ld x %ld, %ld heads of 128\n", (long)tokens, (long)tokens, (long)heads);
    for (int i = 0; i < 3; i++) part[i] = ipvg_tensor_columns(&qkv, i * width, width);
    measure("columns", by_cudnn, &j, NULL);
    for (int i = 0; i < 3; i++)
        part[i] = ipvg_tensor_of((char *)qkv.data + 2 * i * tokens * width, IPVG_BF16, tokens, width);
    measure("apart", by_cudnn, &j, NULL);
    fflush(stdout);
    cudaFree(qkv.data), cudaFree(o.data);
}

int main(void)
{
    ipvg_backend *be;
    ipvg_context_init(&ctx, 1);
    must(ipvg_backend_cuda(&ctx, &be, 0, IPVG_BF16));
    ex = (ipvg_exec){.ctx = &ctx, .be = be, .arena = &arena};
    size(64, 64, 512, 512, true, 1);
    size(64, 64, 90, 90, true, 1);
    for (int64_t lk = 64; lk <= 512; lk += 64) size(12, 128, 34320, lk, false, 1);
    size(12, 128, 34320, 201, false, 1);
    size(12, 128, 34320, 201, false, 312);
    size(40, 128, 34320, 201, false, 1);
    size(40, 128, 79200, 201, false, 1);
    size(1, 384, 6240, 6240, false, 1); /* within a frame of the VAE, 480p and 720p */
    size(1, 384, 14400, 14400, false, 1);
    strided(12, 34320);
    strided(40, 34320);
    ipvg_arena_free(&arena);
    ipvg_backend_free(&be);
    printf(failures ? "%d wrong\n" : "ok: all within the bound\n", failures);
    return failures != 0;
}

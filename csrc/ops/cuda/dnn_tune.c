#include "dnn_tune.h"

#include <cuda_runtime_api.h>

#define REPEATS 3               /* timed runs of each, after one that does not count */
#define SOME ((int64_t)1 << 20) /* normal numbers, which all memory is filled with: on zeros a GPU is faster */
#define TENSORS 4               /* at most, of a shape */

static int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

static size_t padded(size_t bytes) { return (bytes + 255) / 256 * 256; }

/* Numbers of each tensor. Of attention: q, k and v, which may be one; o. */
static int sizes(int64_t size[TENSORS], const ipvg_sdpa *s, const ipvg_dnn_conv *c)
{
    if (s) {
        size[0] = s->batch * most(s->lq * s->ldq, s->lk * most(s->ldk, s->ldv));
        size[1] = s->batch * s->lq * s->ldo;
        return 2;
    }
    size[0] = c->kt * c->h * c->w * c->cin;
    size[1] = c->cout * c->kt * c->kh * c->kw * c->cin;
    size[2] = ((c->top + c->h + c->bottom - c->kh) / c->stride + 1) *
              ((c->left + c->w + c->right - c->kw) / c->stride + 1) * c->cout;
    size[3] = c->cout;
    return 4;
}

static void fill(void *p, int64_t count, ipvg_k_dtype dtype, float *normals, void *stream)
{
    const ipvg_k_array from = {normals, IPVG_K_F32, 1}, to = {p, dtype, 1};
    const int64_t some = count < SOME ? count : SOME;
    const size_t unit = dtype == IPVG_K_F32 ? 4 : 2, bytes = (size_t)count * unit;
    ipvg_k_cast(to, from, some, 1, stream);
    for (size_t done = (size_t)some * unit; done < bytes; done *= 2)
        cudaMemcpyAsync((char *)p + done, p, done < bytes - done ? done : bytes - done, cudaMemcpyDeviceToDevice,
                        stream);
}

/* Milliseconds of one run; infinite if it fails. */
static float duration(ipvg_context *ctx, cudnnHandle_t handle, const ipvg_plan *plan, const ipvg_plan_arguments *a,
                      cudaEvent_t start, cudaEvent_t end, void *stream)
{
    float ms = __builtin_inff();
    if (ipvg_plan_run(ctx, plan, handle, a) != IPVG_OK) return ms;
    cudaEventRecord(start, stream);
    for (int i = 0; i < REPEATS; i++)
        if (ipvg_plan_run(ctx, plan, handle, a) != IPVG_OK) return ms;
    cudaEventRecord(end, stream);
    if (cudaEventSynchronize(end) != cudaSuccess || cudaEventElapsedTime(&ms, start, end) != cudaSuccess)
        return __builtin_inff();
    return ms / REPEATS;
}

static int fastest(ipvg_context *ctx, cudnnHandle_t handle, void *stream, const ipvg_plan *plan, int count,
                   const ipvg_plan_arguments *a)
{
    cudaEvent_t start = NULL, end = NULL;
    float least = __builtin_inff();
    int best = 0;
    if (cudaEventCreate(&start) == cudaSuccess && cudaEventCreate(&end) == cudaSuccess)
        for (int i = 0; i < count; i++) {
            float ms = duration(ctx, handle, &plan[i], a, start, end, stream);
            if (ms < least) least = ms, best = i;
        }
    if (start) cudaEventDestroy(start);
    if (end) cudaEventDestroy(end);
    return best;
}

int ipvg_plan_fastest(ipvg_context *ctx, cudnnHandle_t handle, void *stream, ipvg_meter *meter, const ipvg_plan *plan,
                      int count, const ipvg_sdpa *s, const ipvg_dnn_conv *c)
{
    const ipvg_k_dtype dtype = (ipvg_k_dtype)(s ? s->dtype : c->dtype);
    const size_t unit = dtype == IPVG_K_F32 ? 4 : 2;
    int64_t size[TENSORS], workspace = 0;
    const int tensors = sizes(size, s, c);
    size_t bytes = (size_t)SOME * sizeof(float);
    float scale = 0.1f;
    void *p[TENSORS];
    char *memory, *at;

    for (int i = 0; i < tensors; i++) bytes += padded((size_t)size[i] * unit);
    for (int i = 0; i < count; i++) workspace = most(workspace, plan[i].workspace);
    bytes += (size_t)workspace;
    ipvg_meter_lock(meter); /* taken for a moment, it is not counted; spares are not asked for it */
    const bool fits = ipvg_meter_fits(meter, ipvg_meter_pages(bytes));
    const bool taken = fits && cudaMalloc((void **)&memory, bytes) == cudaSuccess;
    ipvg_meter_unlock(meter);
    if (!taken) {
        cudaGetLastError();
        return 0;
    }
    ipvg_k_normals((float *)(void *)memory, 1, 0, 0, SOME, stream);
    at = memory + (size_t)SOME * sizeof(float);
    for (int i = 0; i < tensors; i++) {
        fill(at, size[i], dtype, (float *)(void *)memory, stream);
        p[i] = at;
        at += padded((size_t)size[i] * unit);
    }
    const ipvg_plan_arguments a = s ? ipvg_plan_sdpa_arguments(p[1], p[0], p[0], p[0], &scale, at)
                                    : ipvg_plan_conv_arguments(c, p[2], p[0], p[1], p[3], at);
    const int best = fastest(ctx, handle, stream, plan, count, &a);
    cudaStreamSynchronize(stream);
    cudaFree(memory);
    ctx->error[0] = 0; /* of plans that do not run */
    return best;
}

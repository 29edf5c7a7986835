/* Device memory, and copies through two pinned buffers: the caller's memory may be of any kind and is free at once, and a
 * copy to the device never waits for the stream, only for the buffer of the one before last. */
#include <cuda_runtime_api.h>
#include <omp.h>
#include <string.h>

#include "cuda.h"

#define PINNED (16u << 20) /* bytes of each */
#define SHARE (1u << 20)   /* bytes below which one thread copies as fast as several */
#define MIB(bytes) ((double)(bytes) / 1048576.0)

static ipvg_status device_alloc(const ipvg_memory *m, ipvg_context *ctx, void **out, size_t bytes)
{
    ipvg_cuda *cuda = m->state;
    ipvg_meter *meter = &cuda->meter;
    const size_t taken = ipvg_meter_pages(bytes ? bytes : IPVG_ALIGN);
    size_t available = 0, total = 0;
    ipvg_status status = IPVG_OK;
    *out = NULL;
    cudaSetDevice(cuda->device);
    ipvg_meter_lock(meter);
    if (!ipvg_meter_room(meter, taken)) {
        status = ipvg_fail(
            ctx, IPVG_E_MEMORY,
            "memory_limit of %.1f MiB on GPU %d: %.1f MiB are in use and a buffer of %.1f MiB is needed, so at "
            "least %.1f MiB; raise memory_limit, or try a smaller size, fewer frames or dtype='bfloat16'",
            MIB(meter->limit), cuda->device, MIB(meter->used), MIB(taken), MIB(meter->used + taken));
        goto done;
    }
    while (cudaMalloc(out, bytes ? bytes : IPVG_ALIGN) != cudaSuccess) {
        cudaGetLastError(); /* or the next launch reports it */
        *out = NULL;
        if (ipvg_meter_give(meter)) continue;
        cudaMemGetInfo(&available, &total);
        status = ipvg_fail(ctx, IPVG_E_MEMORY,
                           "no memory on GPU %d for a buffer of %.1f MiB: %.1f of its %.1f MiB are free; try a smaller "
                           "size, fewer frames, memory_limit= or dtype='bfloat16'",
                           cuda->device, MIB(bytes), MIB(available), MIB(total));
        goto done;
    }
    if (!ipvg_meter_add(meter, *out, taken)) {
        cudaFree(*out);
        *out = NULL;
        status = ipvg_fail(ctx, IPVG_E_MEMORY, "no memory to keep account of the GPU's");
    }
done:
    ipvg_meter_unlock(meter);
    return status;
}

static void device_free(const ipvg_memory *m, void *p)
{
    ipvg_cuda *cuda = m->state;
    cudaSetDevice(cuda->device);
    ipvg_meter_lock(&cuda->meter);
    cudaFree(p); /* waits for what still runs */
    ipvg_meter_drop(&cuda->meter, p);
    ipvg_meter_unlock(&cuda->meter);
}

ipvg_memory ipvg_cuda_memory(ipvg_cuda *cuda) { return (ipvg_memory){device_alloc, device_free, cuda}; }

static ipvg_status pinned_ready(ipvg_context *ctx, ipvg_cuda *cuda, int i)
{
    ipvg_status status = IPVG_OK;
    if (!cuda->pinned[i].data)
        IPVG_TRY(ipvg_cuda_check(ctx, cudaHostAlloc(&cuda->pinned[i].data, PINNED, cudaHostAllocDefault),
                                 "pinned memory for copies"));
    if (!cuda->pinned[i].free)
        IPVG_TRY(ipvg_cuda_check(ctx,
                                 cudaEventCreateWithFlags((cudaEvent_t *)&cuda->pinned[i].free, cudaEventDisableTiming),
                                 "an event for copies"));
    if (cuda->pinned[i].used)
        IPVG_TRY(ipvg_cuda_check(ctx, cudaEventSynchronize(cuda->pinned[i].free), "a copy to the GPU"));
done:
    return status;
}

void ipvg_cuda_pinned_free(ipvg_cuda *cuda)
{
    for (int i = 0; i < 2; i++) {
        if (cuda->pinned[i].free) cudaEventDestroy(cuda->pinned[i].free);
        if (cuda->pinned[i].data) cudaFreeHost(cuda->pinned[i].data);
    }
    for (int i = 0; i < 4; i++) {
        if (cuda->planes[i].done) cudaEventDestroy(cuda->planes[i].done);
        if (cuda->planes[i].data) cudaFreeHost(cuda->planes[i].data);
    }
}

/* The source is often a mapped file: several threads take its page faults, one would not reach half the bus. */
static void gather(void *to, const void *from, size_t bytes, int threads)
{
    size_t shares = (bytes + SHARE - 1) / SHARE;
#pragma omp parallel for num_threads(threads) schedule(static) if (shares > 1)
    for (size_t i = 0; i < shares; i++) {
        size_t first = i * SHARE, count = bytes - first < SHARE ? bytes - first : SHARE;
        memcpy((char *)to + first, (const char *)from + first, count);
    }
}

ipvg_status ipvg_cuda_copy_in(ipvg_exec *ex, ipvg_tensor *dst, const void *host_src)
{
    ipvg_cuda *cuda = ipvg_cuda_of(ex);
    const size_t bytes = ipvg_tensor_bytes(dst);
    ipvg_status status = IPVG_OK;
    if (ipvg_planning(ex) || host_src == dst->data) return IPVG_OK;
    if (ipvg_cuda_is_device(host_src))
        return ipvg_cuda_check(ex->ctx,
                               cudaMemcpyAsync(dst->data, host_src, bytes, cudaMemcpyDeviceToDevice, cuda->stream),
                               "a copy on the GPU");
    for (size_t at = 0; at < bytes; at += PINNED) {
        size_t count = bytes - at < PINNED ? bytes - at : PINNED;
        int i = cuda->turn;
        IPVG_TRY(pinned_ready(ex->ctx, cuda, i));
        gather(cuda->pinned[i].data, (const char *)host_src + at, count, ex->ctx->threads);
        IPVG_TRY(ipvg_cuda_check(
            ex->ctx,
            cudaMemcpyAsync((char *)dst->data + at, cuda->pinned[i].data, count, cudaMemcpyHostToDevice, cuda->stream),
            "a copy to the GPU"));
        IPVG_TRY(ipvg_cuda_check(ex->ctx, cudaEventRecord(cuda->pinned[i].free, cuda->stream), "a copy to the GPU"));
        cuda->pinned[i].used = true;
        cuda->turn = !i;
    }
done:
    return status;
}

/* Through the same two buffers: the driver's own way to memory that is not pinned reaches a tenth of the bus. */
ipvg_status ipvg_cuda_copy_out(ipvg_exec *ex, void *host_dst, const ipvg_tensor *src)
{
    ipvg_cuda *cuda = ipvg_cuda_of(ex);
    const size_t bytes = ipvg_tensor_bytes(src), chunks = (bytes + PINNED - 1) / PINNED;
    ipvg_status status = IPVG_OK;
    if (ipvg_planning(ex)) return IPVG_OK;
    for (size_t k = 0; k <= chunks; k++) { /* chunk k sets out, chunk k - 1 arrives */
        int out = cuda->turn, in = !out;
        if (k < chunks) {
            size_t at = k * PINNED, count = bytes - at < PINNED ? bytes - at : PINNED;
            IPVG_TRY(pinned_ready(ex->ctx, cuda, out));
            IPVG_TRY(ipvg_cuda_check(ex->ctx,
                                     cudaMemcpyAsync(cuda->pinned[out].data, (const char *)src->data + at, count,
                                                     cudaMemcpyDeviceToHost, cuda->stream),
                                     "a copy from the GPU"));
            IPVG_TRY(
                ipvg_cuda_check(ex->ctx, cudaEventRecord(cuda->pinned[out].free, cuda->stream), "a copy from the GPU"));
            cuda->pinned[out].used = true;
            cuda->turn = in;
        }
        if (k > 0) {
            size_t at = (k - 1) * PINNED, count = bytes - at < PINNED ? bytes - at : PINNED;
            IPVG_TRY(ipvg_cuda_check(ex->ctx, cudaEventSynchronize(cuda->pinned[in].free), "work on the GPU"));
            gather((char *)host_dst + at, cuda->pinned[in].data, count, ex->ctx->threads);
        }
    }
done:
    return status;
}

/* ==== frames, whose channels the GPU brings together and takes apart ==== */

static ipvg_status planes_ready(ipvg_context *ctx, ipvg_cuda *cuda, int slot, size_t bytes)
{
    ipvg_status status = IPVG_OK;
    if (!cuda->planes[slot].done)
        IPVG_TRY(ipvg_cuda_check(
            ctx, cudaEventCreateWithFlags((cudaEvent_t *)&cuda->planes[slot].done, cudaEventDisableTiming),
            "an event for copies"));
    if (cuda->planes[slot].bytes >= bytes) goto done;
    if (cuda->planes[slot].data) {
        cudaStreamSynchronize(cuda->stream); /* a call that failed may have left a copy under way */
        cudaFreeHost(cuda->planes[slot].data);
    }
    cuda->planes[slot].data = NULL;
    cuda->planes[slot].bytes = 0;
    IPVG_TRY(ipvg_cuda_check(ctx, cudaHostAlloc(&cuda->planes[slot].data, bytes, cudaHostAllocDefault),
                             "pinned memory for a frame"));
    cuda->planes[slot].bytes = bytes;
done:
    return status;
}

/* A frame's channels -> `planes`, through a slot that holds them all: the host is then a whole frame ahead of the GPU. (With the
 * two buffers of copy_in it would wait in the middle of a frame for the one before, and the GPU for the next.) */
static ipvg_status planes_in(ipvg_exec *ex, ipvg_tensor *planes, const float *src, int64_t step)
{
    ipvg_cuda *cuda = ipvg_cuda_of(ex);
    const int64_t channels = planes->shape[0], pixels = planes->shape[1];
    const size_t bytes = ipvg_tensor_bytes(planes);
    const int slot = 2 + cuda->load;
    ipvg_status status;

    IPVG_TRY(planes_ready(ex->ctx, cuda, slot, bytes));
    IPVG_TRY(ipvg_cuda_check(ex->ctx, cudaEventSynchronize(cuda->planes[slot].done), "a copy to the GPU"));
    for (int64_t c = 0; c < channels; c++)
        gather((float *)cuda->planes[slot].data + c * pixels, src + c * step, (size_t)pixels * sizeof(float),
               ex->ctx->threads);
    IPVG_TRY(ipvg_cuda_check(
        ex->ctx, cudaMemcpyAsync(planes->data, cuda->planes[slot].data, bytes, cudaMemcpyHostToDevice, cuda->stream),
        "a copy to the GPU"));
    IPVG_TRY(ipvg_cuda_check(ex->ctx, cudaEventRecord(cuda->planes[slot].done, cuda->stream), "a copy to the GPU"));
    cuda->load = !cuda->load;
done:
    return status;
}

ipvg_status ipvg_cuda_planes_load(ipvg_exec *ex, ipvg_tensor *frame, const float *src, int64_t step)
{
    const int64_t shape[] = {frame->shape[2], frame->shape[0] * frame->shape[1]};
    const ipvg_k_array none = {0};
    size_t mark = ipvg_arena_mark(ex->arena);
    ipvg_k_array to, from;
    ipvg_tensor planes;
    ipvg_status status;

    IPVG_TRY(ipvg_cuda_array(ex, &to, "planes", frame));
    IPVG_TRY(ipvg_arena_tensor(ex->ctx, ex->arena, &planes, IPVG_F32, 2, shape));
    if (ipvg_planning(ex)) goto done;
    if (!ipvg_cuda_is_device(src))
        IPVG_TRY(planes_in(ex, &planes, src, step));
    else
        for (int64_t c = 0; c < shape[0]; c++) {
            ipvg_tensor plane = ipvg_tensor_slice(&planes, c, 1);
            IPVG_TRY(ipvg_cuda_copy_in(ex, &plane, src + c * step));
        }
    IPVG_TRY(ipvg_cuda_array(ex, &from, "planes", &planes));
    IPVG_TRY(ipvg_cuda_check(
        ex->ctx, ipvg_k_planes_to_pixels(to, from, none, none, shape[1], shape[0], ipvg_cuda_of(ex)->stream),
        "planes"));
done:
    ipvg_arena_reset(ex->arena, mark);
    return status;
}

ipvg_status ipvg_cuda_planes_send(ipvg_exec *ex, int slot, const ipvg_tensor *frame)
{
    ipvg_cuda *cuda = ipvg_cuda_of(ex);
    const int64_t pixels = frame->shape[0] * frame->shape[1], channels = frame->shape[2];
    const ipvg_k_array none = {0};
    size_t mark = ipvg_arena_mark(ex->arena), bytes = (size_t)(channels * pixels) * sizeof(float);
    ipvg_k_array from, planes = {NULL, IPVG_K_F32, pixels};
    ipvg_status status;

    IPVG_TRY(ipvg_cuda_array(ex, &from, "planes", frame));
    IPVG_TRY(ipvg_arena_alloc(ex->ctx, ex->arena, &planes.data, bytes));
    if (ipvg_planning(ex)) goto done;
    IPVG_TRY(planes_ready(ex->ctx, cuda, slot, bytes));
    IPVG_TRY(ipvg_cuda_check(ex->ctx, ipvg_k_pixels_to_planes(planes, from, none, none, pixels, channels, cuda->stream),
                             "planes"));
    IPVG_TRY(ipvg_cuda_check(
        ex->ctx, cudaMemcpyAsync(cuda->planes[slot].data, planes.data, bytes, cudaMemcpyDeviceToHost, cuda->stream),
        "a copy from the GPU"));
    IPVG_TRY(ipvg_cuda_check(ex->ctx, cudaEventRecord(cuda->planes[slot].done, cuda->stream), "a copy from the GPU"));
done:
    ipvg_arena_reset(ex->arena, mark);
    return status;
}

ipvg_status ipvg_cuda_planes_receive(ipvg_exec *ex, int slot, float *dst, int64_t step, const ipvg_tensor *frame)
{
    ipvg_cuda *cuda = ipvg_cuda_of(ex);
    const int64_t pixels = frame->shape[0] * frame->shape[1];
    ipvg_status status;
    if (ipvg_planning(ex)) return IPVG_OK;
    IPVG_TRY(ipvg_cuda_check(ex->ctx, cudaEventSynchronize(cuda->planes[slot].done), "work on the GPU"));
    for (int64_t c = 0; c < frame->shape[2]; c++)
        gather(dst + c * step, (const float *)cuda->planes[slot].data + c * pixels, (size_t)pixels * sizeof(float),
               ex->ctx->threads);
done:
    return status;
}

/* Frames of video, whose channels the GPU brings together and takes apart, on their way through pinned memory of their own, and
 * over the bus by a stream of their own, while the GPU computes on. One thread copies a frame in a fraction of the time that
 * the GPU has for it; a team would wait for its slowest each time. */
#include <cuda_runtime_api.h>
#include <string.h>

#include "cuda.h"

#define OUT 2 /* slots of frames that go out, before the others */

/* A slot's half of the room. */
static void *place(const ipvg_tensor *room, int slot) { return ipvg_tensor_slice(room, slot % 2, 1).data; }

void ipvg_cuda_planes_free(ipvg_cuda *cuda)
{
    if (cuda->copies) cudaStreamSynchronize(cuda->copies);
    for (int i = 0; i < IPVG_CUDA_PLANES; i++) {
        if (cuda->planes[i].done) cudaEventDestroy(cuda->planes[i].done);
        if (cuda->planes[i].sorted) cudaEventDestroy(cuda->planes[i].sorted);
        if (cuda->planes[i].data) cudaFreeHost(cuda->planes[i].data);
    }
    if (cuda->copies) cudaStreamDestroy(cuda->copies);
}

static ipvg_status event_new(ipvg_context *ctx, void **event)
{
    if (*event) return IPVG_OK;
    return ipvg_cuda_check(ctx, cudaEventCreateWithFlags((cudaEvent_t *)event, cudaEventDisableTiming),
                           "an event for copies");
}

/* Nothing is copied to new room before the work is done that had its memory until now. */
ipvg_status ipvg_cuda_planes_begin(ipvg_exec *ex)
{
    ipvg_cuda *cuda = ipvg_cuda_of(ex);
    ipvg_status status = IPVG_OK;
    if (!cuda->copies)
        IPVG_TRY(ipvg_cuda_check(ex->ctx,
                                 cudaStreamCreateWithFlags((cudaStream_t *)&cuda->copies, cudaStreamNonBlocking),
                                 "a stream for copies"));
    for (int i = 0; i < IPVG_CUDA_PLANES; i++) {
        IPVG_TRY(event_new(ex->ctx, &cuda->planes[i].done));
        IPVG_TRY(event_new(ex->ctx, &cuda->planes[i].sorted));
        IPVG_TRY(ipvg_cuda_check(ex->ctx, cudaEventRecord(cuda->planes[i].sorted, cuda->stream), "an event"));
    }
done:
    return status;
}

static ipvg_status planes_ready(ipvg_context *ctx, ipvg_cuda *cuda, int slot, size_t bytes)
{
    ipvg_status status = IPVG_OK;
    if (cuda->planes[slot].bytes >= bytes) goto done;
    if (cuda->planes[slot].data) {
        cudaStreamSynchronize(cuda->copies); /* a call that failed may have left a copy under way */
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

/* A frame's channels -> `planes`, which the GPU then has, through a slot that holds them all: the host is a whole frame ahead
 * of the GPU. (With the two buffers of copy_in it would wait in the middle of a frame for the one before, and the GPU for the
 * next.) */
static ipvg_status planes_in(ipvg_exec *ex, int slot, ipvg_tensor *planes, const float *src, int64_t step)
{
    ipvg_cuda *cuda = ipvg_cuda_of(ex);
    const int64_t channels = planes->shape[0], pixels = planes->shape[1];
    const size_t bytes = ipvg_tensor_bytes(planes);
    ipvg_status status;

    IPVG_TRY(planes_ready(ex->ctx, cuda, slot, bytes));
    IPVG_TRY(ipvg_cuda_check(ex->ctx, cudaEventSynchronize(cuda->planes[slot].done), "a copy to the GPU"));
    for (int64_t c = 0; c < channels; c++)
        memcpy((float *)cuda->planes[slot].data + c * pixels, src + c * step, (size_t)pixels * sizeof(float));
    IPVG_TRY(ipvg_cuda_check(ex->ctx, cudaStreamWaitEvent(cuda->copies, cuda->planes[slot].sorted, 0), "an event"));
    IPVG_TRY(ipvg_cuda_check(
        ex->ctx, cudaMemcpyAsync(planes->data, cuda->planes[slot].data, bytes, cudaMemcpyHostToDevice, cuda->copies),
        "a copy to the GPU"));
    IPVG_TRY(ipvg_cuda_check(ex->ctx, cudaEventRecord(cuda->planes[slot].done, cuda->copies), "a copy to the GPU"));
    IPVG_TRY(ipvg_cuda_check(ex->ctx, cudaStreamWaitEvent(cuda->stream, cuda->planes[slot].done, 0), "an event"));
done:
    return status;
}

ipvg_status ipvg_cuda_planes_load(ipvg_exec *ex, ipvg_tensor *frame, const float *src, int64_t step,
                                  const ipvg_tensor *room)
{
    ipvg_cuda *cuda = ipvg_cuda_of(ex);
    const int64_t channels = frame->shape[2], pixels = frame->shape[0] * frame->shape[1];
    const int slot = OUT + cuda->load;
    const ipvg_k_array none = {0};
    ipvg_tensor planes = ipvg_tensor_of(place(room, slot), IPVG_F32, channels, pixels);
    ipvg_k_array to, from;
    ipvg_status status;

    IPVG_TRY(ipvg_cuda_array(ex, &to, "planes", frame));
    IPVG_TRY(ipvg_cuda_array(ex, &from, "planes", &planes));
    if (ipvg_planning(ex)) goto done;
    if (!ipvg_cuda_is_device(src))
        IPVG_TRY(planes_in(ex, slot, &planes, src, step));
    else
        for (int64_t c = 0; c < channels; c++) {
            ipvg_tensor plane = ipvg_tensor_slice(&planes, c, 1);
            IPVG_TRY(ipvg_cuda_copy_in(ex, &plane, src + c * step));
        }
    IPVG_TRY(ipvg_cuda_check(ex->ctx, ipvg_k_planes_to_pixels(to, from, none, none, pixels, channels, cuda->stream),
                             "planes"));
    IPVG_TRY(ipvg_cuda_check(ex->ctx, cudaEventRecord(cuda->planes[slot].sorted, cuda->stream), "an event"));
    cuda->load = !cuda->load;
done:
    return status;
}

/* What the slot sent before has been received, or nobody wants it: the room may be written over. */
static ipvg_status send(ipvg_context *ctx, ipvg_cuda *cuda, int slot, const void *made, size_t bytes)
{
    ipvg_status status;
    IPVG_TRY(ipvg_cuda_check(ctx, cudaEventRecord(cuda->planes[slot].sorted, cuda->stream), "an event"));
    IPVG_TRY(ipvg_cuda_check(ctx, cudaStreamWaitEvent(cuda->copies, cuda->planes[slot].sorted, 0), "an event"));
    IPVG_TRY(ipvg_cuda_check(
        ctx, cudaMemcpyAsync(cuda->planes[slot].data, made, bytes, cudaMemcpyDeviceToHost, cuda->copies),
        "a copy from the GPU"));
    IPVG_TRY(ipvg_cuda_check(ctx, cudaEventRecord(cuda->planes[slot].done, cuda->copies), "a copy from the GPU"));
done:
    return status;
}

ipvg_status ipvg_cuda_planes_send(ipvg_exec *ex, int slot, const ipvg_tensor *frame, const ipvg_tensor *room)
{
    ipvg_cuda *cuda = ipvg_cuda_of(ex);
    const int64_t pixels = frame->shape[0] * frame->shape[1], channels = frame->shape[2];
    const ipvg_k_array none = {0}, planes = {place(room, slot), IPVG_K_F32, pixels};
    const size_t bytes = (size_t)(channels * pixels) * sizeof(float);
    ipvg_k_array from;
    ipvg_status status;

    IPVG_TRY(ipvg_cuda_array(ex, &from, "planes", frame));
    if (ipvg_planning(ex)) goto done;
    IPVG_TRY(planes_ready(ex->ctx, cuda, slot, bytes));
    IPVG_TRY(ipvg_cuda_check(ex->ctx, ipvg_k_pixels_to_planes(planes, from, none, none, pixels, channels, cuda->stream),
                             "planes"));
    IPVG_TRY(send(ex->ctx, cuda, slot, planes.data, bytes));
done:
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
        memcpy(dst + c * step, (const float *)cuda->planes[slot].data + c * pixels, (size_t)pixels * sizeof(float));
done:
    return status;
}

/* Behind the bytes lies whether a number was not finite. */
static size_t flag_at(const ipvg_tensor *frame) { return ((size_t)ipvg_tensor_count(frame) + 3) / 4 * 4; }

ipvg_status ipvg_cuda_bytes_send(ipvg_exec *ex, int slot, const ipvg_tensor *frame, const ipvg_tensor *room)
{
    ipvg_cuda *cuda = ipvg_cuda_of(ex);
    const size_t at = flag_at(frame), bytes = at + sizeof(int32_t);
    char *made = place(room, slot);
    ipvg_k_array from;
    ipvg_status status;

    IPVG_TRY(ipvg_cuda_array(ex, &from, "bytes", frame));
    if (ipvg_planning(ex)) goto done;
    IPVG_TRY(planes_ready(ex->ctx, cuda, slot, bytes));
    IPVG_TRY(ipvg_cuda_check(ex->ctx, cudaMemsetAsync(made, 0, bytes, cuda->stream), "bytes"));
    IPVG_TRY(ipvg_cuda_check(
        ex->ctx, ipvg_k_to_bytes((uint8_t *)made, (int32_t *)(made + at), from, ipvg_tensor_count(frame), cuda->stream),
        "bytes"));
    IPVG_TRY(send(ex->ctx, cuda, slot, made, bytes));
done:
    return status;
}

ipvg_status ipvg_cuda_bytes_receive(ipvg_exec *ex, int slot, uint8_t *dst, const ipvg_tensor *frame, int *odd)
{
    ipvg_cuda *cuda = ipvg_cuda_of(ex);
    const char *from = cuda->planes[slot].data;
    int32_t flag;
    ipvg_status status;
    IPVG_TRY(ipvg_cuda_check(ex->ctx, cudaEventSynchronize(cuda->planes[slot].done), "work on the GPU"));
    memcpy(dst, from, (size_t)ipvg_tensor_count(frame));
    memcpy(&flag, from + flag_at(frame), sizeof flag);
    *odd = flag != 0;
done:
    return status;
}

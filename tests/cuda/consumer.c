/* Another library on the same GPU, for tests of DLPack on the emulated device: memory and a stream of its own. tests/lender.py
 * calls these by ctypes. */
#include <cuda_runtime_api.h>

#define VISIBLE __attribute__((visibility("default")))

VISIBLE void *consumer_stream(void)
{
    cudaStream_t stream = NULL;
    cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
    return stream;
}

VISIBLE void *consumer_memory(size_t bytes)
{
    void *p = NULL;
    cudaMalloc(&p, bytes);
    return p;
}

VISIBLE void *consumer_pinned(size_t bytes)
{
    void *p = NULL;
    cudaMallocHost(&p, bytes);
    return p;
}

/* All of these are queued; only wait waits. */
VISIBLE int consumer_read(void *stream, void *pinned, const void *device, size_t bytes)
{
    return cudaMemcpyAsync(pinned, device, bytes, cudaMemcpyDeviceToHost, stream);
}

VISIBLE int consumer_write(void *stream, void *device, const void *pinned, size_t bytes)
{
    return cudaMemcpyAsync(device, pinned, bytes, cudaMemcpyHostToDevice, stream);
}

VISIBLE int consumer_wait(void *stream) { return cudaStreamSynchronize(stream); }

/* `later` goes on when what has been queued on `earlier` is done. */
VISIBLE int consumer_order(void *later, void *earlier)
{
    cudaEvent_t event;
    int error = cudaEventCreateWithFlags(&event, cudaEventDisableTiming);
    if (!error) error = cudaEventRecord(event, earlier);
    if (!error) error = cudaStreamWaitEvent(later, event, 0);
    cudaEventDestroy(event);
    return error;
}

/* Memory and streams of others on the same GPU. */
#include <cuda_runtime_api.h>

#include "cuda.h"

bool ipvg_cuda_is_device(const void *p)
{
    struct cudaPointerAttributes found;
    if (cudaPointerGetAttributes(&found, p) == cudaSuccess) return found.type == cudaMemoryTypeDevice;
    cudaGetLastError();
    return false;
}

ipvg_status ipvg_cuda_follow(ipvg_exec *ex, void *stream)
{
    ipvg_cuda *cuda = ipvg_cuda_of(ex);
    cudaEvent_t event = NULL;
    ipvg_status status;
    if (stream == cuda->stream) return IPVG_OK;
    IPVG_TRY(ipvg_cuda_check(ex->ctx, cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "an event"));
    IPVG_TRY(ipvg_cuda_check(ex->ctx, cudaEventRecord(event, cuda->stream), "an event"));
    IPVG_TRY(ipvg_cuda_check(ex->ctx, cudaStreamWaitEvent(stream, event, 0), "a stream that is to wait for ours"));
done:
    if (event) cudaEventDestroy(event); /* once it is done */
    return status;
}

ipvg_status ipvg_cuda_settle(ipvg_exec *ex)
{
    return ipvg_cuda_check(ex->ctx, cudaDeviceSynchronize(), "work on the GPU");
}

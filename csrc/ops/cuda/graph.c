/* Operations kept as a CUDA graph. */
#include <cuda_runtime_api.h>

#include "cuda.h"

/* Other threads go on allocating and waiting: what they do has nothing to do with this stream. */
ipvg_status ipvg_cuda_keep(ipvg_exec *ex)
{
    ipvg_cuda *cuda = ipvg_cuda_of(ex);
    ipvg_status status = ipvg_cuda_check(
        ex->ctx, cudaStreamBeginCapture(cuda->stream, cudaStreamCaptureModeThreadLocal), "the start of a graph");
    cuda->keeping = status == IPVG_OK;
    return status;
}

void *ipvg_cuda_kept(ipvg_exec *ex)
{
    ipvg_cuda *cuda = ipvg_cuda_of(ex);
    cudaGraphExec_t kept = NULL;
    cudaGraph_t graph = NULL;

    cuda->keeping = false;
    if (cudaStreamEndCapture(cuda->stream, &graph) != cudaSuccess || !graph ||
        cudaGraphInstantiate(&kept, graph, 0) != cudaSuccess)
        cudaGetLastError(); /* or the next launch reports it */
    if (graph) cudaGraphDestroy(graph);
    return kept;
}

ipvg_status ipvg_cuda_play(ipvg_exec *ex, void *kept)
{
    return ipvg_cuda_check(ex->ctx, cudaGraphLaunch(kept, ipvg_cuda_of(ex)->stream), "a graph");
}

/* What has been queued of it still runs. */
void ipvg_cuda_drop(const ipvg_backend *be, void *kept)
{
    cudaSetDevice(((const ipvg_cuda *)be->state)->device);
    cudaGraphExecDestroy(kept);
}

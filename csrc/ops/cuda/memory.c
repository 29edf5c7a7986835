/* Device memory. */
#include <cuda_runtime_api.h>

#include "cuda.h"

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

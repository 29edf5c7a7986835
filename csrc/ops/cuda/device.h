/* The way from _core to the CUDA backend, which lives in an extension of its own (_cuda) so that _core needs no NVIDIA
 * library. _cuda puts an ipvg_cuda_api into a capsule; both sides check `version`, since they may have been built apart. */
#ifndef IPVG_OPS_CUDA_DEVICE_H
#define IPVG_OPS_CUDA_DEVICE_H

#include "../backend.h"

#define IPVG_CUDA_CAPSULE "ipvg._cuda.api"
#define IPVG_CUDA_API 5 /* raise it with every change of the structures in base/ and ops/backend.h */

typedef struct ipvg_cuda_api {
    int version;
    size_t size; /* of ipvg_backend, as a second look */
    /* compute: IPVG_F32 (exact: no TF32); IPVG_BF16, which makes activations bfloat16 and the VAE float16; or IPVG_E4M3, the
     * same with 8-bit products of the transformer's blocks. */
    ipvg_status (*open)(ipvg_context *ctx, ipvg_backend **out, int device, ipvg_dtype compute);
} ipvg_cuda_api;

ipvg_status ipvg_backend_cuda(ipvg_context *ctx, ipvg_backend **out, int device, ipvg_dtype compute);

#endif

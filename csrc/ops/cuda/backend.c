/* The CUDA backend: its table and its state. */
#include <cuda_runtime_api.h>
#include <stdlib.h>

#include "blas.h"
#include "cuda.h"
#include "device.h"
#include "dnn.h"

/* Numbers in a transformer's state up to which queueing its kernels one by one takes longer than they do. */
#define SMALL (1 << 21)

ipvg_status ipvg_cuda_check(ipvg_context *ctx, int error, const char *what)
{
    if (error == cudaSuccess) return IPVG_OK;
    cudaGetLastError(); /* one that does not stick must not be found by the next call */
    return ipvg_fail(ctx, error == cudaErrorMemoryAllocation ? IPVG_E_MEMORY : IPVG_E_BACKEND, "CUDA: %s: %s", what,
                     cudaGetErrorString((cudaError_t)error));
}

ipvg_status ipvg_cuda_array(ipvg_exec *ex, ipvg_k_array *out, const char *op, const ipvg_tensor *t)
{
    *out = (ipvg_k_array){0};
    if (!t) return IPVG_OK;
    if (t->dtype != IPVG_F32 && t->dtype != IPVG_BF16 && t->dtype != IPVG_F16)
        return ipvg_fail(ex->ctx, IPVG_E_TYPE, "%s: a tensor is %s, expected float32, bfloat16 or float16", op,
                         ipvg_dtype_name(t->dtype));
    *out = (ipvg_k_array){.data = t->data, .dtype = (ipvg_k_dtype)t->dtype, .ld = t->ld};
    return IPVG_OK;
}

ipvg_status ipvg_cuda_result(ipvg_exec *ex, ipvg_k_array *out, const char *op, const ipvg_tensor *t)
{
    if (t->dtype != IPVG_E4M3) return ipvg_cuda_array(ex, out, op, t);
    *out = (ipvg_k_array){.data = t->data, .dtype = IPVG_K_E4M3, .ld = t->ld};
    return IPVG_OK;
}

/* Waits until the block (or frame, of the VAE) before the last has begun... which is when everything queued before it is done: the queue then holds
 * that block's rest and what comes now. Cancelling and Ctrl-C are looked for right after. */
static ipvg_status pace(ipvg_exec *ex)
{
    ipvg_cuda *cuda = ipvg_cuda_of(ex);
    cudaEvent_t last = cuda->block[(cuda->blocks + 1) % 2], now = cuda->block[cuda->blocks % 2];
    ipvg_status status = IPVG_OK;
    if (cuda->keeping) return IPVG_OK; /* nothing runs */
    if (cuda->blocks) IPVG_TRY(ipvg_cuda_check(ex->ctx, cudaEventSynchronize(last), "work on the GPU"));
    IPVG_TRY(ipvg_cuda_check(ex->ctx, cudaEventRecord(now, cuda->stream), "an event"));
    cuda->blocks++;
done:
    return status;
}

static ipvg_status after(ipvg_exec *ex, const ipvg_backend *other)
{
    ipvg_cuda *cuda = ipvg_cuda_of(ex), *first = other->state;
    ipvg_status status;
    IPVG_TRY(ipvg_cuda_check(ex->ctx, cudaEventRecord(first->mark, first->stream), "an event"));
    IPVG_TRY(ipvg_cuda_check(ex->ctx, cudaStreamWaitEvent(cuda->stream, first->mark, 0), "waiting for an event"));
done:
    return status;
}

static void begin(const ipvg_backend *be) { cudaSetDevice(((const ipvg_cuda *)be->state)->device); }

static void state_free(ipvg_cuda *cuda)
{
    if (!cuda) return;
    cudaSetDevice(cuda->device);
    if (cuda->stream) cudaStreamSynchronize(cuda->stream);
    ipvg_blas_free(&cuda->blas);
    ipvg_dnn_free(&cuda->dnn);
    ipvg_cuda_ring_free(cuda);
    ipvg_cuda_planes_free(cuda);
    for (int i = 0; i < 2; i++)
        if (cuda->block[i]) cudaEventDestroy(cuda->block[i]);
    if (cuda->mark) cudaEventDestroy(cuda->mark);
    if (cuda->metered) ipvg_meter_end(&cuda->meter);
    if (cuda->workspace) cudaFree(cuda->workspace);
    if (cuda->stream) cudaStreamDestroy(cuda->stream);
    free(cuda);
}

static void cuda_free(ipvg_backend *be)
{
    state_free(be->state);
    free(be);
}

/* Below 8.0 there is no bfloat16, and no code for it in the kernels. cuBLASLt takes a scale for each row and channel on 9.0
 * alone: newer GPUs have scales for blocks of 32 instead. */
static ipvg_status check_device(ipvg_context *ctx, int device, ipvg_dtype compute)
{
    int count = 0, major = 0, minor = 0;
    cudaError_t error = cudaGetDeviceCount(&count);
    if (error != cudaSuccess || count == 0) {
        cudaGetLastError();
        return ipvg_fail(ctx, IPVG_E_UNSUPPORTED, "no GPU that CUDA can use: %s",
                         error == cudaSuccess ? "none is there" : cudaGetErrorString(error));
    }
    if (device < 0 || device >= count)
        return ipvg_fail(ctx, IPVG_E_ARGUMENT, "GPU %d is not there: this machine has %d", device, count);
    cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
    cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
    if (major < 8)
        return ipvg_fail(ctx, IPVG_E_UNSUPPORTED, "GPU %d has compute capability %d.%d, at least 8.0 is needed", device,
                         major, minor);
    if (compute == IPVG_E4M3 && major != 9)
        return ipvg_fail(ctx, IPVG_E_UNSUPPORTED,
                         "fp8 needs a GPU of compute capability 9.0 (Hopper), GPU %d has %d.%d; try dtype='bfloat16'",
                         device, major, minor);
    return IPVG_OK;
}

/* lane: a queue alone. */
static ipvg_status state_new(ipvg_context *ctx, ipvg_cuda **out, int device, bool lane)
{
    ipvg_cuda *cuda = calloc(1, sizeof *cuda);
    size_t available;
    ipvg_status status;
    if (!cuda) return ipvg_fail(ctx, IPVG_E_MEMORY, "no memory for a backend");
    cuda->device = device;
    IPVG_TRY(ipvg_cuda_check(ctx, cudaSetDevice(device), "setting the device"));
    IPVG_TRY(ipvg_cuda_check(ctx, cudaStreamCreateWithFlags((cudaStream_t *)&cuda->stream, cudaStreamNonBlocking),
                             "a stream"));
    IPVG_TRY(
        ipvg_cuda_check(ctx, cudaEventCreateWithFlags((cudaEvent_t *)&cuda->mark, cudaEventDisableTiming), "an event"));
    if (lane) goto made;
    cuda->metered = ipvg_meter_begin(&cuda->meter, IPVG_CUDA_CONTEXT + IPVG_CUDA_WORKSPACE);
    if (!cuda->metered) {
        status = ipvg_fail(ctx, IPVG_E_MEMORY, "no memory for a lock");
        goto done;
    }
    IPVG_TRY(ipvg_cuda_check(ctx, cudaMemGetInfo(&available, &cuda->meter.total), "the size of its memory"));
    for (int i = 0; i < 2; i++)
        IPVG_TRY(ipvg_cuda_check(ctx, cudaEventCreateWithFlags((cudaEvent_t *)&cuda->block[i], cudaEventDisableTiming),
                                 "an event"));
    IPVG_TRY(ipvg_cuda_check(ctx, cudaMalloc(&cuda->workspace, IPVG_CUDA_WORKSPACE), "the workspace of cuBLASLt"));
    IPVG_TRY(ipvg_blas_new(ctx, &cuda->blas, cuda));
    IPVG_TRY(ipvg_dnn_new(ctx, &cuda->dnn, cuda));
made:
    *out = cuda;
    cuda = NULL;
done:
    state_free(cuda);
    return status;
}

static ipvg_status lane(const ipvg_backend *be, ipvg_context *ctx, ipvg_backend **out)
{
    const ipvg_cuda *owner = be->state;
    ipvg_cuda *cuda = NULL;
    ipvg_status status;

    *out = malloc(sizeof **out);
    if (!*out) return ipvg_fail(ctx, IPVG_E_MEMORY, "no memory for a queue");
    IPVG_TRY(state_new(ctx, &cuda, owner->device, true));
    **out = *be;
    (*out)->state = cuda;
done:
    if (status == IPVG_OK) return status;
    free(*out);
    *out = NULL;
    return status;
}

ipvg_status ipvg_backend_cuda(ipvg_context *ctx, ipvg_backend **out, int device, ipvg_dtype compute)
{
    const ipvg_dtype activation = compute == IPVG_E4M3 ? IPVG_BF16 : compute;
    ipvg_cuda *cuda = NULL;
    ipvg_backend *be = NULL;
    ipvg_status status;

    *out = NULL;
    if (activation != IPVG_F32 && activation != IPVG_BF16)
        return ipvg_fail(ctx, IPVG_E_UNSUPPORTED, "a GPU computes in float32, bfloat16 or fp8, not in %s",
                         ipvg_dtype_name(compute));
    IPVG_TRY(check_device(ctx, device, compute));
    IPVG_TRY(state_new(ctx, &cuda, device, false));
    be = malloc(sizeof *be);
    if (!be) {
        state_free(cuda);
        return ipvg_fail(ctx, IPVG_E_MEMORY, "no memory for a backend");
    }
    *be = (ipvg_backend){
        .name = "cuda",
        .compute = compute,
        .activation = activation,
        .video =
            activation == IPVG_BF16 ? IPVG_F16 : IPVG_F32, /* its values are small: three more bits than bfloat16 */
        .ffn_rows = INT64_MAX,
        /* H200, 34320 queries: 104 us over 208 keys and 270 over 384 by our kernels, 191 over all 512 by cuDNN's */
        .few_keys = activation == IPVG_BF16 ? 256 : INT64_MAX,
        .native = true,
        .memory = ipvg_cuda_memory(cuda),
        .meter = &cuda->meter,
        .state = cuda,
        .free = cuda_free,
        .begin = begin,
        .pace = pace,
        .small = SMALL,
        .keep = ipvg_cuda_keep,
        .kept = ipvg_cuda_kept,
        .play = ipvg_cuda_play,
        .drop = ipvg_cuda_drop,
        .lane = lane,
        .after = after,
        .copy_in = ipvg_cuda_copy_in,
        .copy_out = ipvg_cuda_copy_out,
        .upload = ipvg_cuda_upload,
        .device = device,
        .stream = cuda->stream,
        .follow = ipvg_cuda_follow,
        .settle = ipvg_cuda_settle,
        .planes_begin = ipvg_cuda_planes_begin,
        .planes_load = ipvg_cuda_planes_load,
        .planes_send = ipvg_cuda_planes_send,
        .planes_receive = ipvg_cuda_planes_receive,
        .bytes_send = ipvg_cuda_bytes_send,
        .bytes_receive = ipvg_cuda_bytes_receive,
        .linear = ipvg_cuda_linear,
        .attention = ipvg_cuda_attention,
        .norm_modulate = ipvg_cuda_norm_modulate,
        .layer_norm = ipvg_cuda_layer_norm,
        .rms_norm = ipvg_cuda_rms_norm,
        .rms_norm_rope = ipvg_cuda_rms_norm_rope,
        .gate_residual = ipvg_cuda_gate_residual,
        .gate_residual_norm = ipvg_cuda_gate_residual_norm,
        .gated_gelu = ipvg_cuda_gated_gelu,
        .silu = ipvg_cuda_silu,
        .sums = ipvg_cuda_sums,
        .multiply = ipvg_cuda_multiply,
        .gram = ipvg_cuda_gram,
        .blur_tokens = ipvg_cuda_blur_tokens,
        .nag = ipvg_cuda_nag,
        .gather_rows = ipvg_cuda_gather_rows,
        .patchify = ipvg_cuda_patchify,
        .unpatchify = ipvg_cuda_unpatchify,
        .cast = ipvg_cuda_cast,
        .conv_prepare = ipvg_cuda_conv_prepare,
        .conv_release = ipvg_cuda_conv_release,
        .conv = ipvg_cuda_conv,
        .norm_silu = ipvg_cuda_norm_silu,
    };
    *out = be;
done:
    return status;
}

/* Copies between the device and host memory of any kind, or a file, through a ring of pinned pieces. Each thread fills pieces
 * of its own and gives them to the stream itself, so that none waits for the others before a copy's end. A copy to the device
 * waits for no work there but for what is still to leave a piece that it fills. */
#include <cuda_runtime_api.h>
#include <omp.h>
#include <string.h>

#include "cuda.h"

#define PIECE (1u << 20)   /* bytes of the ring's pieces */
#define LEAST (256u << 10) /* bytes that are worth another thread */

/* Piece i is the work of lane i % lanes and lies in slot (turn + i) % (2 * lanes): whoever meets a slot again is the thread
 * that has used it before. */
typedef struct transfer {
    ipvg_cuda *cuda;
    char *device;
    size_t bytes, piece, count;
    const char *from; /* what goes there: memory, */
    const ipvg_file *file;
    uint64_t offset; /* or a file from here on */
    char *to;        /* where that which comes from there goes */
} transfer;

typedef struct fault {
    int cuda, file; /* the first that a lane has met; it then stops */
} fault;

/* ==== the ring ==== */

static ipvg_status ring_ready(ipvg_context *ctx, ipvg_cuda *cuda)
{
    const int lanes = ctx->threads < IPVG_CUDA_LANES ? ctx->threads : IPVG_CUDA_LANES;
    ipvg_status status = IPVG_OK;
    if (cuda->ring.data) return IPVG_OK;
    for (int i = 0; i < 2 * lanes; i++)
        if (!cuda->ring.done[i])
            IPVG_TRY(ipvg_cuda_check(
                ctx, cudaEventCreateWithFlags((cudaEvent_t *)&cuda->ring.done[i], cudaEventDisableTiming),
                "an event for copies"));
    IPVG_TRY(ipvg_cuda_check(ctx, cudaHostAlloc(&cuda->ring.data, 2u * (size_t)lanes * PIECE, cudaHostAllocDefault),
                             "pinned memory for copies"));
    cuda->ring.lanes = lanes;
done:
    return status;
}

void ipvg_cuda_ring_free(ipvg_cuda *cuda)
{
    for (int i = 0; i < 2 * IPVG_CUDA_LANES; i++)
        if (cuda->ring.done[i]) cudaEventDestroy(cuda->ring.done[i]);
    if (cuda->ring.data) cudaFreeHost(cuda->ring.data);
}

static transfer begin(ipvg_cuda *cuda, const ipvg_tensor *t)
{
    const size_t bytes = ipvg_tensor_bytes(t), share = bytes / (size_t)cuda->ring.lanes;
    const size_t piece = share < LEAST ? LEAST : share > PIECE ? PIECE : (share + LEAST - 1) / LEAST * LEAST;
    return (transfer){
        .cuda = cuda, .device = t->data, .bytes = bytes, .piece = piece, .count = (bytes + piece - 1) / piece};
}

static void end(const transfer *t)
{
    t->cuda->ring.turn = (int)(((size_t)t->cuda->ring.turn + t->count) % (2 * (size_t)t->cuda->ring.lanes));
}

static int slot_of(const transfer *t, size_t i)
{
    return (int)(((size_t)t->cuda->ring.turn + i) % (2 * (size_t)t->cuda->ring.lanes));
}
static char *pinned(const transfer *t, size_t i) { return (char *)t->cuda->ring.data + (size_t)slot_of(t, i) * PIECE; }
static cudaEvent_t done(const transfer *t, size_t i) { return t->cuda->ring.done[slot_of(t, i)]; }
static size_t length(const transfer *t, size_t i)
{
    const size_t rest = t->bytes - i * t->piece;
    return rest < t->piece ? rest : t->piece;
}

/* ==== what a lane does with a piece ==== */

static fault piece_in(const transfer *t, size_t i)
{
    const size_t at = i * t->piece, bytes = length(t, i);
    fault f = {.cuda = cudaEventSynchronize(done(t, i))};
    if (f.cuda) return f;
    if (t->file)
        f.file = ipvg_file_read(t->file, pinned(t, i), bytes, t->offset + at);
    else
        memcpy(pinned(t, i), t->from + at, bytes);
    if (f.file) return f;
    f.cuda = cudaMemcpyAsync(t->device + at, pinned(t, i), bytes, cudaMemcpyHostToDevice, t->cuda->stream);
    if (!f.cuda) f.cuda = cudaEventRecord(done(t, i), t->cuda->stream);
    return f;
}

static fault piece_out(const transfer *t, size_t i)
{
    const fault f = {.cuda = cudaEventSynchronize(done(t, i))};
    if (!f.cuda) memcpy(t->to + i * t->piece, pinned(t, i), length(t, i));
    return f;
}

/* Pieces from `first` to before `last`. The team is always as large: libgomp ends the threads that a smaller one leaves out. */
static ipvg_status each(ipvg_exec *ex, const transfer *t, fault (*work)(const transfer *t, size_t i), size_t first,
                        size_t last)
{
    const int lanes = t->cuda->ring.lanes;
    fault faults[IPVG_CUDA_LANES] = {{0}};
#pragma omp parallel for num_threads(lanes) schedule(static) if (last - first > 1)
    for (int lane = 0; lane < lanes; lane++) {
        if (first + (size_t)lane < last) cudaSetDevice(t->cuda->device);
        for (size_t i = first + (size_t)lane; i < last && !faults[lane].cuda && !faults[lane].file; i += (size_t)lanes)
            faults[lane] = work(t, i);
    }
    for (int lane = 0; lane < lanes; lane++) {
        if (faults[lane].file) return ipvg_file_fail(ex->ctx, t->file, faults[lane].file);
        if (faults[lane].cuda) return ipvg_cuda_check(ex->ctx, faults[lane].cuda, "a copy to or from the GPU");
    }
    return IPVG_OK;
}

/* ==== copies ==== */

ipvg_status ipvg_cuda_copy_in(ipvg_exec *ex, ipvg_tensor *dst, const void *host_src)
{
    ipvg_cuda *cuda = ipvg_cuda_of(ex);
    ipvg_status status;
    if (ipvg_planning(ex) || host_src == dst->data) return IPVG_OK;
    if (ipvg_cuda_is_device(host_src))
        return ipvg_cuda_check(
            ex->ctx,
            cudaMemcpyAsync(dst->data, host_src, ipvg_tensor_bytes(dst), cudaMemcpyDeviceToDevice, cuda->stream),
            "a copy on the GPU");
    IPVG_TRY(ring_ready(ex->ctx, cuda));
    transfer t = begin(cuda, dst);
    t.from = host_src;
    status = each(ex, &t, piece_in, 0, t.count);
    end(&t);
done:
    return status;
}

ipvg_status ipvg_cuda_read_in(ipvg_exec *ex, ipvg_tensor *dst, const ipvg_file *file, uint64_t offset)
{
    ipvg_cuda *cuda = ipvg_cuda_of(ex);
    ipvg_status status;
    if (ipvg_planning(ex)) return IPVG_OK;
    IPVG_TRY(ring_ready(ex->ctx, cuda));
    transfer t = begin(cuda, dst);
    t.file = file;
    t.offset = offset;
    status = each(ex, &t, piece_in, 0, t.count);
    end(&t);
done:
    return status;
}

/* Half a ring sets out, then the half before it arrives. */
ipvg_status ipvg_cuda_copy_out(ipvg_exec *ex, void *host_dst, const ipvg_tensor *src)
{
    ipvg_cuda *cuda = ipvg_cuda_of(ex);
    ipvg_status status;
    if (ipvg_planning(ex)) return IPVG_OK;
    IPVG_TRY(ring_ready(ex->ctx, cuda));
    transfer t = begin(cuda, src);
    const size_t half = (size_t)cuda->ring.lanes;
    t.to = host_dst;
    for (size_t first = 0; first < t.count + half; first += half) {
        for (size_t i = first; i < first + half && i < t.count; i++) {
            IPVG_TRY(ipvg_cuda_check(ex->ctx,
                                     cudaMemcpyAsync(pinned(&t, i), t.device + i * t.piece, length(&t, i),
                                                     cudaMemcpyDeviceToHost, cuda->stream),
                                     "a copy from the GPU"));
            IPVG_TRY(ipvg_cuda_check(ex->ctx, cudaEventRecord(done(&t, i), cuda->stream), "a copy from the GPU"));
        }
        if (first) IPVG_TRY(each(ex, &t, piece_out, first - half, first < t.count ? first : t.count));
    }
    end(&t);
done:
    return status;
}

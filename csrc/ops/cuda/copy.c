/* Copies between the device and host memory of any kind, or a file, through pinned pieces. Each thread has two of its own and
 * gives what it has filled to the stream itself, so that nobody waits for the others before a copy's end, and one that is
 * slow, because its core has other work, gets less to do. A copy to the device waits for no work there but for what is still
 * to leave a piece that it fills. */
#include <cuda_runtime_api.h>
#include <omp.h>
#include <string.h>
#include <sys/mman.h>

#include "cuda.h"

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23 /* of Linux 5.14 */
#endif
#define PIECE (1u << 20) /* bytes of a pinned piece */
#define TEAM (2u << 20)  /* bytes below which one thread is as fast as several */
#define UNIT (64u << 10) /* bytes that shares are multiples of, and those of a small piece */

typedef struct transfer {
    ipvg_cuda *cuda;
    char *device;
    size_t bytes, share, count; /* of all; of what a piece takes; how many of those */
    const char *from;           /* what goes there: memory, */
    const ipvg_file *file;
    uint64_t offset;          /* or a file from here on, */
    const ipvg_tensor *table; /* or the rows of a table */
    const int32_t *rows;      /* that have these numbers */
} transfer;

typedef struct fault {
    int cuda, file; /* the first that a lane has met; it then does nothing more */
} fault;

static ipvg_status ring_ready(ipvg_context *ctx, ipvg_cuda *cuda)
{
    const int lanes = ctx->threads < IPVG_CUDA_LANES ? ctx->threads : IPVG_CUDA_LANES;
    ipvg_status status = IPVG_OK;
    if (cuda->ring.data) return IPVG_OK;
    for (int i = 0; i < 2 * lanes + IPVG_CUDA_SMALL; i++)
        if (!cuda->ring.done[i])
            IPVG_TRY(ipvg_cuda_check(
                ctx, cudaEventCreateWithFlags((cudaEvent_t *)&cuda->ring.done[i], cudaEventDisableTiming),
                "an event for copies"));
    IPVG_TRY(ipvg_cuda_check(
        ctx, cudaHostAlloc(&cuda->ring.data, 2u * (size_t)lanes * PIECE + IPVG_CUDA_SMALL * UNIT, cudaHostAllocDefault),
        "pinned memory for copies"));
    cuda->ring.lanes = lanes;
done:
    return status;
}

void ipvg_cuda_ring_free(ipvg_cuda *cuda)
{
    for (int i = 0; i < 2 * IPVG_CUDA_LANES + IPVG_CUDA_SMALL; i++)
        if (cuda->ring.done[i]) cudaEventDestroy(cuda->ring.done[i]);
    if (cuda->ring.data) cudaFreeHost(cuda->ring.data);
}

static transfer transfer_of(ipvg_cuda *cuda, const ipvg_tensor *t)
{
    const size_t bytes = ipvg_tensor_bytes(t), half = bytes / (2 * (size_t)cuda->ring.lanes) / UNIT * UNIT + UNIT;
    const size_t share = bytes < TEAM || half > PIECE ? PIECE : half;
    return (transfer){
        .cuda = cuda, .device = t->data, .bytes = bytes, .share = share, .count = (bytes + share - 1) / share};
}

static char *pinned(const ipvg_cuda *cuda, int slot)
{
    const int large = slot < 2 * cuda->ring.lanes ? slot : 2 * cuda->ring.lanes;
    return (char *)cuda->ring.data + (size_t)large * PIECE + (size_t)(slot - large) * UNIT;
}

static size_t length(const transfer *t, size_t i)
{
    const size_t rest = t->bytes - i * t->share;
    return rest < t->share ? rest : t->share;
}

/* ==== to the device ==== */

/* Bytes at .. at + bytes of the rows that follow each other. */
static void gather(char *to, size_t at, size_t bytes, const transfer *t)
{
    const size_t size = ipvg_dtype_size(t->table->dtype), width = (size_t)t->table->shape[1] * size;
    for (size_t done = 0, n; done < bytes; done += n) {
        const size_t row = (at + done) / width, column = (at + done) % width;
        n = width - column < bytes - done ? width - column : bytes - done;
        memcpy(to + done, (const char *)t->table->data + (size_t)(t->rows[row] * t->table->ld) * size + column, n);
    }
}

static fault send(const transfer *t, size_t i, int slot)
{
    const size_t at = i * t->share, bytes = length(t, i);
    cudaEvent_t done = t->cuda->ring.done[slot];
    char *data = pinned(t->cuda, slot);
    fault f = {.cuda = cudaEventSynchronize(done)};
    if (f.cuda) return f;
    if (t->file)
        f.file = ipvg_file_read(t->file, data, bytes, t->offset + at);
    else if (t->table)
        gather(data, at, bytes, t);
    else
        memcpy(data, t->from + at, bytes);
    if (f.file) return f;
    f.cuda = cudaMemcpyAsync(t->device + at, data, bytes, cudaMemcpyHostToDevice, t->cuda->stream);
    if (!f.cuda) f.cuda = cudaEventRecord(done, t->cuda->stream);
    return f;
}

static fault send_alone(const transfer *t)
{
    ipvg_cuda *cuda = t->cuda;
    fault f = {0};
    if (t->count && t->bytes <= UNIT) { /* it need not wait for the weight before its bias */
        f = send(t, 0, 2 * cuda->ring.lanes + cuda->ring.small);
        cuda->ring.small = (cuda->ring.small + 1) % IPVG_CUDA_SMALL;
        return f;
    }
    for (size_t i = 0; i < t->count && !f.cuda && !f.file; i++) {
        f = send(t, i, cuda->ring.turn);
        cuda->ring.turn = (cuda->ring.turn + 1) % (2 * cuda->ring.lanes);
    }
    return f;
}

/* Who takes which piece does not show in the bytes. */
static fault send_together(const transfer *t)
{
    ipvg_cuda *cuda = t->cuda;
    fault faults[IPVG_CUDA_LANES] = {{0}}, f = {0};
#pragma omp parallel for num_threads(cuda->ring.lanes) schedule(dynamic)
    for (size_t i = 0; i < t->count; i++) {
        const int lane = omp_get_thread_num();
        if (faults[lane].cuda || faults[lane].file) continue;
        cudaSetDevice(cuda->device);
        faults[lane] = send(t, i, 2 * lane + cuda->ring.second[lane]);
        cuda->ring.second[lane] = !cuda->ring.second[lane];
    }
    for (int lane = 0; lane < cuda->ring.lanes && !f.cuda && !f.file; lane++) f = faults[lane];
    return f;
}

static ipvg_status send_all(ipvg_exec *ex, const transfer *t)
{
    const fault f = t->bytes < TEAM || t->cuda->ring.lanes == 1 ? send_alone(t) : send_together(t);
    if (f.file) return ipvg_file_fail(ex->ctx, t->file, f.file);
    return ipvg_cuda_check(ex->ctx, f.cuda, "a copy to the GPU");
}

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
    transfer t = transfer_of(cuda, dst);
    t.from = host_src;
    status = send_all(ex, &t);
done:
    return status;
}

ipvg_status ipvg_cuda_read_in(ipvg_exec *ex, ipvg_tensor *dst, const ipvg_file *file, uint64_t offset)
{
    ipvg_cuda *cuda = ipvg_cuda_of(ex);
    ipvg_status status;
    if (ipvg_planning(ex)) return IPVG_OK;
    IPVG_TRY(ring_ready(ex->ctx, cuda));
    transfer t = transfer_of(cuda, dst);
    t.file = file;
    t.offset = offset;
    status = send_all(ex, &t);
done:
    return status;
}

ipvg_status ipvg_cuda_rows_in(ipvg_exec *ex, ipvg_tensor *dst, const ipvg_tensor *table, const int32_t *rows)
{
    ipvg_cuda *cuda = ipvg_cuda_of(ex);
    ipvg_status status;
    if (ipvg_planning(ex)) return IPVG_OK;
    IPVG_TRY(ring_ready(ex->ctx, cuda));
    transfer t = transfer_of(cuda, dst);
    t.table = table;
    t.rows = rows;
    status = send_all(ex, &t);
done:
    return status;
}

/* ==== from the device ==== */

/* Fresh memory of the caller's gets its pages while the device still works, not one by one when all wait for the result. */
static void make_present(void *p, size_t bytes)
{
    char *first = (char *)(((uintptr_t)p + 4095) / 4096 * 4096), *end = (char *)(((uintptr_t)p + bytes) / 4096 * 4096);
    if (end > first)
        madvise(first, (size_t)(end - first), MADV_POPULATE_WRITE); /* a wish: older kernels do not know it */
}

/* As many pieces as there are set out; each that has arrived makes room for one more. By one thread: results are small. */
ipvg_status ipvg_cuda_copy_out(ipvg_exec *ex, void *host_dst, const ipvg_tensor *src)
{
    ipvg_cuda *cuda = ipvg_cuda_of(ex);
    ipvg_status status;
    if (ipvg_planning(ex)) return IPVG_OK;
    IPVG_TRY(ring_ready(ex->ctx, cuda));
    const transfer t = transfer_of(cuda, src);
    const size_t slots = 2 * (size_t)cuda->ring.lanes;
    for (size_t i = 0; i < t.count + slots; i++) {
        const int slot = (int)(i % slots);
        if (i == (t.count < slots ? t.count : slots)) make_present(host_dst, t.bytes);
        if (i >= slots && i - slots < t.count) {
            const size_t came = i - slots;
            IPVG_TRY(ipvg_cuda_check(ex->ctx, cudaEventSynchronize(cuda->ring.done[slot]), "work on the GPU"));
            memcpy((char *)host_dst + came * t.share, pinned(cuda, slot), length(&t, came));
        }
        if (i >= t.count) continue;
        IPVG_TRY(ipvg_cuda_check(ex->ctx,
                                 cudaMemcpyAsync(pinned(cuda, slot), t.device + i * t.share, length(&t, i),
                                                 cudaMemcpyDeviceToHost, cuda->stream),
                                 "a copy from the GPU"));
        IPVG_TRY(ipvg_cuda_check(ex->ctx, cudaEventRecord(cuda->ring.done[slot], cuda->stream), "a copy from the GPU"));
    }
done:
    return status;
}

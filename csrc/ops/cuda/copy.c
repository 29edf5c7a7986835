/* Copies between the device and host memory of any kind, or a file, through pinned pieces. Each thread has two of its own and
 * gives what it has filled to the stream itself, so that nobody waits for the others before the end of all copies that were
 * asked for together, and one that is slow, because its core has other work, gets less to do. A copy to the device waits for
 * no work there but for what is still to leave a piece that it fills.
 *
 * What is cast goes piece by piece as well: each lane has a stream and one piece of the device's scratch, where the bytes
 * come, and casts them from there. So the bus carries the others' pieces meanwhile, and scratch does not grow with tensors. */
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
    char *device;
    size_t bytes, share, count; /* of all; of what a piece takes; how many of those */
    const char *from;           /* what goes there: memory, */
    const ipvg_file *file;
    uint64_t offset;          /* or a file from here on, */
    const ipvg_tensor *table; /* or the rows of a table */
    const int32_t *rows;      /* that have these numbers */
    const ipvg_upload *cast;  /* NULL: bytes stay as they are */
} transfer;

typedef struct fault {
    int cuda, file; /* the first that a lane has met; it then does nothing more */
    const ipvg_file *of;
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
    /* Before other work: a cast is short, and its lane would wait until a long kernel has begun all its blocks. */
    for (int i = 0; i < lanes; i++)
        if (!cuda->ring.stream[i])
            IPVG_TRY(ipvg_cuda_check(
                ctx, cudaStreamCreateWithPriority((cudaStream_t *)&cuda->ring.stream[i], cudaStreamNonBlocking, -1),
                "a stream for copies"));
    IPVG_TRY(ipvg_cuda_check(
        ctx, cudaHostAlloc(&cuda->ring.data, 2u * (size_t)lanes * PIECE + IPVG_CUDA_SMALL * UNIT, cudaHostAllocDefault),
        "pinned memory for copies"));
    cuda->ring.lanes = lanes;
done:
    return status;
}

void ipvg_cuda_ring_free(ipvg_cuda *cuda)
{
    for (int i = 0; i < IPVG_CUDA_LANES; i++)
        if (cuda->ring.stream[i]) cudaStreamDestroy(cuda->ring.stream[i]);
    for (int i = 0; i < 2 * IPVG_CUDA_LANES + IPVG_CUDA_SMALL; i++)
        if (cuda->ring.done[i]) cudaEventDestroy(cuda->ring.done[i]);
    if (cuda->ring.data) cudaFreeHost(cuda->ring.data);
}

static transfer transfer_of(const ipvg_cuda *cuda, const ipvg_tensor *t)
{
    const size_t bytes = ipvg_tensor_bytes(t), half = bytes / (2 * (size_t)cuda->ring.lanes) / UNIT * UNIT + UNIT;
    const size_t share = bytes < TEAM || half > PIECE ? PIECE : half;
    return (transfer){.device = t->data, .bytes = bytes, .share = share, .count = (bytes + share - 1) / share};
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

/* Bytes at .. at + bytes of u's, which lie in `staging`. Of E4M3 they are whole rows. */
static int cast(const ipvg_upload *u, size_t at, size_t bytes, void *staging, void *stream)
{
    const size_t size = ipvg_dtype_size(u->dtype);
    const int64_t first = (int64_t)(at / size), count = (int64_t)(bytes / size), d = u->to.shape[1];
    ipvg_k_array to = {.data = (char *)u->to.data + (size_t)first * ipvg_dtype_size(u->to.dtype), .ld = count};
    ipvg_k_array from = {.data = staging, .dtype = (ipvg_k_dtype)u->dtype, .ld = count};
    if (u->to.dtype == IPVG_E4M3) {
        to.dtype = IPVG_K_E4M3;
        to.ld = from.ld = d;
        return ipvg_k_quantise_rows(to, u->to.scale + first / d, from, count / d, d, stream);
    }
    to.dtype = (ipvg_k_dtype)u->to.dtype;
    return ipvg_k_cast(to, from, 1, count, stream);
}

/* Piece i through a pinned one. */
static fault send(ipvg_cuda *cuda, const transfer *t, size_t i, int slot, cudaStream_t stream, char *staging)
{
    const size_t at = i * t->share, bytes = length(t, i);
    cudaEvent_t done = cuda->ring.done[slot];
    char *data = pinned(cuda, slot);
    fault f = {.cuda = cudaEventSynchronize(done), .of = t->file};
    if (f.cuda) return f;
    if (t->file)
        f.file = ipvg_file_read(t->file, data, bytes, t->offset + at);
    else if (t->table)
        gather(data, at, bytes, t);
    else
        memcpy(data, t->from + at, bytes);
    if (f.file) return f;
    f.cuda = cudaMemcpyAsync(t->cast ? staging : t->device + at, data, bytes, cudaMemcpyHostToDevice, stream);
    if (!f.cuda) f.cuda = cudaEventRecord(done, stream);
    if (!f.cuda && t->cast) f.cuda = cast(t->cast, at, bytes, staging, stream);
    return f;
}

static fault send_alone(ipvg_cuda *cuda, const transfer *t)
{
    fault f = {0};
    if (t->count && t->bytes <= UNIT) { /* it need not wait for the weight before its bias */
        f = send(cuda, t, 0, 2 * cuda->ring.lanes + cuda->ring.small, cuda->stream, NULL);
        cuda->ring.small = (cuda->ring.small + 1) % IPVG_CUDA_SMALL;
        return f;
    }
    for (size_t i = 0; i < t->count && !f.cuda && !f.file; i++) {
        f = send(cuda, t, i, cuda->ring.turn, cuda->stream, NULL);
        cuda->ring.turn = (cuda->ring.turn + 1) % (2 * cuda->ring.lanes);
    }
    return f;
}

/* Who takes which piece does not show in the bytes. staging: `room` bytes for each lane, in its own stream; or NULL. */
static fault send_together(ipvg_cuda *cuda, const transfer *t, int n, int lanes, char *staging, size_t room)
{
    fault faults[IPVG_CUDA_LANES] = {{0}}, f = {0};
    size_t count = 0;
    for (int k = 0; k < n; k++) count += t[k].count;
#pragma omp parallel for num_threads(lanes) schedule(dynamic)
    for (size_t i = 0; i < count; i++) {
        const int lane = omp_get_thread_num(), slot = 2 * lane + cuda->ring.second[lane];
        const transfer *of = t;
        size_t piece = i;
        if (faults[lane].cuda || faults[lane].file) continue;
        while (piece >= of->count) piece -= of++->count;
        cudaSetDevice(cuda->device);
        faults[lane] = send(cuda, of, piece, slot, staging ? cuda->ring.stream[lane] : cuda->stream,
                            staging ? staging + (size_t)lane * room : NULL);
        cuda->ring.second[lane] = !cuda->ring.second[lane];
    }
    for (int lane = 0; lane < lanes && !f.cuda && !f.file; lane++) f = faults[lane];
    return f;
}

static ipvg_status sent(ipvg_exec *ex, fault f)
{
    if (f.file) return ipvg_file_fail(ex->ctx, f.of, f.file);
    return ipvg_cuda_check(ex->ctx, f.cuda, "a copy to the GPU");
}

static ipvg_status send_all(ipvg_exec *ex, const transfer *t)
{
    ipvg_cuda *cuda = ipvg_cuda_of(ex);
    const bool alone = t->bytes < TEAM || cuda->ring.lanes == 1;
    return sent(ex, alone ? send_alone(cuda, t) : send_together(cuda, t, 1, cuda->ring.lanes, NULL, 0));
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

/* ==== many to the device ==== */

static size_t bytes_of(const ipvg_upload *u) { return (size_t)ipvg_tensor_count(&u->to) * ipvg_dtype_size(u->dtype); }

/* What pieces are multiples of: a row, which has one scale. */
static size_t row_of(const ipvg_upload *u)
{
    const bool scaled = u->to.dtype == IPVG_E4M3 && u->dtype != IPVG_E4M3;
    return scaled ? (size_t)u->to.shape[1] * ipvg_dtype_size(u->dtype) : 1;
}

/* Bytes of scratch that a lane needs for u: none, if it is not cast. */
static ipvg_status measure(ipvg_exec *ex, size_t *room, const ipvg_upload *u)
{
    const ipvg_tensor from = {.dtype = u->dtype};
    const size_t bytes = bytes_of(u);
    ipvg_k_array unused;
    ipvg_status status = IPVG_OK;
    *room = 0;
    if (u->dtype == u->to.dtype) goto done;
    IPVG_TRY(ipvg_cuda_array(ex, &unused, "cast", &from));
    IPVG_TRY(ipvg_cuda_result(ex, &unused, "cast", &u->to));
    if (row_of(u) > PIECE)
        return ipvg_fail(ex->ctx, IPVG_E_UNSUPPORTED,
                         "fp8 takes weights whose rows have up to %zu numbers, not %lld; try dtype='bfloat16'",
                         PIECE / ipvg_dtype_size(u->dtype), (long long)u->to.shape[1]);
    *room = (bytes < PIECE ? bytes + IPVG_ALIGN - 1 : PIECE) / IPVG_ALIGN * IPVG_ALIGN;
done:
    return status;
}

static transfer transfer_of_upload(const ipvg_upload *u)
{
    const size_t bytes = bytes_of(u), share = PIECE / row_of(u) * row_of(u);
    return (transfer){.device = u->to.data,
                      .bytes = bytes,
                      .share = share,
                      .count = (bytes + share - 1) / share,
                      .from = u->data,
                      .file = u->file,
                      .offset = u->offset,
                      .cast = u->dtype == u->to.dtype ? NULL : u};
}

/* What is queued in `then` from here on begins after what is in `first`. */
static int follow(ipvg_cuda *cuda, void *then, void *first)
{
    const int error = cudaEventRecord(cuda->mark, first);
    return error ? error : (int)cudaStreamWaitEvent(then, cuda->mark, 0);
}

ipvg_status ipvg_cuda_upload(ipvg_exec *ex, const ipvg_upload *uploads, int n)
{
    ipvg_cuda *cuda = ipvg_cuda_of(ex);
    const size_t mark = ipvg_arena_mark(ex->arena);
    size_t together = 0, room = 0, one;
    transfer t[IPVG_UPLOADS];
    void *staging = NULL;
    fault f = {0};
    int lanes;
    ipvg_status status = IPVG_OK;

    for (int k = 0; k < n; k++) {
        IPVG_TRY(measure(ex, &one, &uploads[k]));
        together += bytes_of(&uploads[k]);
        if (one > room) room = one;
    }
    /* With two pieces for each, scratch is small beside small models too. Planned for all threads that there may be. */
    lanes = together < TEAM ? 1 : together / TEAM < IPVG_CUDA_LANES ? (int)(together / TEAM) : IPVG_CUDA_LANES;
    if (room) IPVG_TRY(ipvg_arena_alloc(ex->ctx, ex->arena, &staging, (size_t)lanes * room));
    if (ipvg_planning(ex)) goto done;
    IPVG_TRY(ring_ready(ex->ctx, cuda));
    if (lanes > cuda->ring.lanes) lanes = cuda->ring.lanes;
    for (int k = 0; k < n; k++) t[k] = transfer_of_upload(&uploads[k]);
    for (int i = 0; staging && i < lanes && !f.cuda; i++) f.cuda = follow(cuda, cuda->ring.stream[i], cuda->stream);
    if (!f.cuda) f = send_together(cuda, t, n, lanes, staging, room);
    for (int i = 0; staging && i < lanes; i++) { /* after a fault too: memory is free after what the stream holds */
        const int error = follow(cuda, cuda->stream, cuda->ring.stream[i]);
        if (!f.cuda) f.cuda = error;
    }
    status = sent(ex, f);
done:
    ipvg_arena_reset(ex->arena, mark);
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

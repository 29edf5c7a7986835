/* Attention over few keys: a text's states, or a text's own. Scores stay in registers, with a running maximum; products go
 * through tensor cores.
 *
 * A block has one head and keeps its keys and values in shared memory, in parts of PART: all of them, brought once while the
 * first queries are at work on those that are there; or, where they are too many, a ring in which the next part comes while
 * one is in use. Each warp takes strips of ROWS queries, one after the other, and waits for no other warp once all keys are
 * there. The next strip's queries come while the last part of this one is summed; the odd part of the keys is therefore the
 * first. What a strip computes depends on its numbers alone, not on how strips are shared out.
 *
 * On 9.0, heads of 128 over at most 256 keys go to attention90.cu. */
#include "attention.cuh"
#include "tile.cuh"

#define TALL 2            /* 16-row tiles of a strip: what is loaded of keys and values serves as many products */
#define ROWS (16 * TALL)  /* queries of a strip */
#define PART 64           /* keys that are scored together */
#define WARPS 8           /* at most */
#define MOST (1 << 30)    /* queries, keys */
#define LOG2E 1.44269504f /* scores are powers of 2 */
#define STALE 8.f         /* the maximum may lag behind by a factor of 2^8: sums have the same relative error */

struct attention_job {
    array o, q, k, v, bias;
    float scale; /* times LOG2E */
    float more;  /* to the last key's score, before it is scaled if there is no bias */
    int heads, lq, lk, strips, parts;
    int slots;  /* parts that have a place */
    int shares; /* blocks of a head */
};

/* In shared memory: a warp's queries; PART rows of keys, then of values. */
__host__ __device__ constexpr int strip_bytes(int d) { return ROWS * d * 2; }
__host__ __device__ constexpr int part_bytes(int d) { return 2 * PART * d * 2; }

/* What a warp has of a strip of queries. [i][h]: rows 16 i + 8 h + lane / 4, of which four lanes hold the columns. */
template <int D>
struct strip {
    float o[TALL][D / 8][4];
    float top[TALL][2], sum[TALL][2]; /* a maximum that is at most STALE too low; this lane's columns' sum */
};

__device__ inline const __nv_bfloat16 *row_of(const array &x, int64_t row, int column)
{
    return (const __nv_bfloat16 *)x.data + row * x.ld + column;
}

/* `rows` rows of D columns, from row `first` on, by `count` threads; those from `end` on are zeros. */
template <int D>
__device__ inline void bring(shared_at to, const array &x, int column, int first, int end, int rows, int thread,
                             int count)
{
    constexpr int pieces = D / 8;
    const int piece = thread % pieces, step = count / pieces;
    const int there = end - first;
    int row = thread / pieces;
    const __nv_bfloat16 *from = row_of(x, first + row, column + piece * 8);
#pragma unroll 1 /* registers are short where a strip's next queries are brought */
    for (; row < rows; row += step, from += step * x.ld) copy_piece(to + tile_piece<D>(row, piece), from, row < there);
}

/* The same rows, a warp's, come nearer: without it all warps that start together would wait for memory together. */
template <int D>
__device__ inline void foresee_strip(const array &x, int column, int first, int end)
{
    const int row = first + (int)threadIdx.x % 32;
    if (row >= end) return;
#pragma unroll
    for (int c = 0; c < D; c += 64) foresee(row_of(x, row, column + c));
}

/* Keys of part `p`: from, to. */
__device__ inline int part_begin(const attention_job &j, int p) { return p ? j.lk - (j.parts - p) * PART : 0; }

template <int D>
__device__ inline void bring_part(const attention_job &j, shared_at to, int column, int p)
{
    const int begin = part_begin(j, p), end = part_begin(j, p + 1), rows = (end - begin + 15) / 16 * 16;
    bring<D>(to, j.k, column, begin, end, rows, (int)threadIdx.x, (int)blockDim.x);
    bring<D>(to + PART * D * 2, j.v, column, begin, end, rows, (int)threadIdx.x, (int)blockDim.x);
}

/* s = q k^T for a strip and 16 PAIRS keys. */
template <int D, int PAIRS>
__device__ inline void score(float (&s)[TALL][2 * PAIRS][4], shared_at queries, shared_at keys)
{
    const int lane = (int)threadIdx.x % 32;
    const shared_at q = queries + tile_piece<D>(lane % 16, lane / 16);
    const shared_at k = keys + tile_piece<D>(lane % 8 + lane / 16 * 8, lane / 8 % 2);
#pragma unroll
    for (int i = 0; i < TALL; i++)
#pragma unroll
        for (int n = 0; n < 2 * PAIRS; n++)
#pragma unroll
            for (int e = 0; e < 4; e++) s[i][n][e] = 0.f;
#pragma unroll
    for (int step = 0; step < D / 16; step++) {
        unsigned a[TALL][4];
#pragma unroll
        for (int i = 0; i < TALL; i++) load_tiles(a[i], (q ^ (unsigned)(step << 5)) + (unsigned)(i * 16 * D * 2));
#pragma unroll
        for (int n = 0; n < PAIRS; n++) {
            unsigned b[4];
            load_tiles(b, (k ^ (unsigned)(step << 5)) + (unsigned)(n * 16 * D * 2));
#pragma unroll
            for (int i = 0; i < TALL; i++) {
                multiply_tiles(s[i][2 * n], a[i], b[0], b[1]);
                multiply_tiles(s[i][2 * n + 1], a[i], b[2], b[3]);
            }
        }
    }
}

/* s = s scale + bias, in powers of 2. A bias depends on key - query alone: what a lane needs for its rows 8 further down is
 * what it has for the 8 keys before, so 2 (2 PAIRS + 2 TALL - 1) numbers serve all. */
template <int PAIRS>
__device__ inline void add_bias(float (&s)[TALL][2 * PAIRS][4], const attention_job &j, int head, int query, int key)
{
    constexpr int before = 2 * TALL - 1;
    const int lane = (int)threadIdx.x % 32;
    const float *bias = (const float *)j.bias.data + head * j.bias.ld;
    const int at = key - query + j.lq - 1 - lane / 4 + lane % 4 * 2, most = j.lq + j.lk - 2;
    float w[2 * PAIRS + before][2];
#pragma unroll
    for (int n = 0; n < 2 * PAIRS + before; n++)
#pragma unroll
        for (int e = 0; e < 2; e++) {
            const int i = at + 8 * (n - before) + e; /* of rows and keys that are not there too */
            w[n][e] = bias[i < 0 ? 0 : i > most ? most : i] * LOG2E;
        }
#pragma unroll
    for (int i = 0; i < TALL; i++)
#pragma unroll
        for (int n = 0; n < 2 * PAIRS; n++)
#pragma unroll
            for (int e = 0; e < 4; e++) s[i][n][e] = fmaf(s[i][n][e], j.scale, w[n + before - 2 * i - e / 2][e % 2]);
}

/* Keys from `count` on count for nothing; `more` goes to the score of the one before. */
template <int PAIRS>
__device__ inline void mark_keys(float (&s)[TALL][2 * PAIRS][4], int count, float more)
{
    const int column = (int)threadIdx.x % 4 * 2;
#pragma unroll
    for (int i = 0; i < TALL; i++)
#pragma unroll
        for (int n = 0; n < 2 * PAIRS; n++)
#pragma unroll
            for (int e = 0; e < 4; e++) {
                const int key = 8 * n + column + e % 2;
                if (key >= count)
                    s[i][n][e] = -INFINITY;
                else if (key == count - 1)
                    s[i][n][e] += more;
            }
}

/* s becomes 2^(s scale - top), with a new top if one is needed. At first there is nothing to scale down. */
template <int D, int PAIRS>
__device__ inline void soften(float (&s)[TALL][2 * PAIRS][4], strip<D> &x, float scale, bool at_first)
{
    float most[TALL][2];
    bool late = false;
#pragma unroll
    for (int i = 0; i < TALL; i++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            float m = -INFINITY;
#pragma unroll
            for (int n = 0; n < 2 * PAIRS; n++) m = fmaxf(m, fmaxf(s[i][n][2 * h], s[i][n][2 * h + 1]));
            m = fmaxf(m, __shfl_xor_sync(FULL_WARP, m, 1));
            m = fmaxf(m, __shfl_xor_sync(FULL_WARP, m, 2)) * scale;
            most[i][h] = m;
            late = late || m > x.top[i][h] + STALE;
        }
    if (__any_sync(FULL_WARP, late)) {
#pragma unroll
        for (int i = 0; i < TALL; i++)
#pragma unroll
            for (int h = 0; h < 2; h++) {
                const float top = fmaxf(most[i][h], x.top[i][h]), less = power_of_2(x.top[i][h] - top);
                x.top[i][h] = top;
                x.sum[i][h] *= less;
                if (at_first) continue;
#pragma unroll
                for (int n = 0; n < D / 8; n++) x.o[i][n][2 * h] *= less, x.o[i][n][2 * h + 1] *= less;
            }
    }
#pragma unroll
    for (int i = 0; i < TALL; i++)
#pragma unroll
        for (int n = 0; n < 2 * PAIRS; n++)
#pragma unroll
            for (int e = 0; e < 4; e++) {
                s[i][n][e] = power_of_2(fmaf(s[i][n][e], scale, -x.top[i][e / 2]));
                x.sum[i][e / 2] += s[i][n][e];
            }
}

/* o += p v: a product's result has the layout of another's left side. */
template <int D, int PAIRS>
__device__ inline void gather(strip<D> &x, const float (&p)[TALL][2 * PAIRS][4], shared_at values)
{
    const int lane = (int)threadIdx.x % 32;
    const shared_at v = values + tile_piece<D>(lane % 16, lane / 16);
#pragma unroll
    for (int n = 0; n < PAIRS; n++) {
        unsigned a[TALL][4];
#pragma unroll
        for (int i = 0; i < TALL; i++)
#pragma unroll
            for (int e = 0; e < 4; e++)
                a[i][e] = pack_bf16(p[i][2 * n + e / 2][e % 2 * 2], p[i][2 * n + e / 2][e % 2 * 2 + 1]);
#pragma unroll
        for (int c = 0; c < D / 16; c++) {
            unsigned b[4];
            load_tiles_turned(b, (v ^ (unsigned)(c << 5)) + (unsigned)(n * 16 * D * 2));
#pragma unroll
            for (int i = 0; i < TALL; i++) {
                multiply_tiles(x.o[i][2 * c], a[i], b[0], b[1]);
                multiply_tiles(x.o[i][2 * c + 1], a[i], b[2], b[3]);
            }
        }
    }
}

/* The quotients. */
template <int D>
__device__ inline void finish(strip<D> &x, const attention_job &j, int column, int query)
{
    const int lane = (int)threadIdx.x % 32, four = lane % 4;
#pragma unroll
    for (int i = 0; i < TALL; i++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            float sum = x.sum[i][h];
            sum += __shfl_xor_sync(FULL_WARP, sum, 1);
            sum += __shfl_xor_sync(FULL_WARP, sum, 2);
            const float share = 1.f / sum;
            const int row = query + 16 * i + 8 * h + lane / 4;
#pragma unroll
            for (int n = 0; n < D / 8; n += 4) {
                unsigned w[4];
#pragma unroll
                for (int e = 0; e < 4; e++)
                    w[e] = pack_bf16(x.o[i][n + e][2 * h] * share, x.o[i][n + e][2 * h + 1] * share);
                const uint4 piece = whole_piece(w);
                if (row < j.lq) *(uint4 *)row_of(j.o, row, column + 8 * (n + four)) = piece;
            }
        }
}

/* One part of the keys for the strip from `query` on. `next`: where the strip begins whose queries come once these have been
 * read for the last time; or 0. */
template <int D, bool BIAS, int PAIRS>
__device__ inline void take_part(strip<D> &x, const attention_job &j, int head, int query, int p, shared_at queries,
                                 shared_at keys, int next)
{
    const int key = part_begin(j, p);
    float s[TALL][2 * PAIRS][4];
    score<D, PAIRS>(s, queries, keys);
    if (next) {
        __syncwarp();
        bring<D>(queries, j.q, head * D, next, j.lq, ROWS, (int)threadIdx.x % 32, 32);
    }
    if (BIAS) add_bias<PAIRS>(s, j, head, query, key);
    const bool last = p == j.parts - 1 && j.more != 0.f;
    if (last || (p == 0 && j.lk % 16)) mark_keys<PAIRS>(s, part_begin(j, p + 1) - key, last ? j.more : 0.f);
    soften<D, PAIRS>(s, x, BIAS ? 1.f : j.scale, p == 0);
    gather<D, PAIRS>(x, s, keys + PART * D * 2);
}

template <int D, bool BIAS>
__global__ void __launch_bounds__(32 * WARPS, 1) attention_kernel(attention_job j)
{
    const int warp = (int)threadIdx.x / 32, lane = (int)threadIdx.x % 32, warps = (int)blockDim.x / 32;
    const int head = (int)(blockIdx.x % (unsigned)j.heads), share = (int)(blockIdx.x / (unsigned)j.heads);
    const int begin = (int)((int64_t)j.strips * share / j.shares),
              end = (int)((int64_t)j.strips * (share + 1) / j.shares);
    const int odd = ((j.lk - 1) % PART + 16) / 16; /* the first part's width in 16 keys */
    const shared_at queries = shared_memory() + (unsigned)(warp * strip_bytes(D));
    const shared_at ring = shared_memory() + (unsigned)(warps * strip_bytes(D));
    shared_at keys = ring;
    bool loading = true;

    if (begin == end) return;
    if (begin + warp < end) bring<D>(queries, j.q, head * D, (begin + warp) * ROWS, j.lq, ROWS, lane, 32);
    bring_part<D>(j, ring, head * D, 0);
    for (int round = begin; round < end; round += warps) {
        const int mine = round + warp;
        const bool more_rounds = round + warps < end;
        strip<D> x;
#pragma unroll
        for (int i = 0; i < TALL; i++) {
#pragma unroll
            for (int n = 0; n < D / 8; n++)
#pragma unroll
                for (int e = 0; e < 4; e++) x.o[i][n][e] = 0.f;
            x.top[i][0] = x.top[i][1] = -INFINITY;
            x.sum[i][0] = x.sum[i][1] = 0.f;
        }
        for (int p = 0; p < j.parts; p++) {
            shared_at after = keys + (unsigned)part_bytes(D);
            if (after == ring + (unsigned)(j.slots * part_bytes(D))) after = ring;
            if (loading) { /* this part is there for all, and nobody is at the one before any more */
                copies_wait();
                __syncthreads();
                if (p + 1 < j.parts || (more_rounds && j.slots < j.parts))
                    bring_part<D>(j, after, head * D, p + 1 < j.parts ? p + 1 : 0);
            } else if (p == 0) {
                copies_wait();
                __syncwarp();
            }
            if (mine < end) {
                int next = mine + warps < end ? (mine + warps) * ROWS : 0;
                if (p == 0 && next) foresee_strip<D>(j.q, head * D, next, j.lq);
                if (p + 1 < j.parts) next = 0;
                switch (p ? PART / 16 : odd) {
                case 4: take_part<D, BIAS, 4>(x, j, head, mine * ROWS, p, queries, keys, next); break;
                case 3: take_part<D, BIAS, 3>(x, j, head, mine * ROWS, p, queries, keys, next); break;
                case 2: take_part<D, BIAS, 2>(x, j, head, mine * ROWS, p, queries, keys, next); break;
                default: take_part<D, BIAS, 1>(x, j, head, mine * ROWS, p, queries, keys, next);
                }
            }
            keys = after;
        }
        loading = j.slots < j.parts;
        if (mine < end) finish<D>(x, j, head * D, mine * ROWS);
    }
}

int attention_shares(int heads, int64_t strips, int together, int processors)
{
    int64_t least = INT64_MAX;
    int best = 1;
    for (int n = 1; n <= 64 && n <= strips; n++) {
        const int64_t cost = ceil_div((int64_t)heads * n, processors) * (2 * ceil_div(strips, n) + together);
        if (cost < least) least = cost, best = n;
    }
    return best;
}

template <int D, bool BIAS>
static int start(attention_job j, int processors, int shared, void *stream)
{
    int warps = WARPS;
    const int wanted = j.parts < 2 ? 1 : 2; /* parts that must have a place: one in use, one on its way */
    while (warps > 4 && warps * strip_bytes(D) + wanted * part_bytes(D) > shared) warps /= 2;
    const int room = (shared - warps * strip_bytes(D)) / part_bytes(D);
    if (room < wanted) return cudaErrorInvalidValue;
    j.slots = room < j.parts ? room : j.parts;
    j.shares = attention_shares(j.heads, j.strips, warps, processors);
    const int bytes = warps * strip_bytes(D) + j.slots * part_bytes(D);
    const int error =
        (int)cudaFuncSetAttribute(attention_kernel<D, BIAS>, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
    if (error) return error;
    return launch_shared(attention_kernel<D, BIAS>, (int64_t)j.heads * j.shares, 32 * warps, bytes, stream, j);
}

int ipvg_k_attention(array o, array q, array k, array v, array bias, float scale, int heads, int64_t d, int64_t lq,
                     int64_t lk, int64_t repeat, void *stream)
{
    int device, processors, shared, major;
    if (heads < 1 || (d != 64 && d != 128) || lq < 0 || lq > MOST || lk < 1 || lk > MOST || repeat < 1 ||
        (d == 128 && bias.data) || !(scale > 0.f) || !all_of(IPVG_K_BF16, o, q, k, v) || !all_of(IPVG_K_F32, bias) ||
        !aligned(o, q, k, v))
        return cudaErrorInvalidValue;
    if (lq == 0) return cudaSuccess;
    attention_job j = {o,
                       q,
                       k,
                       v,
                       bias,
                       scale * LOG2E,
                       log2f((float)repeat),
                       heads,
                       (int)lq,
                       (int)lk,
                       (int)ceil_div(lq, ROWS),
                       (int)ceil_div(lk, PART),
                       0,
                       0};
    if (!bias.data) j.more /= j.scale;
    int error = (int)cudaGetDevice(&device);
    if (!error) error = (int)cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
    if (!error) error = (int)cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
    if (!error) error = (int)cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
    if (error) return error;
    if (d == 128 && lk <= 256 && major == 9)
        return attention_by_groups({o, q, k, v, j.scale, j.more, heads, (int)lq, (int)lk, 0, 0}, processors, stream);
    if (d == 64)
        return bias.data ? start<64, true>(j, processors, shared, stream)
                         : start<64, false>(j, processors, shared, stream);
    return start<128, false>(j, processors, shared, stream);
}

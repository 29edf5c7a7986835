/* Attention over at most 256 keys, heads of 128, on compute capability 9.0: the tensor cores read keys and values where they
 * lie, all scores of a query fit into registers, so each is looked at once.
 *
 * A block has one head, its keys and values in shared memory, and two warp groups, each of which takes strips of 64 queries, one
 * after the other: while one makes weights of its scores, the other one's products are computed. A warp has 16 rows to itself and
 * brings the next strip's queries as soon as it has these in registers. */
#include "attention.cuh"
#include "group.cuh"

#define D 128
#define ROWS 64                 /* queries of a strip */
#define GROUPS 2                /* of a block */
#define WARP_BYTES (16 * D * 2) /* a warp's queries */
#define QUERY_BYTES (GROUPS * 4 * WARP_BYTES)
#define PARTS_MOST 4 /* of 64 keys */

/* Half the columns of so many rows. */
__host__ __device__ constexpr int half_bytes(int parts) { return parts * 64 * 64 * 2; }

/* Rows of keys or values: columns 0 to 63, then the others. */
__device__ inline void bring_rows(shared_at to, int half, const array &x, int column, int rows, int end)
{
    for (int i = (int)threadIdx.x; i < rows * 16; i += (int)blockDim.x) {
        const int row = i / 16, piece = i % 16;
        const __nv_bfloat16 *from = (const __nv_bfloat16 *)x.data + row * x.ld + column + piece * 8;
        copy_piece(to + (unsigned)(piece / 8 * half) + tile_piece<64>(row, piece % 8), from, row < end);
    }
}

/* 16 rows of queries, a warp's. */
__device__ inline void bring_queries(shared_at to, const array &x, int column, int first, int end)
{
    const int lane = (int)threadIdx.x % 32, piece = lane % 16;
    const __nv_bfloat16 *from =
        (const __nv_bfloat16 *)x.data + (int64_t)(first + lane / 16) * x.ld + column + piece * 8;
#pragma unroll
    for (int row = lane / 16, i = 0; i < 8; i++, row += 2, from += 2 * x.ld)
        copy_piece(to + tile_piece<D>(row, piece), from, first + row < end);
}

/* s of the last 64 keys: those from `count` on count for nothing; `more` goes to the score of the one before. */
__device__ inline void mark_last(float (&s)[8][4], int count, float more)
{
    const int column = (int)threadIdx.x % 4 * 2;
#pragma unroll
    for (int n = 0; n < 8; n++)
#pragma unroll
        for (int e = 0; e < 4; e++) {
            const int key = 8 * n + column + e % 2;
            s[n][e] = key >= count ? -INFINITY : key == count - 1 ? s[n][e] + more : s[n][e];
        }
}

/* The quotients. */
__device__ inline void finish(const float (&o)[2][8][4], const float (&sum)[2], const array &y, int column, int row0,
                              int end)
{
    const int lane = (int)threadIdx.x % 32, four = lane % 4;
#pragma unroll
    for (int h = 0; h < 2; h++) {
        const float share = 1.f / sum[h];
        const int row = row0 + 8 * h + lane / 4;
#pragma unroll
        for (int n = 0; n < D / 8; n += 4) {
            unsigned w[4];
#pragma unroll
            for (int e = 0; e < 4; e++) {
                const float(&c)[4] = o[(n + e) / 8][(n + e) % 8];
                w[e] = pack_bf16(c[2 * h] * share, c[2 * h + 1] * share);
            }
            const uint4 piece = whole_piece(w);
            if (row < end) *(uint4 *)((__nv_bfloat16 *)y.data + row * y.ld + column + 8 * (n + four)) = piece;
        }
    }
}

template <int PARTS>
__global__ void __launch_bounds__(128 * GROUPS, 1) attention_group_kernel(few_keys j)
{
    const int warp = (int)threadIdx.x / 32, lane = (int)threadIdx.x % 32, group = warp / 4;
    const int head = (int)(blockIdx.x % (unsigned)j.heads), share = (int)(blockIdx.x / (unsigned)j.heads);
    const int begin = (int)((int64_t)j.strips * share / j.shares),
              end = (int)((int64_t)j.strips * (share + 1) / j.shares);
    const shared_at keys = shared_memory(), values = keys + 2 * half_bytes(PARTS);
    const shared_at queries = values + (unsigned)(2 * half_bytes(PARTS) + warp * WARP_BYTES);
    const int rows = (j.lk + 15) / 16 * 16, offset = warp % 4 * 16;

    bring_rows(keys, half_bytes(PARTS), j.k, head * D, rows, j.lk);
    bring_rows(values, half_bytes(PARTS), j.v, head * D, rows, j.lk);
    if (begin + group < end) bring_queries(queries, j.q, head * D, (begin + group) * ROWS + offset, j.lq);
    copies_wait();
    group_sees();
    __syncthreads();
    for (int mine = begin + group; mine < end; mine += GROUPS) {
        float s[PARTS][8][4], o[2][8][4], most[2] = {-INFINITY, -INFINITY}, sum[2] = {0.f, 0.f};
        unsigned a[D / 16][4];
        copies_wait();
        __syncwarp();
#pragma unroll
        for (int step = 0; step < D / 16; step++)
            load_tiles(a[step], (queries + tile_piece<D>(lane % 16, lane / 16)) ^ (unsigned)(step << 5));
        __syncwarp();
        if (mine + GROUPS < end) bring_queries(queries, j.q, head * D, (mine + GROUPS) * ROWS + offset, j.lq);

        group_begin();
#pragma unroll
        for (int p = 0; p < PARTS; p++)
#pragma unroll
            for (int step = 0; step < D / 16; step++)
                group_multiply<false>(s[p], a[step],
                                      keys + (unsigned)(step / 4 * half_bytes(PARTS) + p * 64 * 128 + step % 4 * 32),
                                      step > 0);
        group_wait();
#pragma unroll
        for (int p = 0; p < PARTS; p++) group_result(s[p]);

        mark_last(s[PARTS - 1], j.lk - 64 * (PARTS - 1), j.more);
#pragma unroll
        for (int h = 0; h < 2; h++) {
#pragma unroll
            for (int n = 0; n < 8 * PARTS; n++)
                most[h] = fmaxf(most[h], fmaxf(s[n / 8][n % 8][2 * h], s[n / 8][n % 8][2 * h + 1]));
            most[h] = fmaxf(most[h], __shfl_xor_sync(FULL_WARP, most[h], 1));
            most[h] = fmaxf(most[h], __shfl_xor_sync(FULL_WARP, most[h], 2)) * j.scale;
        }
        unsigned w[4 * PARTS][4];
#pragma unroll
        for (int k = 0; k < 4 * PARTS; k++) {
            if (k > 4 * (PARTS - 1) && 16 * k >= j.lk) continue; /* the same for all */
#pragma unroll
            for (int e = 0; e < 4; e++) {
                const float(&c)[4] = s[k / 4][k % 4 * 2 + e / 2];
                const int h = e % 2;
                const float low = power_of_2(fmaf(c[2 * h], j.scale, -most[h]));
                const float high = power_of_2(fmaf(c[2 * h + 1], j.scale, -most[h]));
                sum[h] += low + high;
                w[k][e] = pack_bf16(low, high);
            }
            group_begin();
#pragma unroll
            for (int c = 0; c < 2; c++)
                group_multiply<true>(o[c], w[k], values + (unsigned)(c * half_bytes(PARTS) + k * 16 * 128), k > 0);
        }
#pragma unroll
        for (int h = 0; h < 2; h++) {
            sum[h] += __shfl_xor_sync(FULL_WARP, sum[h], 1);
            sum[h] += __shfl_xor_sync(FULL_WARP, sum[h], 2);
        }
        group_wait();
        group_result(o[0]), group_result(o[1]);
        finish(o, sum, j.o, head * D, mine * ROWS + offset, j.lq);
    }
}

template <int PARTS>
static int start(const few_keys &j, void *stream)
{
    const int bytes = 4 * half_bytes(PARTS) + QUERY_BYTES;
    const int error =
        (int)cudaFuncSetAttribute(attention_group_kernel<PARTS>, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
    if (error) return error;
    return launch_shared(attention_group_kernel<PARTS>, (int64_t)j.heads * j.shares, 128 * GROUPS, bytes, stream, j);
}

int attention_by_groups(few_keys j, int processors, void *stream)
{
    j.strips = (int)ceil_div(j.lq, ROWS);
    j.shares = attention_shares(j.heads, j.strips, GROUPS, processors);
    switch ((j.lk + 63) / 64) {
    case 1: return start<1>(j, stream);
    case 2: return start<2>(j, stream);
    case 3: return start<3>(j, stream);
    case 4: return start<4>(j, stream);
    default: return cudaErrorInvalidValue;
    }
}

/* A row and the team of threads that works on it: sums over the team, and a row kept in registers. */
#ifndef IPVG_KERNELS_TEAM_CUH
#define IPVG_KERNELS_TEAM_CUH

#include "launch.cuh"

#define FULL_WARP 0xffffffffu

/* Chunks of a row that a thread keeps in registers; a longer row is read again from memory. */
template <int V>
struct keep {
    static constexpr int chunks = V == 8 ? 2 : 8;
};

struct team {
    int lane, lanes;
    int64_t row;

    __device__ explicit team(int lanes_)
    {
        const unsigned per = (unsigned)lanes_, teams = blockDim.x / per;
        lanes = lanes_;
        lane = (int)(threadIdx.x % per);
        /* Backwards: the L2 cache still holds the last rows that the product before has written. */
        row = (int64_t)(gridDim.x - 1 - blockIdx.x) * teams + threadIdx.x / per;
    }
};

/* The same for rows of d numbers, V of them a chunk, of which a thread keeps N: D, if it is not 0, is d, and the compiler knows
 * then who has which chunk. No check and no loop for longer rows is left, nor the arithmetic of addresses, which together
 * take longer than a row's numbers. */
template <int V, int N, int D>
__device__ inline team team_for(int64_t *d, int lanes)
{
    static_assert(D == 0 || (D % V == 0 && D / V % team_lanes(D / V, N) == 0), "each thread has as many chunks");
    if (D) *d = D;
    return team(D ? team_lanes(D / V, N) : lanes);
}

struct add {
    static __device__ float of(float a, float b) { return a + b; }
};
struct greater {
    static __device__ float of(float a, float b) { return fmaxf(a, b); }
};

/* The sum (the greatest) of M values of each thread over its team, in one fixed order; every thread gets it. All threads of
 * the block call it, those without a row too; a kernel once for each Op and M, whose shared memory is used once then. */
template <class Op, int M>
__device__ inline void reduce(const team &t, float (&v)[M])
{
#pragma unroll
    for (int step = 16; step > 0; step >>= 1)
        if (step < t.lanes)
#pragma unroll
            for (int m = 0; m < M; m++) v[m] = Op::of(v[m], __shfl_xor_sync(FULL_WARP, v[m], step));
    if (t.lanes <= 32) return;
    __shared__ float part[M][32];
    const int warp = t.lane / 32, warps = t.lanes / 32;
    if (t.lane % 32 == 0)
#pragma unroll
        for (int m = 0; m < M; m++) part[m][warp] = v[m];
    __syncthreads();
#pragma unroll
    for (int m = 0; m < M; m++) {
        v[m] = part[m][0];
        for (int w = 1; w < warps; w++) v[m] = Op::of(v[m], part[m][w]);
    }
}

__device__ inline float team_sum(const team &t, float v)
{
    float one[1] = {v};
    reduce<add>(t, one);
    return one[0];
}

__device__ inline float team_max(const team &t, float v)
{
    float one[1] = {v};
    reduce<greater>(t, one);
    return one[0];
}

/* This thread's chunks of a row of x. They are asked for at once, and waited for at their first use. */
template <int V, int N = keep<V>::chunks>
struct kept_row {
    const team &t;
    const array &x;
    int chunks; /* of the row; 0 for a team without a row */
    int64_t begin;
    bool arrived = false;
    raw<V> bits[N];
    float v[N][V];

    __device__ kept_row(const team &t_, const array &x_, int64_t rows, int64_t d)
        : t(t_), x(x_), chunks(t_.row < rows ? (int)(d / V) : 0), begin(t_.row * x_.ld)
    {
#pragma unroll
        for (int i = 0; i < N; i++)
            if (chunk(i) < chunks) bits[i] = fetch<V>(x, begin + chunk(i) * V);
    }

    __device__ void arrive()
    {
        if (arrived) return;
        arrived = true;
#pragma unroll
        for (int i = 0; i < N; i++)
            if (chunk(i) < chunks) widen<V>(v[i], bits[i], x.dtype);
    }

    __device__ int chunk(int i) const { return t.lane + i * t.lanes; }

    /* f(values, column) for each chunk. What f does to the values stays only in registers: for those beyond them, f must
     * write to x what the next turn is to find. */
    template <class F>
    __device__ void each(F f)
    {
        each_kept(f);
        each_beyond(f);
    }

    /* Those in registers; those beyond them. */
    template <class F>
    __device__ void each_kept(F f)
    {
        arrive();
#pragma unroll
        for (int i = 0; i < N; i++)
            if (chunk(i) < chunks) f(v[i], chunk(i) * V);
    }
    template <class F>
    __device__ void each_beyond(F f)
    {
        for (int c = chunk(N); c < chunks; c += t.lanes) {
            float again[V];
            load<V>(again, x, begin + c * V);
            f(again, c * V);
        }
    }

    static constexpr int SOME = N < 3 ? N : 3;

    /* f(values, the same row's of `other`, column): M of these are on their way together, though f writes. */
    template <int M = SOME, class F>
    __device__ void each_with(const array &other, F f)
    {
        const int64_t from = t.row * other.ld;
        float w[V];
#pragma unroll
        for (int first = 0; first < N; first += M) {
            raw<V> others[M];
#pragma unroll
            for (int i = 0; i < M; i++)
                if (first + i < N && chunk(first + i) < chunks)
                    others[i] = fetch<V>(other, from + chunk(first + i) * V);
            arrive();
#pragma unroll
            for (int i = 0; i < M; i++)
                if (first + i < N && chunk(first + i) < chunks) {
                    widen<V>(w, others[i], other.dtype);
                    f(v[first + i], w, chunk(first + i) * V);
                }
        }
        for (int c = chunk(N); c < chunks; c += t.lanes) {
            float again[V];
            load<V>(again, x, begin + c * V);
            load<V>(w, other, from + c * V);
            f(again, w, c * V);
        }
    }
};

#endif

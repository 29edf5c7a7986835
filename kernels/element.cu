/* Operations element by element. Matrices go row by row; flat arrays as rows of LINE numbers. */
#include "team.cuh"

#define LINE 4096

template <int M>
struct inputs {
    array x[M];
};

/* y = op(inputs, column vector). `total` numbers in rows of d; of a flat array the last row is shorter. A thread has all its
 * loads on their way before it uses the first. */
template <int V, int M, bool Usual, class Op>
__global__ void __launch_bounds__(TEAM_MOST, 1)
    element_kernel(array y, inputs<M> in, array vector, Op op, int64_t total, int64_t d, int lanes)
{
    constexpr int N = V == 8 ? 2 : 4;
    const team t(lanes);
    if (Usual) {
        y.dtype = IPVG_K_BF16, vector.dtype = IPVG_K_F32;
#pragma unroll
        for (int m = 0; m < M; m++) in.x[m].dtype = IPVG_K_BF16;
    }
    const int64_t left = total - t.row * d;
    const int chunks = left <= 0 ? 0 : (int)((left < d ? left : d) / V);
    for (int first = t.lane; first < chunks; first += N * lanes) {
        raw<V> bits[N][M];
#pragma unroll
        for (int i = 0; i < N; i++)
#pragma unroll
            for (int m = 0; m < M; m++)
                if (first + i * lanes < chunks)
                    bits[i][m] = fetch<V>(in.x[m], t.row * in.x[m].ld + (first + i * lanes) * V);
#pragma unroll
        for (int i = 0; i < N; i++) {
            const int column = (first + i * lanes) * V;
            float v[M][V], c[V], out[V];
            if (first + i * lanes >= chunks) break;
            load_or<V>(c, vector, column, op.otherwise);
#pragma unroll
            for (int m = 0; m < M; m++) widen<V>(v[m], bits[i][m], in.x[m].dtype);
#pragma unroll
            for (int k = 0; k < V; k++) {
                float one[M];
#pragma unroll
                for (int m = 0; m < M; m++) one[m] = v[m][k];
                out[k] = op(one, c[k]);
            }
            store<V>(y, t.row * y.ld + column, out);
        }
    }
}

/* Matrices (rows, d), or flat arrays of `rows * d` numbers if nothing lies between their rows and no vector is in play. */
template <int M, class Op>
static int run(array y, inputs<M> in, array vector, Op op, int64_t rows, int64_t d, void *stream)
{
    bool packed = y.ld == d && !vector.data;
    vector = flat(vector);
    if (rows < 0 || d < 1 || d > INT32_MAX || y.dtype == IPVG_K_E4M3 || !readable(vector)) return cudaErrorInvalidValue;
    for (int m = 0; m < M; m++) {
        if (!readable(in.x[m])) return cudaErrorInvalidValue;
        packed = packed && in.x[m].ld == d;
    }
    const int64_t total = rows * d;
    if (packed) {
        y.ld = d = LINE;
        for (int m = 0; m < M; m++) in.x[m].ld = LINE;
        rows = ceil_div(total, LINE);
    }
    bool fast = wide(total, y, vector) && d % 8 == 0, usual = all_of(IPVG_K_BF16, y) && all_of(IPVG_K_F32, vector);
    for (int m = 0; m < M; m++) fast = fast && aligned(in.x[m]), usual = usual && all_of(IPVG_K_BF16, in.x[m]);
    const team_plan plan = plan_teams(rows, fast ? d / 8 : d, fast ? 2 : 4);
    return launch(!fast   ? element_kernel<1, M, false, Op>
                  : usual ? element_kernel<8, M, true, Op>
                          : element_kernel<8, M, false, Op>,
                  plan.blocks, plan.threads, stream, y, in, vector, op, total, d, plan.lanes);
}

/* A flat array as one that `run` takes: rows of LINE numbers and what is left. */
static array line(array x)
{
    x.ld = 1;
    return x;
}

/* ==== operations ==== */

struct gate_residual_op {
    float otherwise;
    __device__ float operator()(const float (&v)[2], float gate) const { return fmaf(v[1], gate, v[0]); }
};

struct gated_gelu_op {
    float otherwise;
    __device__ float operator()(const float (&v)[2], float) const { return gelu_of(v[0]) * v[1]; }
};

struct bias_act_op {
    float otherwise;
    ipvg_k_act act;
    __device__ float operator()(const float (&v)[1], float bias) const { return act_of(v[0] + bias, act); }
};

struct cast_op {
    float otherwise;
    __device__ float operator()(const float (&v)[1], float) const { return v[0]; }
};

struct multiply_op {
    float otherwise;
    __device__ float operator()(const float (&v)[2], float) const { return v[0] * v[1]; }
};

int ipvg_k_gate_residual(array x, array y, array gate, int64_t rows, int64_t d, void *stream)
{
    return run(x, inputs<2>{{x, y}}, gate, gate_residual_op{1.f}, rows, d, stream);
}

int ipvg_k_gated_gelu(array y, array gate, array up, int64_t rows, int64_t d, void *stream)
{
    return run(y, inputs<2>{{gate, up}}, array{}, gated_gelu_op{0.f}, rows, d, stream);
}

int ipvg_k_bias_act(array y, array x, array bias, ipvg_k_act act, int64_t rows, int64_t d, void *stream)
{
    return run(y, inputs<1>{{x}}, bias, bias_act_op{0.f, act}, rows, d, stream);
}

int ipvg_k_cast(array y, array x, int64_t rows, int64_t d, void *stream)
{
    return run(y, inputs<1>{{x}}, array{}, cast_op{0.f}, rows, d, stream);
}

int ipvg_k_multiply(array y, array x, array f, int64_t count, void *stream)
{
    return run(line(y), inputs<2>{{line(x), line(f)}}, array{}, multiply_op{0.f}, count, 1, stream);
}

/* ==== weighted sums ==== */

#define SUMS 4
#define TERMS 16
#define TOGETHER 4 /* terms whose loads overlap */

struct weighted {
    array y, x[TERMS];
    float weight[TERMS];
    int n;
};
struct weighted_sums {
    weighted sum[SUMS];
    int n;
};

template <int V, bool Usual>
__global__ void sums_kernel(const __grid_constant__ weighted_sums sums, int64_t chunks)
{
    const int64_t at = ((int64_t)blockIdx.x * blockDim.x + threadIdx.x) * V;
    if (at >= chunks * V) return;
    for (int k = 0; k < sums.n; k++) {
        const weighted &t = sums.sum[k];
        auto usual = [&](const array &a) { return array{a.data, Usual ? IPVG_K_BF16 : a.dtype, 0}; };
        float sum[V] = {};
        for (int first = 0; first < t.n; first += TOGETHER) {
            raw<V> bits[TOGETHER];
#pragma unroll
            for (int i = 0; i < TOGETHER; i++)
                if (first + i < t.n) bits[i] = fetch<V>(usual(t.x[first + i]), at);
#pragma unroll
            for (int i = 0; i < TOGETHER; i++) {
                float v[V];
                if (first + i >= t.n) break;
                widen<V>(v, bits[i], usual(t.x[first + i]).dtype);
#pragma unroll
                for (int e = 0; e < V; e++) { /* rounded before it is added: never one fused operation */
                    const float product = __fmul_rn(v[e], t.weight[first + i]);
                    sum[e] = first + i == 0 ? product : __fadd_rn(sum[e], product);
                }
            }
        }
        store<V>(usual(t.y), at, sum);
        asm volatile("" ::: "memory"); /* the next sum's loads stay behind it, whatever their types */
    }
}

int ipvg_k_sums(const ipvg_k_sum *sums, int n, int64_t count, void *stream)
{
    bool fast = count % 8 == 0, usual = true;
    weighted_sums all = {};
    if (n < 1 || n > SUMS || count < 0) return cudaErrorInvalidValue;
    for (all.n = 0; all.n < n; all.n++) {
        const ipvg_k_sum &from = sums[all.n];
        weighted &t = all.sum[all.n];
        if (from.n < 1 || from.n > TERMS || from.y.dtype == IPVG_K_E4M3) return cudaErrorInvalidValue;
        t.y = flat(from.y);
        fast = fast && aligned(t.y), usual = usual && all_of(IPVG_K_BF16, t.y);
        for (int i = 0; i < from.n; i++) {
            const array x = flat(from.x[i]);
            if (from.weight[i] == 0.f) continue;
            if (!readable(x)) return cudaErrorInvalidValue;
            fast = fast && aligned(x), usual = usual && all_of(IPVG_K_BF16, x);
            t.x[t.n] = x;
            t.weight[t.n++] = from.weight[i];
        }
    }
    const int64_t chunks = fast ? count / 8 : count;
    return launch(!fast   ? sums_kernel<1, false>
                  : usual ? sums_kernel<8, true>
                          : sums_kernel<8, false>,
                  ceil_div(chunks, 256), 256, stream, all, chunks);
}

int ipvg_k_combine(array y, int n, const array *x, const float *weight, int64_t count, void *stream)
{
    const ipvg_k_sum sum = {y, n, x, weight};
    return ipvg_k_sums(&sum, 1, count, stream);
}

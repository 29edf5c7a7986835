/* Guidance: inner products in double, and blurred queries. */
#include "team.cuh"

/* ==== inner products ==== */

#define GRAM_CHUNK 4096 /* numbers that a block adds */
#define GRAM_THREADS 256
#define GRAM_MAX 4
#define SUM 16 /* where the plain sums begin in a result */

struct gram_inputs {
    array x[GRAM_MAX];
    int n;
};

/* The sum over a block of GRAM_THREADS threads, in one order; thread 0 has it. */
__device__ inline double block_sum(double v)
{
    __shared__ double part[GRAM_THREADS / 32];
    for (int step = 16; step > 0; step /= 2) v += __shfl_xor_sync(FULL_WARP, v, step);
    if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = v;
    __syncthreads();
    for (int w = 1; threadIdx.x == 0 && w < GRAM_THREADS / 32; w++) v += part[w];
    __syncthreads();
    return v;
}

__global__ void gram_chunk_kernel(double *parts, gram_inputs in, int64_t count)
{
    double product[GRAM_MAX][GRAM_MAX] = {}, plain[GRAM_MAX] = {};
    const int64_t first = (int64_t)blockIdx.x * GRAM_CHUNK,
                  end = first + GRAM_CHUNK < count ? first + GRAM_CHUNK : count;
    for (int64_t i = first + threadIdx.x; i < end; i += GRAM_THREADS) {
        float v[GRAM_MAX];
#pragma unroll
        for (int a = 0; a < GRAM_MAX; a++) v[a] = a < in.n ? load_one(in.x[a], i) : 0.f;
#pragma unroll
        for (int a = 0; a < GRAM_MAX; a++) {
            plain[a] += (double)v[a];
#pragma unroll
            for (int b = a; b < GRAM_MAX; b++) product[a][b] += (double)v[a] * (double)v[b];
        }
    }
    double *out = parts + (int64_t)blockIdx.x * IPVG_K_GRAM_RESULT;
#pragma unroll
    for (int a = 0; a < GRAM_MAX; a++) {
        const double total = block_sum(plain[a]);
        if (threadIdx.x == 0) out[SUM + a] = total;
#pragma unroll
        for (int b = 0; b < GRAM_MAX; b++) {
            const double sum = block_sum(product[a][b]);
            if (threadIdx.x == 0) out[GRAM_MAX * a + b] = sum;
        }
    }
}

/* Block i adds number i of all chunks. */
__global__ void gram_total_kernel(double *result, const double *parts, int64_t chunks)
{
    double sum = 0;
    for (int64_t c = threadIdx.x; c < chunks; c += GRAM_THREADS) sum += parts[c * IPVG_K_GRAM_RESULT + blockIdx.x];
    sum = block_sum(sum);
    if (threadIdx.x == 0) result[blockIdx.x] = sum;
}

size_t ipvg_k_gram_scratch(int64_t count)
{
    return (size_t)ceil_div(count, GRAM_CHUNK) * IPVG_K_GRAM_RESULT * sizeof(double);
}

int ipvg_k_gram(double *result, void *scratch, int n, const array *x, int64_t count, void *stream)
{
    gram_inputs in = {};
    if (n < 1 || n > GRAM_MAX || count < 0) return cudaErrorInvalidValue;
    for (in.n = 0; in.n < n; in.n++) {
        if (!readable(x[in.n])) return cudaErrorInvalidValue;
        in.x[in.n] = x[in.n];
    }
    const int64_t chunks = ceil_div(count, GRAM_CHUNK);
    const int error = launch(gram_chunk_kernel, chunks, GRAM_THREADS, stream, (double *)scratch, in, count);
    if (error) return error;
    return launch(gram_total_kernel, IPVG_K_GRAM_RESULT, GRAM_THREADS, stream, result, (const double *)scratch, chunks);
}

/* ==== blurred queries ==== */

/* w (n, n): what place j of a line counts for in place i = blockIdx.x, mirrored at the ends: ... 2 1 [0 1 ... n-1] n-2 ... */
__global__ void blur_weights_kernel(float *w, int64_t n, double sigma, int64_t radius)
{
    const int64_t i = blockIdx.x, period = 2 * (n - 1);
    const double share = -0.5 / (sigma * sigma);
    __shared__ double total;
    double sum = 0;
    for (int64_t k = (int64_t)threadIdx.x - radius; k <= radius; k += GRAM_THREADS) sum += exp(share * (double)(k * k));
    sum = block_sum(sum);
    if (threadIdx.x == 0) total = sum;
    __syncthreads();
    for (int64_t j = threadIdx.x; j < n; j += GRAM_THREADS) {
        double all = 0;
        /* Places i + k = j + m period, and i + k = m period - j, which is the same place for the two ends of the line. */
        for (int64_t k = j - i - (j - i + radius) / period * period; k <= radius; k += period)
            if (k >= -radius) all += exp(share * (double)(k * k));
        for (int64_t k = -j - i - (radius - j - i) / period * period; k <= radius && j > 0 && j < n - 1; k += period)
            if (k >= -radius) all += exp(share * (double)(k * k));
        w[i * n + j] = (float)(all / total);
    }
}

__global__ void fill_kernel(float *w, int64_t count, float value)
{
    const int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < count) w[i] = value;
}

static int blur_weights(float *w, int64_t n, float sigma, void *stream)
{
    if (n == 1 || isinf(sigma)) return launch(fill_kernel, ceil_div(n * n, 256), 256, stream, w, n * n, 1.f / (float)n);
    /* Beyond 64 lines' worth the kernel is flat. */
    const double radius = fmin(floor(ceil(6.0 * (double)sigma) / 2), 64.0 * (double)n);
    return launch(blur_weights_kernel, n, GRAM_THREADS, stream, w, n, (double)sigma, (int64_t)radius);
}

/* Row r of y = sum_j w[place][j] x[base + j step], place = r / step % n: along the columns step is 1, across the rows it is
 * the number of columns. One team a row. */
template <int V>
__global__ void __launch_bounds__(TEAM_MOST, 1)
    blur_kernel(array y, array x, const float *w, int64_t n, int64_t step, int64_t rows, int64_t d, int lanes)
{
    const team t(lanes);
    if (t.row >= rows) return;
    const int64_t place = t.row / step % n, base = t.row - place * step;
    for (int64_t c = t.lane; c < d / V; c += lanes) {
        float sum[V] = {};
        for (int64_t j = 0; j < n; j++) {
            const float factor = w[place * n + j];
            float v[V];
            if (factor == 0.f) continue;
            load<V>(v, x, (base + j * step) * x.ld + c * V);
#pragma unroll
            for (int k = 0; k < V; k++) sum[k] = fmaf(factor, v[k], sum[k]);
        }
        store<V>(y, t.row * y.ld + c * V, sum);
    }
}

static int blur(array y, array x, const float *w, int64_t n, int64_t step, int64_t rows, int64_t d, void *stream)
{
    const bool fast = wide(d, y, x);
    const team_plan plan = plan_teams(rows, fast ? d / 8 : d, 1);
    return launch(fast ? blur_kernel<8> : blur_kernel<1>, plan.blocks, plan.threads, stream, y, x, w, n, step, rows, d,
                  plan.lanes);
}

/* The weights of both directions, rounded up so that what follows is aligned. */
static int64_t blur_weight_floats(int64_t rows, int64_t cols) { return ceil_div(rows * rows + cols * cols, 64) * 64; }

size_t ipvg_k_blur_scratch(int64_t frames, int64_t rows, int64_t cols, int64_t d)
{
    return (size_t)(blur_weight_floats(rows, cols) + frames * rows * cols * d) * sizeof(float);
}

int ipvg_k_blur_tokens(array y, array x, void *scratch, float sigma, int64_t frames, int64_t rows, int64_t cols,
                       int64_t d, void *stream)
{
    if (frames < 0 || rows < 1 || cols < 1 || d < 1 || d > INT32_MAX || !(sigma > 0) || y.dtype == IPVG_K_E4M3 ||
        !readable(x))
        return cudaErrorInvalidValue;
    float *by_row = (float *)scratch, *by_col = by_row + rows * rows;
    const array half = {by_row + blur_weight_floats(rows, cols), IPVG_K_F32, d};
    int error = blur_weights(by_row, rows, sigma, stream);
    if (!error) error = blur_weights(by_col, cols, sigma, stream);
    if (!error) error = blur(half, x, by_col, cols, 1, frames * rows * cols, d, stream);
    if (!error) error = blur(y, half, by_row, rows, cols, frames * rows * cols, d, stream);
    return error;
}

/* Operations of guidance: inner products, products, blurred queries, normalised attention guidance. All of them are small
 * beside a forward, so that plain loops do. */
#include <math.h>
#include <string.h>

#include "cpu.h"

#define CHUNK 4096 /* elements whose products one thread adds: fixes the order of addition for any number of threads */
#define PARALLEL 65536

ipvg_status ipvg_cpu_multiply(ipvg_exec *ex, ipvg_tensor *y, const ipvg_tensor *x, const ipvg_tensor *f)
{
    const float *a = x->data, *b = f->data;
    const int64_t count = ipvg_tensor_count(y);
    float *out = y->data;
    ipvg_status status;

    IPVG_TRY(ipvg_cpu_need_f32(ex, "multiply", "x", x));
    IPVG_TRY(ipvg_cpu_need_f32(ex, "multiply", "f", f));
    IPVG_TRY(ipvg_cpu_need_f32(ex, "multiply", "y", y));
    if (ipvg_planning(ex)) goto done;
#pragma omp parallel for num_threads(ex->ctx->threads) schedule(static) if (count > PARALLEL)
    for (int64_t i = 0; i < count; i++) out[i] = a[i] * b[i];
done:
    return status;
}

/* ==== inner products ==== */

#define SUMS (IPVG_GRAM_MAX * (IPVG_GRAM_MAX + 1)) /* of a chunk: the products, then the plain sums */

static void chunk_sums(double *out, int n, const ipvg_tensor *const *x, int64_t first, int64_t count)
{
    for (int a = 0; a < n; a++) {
        const float *p = (const float *)x[a]->data + first;
        double plain = 0;
        for (int64_t i = 0; i < count; i++) plain += p[i];
        out[IPVG_GRAM_MAX * IPVG_GRAM_MAX + a] = plain;
        for (int b = a; b < n; b++) {
            const float *q = (const float *)x[b]->data + first;
            double product = 0;
            for (int64_t i = 0; i < count; i++) product += (double)p[i] * (double)q[i];
            out[a * IPVG_GRAM_MAX + b] = product;
        }
    }
}

ipvg_status ipvg_cpu_gram(ipvg_exec *ex, double *gram, double *sum, int n, const ipvg_tensor *const *x)
{
    const int64_t count = ipvg_tensor_count(x[0]), chunks = (count + CHUNK - 1) / CHUNK;
    size_t mark = ipvg_arena_mark(ex->arena);
    void *memory;
    ipvg_status status;

    for (int i = 0; i < n; i++) IPVG_TRY(ipvg_cpu_need_f32(ex, "gram", "a tensor", x[i]));
    IPVG_TRY(ipvg_arena_alloc(ex->ctx, ex->arena, &memory, (size_t)chunks * SUMS * sizeof(double)));
    if (ipvg_planning(ex)) goto done;
    double *part = memory;
#pragma omp parallel for num_threads(ex->ctx->threads) schedule(static) if (count > PARALLEL)
    for (int64_t c = 0; c < chunks; c++)
        chunk_sums(part + c * SUMS, n, x, c * CHUNK, c + 1 < chunks ? CHUNK : count - c * CHUNK);
    for (int a = 0; a < n; a++) {
        if (sum) sum[a] = 0;
        for (int64_t c = 0; sum && c < chunks; c++) sum[a] += part[c * SUMS + IPVG_GRAM_MAX * IPVG_GRAM_MAX + a];
        for (int b = a; b < n; b++) {
            double total = 0;
            for (int64_t c = 0; c < chunks; c++) total += part[c * SUMS + a * IPVG_GRAM_MAX + b];
            gram[a * n + b] = gram[b * n + a] = total;
        }
    }
done:
    ipvg_arena_reset(ex->arena, mark);
    return status;
}

/* ==== blurred queries ==== */

/* w (n, n): what place j of a line counts for in place i, mirrored at the ends: ... 2 1 [0 1 2 ... n-1] n-2 ... */
static void blur_weights(float *w, int64_t n, float sigma)
{
    const int64_t period = 2 * (n - 1);
    if (n == 1 || isinf(sigma)) {
        for (int64_t i = 0; i < n * n; i++) w[i] = 1.f / (float)n;
        return;
    }
    /* Beyond 64 lines' worth the kernel is flat: the mean of the mirrored line, at a bounded cost. */
    const int64_t radius = (int64_t)fmin(floor(ceil(6.0 * (double)sigma) / 2), 64.0 * (double)n);
    double total = 0;
    memset(w, 0, (size_t)(n * n) * sizeof *w);
    for (int64_t k = -radius; k <= radius; k++) total += exp(-0.5 * (double)(k * k) / ((double)sigma * (double)sigma));
    for (int64_t i = 0; i < n; i++)
        for (int64_t k = -radius; k <= radius; k++) {
            int64_t j = (((i + k) % period) + period) % period;
            if (j >= n) j = period - j;
            w[i * n + j] += (float)(exp(-0.5 * (double)(k * k) / ((double)sigma * (double)sigma)) / total);
        }
}

/* out[i] = sum_j w[i][j] in[j] for n lines of d numbers, `step` numbers apart; out lies packed. */
static void blur_line(float *out, const float *in, const float *w, int64_t n, int64_t step, int64_t d)
{
    for (int64_t i = 0; i < n; i++) {
        memset(out + i * d, 0, (size_t)d * sizeof *out);
        for (int64_t j = 0; j < n; j++) {
            const float factor = w[i * n + j], *from = in + j * step;
            if (factor == 0) continue;
            for (int64_t c = 0; c < d; c++) out[i * d + c] += factor * from[c];
        }
    }
}

ipvg_status ipvg_cpu_blur_tokens(ipvg_exec *ex, ipvg_tensor *y, const ipvg_tensor *x, int64_t rows, int64_t cols,
                                 float sigma)
{
    const int64_t d = x->shape[1], frames = x->shape[0] / (rows * cols);
    size_t mark = ipvg_arena_mark(ex->arena), square = (size_t)(rows * rows + cols * cols) * sizeof(float);
    void *weights, *scratch;
    ipvg_status status;

    IPVG_TRY(ipvg_cpu_need_f32(ex, "blur_tokens", "x", x));
    IPVG_TRY(ipvg_cpu_need_f32(ex, "blur_tokens", "y", y));
    IPVG_TRY(ipvg_arena_alloc(ex->ctx, ex->arena, &weights, square));
    IPVG_TRY(ipvg_arena_alloc(ex->ctx, ex->arena, &scratch, (size_t)(x->shape[0] * d) * sizeof(float)));
    if (ipvg_planning(ex)) goto done;
    float *by_row = weights, *by_col = by_row + rows * rows, *half = scratch;
    blur_weights(by_row, rows, sigma);
    blur_weights(by_col, cols, sigma);
#pragma omp parallel num_threads(ex->ctx->threads) if (x->shape[0] * d > PARALLEL)
    {
#pragma omp for schedule(static)
        for (int64_t line = 0; line < frames * rows; line++) /* along the columns of a row */
            blur_line(half + line * cols * d, (const float *)x->data + line * cols * x->ld, by_col, cols, x->ld, d);
#pragma omp for schedule(static)
        for (int64_t line = 0; line < frames * rows; line++) { /* across the rows: output row by output row */
            const float *w = by_row + line % rows * rows, *frame = half + line / rows * rows * cols * d;
            for (int64_t c = 0; c < cols; c++) {
                float *out = (float *)y->data + (line * cols + c) * y->ld;
                memset(out, 0, (size_t)d * sizeof *out);
                for (int64_t r = 0; r < rows; r++)
                    for (int64_t i = 0; w[r] != 0 && i < d; i++) out[i] += w[r] * frame[(r * cols + c) * d + i];
            }
        }
    }
done:
    ipvg_arena_reset(ex->arena, mark);
    return status;
}

/* ==== normalised attention guidance ==== */

ipvg_status ipvg_cpu_nag(ipvg_exec *ex, ipvg_tensor *y, const ipvg_tensor *p, const ipvg_tensor *n, float scale,
                         float tau, float alpha)
{
    const int64_t rows = p->shape[0], d = p->shape[1];
    ipvg_status status;

    IPVG_TRY(ipvg_cpu_need_f32(ex, "nag", "p", p));
    IPVG_TRY(ipvg_cpu_need_f32(ex, "nag", "n", n));
    IPVG_TRY(ipvg_cpu_need_f32(ex, "nag", "y", y));
    if (ipvg_planning(ex)) goto done;
#pragma omp parallel for num_threads(ex->ctx->threads) schedule(static) if (rows * d > PARALLEL)
    for (int64_t r = 0; r < rows; r++) {
        const float *a = (const float *)p->data + r * p->ld, *b = (const float *)n->data + r * n->ld;
        float *out = (float *)y->data + r * y->ld;
        double before = 0, after = 0;
        for (int64_t i = 0; i < d; i++) {
            before += fabs((double)a[i]);
            after += fabs((double)(scale * a[i] - (scale - 1) * b[i]));
        }
        const float shrink = after > tau * before ? (float)(tau * before / after) : 1.f;
        for (int64_t i = 0; i < d; i++)
            out[i] = alpha * shrink * (scale * a[i] - (scale - 1) * b[i]) + (1 - alpha) * a[i];
    }
done:
    return status;
}

#include "prepare.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- one axis of a separable resize: output i = sum over k of weight[i][k] * input[first[i] + k] ---- */

typedef enum filter { BILINEAR, BILINEAR_ANTIALIAS, BICUBIC_ANTIALIAS } filter;

typedef struct axis {
    int taps; /* room for each output's weights */
    int *first, *count;
    float *weight;  /* (outputs, taps) */
    int16_t *fixed; /* the same times 2^bits, for bytes */
    int bits;
} axis;

static void axis_free(axis *a)
{
    free(a->first);
    free(a->count);
    free(a->weight);
    free(a->fixed);
    memset(a, 0, sizeof *a);
}

/* Both are symmetric; the cubic has a = -0.5 (Keys), unlike the -0.75 of the same library's resize without antialias. */
static double filter_at(filter f, double x)
{
    x = fabs(x);
    if (f == BILINEAR_ANTIALIAS) return x < 1 ? 1 - x : 0;
    if (x < 1) return (1.5 * x - 2.5) * x * x + 1;
    if (x < 2) return ((-0.5 * x + 2.5) * x - 4) * x + 2;
    return 0;
}

/* w (to, taps) */
static void antialias_weights(axis *a, double *w, filter f, int from, int to)
{
    double scale = (double)from / to, stretch = scale > 1 ? scale : 1;
    double support = (f == BICUBIC_ANTIALIAS ? 2 : 1) * stretch;
    for (int i = 0; i < to; i++, w += a->taps) {
        double centre = scale * (i + 0.5), total = 0;
        int first = (int)(centre - support + 0.5), last = (int)(centre + support + 0.5);
        if (first < 0) first = 0;
        if (last > from) last = from;
        if (last - first > a->taps) last = first + a->taps;
        a->first[i] = first;
        a->count[i] = last - first;
        for (int k = 0; k < last - first; k++) total += w[k] = filter_at(f, (k + first - centre + 0.5) / stretch);
        for (int k = 0; k < last - first; k++) w[k] /= total;
    }
}

/* Two neighbours. The position is float32 and rounded once: PyTorch's build contracts it to a fused multiply-add, and in a
 * large noisy picture an unfused one moves pixels by 1e-4. */
static void bilinear_weights(axis *a, int from, int to)
{
    float scale = (float)from / (float)to;
    for (int i = 0; i < to; i++) {
        float x = fmaf(scale, (float)i + 0.5f, -0.5f);
        if (x < 0) x = 0;
        int first = (int)x < from - 1 ? (int)x : from - 1;
        float second = x - (float)first;
        if (second > 1) second = 1;
        a->first[i] = first;
        a->count[i] = first < from - 1 ? 2 : 1;
        a->weight[2 * i] = a->count[i] == 2 ? 1 - second : 1;
        a->weight[2 * i + 1] = second;
    }
}

/* The largest power of two that keeps every weight in 16 bits. One for the whole axis: outputs that will be cropped
 * count too. */
static int fixed_point_bits(const double *w, int count)
{
    double largest = 0;
    for (int i = 0; i < count; i++) largest = w[i] > largest ? w[i] : largest;
    int bits = 0;
    while (bits < 22 && (int)(0.5 + largest * (1 << (bits + 1))) < (1 << 15)) bits++;
    return bits;
}

static ipvg_status axis_make(ipvg_context *ctx, axis *a, filter f, int from, int to)
{
    ipvg_status status = IPVG_OK;
    double scale = (double)from / to, *w = NULL;
    memset(a, 0, sizeof *a);
    a->taps = f == BILINEAR ? 2 : (int)ceil((f == BICUBIC_ANTIALIAS ? 2 : 1) * (scale > 1 ? scale : 1)) * 2 + 1;
    size_t n = (size_t)to * (size_t)a->taps;
    a->first = malloc((size_t)to * sizeof *a->first);
    a->count = malloc((size_t)to * sizeof *a->count);
    a->weight = malloc(n * sizeof *a->weight);
    a->fixed = malloc(n * sizeof *a->fixed);
    w = calloc(n, sizeof *w);
    if (!a->first || !a->count || !a->weight || !a->fixed || !w) {
        status = ipvg_fail(ctx, IPVG_E_MEMORY, "no memory to resize %d pixels to %d", from, to);
        axis_free(a);
        goto done;
    }
    if (f == BILINEAR) {
        bilinear_weights(a, from, to);
        goto done;
    }
    antialias_weights(a, w, f, from, to);
    a->bits = fixed_point_bits(w, (int)n);
    for (size_t i = 0; i < n; i++) {
        a->weight[i] = (float)w[i];
        a->fixed[i] = (int16_t)(w[i] < 0 ? (int)(w[i] * (1 << a->bits) - 0.5) : (int)(w[i] * (1 << a->bits) + 0.5));
    }
done:
    free(w);
    return status;
}

/* ---- reference ---- */

ipvg_fit ipvg_fit_size(int canvas_height, int canvas_width, int image_height, int image_width)
{
    double down = (double)canvas_height / image_height, across = (double)canvas_width / image_width;
    double scale = across < down ? across : down;
    ipvg_fit fit = {.height = (int)(image_height * scale), .width = (int)(image_width * scale)};
    fit.top = (canvas_height - fit.height) / 2;
    fit.left = (canvas_width - fit.width) / 2;
    return fit;
}

ipvg_status ipvg_fit_reference(ipvg_context *ctx, float *canvas, const uint8_t *image, bool antialias,
                               int canvas_height, int canvas_width, int image_height, int image_width)
{
    ipvg_status status = IPVG_OK;
    axis across = {0}, down = {0};
    float *rows = NULL; /* (image_height, fit.width): one channel, resized horizontally */
    float level[256];   /* a byte in [-1, 1], rounded as u8 / 255, minus 0.5, divided by 0.5 is in float32 */
    for (int i = 0; i < 256; i++) level[i] = ((float)i / 255.0f - 0.5f) / 0.5f;
    ipvg_fit fit = ipvg_fit_size(canvas_height, canvas_width, image_height, image_width);
    if (fit.height < 1 || fit.width < 1)
        return ipvg_fail(ctx, IPVG_E_ARGUMENT, "reference: %d x %d is too long and thin to fit on %d x %d", image_width,
                         image_height, canvas_width, canvas_height);
    filter f = antialias ? BILINEAR_ANTIALIAS : BILINEAR;
    IPVG_TRY(axis_make(ctx, &across, f, image_width, fit.width));
    IPVG_TRY(axis_make(ctx, &down, f, image_height, fit.height));
    rows = malloc((size_t)image_height * (size_t)fit.width * sizeof *rows);
    if (!rows) {
        status = ipvg_fail(ctx, IPVG_E_MEMORY, "reference: no memory for %d x %d pixels", fit.width, image_height);
        goto done;
    }
    size_t plane = (size_t)canvas_height * (size_t)canvas_width;
    for (size_t i = 0; i < 3 * plane; i++) canvas[i] = 1;
    for (int c = 0; c < 3; c++) {
#pragma omp parallel for num_threads(ctx->threads)
        for (int y = 0; y < image_height; y++) {
            const uint8_t *in = image + (size_t)y * (size_t)image_width * 3 + c;
            for (int x = 0; x < fit.width; x++) {
                const float *w = across.weight + (size_t)x * (size_t)across.taps;
                float sum = 0;
                for (int k = 0; k < across.count[x]; k++) sum += w[k] * level[in[3 * (across.first[x] + k)]];
                rows[(size_t)y * (size_t)fit.width + (size_t)x] = sum;
            }
        }
#pragma omp parallel for num_threads(ctx->threads)
        for (int y = 0; y < fit.height; y++) {
            const float *w = down.weight + (size_t)y * (size_t)down.taps;
            float *out = canvas + c * plane + (size_t)(fit.top + y) * (size_t)canvas_width + fit.left;
            for (int x = 0; x < fit.width; x++) {
                const float *in = rows + (size_t)down.first[y] * (size_t)fit.width + (size_t)x;
                float sum = 0;
                for (int k = 0; k < down.count[y]; k++) sum += w[k] * in[(size_t)k * (size_t)fit.width];
                out[x] = sum;
            }
        }
    }
done:
    axis_free(&across);
    axis_free(&down);
    free(rows);
    return status;
}

/* ---- source video ---- */

/* Fixed-point sum -> byte. The sum starts at one half. */
static inline uint8_t to_byte(int32_t sum, int bits)
{
    sum >>= bits;
    return (uint8_t)(sum < 0 ? 0 : sum > 255 ? 255 : sum);
}

/* out (rows, count, 3) <- in (rows, width, 3), for `count` columns of the axis from `left` on. */
static void across_bytes(uint8_t *out, const uint8_t *in, const axis *a, int rows, int width, int left, int count)
{
    for (int y = 0; y < rows; y++, in += (size_t)width * 3)
        for (int x = left; x < left + count; x++, out += 3) {
            const int16_t *w = a->fixed + (size_t)x * (size_t)a->taps;
            const uint8_t *p = in + (size_t)a->first[x] * 3;
            int32_t r = 1 << (a->bits - 1), g = r, b = r;
            for (int k = 0; k < a->count[x]; k++, p += 3) {
                r += w[k] * p[0];
                g += w[k] * p[1];
                b += w[k] * p[2];
            }
            out[0] = to_byte(r, a->bits);
            out[1] = to_byte(g, a->bits);
            out[2] = to_byte(b, a->bits);
        }
}

/* out (count, stride) <- in (height, stride), for `count` rows of the axis from `top` on. sums: (stride) */
static void down_bytes(uint8_t *out, const uint8_t *in, const axis *a, int32_t *sums, int stride, int top, int count)
{
    for (int y = top; y < top + count; y++, out += stride) {
        const int16_t *w = a->fixed + (size_t)y * (size_t)a->taps;
        for (int x = 0; x < stride; x++) sums[x] = 1 << (a->bits - 1);
        for (int k = 0; k < a->count[y]; k++) {
            const uint8_t *p = in + (size_t)(a->first[y] + k) * (size_t)stride;
            for (int x = 0; x < stride; x++) sums[x] += w[k] * p[x];
        }
        for (int x = 0; x < stride; x++) out[x] = to_byte(sums[x], a->bits);
    }
}

ipvg_status ipvg_cover_frames(ipvg_context *ctx, uint8_t *out, const uint8_t *frames, int64_t count, int out_height,
                              int out_width, int height, int width)
{
    ipvg_status status = IPVG_OK;
    axis across = {0}, down = {0};
    uint8_t *rows = NULL; /* per thread (height, out_width, 3): resized horizontally */
    int32_t *sums = NULL; /* per thread (out_width, 3) */
    size_t frame_in = (size_t)height * (size_t)width * 3, frame_out = (size_t)out_height * (size_t)out_width * 3;
    if (out_height == height && out_width == width) {
        memcpy(out, frames, (size_t)count * frame_in);
        return IPVG_OK;
    }
    double by_width = (double)out_width / width, by_height = (double)out_height / height;
    double scale = by_width > by_height ? by_width : by_height;
    /* rint, like Python's round, takes ties to even. */
    int full_height = (int)rint(scale * height), full_width = (int)rint(scale * width);
    int top = (full_height - out_height) / 2, left = (full_width - out_width) / 2;
    IPVG_TRY(axis_make(ctx, &across, BICUBIC_ANTIALIAS, width, full_width));
    IPVG_TRY(axis_make(ctx, &down, BICUBIC_ANTIALIAS, height, full_height));
    int threads = count < ctx->threads ? (int)count : ctx->threads;
    size_t stride = (size_t)out_width * 3;
    rows = malloc((size_t)threads * (size_t)height * stride);
    sums = malloc((size_t)threads * stride * sizeof *sums);
    if (!rows || !sums) {
        status = ipvg_fail(ctx, IPVG_E_MEMORY, "source video: no memory to resize %d x %d pixels", width, height);
        goto done;
    }
    for (int64_t f = 0; f < count && status == IPVG_OK; f += threads) {
#pragma omp parallel for num_threads(threads) schedule(static, 1)
        for (int t = 0; t < threads; t++) {
            if (f + t >= count) continue;
            uint8_t *row = rows + (size_t)t * (size_t)height * stride;
            across_bytes(row, frames + (size_t)(f + t) * frame_in, &across, height, width, left, out_width);
            down_bytes(out + (size_t)(f + t) * frame_out, row, &down, sums + (size_t)t * stride, (int)stride, top,
                       out_height);
        }
        status = ipvg_check_cancel(ctx);
    }
done:
    axis_free(&across);
    axis_free(&down);
    free(rows);
    free(sums);
    return status;
}

/* Convolutions of the video VAE. Two ways, by the kernel:
 *
 *   winograd   3x3 in space at stride 1: nearly all of the VAE's work. F(4x4, 3x3): 36 products instead of 144 for 16 results,
 *              summed over the frames of the kernel before the way back.
 *   direct     any other kernel: pixels are gathered into rows and multiplied.
 *
 * Both go block by block (some tens of tiles or pixels), each block by one thread in its own scratch that stays in the
 * second-level cache, and end in the same `finish`: bias, residual, norm, SiLU, with the pixel still in the first-level
 * cache. A pixel's arithmetic does not depend on how blocks fall, so any number of threads gives the same bytes. */
#include <omp.h>
#include <string.h>

#include "conv_loops.h"
#include "cpu.h"

#define TILES 60 /* of a winograd block: weights are read once per block, so not much fewer; scratch grows with it */
#define GATHER 49152 /* floats of a direct block's gathered rows, about */
#define SMALL 500000 /* multiplications; some 10 us */
#define LINE 16      /* floats of a cache line */

typedef struct shape {
    const ipvg_conv_loops *loops;
    int cin, cout, width; /* width: cout rounded up to whole vectors */
    int kt, kh, kw;
    bool winograd;
    int64_t taps; /* products per (input channel, result) and frame: 36 or kh * kw */
} shape;

/* One run: where everything is. */
typedef struct job {
    shape s;
    const ipvg_conv *conv;
    const ipvg_conv_out *out;
    const float *frame[8];
    const float *bias, *gamma, *zeros;
    int n;          /* frames */
    int64_t h, w;   /* of the input, after upsampling */
    int64_t oh, ow; /* of the output */
    int64_t tiles_x, count, block;
    ptrdiff_t v_stride, m_stride;
} job;

static int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

/* Points lie this far apart: an odd number of cache lines, so that the 36 writes of a tile do not fall into one set. */
static ptrdiff_t point_stride(int64_t floats) { return (ptrdiff_t)(round_up(floats, 2 * LINE) + LINE); }

static const ipvg_conv_loops *loops_of(const ipvg_exec *ex)
{
    const ipvg_loops *machine = ipvg_cpu_loops(ex);
    return machine == &ipvg_loops_v4   ? &ipvg_conv_loops_v4
           : machine == &ipvg_loops_v3 ? &ipvg_conv_loops_v3
                                       : &ipvg_conv_loops_baseline;
}

static shape shape_of(const ipvg_exec *ex, const ipvg_conv *c)
{
    shape s = {.loops = loops_of(ex),
               .cin = (int)c->w.shape[1],
               .cout = (int)c->w.shape[0],
               .kt = c->kt,
               .kh = c->kh,
               .kw = c->kw};
    s.width = (int)round_up(s.cout, s.loops->lanes);
    s.winograd = c->kh == 3 && c->kw == 3 && c->stride == 1 && s.cin >= s.loops->lanes;
    s.taps = s.winograd ? IPVG_TILE_POINTS : c->kh * c->kw;
    return s;
}

/* ---- weights: [frame][panel][row][column] for direct, [point][frame][panel][row][column] for winograd ---- */

static void pack_direct(float *packed, const float *w, const shape *s, int threads)
{
    int64_t taps = s->taps, rows = taps * s->cin;
#pragma omp parallel for num_threads(threads) schedule(static) collapse(2)
    for (int t = 0; t < s->kt; t++)
        for (int first = 0; first < s->width; first += s->loops->panel) {
            int columns = s->width - first < s->loops->panel ? s->width - first : s->loops->panel;
            float *p = packed + t * rows * s->width + first * rows;
            for (int64_t k = 0; k < taps; k++)
                for (int c = 0; c < s->cin; c++)
                    for (int j = 0; j < columns; j++)
                        *p++ = first + j < s->cout ? w[(((first + j) * (int64_t)s->cin + c) * s->kt + t) * taps + k]
                                                   : 0.0f;
        }
}

static void pack_winograd(float *packed, const float *w, const shape *s, int threads)
{
    int panel = s->loops->panel;
    int64_t matrix = (int64_t)s->cin * s->width; /* floats of one point and frame */
#pragma omp parallel for num_threads(threads) schedule(static) collapse(2)
    for (int first = 0; first < s->width; first += panel)
        for (int c = 0; c < s->cin; c++) {
            int columns = s->width - first < panel ? s->width - first : panel;
            float kernel[9 * 48], points[IPVG_TILE_POINTS * 48]; /* panels are at most 48 wide */
            for (int t = 0; t < s->kt; t++) {
                memset(kernel, 0, sizeof(float) * 9 * (size_t)panel);
                for (int j = 0; j < panel && first + j < s->cout; j++)
                    for (int k = 0; k < 9; k++)
                        kernel[k * panel + j] = w[(((first + j) * (int64_t)s->cin + c) * s->kt + t) * 9 + k];
                s->loops->tile_weights(points, kernel);
                for (int p = 0; p < IPVG_TILE_POINTS; p++)
                    memcpy(packed + (p * s->kt + t) * matrix + (int64_t)first * s->cin + c * columns,
                           points + p * panel, sizeof(float) * (size_t)columns);
            }
        }
}

ipvg_status ipvg_cpu_conv_prepare(ipvg_exec *ex, ipvg_conv *conv)
{
    ipvg_status status;
    shape s = shape_of(ex, conv);
    size_t floats = (size_t)(s.taps * s.cin * s.width * s.kt);
    IPVG_TRY(ipvg_arena_alloc(ex->ctx, ex->arena, &conv->packed, floats * sizeof(float)));
    size_t mark = ipvg_arena_mark(ex->arena);
    const float *w;
    IPVG_TRY(ipvg_cpu_floats(ex, &w, &conv->w));
    if (!ipvg_planning(ex)) (s.winograd ? pack_winograd : pack_direct)(conv->packed, w, &s, ex->ctx->threads);
    ipvg_arena_reset(ex->arena, mark);
done:
    return status;
}

void ipvg_cpu_conv_release(const ipvg_backend *be, ipvg_conv *conv) { (void)be, (void)conv; /* the arena has it */ }

/* ---- one block ---- */

static void finish_pixel(const job *j, float *row, int64_t y, int64_t x)
{
    int64_t at = (y * j->ow + x) * j->s.cout;
    const ipvg_conv_out *o = j->out;
    j->s.loops->finish(o->y ? (float *)o->y->data + at : NULL, o->z ? (float *)o->z->data + at : NULL, row, j->bias,
                       o->residual ? (const float *)o->residual->data + at : NULL, j->gamma, j->s.cout, o->silu);
}

/* The pixel at row y, column x of the padded, upsampled frame; zeros outside it. */
static const float *pixel(const job *j, const float *frame, int64_t y, int64_t x)
{
    y -= j->conv->top;
    x -= j->conv->left;
    if (y < 0 || y >= j->h || x < 0 || x >= j->w) return j->zeros;
    if (j->conv->upsample) return frame + ((y >> 1) * (j->w >> 1) + (x >> 1)) * j->s.cin;
    return frame + (y * j->w + x) * j->s.cin;
}

static void winograd_block(const job *j, int64_t first, int64_t count, float *scratch)
{
    const shape *s = &j->s;
    int64_t ldv = round_up(s->cin, s->loops->lanes);
    float *v = scratch, *m = v + IPVG_TILE_POINTS * j->v_stride, *rows = m + IPVG_TILE_POINTS * j->m_stride;
    for (int f = 0; f < j->n; f++) {
        for (int64_t i = 0; i < count; i++) {
            int64_t ty = (first + i) / j->tiles_x * IPVG_TILE, tx = (first + i) % j->tiles_x * IPVG_TILE;
            const float *in[IPVG_TILE_POINTS];
            for (int p = 0; p < IPVG_TILE_POINTS; p++)
                in[p] = pixel(j, j->frame[f], ty + p / IPVG_TILE_IN, tx + p % IPVG_TILE_IN);
            s->loops->tile_in(v + i * ldv, j->v_stride, in, s->cin);
        }
        int64_t matrix = (int64_t)s->cin * s->width;
        const float *u = (const float *)j->conv->packed + (s->kt - j->n + f) * matrix;
        for (int p = 0; p < IPVG_TILE_POINTS; p++)
            s->loops->gemm(m + p * j->m_stride, s->width, v + p * j->v_stride, ldv, u + p * s->kt * matrix, (int)count,
                           s->cin, s->width, f > 0);
    }
    for (int64_t i = 0; i < count; i++) {
        int64_t ty = (first + i) / j->tiles_x * IPVG_TILE, tx = (first + i) % j->tiles_x * IPVG_TILE;
        s->loops->tile_out(rows, s->width, m + i * s->width, j->m_stride, s->width);
        for (int64_t y = ty; y < ty + IPVG_TILE && y < j->oh; y++)
            for (int64_t x = tx; x < tx + IPVG_TILE && x < j->ow; x++)
                finish_pixel(j, rows + ((y - ty) * IPVG_TILE + x - tx) * s->width, y, x);
    }
}

static void direct_block(const job *j, int64_t first, int64_t count, float *scratch)
{
    const shape *s = &j->s;
    int64_t k = s->taps * s->cin;
    float *rows = scratch, *gathered = rows + count * s->width;
    bool in_place = s->taps == 1 && j->conv->stride == 1 && !j->conv->upsample && j->oh == j->h && j->ow == j->w;
    for (int f = 0; f < j->n; f++) {
        const float *a = j->frame[f] + first * s->cin;
        if (!in_place) {
            float *g = gathered;
            for (int64_t i = first; i < first + count; i++)
                for (int y = 0; y < s->kh; y++)
                    for (int x = 0; x < s->kw; x++, g += s->cin)
                        memcpy(g,
                               pixel(j, j->frame[f], i / j->ow * j->conv->stride + y, i % j->ow * j->conv->stride + x),
                               sizeof(float) * (size_t)s->cin);
            a = gathered;
        }
        s->loops->gemm(rows, s->width, a, k, (const float *)j->conv->packed + (s->kt - j->n + f) * k * s->width,
                       (int)count, (int)k, s->width, f > 0);
    }
    for (int64_t i = 0; i < count; i++) finish_pixel(j, rows + i * s->width, (first + i) / j->ow, (first + i) % j->ow);
}

/* ---- the operation ---- */

ipvg_status ipvg_cpu_conv(ipvg_exec *ex, const ipvg_conv_out *out, const ipvg_tensor *const *x, int n,
                          const ipvg_conv *conv)
{
    ipvg_status status;
    size_t mark = ipvg_arena_mark(ex->arena), per_thread;
    int threads = ex->ctx->threads;
    const ipvg_tensor *like = out->y ? out->y : out->z;
    job j = {.s = shape_of(ex, conv), .conv = conv, .out = out, .n = n};
    const shape *s = &j.s;

    if (!like || n > 8)
        return ipvg_fail(ex->ctx, IPVG_E_ARGUMENT, "conv: nothing to compute, or a kernel of more than 8 frames");
    const ipvg_tensor *all[] = {out->y, out->z, out->residual};
    for (int i = 0; i < 3; i++)
        if (all[i]) IPVG_TRY(ipvg_cpu_need_f32(ex, "conv", "an output or the residual", all[i]));
    for (int i = 0; i < n; i++) {
        IPVG_TRY(ipvg_cpu_need_f32(ex, "conv", "x", x[i]));
        j.frame[i] = x[i]->data;
    }
    j.h = x[0]->shape[0] * (conv->upsample ? 2 : 1);
    j.w = x[0]->shape[1] * (conv->upsample ? 2 : 1);
    j.oh = like->shape[0];
    j.ow = like->shape[1];
    j.gamma = out->z ? out->gamma->data : NULL;
    if (s->winograd) {
        j.tiles_x = (j.ow + IPVG_TILE - 1) / IPVG_TILE;
        j.count = j.tiles_x * ((j.oh + IPVG_TILE - 1) / IPVG_TILE);
        j.block = TILES;
    } else {
        j.count = j.oh * j.ow;
        j.block = GATHER / (s->taps * s->cin);
        j.block = j.block < 24 ? 24 : j.block > 96 ? 96 : j.block;
    }
    int64_t fair = (j.count + threads - 1) / threads;
    if (j.block > fair) j.block = fair;
    if (s->winograd) {
        j.v_stride = point_stride(j.block * round_up(s->cin, s->loops->lanes));
        j.m_stride = point_stride(j.block * s->width);
        per_thread = (size_t)(IPVG_TILE_POINTS * (j.v_stride + j.m_stride) + IPVG_TILE * IPVG_TILE * s->width);
    } else {
        per_thread = (size_t)(j.block * (s->width + s->taps * s->cin));
    }
    per_thread = (size_t)round_up((int64_t)per_thread, LINE);

    float *scratch, *zeros;
    IPVG_TRY(ipvg_cpu_floats(ex, &j.bias, &conv->b));
    IPVG_TRY(ipvg_arena_alloc(ex->ctx, ex->arena, (void **)&zeros, (size_t)s->cin * sizeof(float)));
    IPVG_TRY(ipvg_arena_alloc(ex->ctx, ex->arena, (void **)&scratch, per_thread * (size_t)threads * sizeof(float)));
    if (ipvg_planning(ex)) goto done;
    memset(zeros, 0, (size_t)s->cin * sizeof(float));
    j.zeros = zeros;
    int64_t blocks = (j.count + j.block - 1) / j.block;
    bool small = j.count * s->taps * s->cin * s->width * n < SMALL; /* waking threads would take longer */
#pragma omp parallel num_threads(small ? 1 : threads)
    {
        float *own = scratch + per_thread * (size_t)omp_get_thread_num();
        /* Whoever is free takes the next block: which thread it was does not show in the result. */
#pragma omp for schedule(dynamic)
        for (int64_t b = 0; b < blocks; b++) {
            int64_t first = b * j.block, count = j.count - first < j.block ? j.count - first : j.block;
            (s->winograd ? winograd_block : direct_block)(&j, first, count, own);
        }
    }
done:
    ipvg_arena_reset(ex->arena, mark);
    return status;
}

ipvg_status ipvg_cpu_norm_silu(ipvg_exec *ex, ipvg_tensor *y, const ipvg_tensor *x, const ipvg_tensor *gamma, bool silu)
{
    ipvg_status status;
    const ipvg_conv_loops *loops = loops_of(ex);
    size_t mark = ipvg_arena_mark(ex->arena);
    int64_t c = x->shape[x->ndim - 1], width = round_up(c, loops->lanes), rows = ipvg_tensor_rows(x);
    float *scratch;
    IPVG_TRY(ipvg_cpu_need_f32(ex, "norm_silu", "x", x));
    IPVG_TRY(ipvg_cpu_need_f32(ex, "norm_silu", "y", y));
    IPVG_TRY(
        ipvg_arena_alloc(ex->ctx, ex->arena, (void **)&scratch, sizeof(float) * (size_t)(width * ex->ctx->threads)));
    if (ipvg_planning(ex)) goto done;
#pragma omp parallel num_threads(rows *c < SMALL / 10 ? 1 : ex->ctx->threads)
    {
        float *row = scratch + width * omp_get_thread_num();
        memset(row, 0, sizeof(float) * (size_t)width);
#pragma omp for schedule(static)
        for (int64_t r = 0; r < rows; r++) {
            memcpy(row, (const float *)x->data + r * x->ld, sizeof(float) * (size_t)c);
            loops->finish(NULL, (float *)y->data + r * y->ld, row, NULL, NULL, gamma->data, (int)c, silu);
        }
    }
done:
    ipvg_arena_reset(ex->arena, mark);
    return status;
}

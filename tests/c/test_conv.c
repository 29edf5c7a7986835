/* The video convolutions and the VAE's norm against a plain double-precision reference: random odd sizes, fewer frames than
 * the kernel has, poisoned outputs and scratch, exact scratch, for each instruction set this machine has, and the same
 * bytes from any number of threads.
 *
 *     make sanitize        builds it with -fsanitize=address,undefined and runs it
 *
 * Bounds are relative L2 against double precision. A plain float32 sum of these lengths is 3e-7 off; Winograd's F(4x4, 3x3)
 * adds its transforms, about 1.2e-6 in all for Gaussian data: 5e-6 leaves room for small, unlucky cases. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../../csrc/ops/ops.h"

static ipvg_context ctx;
static ipvg_backend *be;
static ipvg_arena arena;
static ipvg_exec ex;
static int failures;
static uint64_t seed = 1;

#define CHECK(cond, ...)                                                \
    do {                                                                \
        if (!(cond)) failures++, printf("FAIL " __VA_ARGS__), puts(""); \
    } while (0)

static double uniform(void)
{
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return (double)(seed >> 40) / 8388608.0 - 1.0;
}

static int pick(int low, int high) { return low + (int)((uniform() * 0.5 + 0.5) * (high - low + 1)); }

/* Exactly as large as the tensor, so that the sanitizer sees one float too far. */
static ipvg_tensor tensor(bool fill, int ndim, const int64_t *shape)
{
    ipvg_tensor t = ipvg_tensor_make(NULL, IPVG_F32, ndim, shape);
    int64_t n = ipvg_tensor_count(&t);
    float *p = t.data = malloc((size_t)n * sizeof(float));
    for (int64_t i = 0; i < n; i++) p[i] = fill ? (float)uniform() : NAN;
    return t;
}
#define TENSOR(fill, ...) \
    tensor(fill, (int)(sizeof((int64_t[]){__VA_ARGS__}) / sizeof(int64_t)), (const int64_t[]){__VA_ARGS__})

static float item(const ipvg_tensor *t, int64_t i) { return ((const float *)t->data)[i]; }

static ipvg_tensor halved(ipvg_tensor *t, ipvg_dtype dtype)
{
    ipvg_tensor h = ipvg_tensor_make(malloc((size_t)ipvg_tensor_count(t) * 2), dtype, t->ndim, t->shape);
    CHECK(ipvg_cast(&ex, &h, t) == IPVG_OK && ipvg_cast(&ex, t, &h) == IPVG_OK, "cast: %s", ctx.error);
    return h;
}

static struct {
    const char *name;
    double worst, bound;
} table[16];

static void judge(const char *name, double difference, double norm, double bound)
{
    double relative = sqrt(difference / (norm > 0 ? norm : 1));
    int i = 0;
    while (table[i].name && strcmp(table[i].name, name)) i++;
    table[i].name = name;
    table[i].bound = bound;
    if (!(relative <= table[i].worst)) table[i].worst = relative;
    CHECK(relative <= bound, "%s: relative L2 %.3g, bound %.3g", name, relative, bound);
}

/* ---- references ---- */

static double silu(double x) { return x / (1 + exp(-x)); }

static void reference_norm(double *z, const double *v, const ipvg_tensor *gamma, int n, bool with_silu)
{
    double sum = 0;
    for (int i = 0; i < n; i++) sum += v[i] * v[i];
    double norm = sqrt(sum);
    for (int i = 0; i < n; i++) {
        z[i] = v[i] / fmax(norm, 1e-12) * sqrt(n) * item(gamma, i);
        if (with_silu) z[i] = silu(z[i]);
    }
}

typedef struct setting {
    int kt, kh, kw, stride, top, bottom, left, right;
    bool upsample;
} setting;

/* v (oh, ow, cout) */
static double *reference_conv(const ipvg_tensor *const *x, int n, const ipvg_tensor *w, const ipvg_tensor *b, setting s,
                              int oh, int ow)
{
    int cout = (int)w->shape[0], cin = (int)w->shape[1], up = s.upsample ? 2 : 1;
    int h = (int)x[0]->shape[0] * up, width = (int)x[0]->shape[1] * up;
    double *v = malloc(sizeof(double) * (size_t)(oh * ow * cout)), *p = v;
    for (int oy = 0; oy < oh; oy++)
        for (int ox = 0; ox < ow; ox++)
            for (int o = 0; o < cout; o++) {
                double sum = item(b, o);
                for (int t = 0; t < n; t++)
                    for (int ky = 0; ky < s.kh; ky++)
                        for (int kx = 0; kx < s.kw; kx++) {
                            int y = oy * s.stride + ky - s.top, xx = ox * s.stride + kx - s.left;
                            if (y < 0 || y >= h || xx < 0 || xx >= width) continue;
                            const float *pixel = (float *)x[t]->data + ((y / up) * x[t]->shape[1] + xx / up) * cin;
                            const float *kernel = (float *)w->data + (int64_t)o * cin * s.kt * s.kh * s.kw +
                                                  ((s.kt - n + t) * s.kh + ky) * s.kw + kx;
                            for (int c = 0; c < cin; c++)
                                sum += (double)pixel[c] * kernel[(int64_t)c * s.kt * s.kh * s.kw];
                        }
                *p++ = sum;
            }
    return v;
}

/* ---- tests ---- */

/* Plans, poisons an arena of exactly the planned size, packs and runs. */
static void run(const ipvg_conv_out *out, const ipvg_tensor *const *x, int n, ipvg_conv *conv)
{
    ipvg_arena_free(&arena);
    ipvg_arena_plan(&arena);
    for (int pass = 0; pass < 2; pass++) {
        CHECK(ipvg_conv_prepare(&ex, conv) == IPVG_OK, "prepare: %s", ctx.error);
        size_t mark = ipvg_arena_mark(&arena);
        CHECK(ipvg_conv_run(&ex, out, x, n, conv) == IPVG_OK, "conv: %s", ctx.error);
        CHECK(ipvg_arena_mark(&arena) == mark, "conv keeps scratch");
        ipvg_conv_release(be, conv);
        if (pass == 0) {
            CHECK(ipvg_arena_reserve(&ctx, &be->memory, &arena, arena.peak) == IPVG_OK, "%s", ctx.error);
            memset(arena.base, 0xff, arena.size); /* NaN */
        }
    }
}

static void test_conv(const char *name, setting s, int h, int w, int cin, int cout, bool four)
{
    int up = s.upsample ? 2 : 1, n = pick(1, s.kt);
    int oh = (up * h + s.top + s.bottom - s.kh) / s.stride + 1, ow = (up * w + s.left + s.right - s.kw) / s.stride + 1;
    ipvg_dtype dtype = (ipvg_dtype)pick(IPVG_F32, IPVG_F16);
    bool residual = pick(0, 1), in_place = pick(0, 1), want_z = pick(0, 2) > 0, want_y = !want_z || pick(0, 1);
    ipvg_tensor x[3], weight = four ? TENSOR(true, cout, cin, s.kh, s.kw) : TENSOR(true, cout, cin, s.kt, s.kh, s.kw);
    ipvg_tensor b = TENSOR(true, cout), gamma = TENSOR(true, cout, 1, 1, 1), r = TENSOR(true, oh, ow, cout);
    ipvg_tensor y = TENSOR(false, oh, ow, cout), z = TENSOR(false, oh, ow, cout);
    ipvg_tensor wh = dtype == IPVG_F32 ? weight : halved(&weight, dtype),
                bh = dtype == IPVG_F32 ? b : halved(&b, dtype);
    const ipvg_tensor *in[3];
    for (int i = 0; i < n; i++) x[i] = TENSOR(true, h, w, cin), in[i] = &x[i];
    ipvg_conv conv = {.w = wh,
                      .b = bh,
                      .stride = s.stride,
                      .top = s.top,
                      .bottom = s.bottom,
                      .left = s.left,
                      .right = s.right,
                      .upsample = s.upsample};
    double *v = reference_conv(in, n, &weight, &b, s, oh, ow), *vz = malloc(sizeof(double) * (size_t)cout);
    if (residual)
        for (int64_t i = 0; i < (int64_t)oh * ow * cout; i++) v[i] += item(&r, i);
    if (residual && in_place && want_y)
        memcpy(y.data, r.data, ipvg_tensor_bytes(&r));
    else
        in_place = false;
    ipvg_conv_out out = {.y = want_y ? &y : NULL,
                         .z = want_z ? &z : NULL,
                         .gamma = &gamma,
                         .silu = pick(0, 1),
                         .residual = !residual  ? NULL
                                     : in_place ? &y
                                                : &r};
    run(&out, in, n, &conv);
    double dy = 0, ny = 0, dz = 0, nz = 0;
    for (int64_t p = 0; p < (int64_t)oh * ow; p++) {
        reference_norm(vz, v + p * cout, &gamma, cout, out.silu);
        for (int c = 0; c < cout; c++) {
            if (want_y) dy += pow(item(&y, p * cout + c) - v[p * cout + c], 2);
            if (want_z) dz += pow(item(&z, p * cout + c) - vz[c], 2);
            ny += v[p * cout + c] * v[p * cout + c];
            nz += vz[c] * vz[c];
        }
    }
    if (want_y)
        judge(name, dy, ny, 5e-6);
    else
        for (int64_t i = 0; i < ipvg_tensor_count(&y); i++) CHECK(isnan(item(&y, i)), "%s: wrote y unasked", name);
    if (want_z)
        judge("then norm and SiLU", dz, nz, 2e-5); /* a short vector is scaled up, and its error with it */
    else
        for (int64_t i = 0; i < ipvg_tensor_count(&z); i++) CHECK(isnan(item(&z, i)), "%s: wrote z unasked", name);
    if (wh.data != weight.data) free(wh.data), free(bh.data);
    for (int i = 0; i < n; i++) free(x[i].data);
    free(weight.data), free(b.data), free(gamma.data), free(r.data), free(y.data), free(z.data), free(v), free(vz);
}

static void test_norm(int rows, int c)
{
    ipvg_tensor x = TENSOR(true, rows, c), y = TENSOR(false, rows, c), gamma = TENSOR(true, c);
    double *v = malloc(sizeof(double) * (size_t)c), *z = malloc(sizeof(double) * (size_t)c), d = 0, n = 0;
    bool with_silu = pick(0, 1);
    memset(x.data, 0, sizeof(float) * (size_t)c); /* a row of zeros has no direction: 0, not NaN */
    ipvg_arena_free(&arena);
    ipvg_arena_plan(&arena);
    CHECK(ipvg_norm_silu(&ex, &y, &x, &gamma, with_silu) == IPVG_OK, "%s", ctx.error);
    CHECK(ipvg_arena_reserve(&ctx, &be->memory, &arena, arena.peak) == IPVG_OK, "%s", ctx.error);
    CHECK(ipvg_norm_silu(&ex, &y, &x, &gamma, with_silu) == IPVG_OK, "%s", ctx.error);
    for (int r = 0; r < rows; r++) {
        for (int i = 0; i < c; i++) v[i] = item(&x, r * c + i);
        reference_norm(z, v, &gamma, c, with_silu);
        for (int i = 0; i < c; i++) d += pow(item(&y, r * c + i) - z[i], 2), n += z[i] * z[i];
    }
    judge("norm_silu", d, n, 1e-6);
    CHECK(ipvg_norm_silu(&ex, &x, &x, &gamma, with_silu) == IPVG_OK, "%s", ctx.error);
    CHECK(memcmp(x.data, y.data, ipvg_tensor_bytes(&x)) == 0, "norm_silu in place differs");
    free(x.data), free(y.data), free(gamma.data), free(v), free(z);
}

/* Which thread computes which block must not show. */
static void test_threads(void)
{
    ipvg_tensor x = TENSOR(true, 37, 41, 24), w = TENSOR(true, 24, 24, 3, 3), b = TENSOR(true, 24);
    ipvg_tensor first = TENSOR(false, 37, 41, 24), y = TENSOR(false, 37, 41, 24);
    const ipvg_tensor *in[] = {&x};
    ipvg_conv conv = {.w = w, .b = b, .stride = 1, .top = 1, .bottom = 1, .left = 1, .right = 1};
    for (int threads = 1; threads <= 5; threads++) {
        ctx.threads = threads;
        ipvg_tensor *out = threads == 1 ? &first : &y;
        run(&(ipvg_conv_out){.y = out}, in, 1, &conv);
        CHECK(memcmp(out->data, first.data, ipvg_tensor_bytes(&first)) == 0, "%d threads: other bytes than one",
              threads);
    }
    free(x.data), free(w.data), free(b.data), free(first.data), free(y.data);
}

static void test_refusals(void)
{
    ipvg_tensor x = TENSOR(true, 5, 6, 8), w = TENSOR(true, 4, 8, 3, 3), b = TENSOR(true, 4), y = TENSOR(true, 5, 6, 4);
    ipvg_tensor wrong = TENSOR(true, 5, 7, 4);
    const ipvg_tensor *in[] = {&x, &x}, *narrow[] = {&y};
    ipvg_conv conv = {.w = w, .b = b, .stride = 1, .top = 1, .bottom = 1, .left = 1, .right = 1}, bad = conv;
    ipvg_arena_free(&arena);
    ipvg_arena_plan(&arena);
    bad.b = w;
    CHECK(ipvg_conv_prepare(&ex, &bad) == IPVG_E_ARGUMENT, "shape of b");
    bad = conv, bad.stride = 3;
    CHECK(ipvg_conv_prepare(&ex, &bad) == IPVG_E_ARGUMENT, "stride 3");
    bad = conv, bad.w.dtype = IPVG_I32;
    CHECK(ipvg_conv_prepare(&ex, &bad) == IPVG_E_TYPE, "integer weights");
    CHECK(ipvg_conv_prepare(&ex, &conv) == IPVG_OK, "%s", ctx.error);
    CHECK(ipvg_conv_run(&ex, &(ipvg_conv_out){.y = &wrong}, in, 1, &conv) == IPVG_E_ARGUMENT, "shape of y");
    CHECK(ipvg_conv_run(&ex, &(ipvg_conv_out){.y = &y}, in, 2, &conv) == IPVG_E_ARGUMENT,
          "more frames than the kernel");
    CHECK(ipvg_conv_run(&ex, &(ipvg_conv_out){.y = &y}, narrow, 1, &conv) == IPVG_E_ARGUMENT, "channels of x");
    CHECK(ipvg_conv_run(&ex, &(ipvg_conv_out){.y = NULL}, in, 1, &conv) == IPVG_E_ARGUMENT, "no output");
    CHECK(ipvg_conv_run(&ex, &(ipvg_conv_out){.z = &y}, in, 1, &conv) == IPVG_E_ARGUMENT, "z without gamma");
    free(x.data), free(w.data), free(b.data), free(y.data), free(wrong.data);
}

static void all(int rounds)
{
    CHECK(ipvg_backend_cpu(&ctx, &be, IPVG_F32) == IPVG_OK, "%s", ctx.error);
    ex = (ipvg_exec){.ctx = &ctx, .be = be, .arena = &arena};
    for (int i = 0; i < rounds; i++) {
        ctx.threads = pick(1, 3);
        int h = pick(1, 19), w = pick(1, 19), cin = pick(1, 60), cout = pick(1, 60);
        test_conv("3x3x3", (setting){3, 3, 3, 1, 1, 1, 1, 1, false}, h, w, cin, cout, false);
        test_conv("3x3, upsampled", (setting){1, 3, 3, 1, 1, 1, 1, 1, true}, h, w, cin, cout, true);
        test_conv("3x1x1", (setting){3, 1, 1, 1, 0, 0, 0, 0, false}, h, w, cin, cout, false);
        test_conv("1x1x1", (setting){1, 1, 1, 1, 0, 0, 0, 0, false}, h, w, cin, cout, false);
        test_conv("3x3 stride 2", (setting){1, 3, 3, 2, 0, 1, 0, 1, false}, h + 2, w + 2, cin, cout, true);
        int kh = pick(1, 4), kw = pick(1, 4);
        test_conv("any",
                  (setting){pick(1, 3), kh, kw, pick(1, 2), pick(0, kh - 1), pick(0, kh - 1), pick(0, kw - 1),
                            pick(0, kw - 1), pick(0, 1)},
                  h + 3, w + 3, cin, cout, false);
        test_norm(pick(1, 40), pick(1, 400));
    }
    ctx.threads = 2;
    test_conv("3x3x3", (setting){3, 3, 3, 1, 1, 1, 1, 1, false}, 21, 45, 96, 97, false); /* several blocks and panels */
    test_conv("3x3x3", (setting){3, 3, 3, 1, 1, 1, 1, 1, false}, 5, 6, 400, 33, false);  /* rows beyond one cut */
    test_conv("3x3 stride 2", (setting){1, 3, 3, 2, 0, 1, 0, 1, false}, 20, 30, 96, 40, true);
    test_threads();
    test_refusals();
    ipvg_arena_free(&arena);
    ipvg_backend_free(&be);
}

int main(int argc, char **argv)
{
    static const char *const isa[] = {"baseline", "v3", "v4"};
    int rounds = argc > 1 ? atoi(argv[1]) : 25;
    ipvg_context_init(&ctx, 2);
    for (int i = 0; i < 3; i++) {
        setenv("IPVG_ISA", isa[i], 1);
        all(rounds);
    }
    for (int i = 0; table[i].name; i++)
        printf("%-28s worst %.2e  bound %.0e\n", table[i].name, table[i].worst, table[i].bound);
    printf(failures ? "%d failures\n" : "ok\n", failures);
    return failures != 0;
}

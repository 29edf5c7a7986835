/* Every operation of the CPU backend against a plain double-precision reference: random odd sizes, strided rows,
 * poisoned outputs, exact scratch (an arena of just the planned size), for each instruction set this machine has.
 *
 *     make sanitize        builds it with -fsanitize=address,undefined and runs it
 *
 * Bounds are relative L2 against double precision: 1e-5 for products of matrices and attention, 1e-6 for the rest (what
 * float32 rounding allows at these sizes; measured errors are printed). */
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

/* ---- numbers ---- */

static double uniform(void)
{
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return (double)(seed >> 40) / 8388608.0 - 1.0;
}

static int pick(int low, int high) { return low + (int)((uniform() * 0.5 + 0.5) * (high - low + 1)); }

/* rows x cols with `pad` unused numbers between rows, which hold NaN: whoever reads them is found out, and so is whoever
 * writes them (check_padding). */
static ipvg_tensor matrix(int64_t rows, int64_t cols, int64_t pad, bool fill)
{
    float *p = malloc((size_t)(rows * (cols + pad) + 1) * sizeof(float));
    ipvg_tensor t = ipvg_tensor_of(p, IPVG_F32, rows, cols);
    t.ld = cols + pad;
    for (int64_t i = 0; i < rows * t.ld; i++) p[i] = fill && i % t.ld < cols ? (float)uniform() : NAN;
    return t;
}

static ipvg_tensor vector(int64_t n)
{
    ipvg_tensor t = matrix(1, n, 0, true);
    return ipvg_tensor_of(t.data, IPVG_F32, n);
}

static float at(const ipvg_tensor *t, int64_t r, int64_t c) { return ((float *)t->data)[r * t->ld + c]; }
static float item(const ipvg_tensor *t, int64_t i) { return ((float *)t->data)[i]; }

/* The same numbers in 16 bits; the float copy is rounded with them, so that both hold equal values. */
static ipvg_tensor halved(ipvg_tensor *t, ipvg_dtype dtype)
{
    ipvg_tensor h = ipvg_tensor_make(malloc((size_t)ipvg_tensor_count(t) * 2), dtype, t->ndim, t->shape);
    if (ipvg_cast(&ex, &h, t) != IPVG_OK || ipvg_cast(&ex, t, &h) != IPVG_OK) failures++, puts(ctx.error);
    return h;
}

/* ---- running and comparing ---- */

/* Runs an operation twice, planned and computed in an arena of exactly that size. */
#define RUN(call)                                                                      \
    do {                                                                               \
        ipvg_arena_free(&arena);                                                       \
        ipvg_arena_plan(&arena);                                                       \
        if ((call) != IPVG_OK) failures++, printf("plan: %s: %s\n", #call, ctx.error); \
        if (arena.used) failures++, printf("scratch is not given back: %s\n", #call);  \
        ipvg_arena_reserve(&ctx, &be->memory, &arena, arena.peak);                     \
        if ((call) != IPVG_OK) failures++, printf("%s: %s\n", #call, ctx.error);       \
    } while (0)

typedef struct error {
    double difference, norm; /* squared */
} error;

static void add(error *e, double got, double want)
{
    e->difference += (got - want) * (got - want);
    e->norm += want * want;
}

static struct {
    const char *name;
    double worst, bound;
} table[32];

static void judge(const char *name, error e, double bound)
{
    double relative = sqrt(e.difference / (e.norm > 0 ? e.norm : 1));
    int i = 0;
    while (table[i].name && strcmp(table[i].name, name)) i++;
    table[i].name = name;
    table[i].bound = bound;
    if (!(relative <= table[i].worst)) table[i].worst = relative;
    if (!(relative <= bound)) failures++, printf("FAIL %s: relative L2 %.3g, bound %.3g\n", name, relative, bound);
}

static void check_padding(const char *name, const ipvg_tensor *t)
{
    for (int64_t r = 0; r + 1 < t->shape[0]; r++)
        for (int64_t c = t->shape[1]; c < t->ld; c++)
            if (!isnan(at(t, r, c))) failures++, printf("FAIL %s: wrote between rows\n", name);
}

/* ---- references ---- */

static double gelu(double x) { return 0.5 * x * (1 + tanh(sqrt(2 / M_PI) * (x + 0.044715 * x * x * x))); }
static double silu(double x) { return x / (1 + exp(-x)); }

static void test_linear(int l, int k, int n)
{
    ipvg_dtype dtype = (ipvg_dtype)pick(IPVG_F32, IPVG_F16);
    ipvg_act act = (ipvg_act)pick(0, 2);
    bool biased = pick(0, 3) > 0;
    ipvg_tensor x = matrix(l, k, pick(0, 3), true), w = matrix(n, k, 0, true), b = vector(n),
                y = matrix(l, n, pick(0, 5), false);
    ipvg_tensor wh = dtype == IPVG_F32 ? w : halved(&w, dtype), bh = dtype == IPVG_F32 ? b : halved(&b, dtype);
    error e = {0, 0};
    RUN(ipvg_linear(&ex, &y, &x, &wh, biased ? &bh : NULL, act));
    for (int r = 0; r < l; r++)
        for (int c = 0; c < n; c++) {
            double s = biased ? item(&b, c) : 0;
            for (int i = 0; i < k; i++) s += (double)at(&x, r, i) * at(&w, c, i);
            add(&e, at(&y, r, c), act == IPVG_ACT_GELU_TANH ? gelu(s) : act == IPVG_ACT_SILU ? silu(s) : s);
        }
    judge(dtype == IPVG_F32 ? "linear" : "linear, 16-bit weights", e, 1e-5);
    check_padding("linear", &y);
    if (wh.data != w.data) free(wh.data), free(bh.data);
    free(x.data), free(w.data), free(b.data), free(y.data);
}

/* The reference reads the last key `repeat` times. */
static void test_attention(int heads, int d, int lq, int lk, bool biased, int repeat)
{
    const int keys = lk + repeat - 1;
    float scale = biased ? 1.f : 1.f / sqrtf((float)d),
          loud = pick(0, 1) ? 1.f : 30.f; /* loud: softmax nearly one-hot */
    ipvg_tensor q = matrix(lq, heads * d, pick(0, 4), true), k = matrix(lk, heads * d, pick(0, 4), true),
                v = matrix(lk, heads * d, pick(0, 4), true), o = matrix(lq, heads * d, pick(0, 4), false),
                bias = matrix(heads, lq + lk - 1, 0, true);
    double *p = malloc((size_t)keys * sizeof(double));
    error e = {0, 0};
    for (int64_t i = 0; i < lq * q.ld; i++) ((float *)q.data)[i] *= loud;
    RUN(ipvg_attention(&ex, &o, &q, &k, &v, heads, scale, biased ? &bias : NULL, repeat));
    for (int h = 0; h < heads; h++)
        for (int r = 0; r < lq; r++) {
            double high = -INFINITY, sum = 0;
            for (int c = 0; c < keys; c++) {
                const int key = c < lk ? c : lk - 1;
                p[c] = 0;
                for (int i = 0; i < d; i++) p[c] += (double)at(&q, r, h * d + i) * at(&k, key, h * d + i);
                p[c] = p[c] * scale + (biased ? at(&bias, h, key - r + lq - 1) : 0);
                high = fmax(high, p[c]);
            }
            for (int c = 0; c < keys; c++) sum += p[c] = exp(p[c] - high);
            for (int i = 0; i < d; i++) {
                double s = 0;
                for (int c = 0; c < keys; c++) s += p[c] * at(&v, c < lk ? c : lk - 1, h * d + i);
                add(&e, at(&o, r, h * d + i), s / sum);
            }
        }
    judge(repeat > 1 ? "attention, a key repeated" : biased ? "attention, relative bias" : "attention", e, 1e-5);
    check_padding("attention", &o);
    free(p), free(q.data), free(k.data), free(v.data), free(o.data), free(bias.data);
}

static void test_norms(int l, int heads, int d)
{
    int64_t dim = heads * d;
    bool in_place = pick(0, 1);
    float offset = pick(0, 1) ? 0.f : 50.f; /* a mean far from 0 */
    ipvg_tensor x = matrix(l, dim, pick(0, 3), true), w = vector(dim), b = vector(dim), rope = matrix(l, d, 0, true);
    ipvg_tensor turns = ipvg_tensor_of(rope.data, IPVG_F32, l, d / 2, 2), y = matrix(l, dim, x.ld - dim, false);
    ipvg_dtype dtype = (ipvg_dtype)pick(IPVG_F32, IPVG_F16);
    ipvg_tensor wh = dtype == IPVG_F32 ? w : halved(&w, dtype);
    size_t bytes = (size_t)(l * x.ld) * sizeof(float);
    float *copy = malloc(bytes), eps = 1e-6f;
    error ln = {0, 0}, mod = {0, 0}, rms = {0, 0}, rot = {0, 0};
    for (int64_t i = 0; i < l * x.ld; i++) ((float *)x.data)[i] += offset;
    memcpy(copy, x.data, bytes);
    ipvg_tensor z = x;
    z.data = copy;
    for (int what = 0; what < 4; what++) {
        ipvg_tensor *out = in_place ? &x : &y;
        memcpy(x.data, copy, bytes);
        if (!in_place) memset(y.data, 0xff, bytes);
        if (what == 0) RUN(ipvg_layer_norm(&ex, out, &x, &wh, &b, eps));
        if (what == 1) RUN(ipvg_norm_modulate(&ex, out, &x, &b, &wh, eps));
        if (what == 2) RUN(ipvg_rms_norm(&ex, out, &x, &wh, eps));
        if (what == 3) RUN(ipvg_rms_norm_rope(&ex, out, &x, &wh, &turns, heads, eps));
        for (int r = 0; r < l; r++) {
            double mean = 0, var = 0, squares = 0;
            for (int c = 0; c < dim; c++) mean += at(&z, r, c), squares += (double)at(&z, r, c) * at(&z, r, c);
            mean /= (double)dim;
            for (int c = 0; c < dim; c++) var += (at(&z, r, c) - mean) * (at(&z, r, c) - mean);
            double inv = 1 / sqrt(var / (double)dim + eps), root = 1 / sqrt(squares / (double)dim + eps);
            for (int c = 0; c < dim; c++) {
                double n = (at(&z, r, c) - mean) * inv, m = (double)at(&z, r, c) * root * item(&w, c);
                if (what == 0) add(&ln, at(out, r, c), n * item(&w, c) + item(&b, c));
                if (what == 1) add(&mod, at(out, r, c), n * (1 + (double)item(&w, c)) + item(&b, c));
                if (what == 2) add(&rms, at(out, r, c), m);
                if (what == 3) {
                    int j = c % d, other = c ^ 1;
                    double cosine = at(&rope, r, j & ~1), sine = at(&rope, r, j | 1);
                    double o = (double)at(&z, r, other) * root * item(&w, other);
                    add(&rot, at(out, r, c), j % 2 ? m * cosine + o * sine : m * cosine - o * sine);
                }
            }
        }
        check_padding("norm", out);
    }
    judge("layer_norm", ln, 1e-6), judge("norm_modulate", mod, 1e-6);
    judge("rms_norm", rms, 1e-6), judge("rms_norm_rope", rot, 1e-6);
    if (wh.data != w.data) free(wh.data);
    free(copy), free(x.data), free(y.data), free(w.data), free(b.data), free(rope.data);
}

static void test_elementwise(int l, int d)
{
    ipvg_tensor x = matrix(l, d, pick(0, 3), true), y = matrix(l, d, pick(0, 3), true), g = vector(d),
                z = matrix(l, d, 0, false), a = matrix(l, d, 0, true), b = matrix(l, d, 0, true),
                c = matrix(l, d, 0, true);
    bool gated = pick(0, 1);
    error gate = {0, 0}, glu = {0, 0}, sil = {0, 0}, mix = {0, 0};
    for (int64_t i = 0; i < (int64_t)l * d; i++)
        ((float *)a.data)[i] *= (float)pick(1, 40); /* far tails of tanh, exp */
    float *before = malloc((size_t)(l * x.ld) * sizeof(float));
    memcpy(before, x.data, (size_t)(l * x.ld) * sizeof(float));
    RUN(ipvg_gate_residual(&ex, &x, &y, gated ? &g : NULL));
    for (int r = 0; r < l; r++)
        for (int i = 0; i < d; i++)
            add(&gate, at(&x, r, i), before[r * x.ld + i] + (double)at(&y, r, i) * (gated ? item(&g, i) : 1.f));
    check_padding("gate_residual", &x);
    free(before);
    RUN(ipvg_gated_gelu(&ex, &z, &a, &b));
    for (int64_t i = 0; i < (int64_t)l * d; i++) add(&glu, item(&z, i), gelu(item(&a, i)) * item(&b, i));
    RUN(ipvg_silu(&ex, &z, &a));
    for (int64_t i = 0; i < (int64_t)l * d; i++) add(&sil, item(&z, i), silu(item(&a, i)));
    /* A weight of 0 drops its term, even a NaN; the result may be one of the terms. */
    ((float *)b.data)[0] = NAN;
    const ipvg_tensor *terms[3] = {&a, &b, &c};
    float weights[3] = {-1.5f, 0.f, 0.25f};
    double first = -1.5 * item(&a, 0) + 0.25 * item(&c, 0);
    RUN(ipvg_combine(&ex, &c, 3, terms, weights));
    (void)first; /* planning computed nothing, so c changed once */
    add(&mix, item(&c, 0), first);
    judge("gate_residual", gate, 1e-6), judge("gated_gelu", glu, 1e-6), judge("silu", sil, 1e-6);
    judge("combine", mix, 1e-6);
    free(x.data), free(y.data), free(z.data), free(g.data), free(a.data), free(b.data), free(c.data);
}

static void test_layout(int c, int f, int h2, int w2)
{
    int h = 2 * h2, w = 2 * w2, l = f * h2 * w2;
    ipvg_tensor flat = vector((int64_t)c * f * h * w), tokens = matrix(l, 4 * c, 0, false),
                back = vector((int64_t)c * f * h * w);
    ipvg_tensor latent = ipvg_tensor_of(flat.data, IPVG_F32, c, f, h, w),
                out = ipvg_tensor_of(back.data, IPVG_F32, c, f, h, w);
    int wrong = 0;
    RUN(ipvg_patchify(&ex, &tokens, &latent));
    for (int t = 0; t < l; t++)
        for (int ch = 0; ch < c; ch++)
            for (int i = 0; i < 4; i++) {
                int frame = t / (h2 * w2), y = t / w2 % h2 * 2 + i / 2, x = t % w2 * 2 + i % 2;
                wrong += at(&tokens, t, ch * 4 + i) != item(&flat, ((ch * (int64_t)f + frame) * h + y) * w + x);
            }
    RUN(ipvg_unpatchify(&ex, &out, &tokens));
    for (int t = 0; t < l; t++)
        for (int i = 0; i < 4; i++)
            for (int ch = 0; ch < c; ch++) {
                int frame = t / (h2 * w2), y = t / w2 % h2 * 2 + i / 2, x = t % w2 * 2 + i % 2;
                wrong += at(&tokens, t, i * c + ch) != item(&back, ((ch * (int64_t)f + frame) * h + y) * w + x);
            }
    if (wrong) failures++, printf("FAIL patchify: %d numbers in the wrong place\n", wrong);
    free(flat.data), free(back.data), free(tokens.data);
}

static void test_gather(int rows, int d, int l)
{
    ipvg_tensor tab = matrix(rows, d, 0, true), y = matrix(l, d, pick(0, 2), false);
    ipvg_tensor h = halved(&tab, pick(0, 1) ? IPVG_BF16 : IPVG_F16);
    int32_t *id = malloc((size_t)l * sizeof(*id));
    ipvg_tensor ids = ipvg_tensor_of(id, IPVG_I32, l);
    for (int i = 0; i < l; i++) id[i] = pick(0, rows - 1);
    RUN(ipvg_gather_rows(&ex, &y, &h, &ids));
    for (int r = 0; r < l; r++)
        if (memcmp((float *)y.data + r * y.ld, (float *)tab.data + id[r] * (int64_t)d, (size_t)d * sizeof(float)))
            failures++, printf("FAIL gather_rows: row %d\n", r);
    id[l - 1] = pick(0, 1) ? rows : -1;
    if (ipvg_gather_rows(&ex, &y, &h, &ids) != IPVG_E_ARGUMENT)
        failures++, puts("FAIL gather_rows: id outside the table");
    free(tab.data), free(y.data), free(h.data), free(id);
}

/* Every float16, and what a cast makes of values between them. */
static void test_halves(void)
{
    for (uint32_t h = 0; h < 65536; h++) {
        uint16_t bits = (uint16_t)h, again;
        float f;
        int e = (int)(h >> 10 & 31), m = (int)(h & 1023);
        double want = (e ? ldexp(1024 + m, e - 25) : ldexp(m, -24)) * (h >> 15 ? -1 : 1);
        ipvg_tensor half = ipvg_tensor_of(&bits, IPVG_F16, 1), wide = ipvg_tensor_of(&f, IPVG_F32, 1),
                    back = ipvg_tensor_of(&again, IPVG_F16, 1);
        ipvg_cast(&ex, &wide, &half);
        ipvg_cast(&ex, &back, &wide);
        bool ok = e < 31 ? f == (float)want && again == bits
                  : m    ? isnan(f)
                         : isinf(f) && (f < 0) == (h >> 15) && again == bits;
        if (!ok) failures++, printf("FAIL float16 %04x -> %g -> %04x\n", h, f, again);
    }
    const float tie[] = {1.f + 0x1p-11f, 1.f + 3 * 0x1p-11f, 65519.f,       65520.f,
                         0x1p-25f,       0x1.8p-25f,         1.f + 0x1p-8f, 1.f + 3 * 0x1p-8f};
    const uint16_t f16[] = {0x3c00, 0x3c02, 0x7bff, 0x7c00, 0x0000, 0x0001}, bf16[] = {0x3f80, 0x3f82};
    for (int i = 0; i < 8; i++) {
        float f = tie[i];
        uint16_t out;
        ipvg_tensor wide = ipvg_tensor_of(&f, IPVG_F32, 1),
                    half = ipvg_tensor_of(&out, i < 6 ? IPVG_F16 : IPVG_BF16, 1);
        ipvg_cast(&ex, &half, &wide);
        if (out != (i < 6 ? f16[i] : bf16[i - 6])) failures++, printf("FAIL rounding of %a: %04x\n", f, out);
    }
}

static void test_refusals(void)
{
    ipvg_tensor x = matrix(3, 4, 0, true), y = matrix(3, 5, 0, true), w = matrix(5, 4, 0, true), odd = w;
    odd.dtype = IPVG_F64;
    if (ipvg_linear(&ex, &x, &x, &w, NULL, IPVG_ACT_NONE) != IPVG_E_ARGUMENT)
        failures++, puts("FAIL linear: shape of y");
    if (ipvg_linear(&ex, &y, &x, &odd, NULL, IPVG_ACT_NONE) != IPVG_E_TYPE)
        failures++, puts("FAIL linear: float64 weight");
    if (ipvg_attention(&ex, &x, &x, &x, &x, 3, 1.f, NULL, 1) != IPVG_E_ARGUMENT)
        failures++, puts("FAIL attention: heads");
    if (ipvg_attention(&ex, &x, &x, &x, &x, 2, 1.f, NULL, 0) != IPVG_E_ARGUMENT)
        failures++, puts("FAIL attention: a last key that counts not at all");
    free(x.data), free(y.data), free(w.data);
}

static void all(int rounds)
{
    ipvg_backend_cpu(&ctx, &be, IPVG_F32);
    ex = (ipvg_exec){.ctx = &ctx, .be = be, .arena = &arena};
    for (int i = 0; i < rounds; i++) {
        ctx.threads = pick(1, 3);
        test_linear(pick(1, 70), pick(1, 300), pick(1, 90));
        test_attention(pick(1, 3), pick(1, 70), pick(1, 150), pick(1, 300), pick(0, 1), pick(0, 1) ? 1 : pick(2, 500));
        test_norms(pick(1, 9), pick(1, 5), 2 * pick(1, 70));
        test_elementwise(pick(1, 20), pick(1, 70));
        test_layout(pick(1, 7), pick(1, 3), pick(1, 4), pick(1, 5));
        test_gather(pick(1, 40), pick(1, 40), pick(1, 20));
    }
    ctx.threads = 2;
    test_linear(130, 700, 1100); /* beyond one panel and one block of every loop */
    test_linear(1, 1536, 400);
    test_attention(2, 128, 100, 700, false, 1);
    test_attention(2, 128, 100, 512, false, 9); /* the last key ends a block */
    test_attention(2, 128, 100, 513, false, 300);
    test_attention(4, 64, 200, 200, true, 1);
    test_norms(3, 4, 128);
    test_halves();
    test_refusals();
    ipvg_arena_free(&arena);
    ipvg_backend_free(&be);
}

int main(int argc, char **argv)
{
    static const char *const isa[] = {"baseline", "v3", "v4"};
    int rounds = argc > 1 ? atoi(argv[1]) : 40;
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

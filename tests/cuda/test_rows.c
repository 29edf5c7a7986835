/* Kernels over rows against the CPU backend: random sizes, dtypes, strides and alignments; poisoned results.
 *
 *     make kernels       on the emulated device, and compiles the kernels with nvcc if it is here
 *
 * Bounds: float32 relative L2 against the CPU backend, 1e-6 (both are float32). 16 bits: one rounding at the end. */
#include "matrix.h"

#define BOUND 1e-6

typedef struct scales {
    float *device, *host;
    int64_t rows;
} scales;

static scales make_scales(int64_t rows)
{
    scales s = {.host = malloc((size_t)rows * sizeof(float)), .rows = rows};
    GPU(cudaMalloc((void **)&s.device, (size_t)rows * sizeof(float)));
    return s;
}

static const float *get_scales(scales *s)
{
    GPU(cudaMemcpy(s->host, s->device, (size_t)s->rows * sizeof(float), cudaMemcpyDeviceToHost));
    return s->host;
}

static void free_scales(scales *s)
{
    GPU(cudaFree(s->device));
    free(s->host);
}

/* ==== norms ==== */

static void test_layer_norm(int64_t rows, int64_t d)
{
    const bool wide = pick(0, 1), modulate = pick(0, 1), in_place = pick(0, 3) == 0;
    const float eps = 1e-6f;
    matrix x = random_matrix(rows, d, wide, any_dtype(), 1, pick(0, 1) ? 0 : 50), mul = vector(d, wide),
           add = vector(d, wide), y = result(rows, d, wide, any_dtype()), q = result(rows, d, wide, IPVG_K_E4M3);
    ipvg_tensor want = like(&x), m = column(&mul), a = column(&add);
    scales s = make_scales(rows);
    if (modulate)
        CPU(ipvg_norm_modulate(&ex, &want, &x.t, &a, &m, eps));
    else
        CPU(ipvg_layer_norm(&ex, &want, &x.t, &m, &a, eps));
    const float plus = modulate ? 1.f : 0.f;
    GPU(ipvg_k_layer_norm(q.a, s.device, x.a, mul.a, add.a, plus, eps, rows, d, NULL));
    judge_e4m3("layer_norm, quantised", &q, get_scales(&s), want.data);
    GPU(ipvg_k_layer_norm(in_place ? x.a : y.a, NULL, x.a, mul.a, add.a, plus, eps, rows, d, NULL));
    judge(modulate ? "norm_modulate" : "layer_norm", in_place ? &x : &y, want.data, BOUND);
    free(want.data), free_scales(&s);
    release(&x), release(&mul), release(&add), release(&y), release(&q);
}

/* The fused operation makes the very bytes of the two it replaces, where all of them go the same way: aligned, they do. */
static void test_gate_residual_norm(int64_t rows, int64_t d)
{
    const bool wide = pick(0, 1), gated = pick(0, 1);
    matrix x = random_matrix(rows, d, wide, any_dtype(), 3, 0), u = random_matrix(rows, d, wide, any_dtype(), 1, 0);
    matrix gate = vector(d, wide), mul = vector(d, wide), add = vector(d, wide);
    matrix y = result(rows, d, wide, any_dtype()), q = result(rows, d, wide, IPVG_K_E4M3);
    const ipvg_k_array g = gated ? gate.a : (ipvg_k_array){0};
    ipvg_tensor sum = like(&x), want = like(&x), m = column(&mul), a = column(&add), of_gate = column(&gate);
    float *alone, *before = malloc((size_t)(rows * d) * sizeof(float));
    char *x_bits = malloc(x.bytes);
    scales s = make_scales(rows);
    memcpy(x_bits, x.bits, x.bytes);
    memcpy(sum.data, x.v, (size_t)(rows * d) * sizeof(float));
    CPU(ipvg_gate_residual(&ex, &sum, &u.t, gated ? &of_gate : NULL)); /* planning first, so it is added once */

    GPU(ipvg_k_gate_residual(x.a, u.a, g, rows, d, NULL));
    judge("gate_residual", &x, sum.data, BOUND);
    memcpy(before, x.v, (size_t)(rows * d) * sizeof(float));
    CPU(ipvg_norm_modulate(&ex, &want, &x.t, &a, &m, 1e-6f));
    GPU(ipvg_k_layer_norm(y.a, NULL, x.a, mul.a, add.a, 1.f, 1e-6f, rows, d, NULL));
    judge("norm_modulate", &y, want.data, BOUND);
    alone = malloc((size_t)(rows * d) * sizeof(float));
    memcpy(alone, y.v, (size_t)(rows * d) * sizeof(float));

    memcpy(x.bits, x_bits, x.bytes), upload(&x);
    GPU(ipvg_k_gate_residual_norm(y.a, NULL, x.a, u.a, g, mul.a, add.a, 1.f, 1e-6f, rows, d, NULL));
    judge_equal("gate_residual_norm: x", &x, before);
    if (wide) judge_equal("gate_residual_norm: y", &y, alone);
    judge("gate_residual_norm", &y, want.data, BOUND);
    memcpy(x.bits, x_bits, x.bytes), upload(&x);
    GPU(ipvg_k_gate_residual_norm(q.a, s.device, x.a, u.a, g, mul.a, add.a, 1.f, 1e-6f, rows, d, NULL));
    judge_e4m3("gate_residual_norm, quantised", &q, get_scales(&s), want.data);
    free(x_bits), free(before), free(alone), free(sum.data), free(want.data), free_scales(&s);
    release(&x), release(&u), release(&gate), release(&mul), release(&add), release(&y), release(&q);
}

static void test_rms_norm(int64_t rows, int heads, int64_t half)
{
    const int64_t head = 2 * half, d = heads * head;
    const bool wide = pick(0, 1), in_place = pick(0, 1);
    matrix x = random_matrix(rows, d, wide, any_dtype(), 2, 0.5), w = vector(d, wide);
    matrix rope = make(rows, head, head, IPVG_K_F32, wide, true, 1, 0), y = result(rows, d, wide, any_dtype());
    ipvg_tensor want = like(&x), f = column(&w), turns = ipvg_tensor_of(rope.v, IPVG_F32, rows, half, 2);
    CPU(ipvg_rms_norm(&ex, &want, &x.t, &f, 1e-6f));
    GPU(ipvg_k_rms_norm(y.a, x.a, w.a, 1e-6f, rows, d, NULL));
    judge("rms_norm", &y, want.data, BOUND);
    CPU(ipvg_rms_norm_rope(&ex, &want, &x.t, &f, &turns, heads, 1e-6f));
    GPU(ipvg_k_rms_norm_rope(in_place ? x.a : y.a, x.a, w.a, rope.a.data, heads, 1e-6f, rows, d, NULL));
    judge("rms_norm_rope", in_place ? &x : &y, want.data, BOUND);
    free(want.data), release(&x), release(&w), release(&rope), release(&y);
}

static void test_quantise(int64_t rows, int64_t d)
{
    const bool wide = pick(0, 1);
    matrix x = random_matrix(rows, d, wide, any_dtype(), pick(1, 9), 0), q = result(rows, d, wide, IPVG_K_E4M3);
    scales s = make_scales(rows);
    for (int64_t c = 0; c < d; c++) x.v[c] = 0; /* a row of zeros has scale 1 */
    put(&x);
    GPU(ipvg_k_quantise_rows(q.a, s.device, x.a, rows, d, NULL));
    judge_e4m3("quantise_rows", &q, get_scales(&s), x.v);
    free_scales(&s), release(&x), release(&q);
}

/* Numbers whose E4M3 is known: ties go to even, the greatest number becomes 448, what is not finite stays so. */
static void test_quantise_known(ipvg_k_dtype dtype, int64_t d)
{
    enum { ROWS = 6, COLUMNS = 8 };
    static const float given[ROWS][COLUMNS] = {{448, 17, 19, -17, 0x1p-10f, 0x3p-10f, -0x1p-10f, 1.0625f},
                                               {-7.3125f, 0, 0, 0, 0, 0, 0, 0},
                                               {0, -0.f, 0, 0, 0, 0, 0, 0},
                                               {1, NAN, -2, 448, 0, 0, 0, 0},
                                               {3, -INFINITY, 0, 0, 0, 0, 0, 0},
                                               {1e-36f, -1e-36f, 0, 0, 0, 0, 0, 0}};
    static const float value[ROWS][COLUMNS] = {
        {448, 16, 20, -16, 0, 0x1p-8f, -0.f, 1}, {-448, 0, 0, 0, 0, 0, 0, 0}, {0, -0.f, 0, 0, 0, 0, 0, 0},
        {1, NAN, -2, 448, 0, 0, 0, 0},           {0, NAN, 0, 0, 0, 0, 0, 0},  {0, -0.f, 0, 0, 0, 0, 0, 0}};
    static const float scale[ROWS] = {1, 7.3125f / 448, 1, 1, INFINITY, 1};
    matrix x = make(ROWS, d, d, dtype, true, true, 1, 0), q = make(ROWS, d, d, IPVG_K_E4M3, true, false, 0, 0);
    float *want = calloc((size_t)(ROWS * d), sizeof *want);
    scales s = make_scales(ROWS);
    for (int64_t r = 0; r < ROWS; r++)
        for (int64_t c = 0; c < d; c++) {
            x.v[r * d + c] = c < COLUMNS ? given[r][c] : 0;
            want[r * d + c] = c < COLUMNS ? value[r][c] : 0;
        }
    if (dtype == IPVG_K_F16) /* its least is 6e-8: another row of zeros */
        memset(x.v + 5 * d, 0, (size_t)d * sizeof *want), want[5 * d + 1] = 0;
    put(&x);
    GPU(ipvg_k_quantise_rows(q.a, s.device, x.a, ROWS, d, NULL));
    judge_equal("quantise_rows, known", &q, want);
    for (int r = 0; r < ROWS; r++)
        if (get_scales(&s)[r] != scale[r]) FAIL("row %d has scale %g, expected %g", r, s.host[r], scale[r]);
    free(want), free_scales(&s), release(&x), release(&q);
}

static void test_nag(int64_t rows, int64_t d)
{
    const bool wide = pick(0, 1), in_place = pick(0, 1);
    const float scale = (float)(3 + 2 * uniform()), tau = (float)(2 + uniform()),
                alpha = (float)(0.5 + 0.4 * uniform());
    matrix p = random_matrix(rows, d, wide, any_dtype(), 1, 0), n = random_matrix(rows, d, wide, any_dtype(), 1, 0);
    matrix y = result(rows, d, wide, any_dtype());
    ipvg_tensor want = like(&p);
    CPU(ipvg_nag(&ex, &want, &p.t, &n.t, scale, tau, alpha));
    GPU(ipvg_k_nag(in_place ? p.a : y.a, p.a, n.a, scale, tau, alpha, rows, d, NULL));
    judge("nag", in_place ? &p : &y, want.data, BOUND);
    free(want.data), release(&p), release(&n), release(&y);
}

/* ==== softmax ==== */

static void test_softmax(int heads, int64_t lq, int64_t lk)
{
    const bool wide = pick(0, 1), biased = pick(0, 1);
    const int64_t first = pick(0, 9), all = first + lq + pick(0, 5), rows = heads * lq;
    const int64_t repeat = pick(0, 1) ? 1 : pick(2, 500);
    const double scale = biased ? 1 : 0.125;
    matrix s = random_matrix(rows, lk, wide, any_dtype(), pick(0, 1) ? 1 : 30, 0),
           p = result(rows, lk, wide, any_dtype());
    matrix bias = make(heads, all + lk - 1, all + lk + pick(0, 3), IPVG_K_F32, false, true, 3, 0);
    ipvg_tensor want = like(&s);
    for (int64_t r = 0; r < rows; r++) {
        const float *b = bias.v + r / lq * bias.d + all - 1 - (first + r % lq);
        double most = -INFINITY, sum = 0;
        for (int64_t c = 0; c < lk; c++) most = fmax(most, s.v[r * lk + c] * scale + (biased ? b[c] : 0));
        for (int turn = 0; turn < 2; turn++)
            for (int64_t c = 0; c < lk; c++) {
                const double share = exp(s.v[r * lk + c] * scale + (biased ? b[c] : 0) - most);
                const double all_of = c + 1 == lk ? (double)repeat * share : share;
                if (turn)
                    ((float *)want.data)[r * lk + c] = (float)(all_of / sum);
                else
                    sum += all_of;
            }
    }
    GPU(ipvg_k_softmax(p.a, s.a, biased ? bias.a : (ipvg_k_array){0}, (float)scale, heads, lq, lk, first, all, repeat,
                       NULL));
    /* Scores of 30 in float32 are off by 2e-6, which is what their exponential is then off by. */
    judge("softmax", &p, want.data, 4e-6);
    free(want.data), release(&s), release(&p), release(&bias);
}

/* ==== after a convolution ==== */

static void test_conv_finish(int64_t pixels, int64_t c)
{
    const bool wide = pick(0, 1), biased = pick(0, 1), added = pick(0, 1), act = pick(0, 1);
    const int outputs = pick(1, 3), aliased = pick(0, 2); /* y is x, or the residual */
    const ipvg_k_array none = {0};
    matrix x = random_matrix(pixels, c, wide, any_dtype(), 1, 0), r = random_matrix(pixels, c, wide, any_dtype(), 1, 0);
    matrix bias = make(1, c, c, any_dtype(), wide, true, 1, 0), gamma = vector(c, wide);
    matrix y = result(pixels, c, wide, any_dtype()), z = result(pixels, c, wide, any_dtype());
    ipvg_tensor v = like(&x), want = like(&x), g = column(&gamma);
    float *sum = v.data;
    for (int64_t i = 0; i < pixels * c; i++) {
        sum[i] = x.v[i] + (biased ? bias.v[i % c] : 0.f);
        if (added) sum[i] += r.v[i];
    }
    CPU(ipvg_norm_silu(&ex, &want, &v, &g, act));
    matrix *to = aliased == 1 ? &x : aliased == 2 && added ? &r : &y;
    GPU(ipvg_k_conv_finish(outputs & 1 ? to->a : none, outputs & 2 ? z.a : none, x.a, biased ? bias.a : none,
                           added ? r.a : none, gamma.a, act, pixels, c, NULL));
    if (outputs & 1) judge("conv_finish: y", to, sum, BOUND);
    if (outputs & 2) judge("conv_finish: z", &z, want.data, BOUND);
    free(v.data), free(want.data);
    release(&x), release(&r), release(&bias), release(&gamma), release(&y), release(&z);
}

static void test_refusals(void)
{
    matrix x = random_matrix(2, 8, true, IPVG_K_F32, 1, 0), w = vector(8, true);
    ipvg_k_array byte = x.a;
    byte.dtype = IPVG_K_E4M3;
    const int wrong = cudaErrorInvalidValue;
    if (ipvg_k_layer_norm(byte, NULL, x.a, w.a, w.a, 1, 1e-6f, 2, 8, NULL) != wrong) FAIL("E4M3 without scales");
    if (ipvg_k_layer_norm(x.a, NULL, byte, w.a, w.a, 1, 1e-6f, 2, 8, NULL) != wrong) FAIL("E4M3 as input");
    if (ipvg_k_rms_norm(x.a, x.a, w.a, 1e-6f, -1, 8, NULL) != wrong) FAIL("a negative number of rows");
    if (ipvg_k_rms_norm_rope(x.a, x.a, w.a, x.a.data, 3, 1e-6f, 2, 8, NULL) != wrong) FAIL("heads that do not divide");
    if (ipvg_k_rms_norm(x.a, x.a, w.a, 1e-6f, 0, 8, NULL)) FAIL("no rows are no error");
    release(&x), release(&w);
}

int main(int argc, char **argv)
{
    ipvg_backend *be;
    const int rounds = argc > 1 ? atoi(argv[1]) : 40;
    ipvg_context_init(&ctx, 2);
    if (ipvg_backend_cpu(&ctx, &be, IPVG_F32) != IPVG_OK) return 1;
    ex = (ipvg_exec){.ctx = &ctx, .be = be, .arena = &arena};
    for (int i = 0; i < rounds; i++) {
        test_layer_norm(pick(1, 12), width(600));
        test_gate_residual_norm(pick(1, 12), width(600));
        test_rms_norm(pick(1, 9), pick(1, 5), pick(0, 1) ? pick(1, 40) : 4 * pick(1, 10));
        test_quantise(pick(2, 9), width(600));
        test_nag(pick(1, 9), width(300));
        test_softmax(pick(1, 3), pick(1, 9), width(700));
        test_conv_finish(pick(1, 60), pick(0, 1) ? width(100) : 96 << pick(0, 2));
    }
    /* The models' widths; then rows longer than what the registers of a team hold, both ways. */
    static const int64_t of_models[] = {256, 1536, 5120, 8960, 13824, 8200, 8193, 16416};
    for (int i = 0; i < 8; i++) {
        test_layer_norm(3, of_models[i]);
        test_gate_residual_norm(2, of_models[i]);
        test_quantise(2, of_models[i]);
    }
    test_rms_norm(3, 12, 64), test_rms_norm(2, 40, 64), test_rms_norm(1, 2, 4200), test_rms_norm(1, 1, 4099);
    test_softmax(1, 2, 16424), test_softmax(1, 2, 8201), test_softmax(2, 3, 512);
    for (usual = IPVG_K_BF16; usual <= IPVG_K_F16; usual++)
        for (int i = 0; i < rounds / 4 + 8; i++) { /* about half of these go 8 at a time */
            test_layer_norm(pick(1, 9), of_models[i % 8]);
            test_gate_residual_norm(pick(1, 9), of_models[i % 8]);
            test_rms_norm(pick(1, 9), i % 4 ? 12 : 40, 64);
            test_nag(pick(1, 9), of_models[i % 8]);
            test_quantise(pick(2, 9), of_models[i % 8]);
            test_conv_finish(pick(1, 60), 96 << pick(0, 2));
        }
    usual = IPVG_K_F32;
    for (int dtype = IPVG_K_F32; dtype <= IPVG_K_F16; dtype++)
        for (int64_t d = 8; d <= 26; d += 9)
            test_quantise_known((ipvg_k_dtype)dtype, d), test_quantise_known((ipvg_k_dtype)dtype, d - d % 8);
    test_refusals();
    for (int i = 0; table[i].name; i++)
        printf("%-24s %4d times  float32: %.1e of %.0e   16 bits: %.1e beyond half a unit\n", table[i].name,
               table[i].times, table[i].worst, table[i].bound, table[i].excess);
    ipvg_arena_free(&arena);
    ipvg_backend_free(&be);
    printf(failures ? "%d failures\n" : "ok\n", failures);
    return failures != 0;
}

/* Our own attention (kernels/attention.cu) against float64: random sizes, strides, biases, repeats of the last key; poisoned
 * results. On the emulated device this checks the layouts of tiles too.
 *
 * Bound: relative L2 5e-3 (of 16-bit attention); the exponentials and the result are each rounded to bfloat16. */
#include "matrix.h"

#define BOUND 5e-3

/* On the emulated device a product of tiles takes microseconds. */
static matrix inputs(int64_t rows, int64_t d, double scale, double middle)
{
    return make(rows, d, d + 8 * pick(0, 3), IPVG_K_BF16, true, true, scale, middle);
}

/* One row of the oracle. */
static void attend(double *o, const matrix *q, const matrix *k, const matrix *v, const matrix *bias, double scale,
                   int64_t head, int64_t d, int64_t row, int64_t repeat)
{
    double *p = malloc((size_t)k->rows * sizeof *p), most = -INFINITY, sum = 0;
    for (int64_t i = 0; i < k->rows; i++) {
        p[i] = 0;
        for (int64_t c = 0; c < d; c++)
            p[i] += (double)q->v[row * q->d + head * d + c] * (double)k->v[i * k->d + head * d + c];
        p[i] *= scale;
        if (bias) p[i] += (double)bias->v[head * bias->d + i - row + q->rows - 1];
        most = fmax(most, p[i]);
    }
    memset(o, 0, (size_t)d * sizeof *o);
    for (int64_t i = 0; i < k->rows; i++) {
        p[i] = exp(p[i] - most) * (i == k->rows - 1 ? (double)repeat : 1);
        sum += p[i];
        for (int64_t c = 0; c < d; c++) o[c] += p[i] * (double)v->v[i * v->d + head * d + c];
    }
    for (int64_t c = 0; c < d; c++) o[c] /= sum;
    free(p);
}

static double worst;

/* `wide`: of the scores; at 30 the running maximum moves often. */
static void test(int heads, int64_t d, int64_t lq, int64_t lk, bool biased, int64_t repeat, double wide)
{
    const int64_t width = heads * d;
    const double scale = wide / sqrt((double)d);
    matrix q = inputs(lq, width, 1, 0), k = inputs(lk, width, 1.7, 0), v = inputs(lk, width, 1, 0.3);
    matrix o = make(lq, width, width + 8 * pick(0, 2), IPVG_K_BF16, true, false, 0, 0);
    matrix bias = make(heads, lq + lk - 1, lq + lk - 1 + pick(0, 3), IPVG_K_F32, false, true, 3, 0);
    double *want = malloc((size_t)d * sizeof *want), off = 0, norm = 0;
    GPU(ipvg_k_attention(o.a, q.a, k.a, v.a, biased ? bias.a : (ipvg_k_array){0}, (float)scale, heads, d, lq, lk,
                         repeat, NULL));
    get("attention", &o);
    for (int64_t head = 0; head < heads; head++)
        for (int64_t row = 0; row < lq; row++) {
            attend(want, &q, &k, &v, biased ? &bias : NULL, scale, head, d, row, repeat);
            for (int64_t c = 0; c < d; c++) {
                off += pow((double)o.v[row * width + head * d + c] - want[c], 2);
                norm += want[c] * want[c];
            }
        }
    const double error = sqrt(off / norm);
    if (!(error <= worst)) worst = error;
    if (!(error <= BOUND))
        FAIL("attention, %d heads of %ld, %ld x %ld, bias %d, repeat %ld, scores %g: relative L2 %.3g", heads, (long)d,
             (long)lq, (long)lk, biased, (long)repeat, wide, error);
    free(want), release(&q), release(&k), release(&v), release(&o), release(&bias);
}

static void test_refusals(void)
{
    matrix x = inputs(4, 128, 1, 0), bias = make(2, 7, 7, IPVG_K_F32, false, true, 1, 0);
    const int wrong = cudaErrorInvalidValue;
    const ipvg_k_array none = {0};
    ipvg_k_array odd = x.a, wide = x.a;
    odd.data = (char *)odd.data + 2, wide.dtype = IPVG_K_F32;
    if (ipvg_k_attention(x.a, odd, x.a, x.a, none, 1, 2, 64, 4, 4, 1, NULL) != wrong) FAIL("rows that are not aligned");
    if (ipvg_k_attention(wide, x.a, x.a, x.a, none, 1, 2, 64, 4, 4, 1, NULL) != wrong) FAIL("a float32 result");
    if (ipvg_k_attention(x.a, x.a, x.a, x.a, none, 1, 4, 32, 4, 4, 1, NULL) != wrong) FAIL("heads of 32");
    if (ipvg_k_attention(x.a, x.a, x.a, x.a, bias.a, 1, 1, 128, 4, 4, 1, NULL) != wrong) FAIL("a bias, heads of 128");
    if (ipvg_k_attention(x.a, x.a, x.a, x.a, none, 0, 2, 64, 4, 4, 1, NULL) != wrong) FAIL("no scale");
    if (ipvg_k_attention(x.a, x.a, x.a, x.a, none, 1, 2, 64, 4, 4, 0, NULL) != wrong)
        FAIL("a last key that counts 0 times");
    if (ipvg_k_attention(x.a, x.a, x.a, x.a, none, 1, 2, 64, 0, 4, 1, NULL)) FAIL("no queries are no error");
    release(&x), release(&bias);
}

int main(int argc, char **argv)
{
    ipvg_backend *be;
    const int rounds = argc > 1 ? atoi(argv[1]) : 12;
    ipvg_context_init(&ctx, 2);
    if (ipvg_backend_cpu(&ctx, &be, IPVG_F32) != IPVG_OK) return 1;
    ex = (ipvg_exec){.ctx = &ctx, .be = be, .arena = &arena};
    for (int i = 0; i < rounds; i++) {
        const double wide = i % 3 ? 1 : 30;
        test(pick(1, 3), 64, pick(1, 80), pick(1, 200), pick(0, 1), pick(0, 1) ? 1 : pick(2, 500), wide);
        test(pick(1, 2), 128, pick(1, 80), pick(1, 150), false, pick(0, 1) ? 1 : pick(2, 500), wide);
    }
    for (int64_t lk = 15; lk <= 17; lk++) test(1, 64, 33, lk, true, 1, 1), test(1, 128, 31, lk + 48, false, 7, 1);
    test(1, 64, 1, 1, true, 1, 1), test(1, 128, 2, 1, false, 9, 1);
    test(1, 128, 40, 513, false, 40, 1);  /* more keys than a block has room for */
    test(1, 128, 600, 385, false, 2, 30); /* and several rounds of queries */
    for (int64_t lk = 63; lk <= 257; lk += 32) test(2, 128, pick(60, 140), lk + lk % 2, false, pick(1, 9), 1);
    test(1, 128, 530, 201, false, 312, 1), test(1, 128, 300, 256, false, 1, 30); /* several strips a warp group */
    test(2, 64, 70, 128, false, 1, 1), test(1, 64, 520, 70, true, 1, 1);
    test_refusals();
    printf("attention: worst relative L2 %.1e of %.0e\n", worst, BOUND);
    printf(failures ? "%d failures\n" : "ok\n", failures);
    ipvg_arena_free(&arena);
    ipvg_backend_free(&be);
    return failures != 0;
}

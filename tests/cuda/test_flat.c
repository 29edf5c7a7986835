/* Kernels over single numbers, sums and places against the CPU backend and the plain definition; see test_rows.c. */
#include "../../csrc/base/random.h"
#include "matrix.h"

#define BOUND 1e-6

/* ==== element by element ==== */

static double gelu(double x) { return 0.5 * x * (1 + tanh(sqrt(2 / M_PI) * (x + 0.044715 * x * x * x))); }
static double silu(double x) { return x / (1 + exp(-x)); }

static void test_elements(int64_t rows, int64_t d)
{
    const bool wide = pick(0, 1), biased = pick(0, 1), packed = pick(0, 1);
    const ipvg_k_act act = (ipvg_k_act)pick(0, 2);
    const int64_t pad = packed ? d : d + (wide ? 8 : 3);
    matrix a = make(rows, d, pad, any_dtype(), wide, true, 8, 0), b = make(rows, d, pad, any_dtype(), wide, true, 2, 0);
    matrix y = make(rows, d, pad, any_dtype(), wide, false, 0, 0), bias = vector(d, wide);
    ipvg_tensor want = like(&a);
    float *w = want.data;
    for (int64_t i = 0; i < rows * d; i++) {
        const double v = a.v[i] + (biased ? bias.v[i % d] : 0.f);
        w[i] = (float)(act == IPVG_K_ACT_NONE ? v : act == IPVG_K_ACT_GELU_TANH ? gelu(v) : silu(v));
    }
    GPU(ipvg_k_bias_act(y.a, a.a, biased ? bias.a : (ipvg_k_array){0}, act, rows, d, NULL));
    judge("bias_act", &y, w, BOUND);
    GPU(ipvg_k_cast(y.a, a.a, rows, d, NULL));
    judge("cast", &y, a.v, 0);
    CPU(ipvg_gated_gelu(&ex, &want, &a.t, &b.t));
    GPU(ipvg_k_gated_gelu(y.a, a.a, b.a, rows, d, NULL));
    judge("gated_gelu", &y, w, BOUND);
    GPU(ipvg_k_gated_gelu(b.a, a.a, b.a, rows, d, NULL)); /* in place */
    judge("gated_gelu", &b, w, BOUND);
    free(w), release(&a), release(&b), release(&y), release(&bias);
}

static void test_combine(int64_t count)
{
    const int n = pick(1, 16), same = pick(0, n - 1);
    const bool wide = pick(0, 1), in_place = pick(0, 1);
    matrix x[16], y = result(1, count, wide, any_dtype());
    ipvg_k_array arrays[16];
    const ipvg_tensor *terms[16];
    float weight[16];
    ipvg_tensor want;
    for (int i = 0; i < n; i++) {
        x[i] = random_matrix(1, count, wide, pick(0, 1) ? IPVG_K_F32 : any_dtype(), 1, 0);
        arrays[i] = x[i].a;
        terms[i] = &x[i].t;
        weight[i] = pick(0, 4) ? (float)uniform() : 0.f;
        if (weight[i] == 0.f && pick(0, 1)) x[i].v[0] = NAN, put(&x[i]); /* its term is dropped */
    }
    want = like(&y);
    CPU(ipvg_combine(&ex, &want, n, terms, weight));
    matrix *to = in_place ? &x[same] : &y;
    GPU(ipvg_k_combine(to->a, n, arrays, weight, count, NULL));
    if (to->a.dtype == IPVG_K_F32)
        judge_equal("combine", to, want.data); /* the CPU's bits */
    else
        judge("combine", to, want.data, 0);
    free(want.data), release(&y);
    for (int i = 0; i < n; i++) release(&x[i]);
}

/* Sums that read what the one before wrote, in place too: the bytes of one after the other. */
static void test_sums(int64_t count)
{
    enum { SUMS = 4, PLACES = 5, TERMS = 3 };
    const bool wide = pick(0, 1);
    const ipvg_k_dtype dtype = any_dtype();
    matrix x[PLACES], y[PLACES];
    ipvg_k_array arrays[SUMS][TERMS];
    ipvg_k_sum sums[SUMS];
    float weight[SUMS][TERMS];
    for (int i = 0; i < PLACES; i++) {
        x[i] = random_matrix(1, count, wide, dtype, 1, 0), y[i] = result(1, count, wide, dtype);
        memcpy(y[i].v, x[i].v, (size_t)count * sizeof(float));
        put(&y[i]);
    }
    for (int k = 0, last = 0, to; k < SUMS; k++, last = to) {
        to = pick(0, PLACES - 1);
        ipvg_k_array again[TERMS];
        for (int i = 0; i < TERMS; i++) {
            const int from = i ? pick(0, PLACES - 1) : last;
            arrays[k][i] = x[from].a, again[i] = y[from].a;
            weight[k][i] = (float)uniform();
        }
        sums[k] = (ipvg_k_sum){x[to].a, TERMS, arrays[k], weight[k]};
        GPU(ipvg_k_combine(y[to].a, TERMS, again, weight[k], count, NULL));
    }
    GPU(ipvg_k_sums(sums, SUMS, count, NULL));
    for (int i = 0; i < PLACES; i++) {
        get("combine", &y[i]);
        judge_equal("sums", &x[i], y[i].v);
        release(&x[i]), release(&y[i]);
    }
}

static void test_multiply(int64_t count)
{
    const bool wide = pick(0, 1);
    matrix x = random_matrix(1, count, wide, any_dtype(), 1, 0), f = random_matrix(1, count, wide, any_dtype(), 1, 0);
    matrix y = result(1, count, wide, any_dtype());
    ipvg_tensor want = like(&x);
    CPU(ipvg_multiply(&ex, &want, &x.t, &f.t));
    GPU(ipvg_k_multiply(y.a, x.a, f.a, count, NULL));
    judge("multiply", &y, want.data, 0);
    free(want.data), release(&x), release(&f), release(&y);
}

/* Every 16-bit number, and what lies between them. */
static void test_halves(void)
{
    for (ipvg_k_dtype dtype = IPVG_K_BF16; dtype <= IPVG_K_F16; dtype++) {
        matrix h = make(1, 65536, 65536, dtype, true, false, 0, 0),
               wide = make(1, 65536, 65536, IPVG_K_F32, true, false, 0, 0);
        float *want = malloc(65536 * sizeof *want);
        for (int i = 0; i < 65536; i++) ((uint16_t *)(h.bits + h.first))[i] = (uint16_t)i;
        upload(&h);
        convert(want, IPVG_K_F32, h.bits + h.first, dtype, 65536);
        GPU(ipvg_k_cast(wide.a, h.a, 1, 65536, NULL));
        judge_equal("cast from 16 bits", &wide, want);
        for (int i = 0; i < 65536; i++) { /* ties, their neighbours, subnormals, overflow */
            uint32_t bits;
            memcpy(&bits, &want[i], 4);
            bits += dtype == IPVG_K_BF16 ? 0x7fffu + (uint32_t)pick(0, 2) : 0xfffu + (uint32_t)pick(0, 2);
            memcpy(&wide.v[i], &bits, 4);
        }
        put(&wide);
        uint16_t *narrow = malloc(65536 * sizeof *narrow);
        convert(narrow, dtype, wide.v, IPVG_K_F32, 65536);
        convert(want, IPVG_K_F32, narrow, dtype, 65536);
        GPU(ipvg_k_cast(h.a, wide.a, 1, 65536, NULL));
        judge_equal("cast to 16 bits", &h, want);
        free(narrow), free(want), release(&h), release(&wide);
    }
}

/* ==== guidance ==== */

static void test_gram(int64_t count)
{
    const int n = pick(1, 4);
    matrix x[4];
    ipvg_k_array arrays[4];
    const ipvg_tensor *terms[4];
    double want[16], sums[4], got[IPVG_K_GRAM_RESULT], again[IPVG_K_GRAM_RESULT];
    void *scratch, *out;
    for (int i = 0; i < n; i++) {
        x[i] = random_matrix(1, count, false, any_dtype(), 1, 0.3);
        arrays[i] = x[i].a;
        terms[i] = &x[i].t;
    }
    CPU(ipvg_gram(&ex, want, sums, n, terms));
    GPU(cudaMalloc(&scratch, ipvg_k_gram_scratch(count)));
    GPU(cudaMalloc(&out, sizeof got));
    for (int turn = 0; turn < 2; turn++) {
        GPU(ipvg_k_gram(out, scratch, n, arrays, count, NULL));
        GPU(cudaMemcpy(turn ? again : got, out, sizeof got, cudaMemcpyDeviceToHost));
    }
    if (memcmp(got, again, sizeof got)) FAIL("gram: two runs differ");
    for (int a = 0; a < n; a++) {
        if (!(fabs(got[16 + a] - sums[a]) <= 1e-12 * (double)count)) FAIL("gram: sum %d", a);
        for (int b = a; b < n; b++)
            if (!(fabs(got[4 * a + b] - want[a * n + b]) <= 1e-12 * (double)count)) FAIL("gram: product %d %d", a, b);
    }
    GPU(cudaFree(scratch));
    GPU(cudaFree(out));
    for (int i = 0; i < n; i++) release(&x[i]);
}

static void test_blur(int64_t frames, int64_t rows, int64_t cols, int64_t d)
{
    static const float sigmas[] = {0.3f, 1.f, 2.7f, 10.f, 1e4f, INFINITY};
    const bool wide = pick(0, 1), in_place = pick(0, 1);
    const float sigma = sigmas[pick(0, 5)];
    matrix x = random_matrix(frames * rows * cols, d, wide, any_dtype(), 1, 0),
           y = result(frames * rows * cols, d, wide, any_dtype());
    ipvg_tensor want = like(&x);
    void *scratch;
    CPU(ipvg_blur_tokens(&ex, &want, &x.t, rows, cols, sigma));
    GPU(cudaMalloc(&scratch, ipvg_k_blur_scratch(frames, rows, cols, d)));
    GPU(ipvg_k_blur_tokens(in_place ? x.a : y.a, x.a, scratch, sigma, frames, rows, cols, d, NULL));
    /* A wide blur leaves little of the numbers, and the CPU adds its weights in float32. */
    judge("blur_tokens", in_place ? &x : &y, want.data, 2e-6);
    GPU(cudaFree(scratch));
    free(want.data), release(&x), release(&y);
}

/* ==== places ==== */

static void test_gather(int64_t table_rows, int64_t d, int64_t count)
{
    const bool wide = pick(0, 1);
    matrix tab = random_matrix(table_rows, d, wide, any_dtype(), 1, 0), y = result(count, d, wide, IPVG_K_F32);
    int32_t *id = malloc((size_t)count * sizeof *id), bad[2] = {7, 7};
    float *want = malloc((size_t)(count * d) * sizeof *want);
    void *ids, *first;
    for (int64_t i = 0; i < count; i++) id[i] = pick(0, (int)table_rows - 1);
    GPU(cudaMalloc(&ids, (size_t)count * sizeof *id));
    GPU(cudaMalloc(&first, sizeof *bad));
    for (int turn = 0; turn < 2; turn++) { /* the second time with one or two ids outside */
        GPU(cudaMemcpy(ids, id, (size_t)count * sizeof *id, cudaMemcpyHostToDevice));
        GPU(ipvg_k_gather_rows(y.a, first, tab.a, ids, table_rows, count, d, NULL));
        GPU(cudaMemcpy(&bad[turn], first, sizeof *bad, cudaMemcpyDeviceToHost));
        int32_t expected = -1;
        for (int64_t i = 0; i < count; i++) {
            const bool inside = id[i] >= 0 && id[i] < table_rows;
            if (!inside && expected < 0) expected = (int32_t)i;
            for (int64_t c = 0; c < d; c++) want[i * d + c] = inside ? tab.v[id[i] * d + c] : NAN;
        }
        if (bad[turn] != expected) FAIL("gather_rows: first bad place %d, expected %d", bad[turn], expected);
        judge_equal("gather_rows", &y, want);
        id[pick(0, (int)count - 1)] = (int32_t)table_rows, id[pick(0, (int)count - 1)] = -1;
    }
    GPU(cudaFree(ids));
    GPU(cudaFree(first));
    free(id), free(want), release(&tab), release(&y);
}

static void test_patches(int c, int f, int h2, int w2)
{
    const int64_t count = (int64_t)c * f * h2 * w2 * 4, tokens = (int64_t)f * h2 * w2;
    matrix latent = make(1, count, count, any_dtype(), false, true, 1, 0), t = result(tokens, 4 * c, false, IPVG_K_F32);
    matrix back = make(1, count, count, IPVG_K_F32, false, false, 0, 0),
           in = random_matrix(tokens, 4 * c, false, any_dtype(), 1, 0);
    ipvg_tensor whole = ipvg_tensor_of(latent.v, IPVG_F32, c, f, 2 * h2, 2 * w2), want = like(&t);
    CPU(ipvg_patchify(&ex, &want, &whole));
    GPU(ipvg_k_patchify(t.a, latent.a, c, f, 2 * h2, 2 * w2, NULL));
    judge_equal("patchify", &t, want.data);
    ipvg_tensor out = ipvg_tensor_of(want.data, IPVG_F32, c, f, 2 * h2, 2 * w2);
    CPU(ipvg_unpatchify(&ex, &out, &in.t));
    GPU(ipvg_k_unpatchify(back.a, in.a, c, f, 2 * h2, 2 * w2, NULL));
    judge_equal("unpatchify", &back, want.data);
    free(want.data), release(&latent), release(&t), release(&back), release(&in);
}

static void test_planes(int64_t pixels, int64_t c)
{
    const bool scaled = pick(0, 1);
    const ipvg_k_array none = {0};
    matrix planes = random_matrix(c, pixels, false, any_dtype(), 1, 0),
           y = make(pixels, c + 2, c + 2, IPVG_K_F32, false, false, 0, 0);
    matrix p = make(1, c, c, IPVG_K_F32, false, true, 1, 3), q = make(1, c, c, IPVG_K_F32, false, true, 1, 0);
    matrix back = result(c, pixels, false, IPVG_K_F32), in = random_matrix(pixels, c, false, any_dtype(), 1, 0);
    float *want = calloc((size_t)(pixels * (c + 2)), sizeof *want);
    for (int64_t i = 0; i < pixels; i++)
        for (int64_t k = 0; k < c; k++) {
            float v = planes.v[k * pixels + i];
            if (scaled) v = v / p.v[k], v = v + q.v[k];
            want[i * (c + 2) + k] = v;
        }
    GPU(ipvg_k_planes_to_pixels(y.a, planes.a, scaled ? p.a : none, scaled ? q.a : none, pixels, c, NULL));
    judge_equal("planes_to_pixels", &y, want);
    for (int64_t i = 0; i < pixels; i++)
        for (int64_t k = 0; k < c; k++) {
            float v = in.v[i * c + k];
            if (scaled) v = v - q.v[k], v = v * p.v[k];
            want[k * pixels + i] = v;
        }
    GPU(ipvg_k_pixels_to_planes(back.a, in.a, scaled ? q.a : none, scaled ? p.a : none, pixels, c, NULL));
    judge_equal("pixels_to_planes", &back, want);
    free(want), release(&planes), release(&y), release(&p), release(&q), release(&back), release(&in);
}

static void test_frames(int64_t frames, int64_t h, int64_t w, int64_t c)
{
    const bool wide = pick(0, 1);
    const int space = pick(1, 2), time = pick(1, 2), edge[4] = {pick(0, 2), pick(0, 2), pick(0, 2), pick(0, 2)};
    const int64_t high = h * space, across = w * space, tall = edge[0] + h + edge[1], broad = edge[2] + w + edge[3];
    const ipvg_k_dtype dtype = any_dtype();
    matrix x = random_matrix(frames * h * w, c * time, wide, dtype, 1, 0);
    matrix y = result(frames * time * high * across, c, wide, dtype),
           padded = result(frames * tall * broad, c * time, wide, dtype);
    float *want = malloc((size_t)(y.rows * y.d + padded.rows * padded.d) * sizeof *want);
    for (int64_t i = 0; i < y.rows; i++) {
        const int64_t px = i % across, py = i / across % high, f = i / (across * high);
        memcpy(want + i * c, x.v + ((f / time * h + py / space) * w + px / space) * c * time + f % time * c,
               (size_t)c * sizeof *want);
    }
    GPU(ipvg_k_upsample(y.a, x.a, space, time, frames, h, w, c, NULL));
    judge_equal("upsample", &y, want);
    for (int64_t i = 0; i < padded.rows; i++) {
        const int64_t px = i % broad - edge[2], py = i / broad % tall - edge[0], f = i / (broad * tall);
        const bool inside = px >= 0 && px < w && py >= 0 && py < h;
        for (int64_t k = 0; k < c * time; k++)
            want[i * c * time + k] = inside ? x.v[((f * h + py) * w + px) * c * time + k] : 0.f;
    }
    GPU(ipvg_k_pad(padded.a, x.a, edge[0], edge[1], edge[2], edge[3], frames, h, w, c * time, NULL));
    judge_equal("pad", &padded, want);
    free(want), release(&x), release(&y), release(&padded);
}

static void test_conv_weights(int64_t cout, int64_t cin, int64_t kt, int64_t plane)
{
    const int64_t out = cout + pick(0, 5), in = cin + pick(0, 5), rotate = pick(0, 3);
    matrix x = make(cout, cin * kt * plane, cin * kt * plane, any_dtype(), false, true, 1, 0);
    matrix y = make(out, kt * plane * in, kt * plane * in, IPVG_K_F32, false, false, 0, 0);
    float *want = calloc((size_t)(out * kt * plane * in), sizeof *want);
    for (int64_t o = 0; o < cout; o++)
        for (int64_t i = 0; i < cin; i++)
            for (int64_t t = 0; t < kt; t++)
                for (int64_t k = 0; k < plane; k++)
                    want[((o * kt + t) * plane + k) * in + i] =
                        x.v[((o * cin + i) * kt + (t + rotate) % kt) * plane + k];
    GPU(ipvg_k_conv_weights(y.a, x.a, cout, cin, kt, plane, rotate, out, in, NULL));
    judge_equal("conv_weights", &y, want);
    free(want), release(&x), release(&y);
}

/* ==== noise: the CPU's bits ==== */

static void test_normals(int64_t count, uint64_t first)
{
    const uint64_t key = seed * 0x9E3779B97F4A7C15u;
    matrix y = make(1, count, count, IPVG_K_F32, false, false, 0, 0);
    float *want = malloc((size_t)count * sizeof *want);
    const uint32_t stream = (uint32_t)pick(0, 9);
    ipvg_normals(want, key, stream, first, count);
    GPU(ipvg_k_normals(y.a.data, key, stream, first, count, NULL));
    judge_equal("normals", &y, want);
    free(want), release(&y);
}

int main(int argc, char **argv)
{
    ipvg_backend *be;
    const int rounds = argc > 1 ? atoi(argv[1]) : 30;
    ipvg_context_init(&ctx, 2);
    if (ipvg_backend_cpu(&ctx, &be, IPVG_F32) != IPVG_OK) return 1;
    ex = (ipvg_exec){.ctx = &ctx, .be = be, .arena = &arena};
    for (int i = 0; i < rounds; i++) {
        test_elements(pick(1, 12), width(300));
        test_combine(width(900));
        test_sums(width(900));
        test_multiply(width(900));
        test_gram(pick(1, 9000));
        test_blur(pick(1, 2), pick(1, 6), pick(1, 7), width(20));
        test_gather(pick(1, 30), width(60), pick(1, 50));
        test_patches(pick(1, 5), pick(1, 3), pick(1, 4), pick(1, 5));
        test_planes(pick(1, 400), pick(1, 17));
        test_frames(pick(1, 3), pick(1, 5), pick(1, 7), width(24));
        test_conv_weights(pick(1, 9), pick(1, 9), pick(1, 3), pick(0, 1) ? 9 : 1);
        test_normals(pick(1, 700), (uint64_t)pick(0, 100));
    }
    test_elements(3, 9000); /* several lines of a flat array; a row of several rounds */
    test_combine(8192 + 8), test_gram(200001), test_normals(100000, 0), test_normals(5, 0x1fffffffffu);
    test_halves();
    for (int i = 0; table[i].name; i++)
        printf("%-24s %4d times  float32: %.1e of %.0e   16 bits: %.1e beyond half a unit\n", table[i].name,
               table[i].times, table[i].worst, table[i].bound, table[i].excess);
    ipvg_arena_free(&arena);
    ipvg_backend_free(&be);
    printf(failures ? "%d failures\n" : "ok\n", failures);
    return failures != 0;
}

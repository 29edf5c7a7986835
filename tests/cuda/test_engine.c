/* The CUDA engine's products, attention, convolutions and copies against the CPU backend: random sizes, strides, paddings,
 * poisoned results, exact scratch. On the emulated device this checks everything around cuBLASLt and cuDNN; on a GPU, these.
 *
 * Bounds are relative L2 against float32 arithmetic on the same (rounded) inputs. */
#include <math.h>

#include "engine.h"
#include "numbers.h"

static ipvg_arena cpu_arena;
static ipvg_exec cpu;
static double middle; /* around which numbers are drawn */

/* The same numbers twice: float32 on the host, and on the device in `dtype`, with NaN between its rows. */
typedef struct both {
    ipvg_tensor host, device;
    size_t bytes; /* of the device's memory */
} both;

static void convert(void *y, ipvg_dtype to, const void *x, ipvg_dtype from, int64_t n)
{
    ipvg_tensor a = ipvg_tensor_of(y, to, n), b = ipvg_tensor_of((void *)(uintptr_t)x, from, n);
    if (ipvg_cast(&cpu, &a, &b) != IPVG_OK) FAIL("%s", ctx.error);
}

static ipvg_tensor bytes_of(const both *b) { return ipvg_tensor_of(b->device.data, IPVG_U8, (int64_t)b->bytes); }

static both make(ipvg_dtype dtype, int ndim, const int64_t *shape, int64_t pad, double scale)
{
    both b = {ipvg_tensor_make(NULL, IPVG_F32, ndim, shape), ipvg_tensor_make(NULL, dtype, ndim, shape), 0};
    const int64_t rows = ipvg_tensor_rows(&b.host), d = shape[ndim - 1];
    const size_t size = ipvg_dtype_size(dtype);
    float *v = b.host.data = malloc(ipvg_tensor_bytes(&b.host));
    b.device.ld = d + pad;
    b.bytes = (size_t)(rows * b.device.ld) * size;
    char *bits = malloc(b.bytes);
    memset(bits, 0xff, b.bytes);
    for (int64_t i = 0; i < rows * d; i++) v[i] = scale != 0 ? (float)(scale * uniform() + middle) : NAN;
    for (int64_t r = 0; scale != 0 && r < rows; r++) {
        convert(bits + (size_t)(r * b.device.ld) * size, dtype, v + r * d, IPVG_F32, d);
        convert(v + r * d, IPVG_F32, bits + (size_t)(r * b.device.ld) * size, dtype, d);
    }
    if (gpu.be->memory.alloc(&gpu.be->memory, &ctx, &b.device.data, b.bytes) != IPVG_OK) FAIL("%s", ctx.error), exit(1);
    ipvg_tensor raw = bytes_of(&b);
    if (gpu.be->copy_in(&gpu, &raw, bits) != IPVG_OK) FAIL("%s", ctx.error);
    free(bits);
    return b;
}
#define MAKE(dtype, pad, scale, ...)                                                                                \
    make((dtype), (int)(sizeof((int64_t[]){__VA_ARGS__}) / sizeof(int64_t)), (const int64_t[]){__VA_ARGS__}, (pad), \
         (scale))

static void release(both *b)
{
    gpu.be->memory.free(&gpu.be->memory, b->device.data);
    free(b->host.data);
}

static struct {
    const char *name;
    double worst, bound;
    int times;
} table[32];

static void judge_error(const char *name, double error, double bound, const ipvg_tensor *of)
{
    char shape[96];
    int i = 0;
    while (table[i].name && strcmp(table[i].name, name)) i++;
    if (!(error <= table[i].worst) || !table[i].name) table[i].worst = error, table[i].bound = bound;
    table[i].name = name, table[i].times++;
    if (!(error <= bound))
        FAIL("%s %s: relative L2 %.3g, bound %.3g", name, ipvg_shape_text(shape, sizeof shape, of->ndim, of->shape),
             error, bound);
}

/* The device's numbers against the host's, which the oracle made. */
static void judge(const char *name, const both *b, double bound)
{
    const int64_t rows = ipvg_tensor_rows(&b->host), d = b->host.shape[b->host.ndim - 1];
    const size_t size = ipvg_dtype_size(b->device.dtype);
    const float *want = b->host.data;
    char *bits = malloc(b->bytes);
    float *row = malloc((size_t)d * sizeof *row);
    double off = 0, norm = 0;
    ipvg_tensor raw = bytes_of(b);
    if (gpu.be->copy_out(&gpu, bits, &raw) != IPVG_OK) FAIL("%s: %s", name, ctx.error), exit(1);
    for (int64_t r = 0; r < rows; r++) {
        const char *from = bits + (size_t)(r * b->device.ld) * size;
        convert(row, IPVG_F32, from, b->device.dtype, d);
        for (int64_t c = 0; c < d; c++) {
            off += pow((double)row[c] - want[r * d + c], 2);
            norm += (double)want[r * d + c] * want[r * d + c];
        }
        for (size_t k = (size_t)d * size; k < (size_t)b->device.ld * size; k++)
            if ((unsigned char)from[k] != 0xff) {
                FAIL("%s: wrote between the rows of its result", name);
                r = rows;
                break;
            }
    }
    judge_error(name, sqrt(off / (norm > 0 ? norm : 1)), bound, &b->host);
    free(bits), free(row);
}

static bool is_half(void) { return gpu.be->activation != IPVG_F32; }

/* Of bfloat16, whose rounding is at most 2^-8 of a number, and 1.5e-3 of many. */
static double rounding(const both *y) { return ipvg_tensor_count(&y->host) < 1000 ? 0x1p-8 : 2e-3; }

/* ==== products ==== */

static void test_linear(int64_t rows, int64_t n, int64_t k)
{
    const ipvg_dtype dtype = gpu.be->activation;
    const ipvg_act act = (ipvg_act)pick(0, 2);
    const int64_t pad = pick(0, 1) * 8;
    const bool biased = pick(0, 1);
    both x = MAKE(dtype, pad, 1, rows, k), w = MAKE(dtype, 0, 1, n, k), b = MAKE(dtype, 0, 1, n);
    both y = MAKE(dtype, pick(0, 1) * 8, 0, rows, n);
    RUN(cpu, ipvg_linear(&cpu, &y.host, &x.host, &w.host, biased ? &b.host : NULL, act));
    RUN(gpu, ipvg_linear(&gpu, &y.device, &x.device, &w.device, biased ? &b.device : NULL, act));
    /* SiLU follows in a kernel, and cuBLASLt rounds before its GELU too: one rounding more. */
    judge(act == IPVG_ACT_SILU        ? "linear, SiLU"
          : act == IPVG_ACT_GELU_TANH ? "linear, GELU"
                                      : "linear",
          &y,
          !is_half()             ? 1e-5
          : act == IPVG_ACT_NONE ? rounding(&y)
                                 : 2.2 * rounding(&y));
    release(&x), release(&w), release(&b), release(&y);
}

/* ==== 8-bit products ==== */

/* The device's E4M3 numbers as float32: what the oracle multiplies too. */
static void read_e4m3(both *q)
{
    const int64_t rows = q->host.shape[0], d = q->host.shape[1];
    unsigned char *bits = malloc((size_t)(rows * d));
    float *scale = malloc((size_t)rows * sizeof *scale), *v = q->host.data;
    ipvg_tensor scales = ipvg_tensor_of(q->device.scale, IPVG_F32, rows);
    if (gpu.be->copy_out(&gpu, bits, &q->device) != IPVG_OK || gpu.be->copy_out(&gpu, scale, &scales) != IPVG_OK)
        FAIL("%s", ctx.error), exit(1);
    for (int64_t i = 0; i < rows * d; i++) v[i] = number_e4m3(bits[i]) * scale[i / d];
    free(bits), free(scale);
}

/* x, which `like` is on the device, quantised there. */
static both make_e4m3(const both *like)
{
    const int64_t *shape = like->host.shape, bytes[] = {shape[0] * (shape[1] + 4)};
    both q = make(IPVG_U8, 1, bytes, 0, 0);
    free(q.host.data);
    q.host = ipvg_tensor_make(malloc(ipvg_tensor_bytes(&like->host)), IPVG_F32, 2, shape);
    q.device = ipvg_tensor_make(q.device.data, IPVG_E4M3, 2, shape);
    q.device.scale = (float *)((char *)q.device.data + shape[0] * shape[1]);
    RUN(gpu, ipvg_cast(&gpu, &q.device, &like->device));
    read_e4m3(&q);
    return q;
}

/* x in E4M3, or in 16 bits and quantised on the way; y in 16 bits, or (wanted) in E4M3 behind an activation. `offset`: inputs
 * of one sign, as behind GELU, whose sums are long. */
static void test_linear_e4m3(int64_t rows, int64_t n, int64_t k, bool wanted)
{
    const bool given = pick(0, 1), biased = pick(0, 1), offset = pick(0, 1);
    const ipvg_act act = wanted ? IPVG_ACT_GELU_TANH : IPVG_ACT_NONE;
    both w = MAKE(IPVG_BF16, 0, 1, n, k), b = MAKE(IPVG_BF16, 0, 1, n), y = MAKE(IPVG_BF16, pick(0, 1) * 8, 0, rows, n);
    middle = offset ? 1 : 0;
    both x = MAKE(IPVG_BF16, pick(0, 1) * 8, 1, rows, k);
    middle = 0;
    both x8 = make_e4m3(&x), w8 = make_e4m3(&w), y8 = make_e4m3(&y);
    const ipvg_tensor *bias = biased ? &b.device : NULL;
    RUN(cpu, ipvg_linear(&cpu, &y.host, &x8.host, &w8.host, biased ? &b.host : NULL, act));
    RUN(gpu, ipvg_linear(&gpu, wanted ? &y8.device : &y.device, given ? &x8.device : &x.device, &w8.device, bias, act));
    /* And what Hopper's sums of 14 bits may lose each time that 32 products are added. */
    if (!wanted) judge(offset ? "linear, fp8, offset" : "linear, fp8", &y, rounding(&y) + (double)k / 32 * 0x1p-14);
    if (wanted) { /* a rounding to 3 bits of mantissa: 2.6 % of evenly spread numbers */
        const float *want = y.host.data, *got = y8.host.data;
        double off = 0, norm = 0;
        read_e4m3(&y8);
        for (int64_t i = 0; i < rows * n; i++) {
            off += pow((double)got[i] - want[i], 2);
            norm += (double)want[i] * want[i];
        }
        judge_error("linear to fp8", sqrt(off / norm), 4e-2, &y.host);
    }
    release(&x), release(&w), release(&b), release(&y), release(&x8), release(&w8), release(&y8);
}

/* What it does not take is said, before anything is computed. */
static void test_refusals_e4m3(void)
{
    both x = MAKE(IPVG_BF16, 0, 1, 4, 24), w = MAKE(IPVG_BF16, 0, 1, 16, 24), y = MAKE(IPVG_BF16, 0, 0, 4, 16);
    both w8 = make_e4m3(&w);
    ipvg_arena_plan(&gpu_arena);
    if (ipvg_linear(&gpu, &y.device, &x.device, &w8.device, NULL, IPVG_ACT_NONE) != IPVG_E_UNSUPPORTED ||
        !strstr(ctx.error, "multiples of 16, not (16, 24)"))
        FAIL("an odd length in fp8: '%s'", ctx.error);
    ipvg_arena_free(&gpu_arena);
    release(&x), release(&w), release(&y), release(&w8);
}

/* ==== attention ==== */

static void test_attention(ipvg_dtype dtype, int heads, int64_t d, int64_t lq, int64_t lk)
{
    const int64_t width = heads * d, pad = pick(0, 1) * 2 * width; /* as columns of one product */
    const bool biased = pick(0, 1);
    const int64_t repeat = pick(0, 1) ? 1 : pick(2, 500);
    both q = MAKE(dtype, pad, 1, lq, width), k = MAKE(dtype, pad, 1, lk, width), v = MAKE(dtype, pad, 1, lk, width);
    both o = MAKE(dtype, 0, 0, lq, width), bias = MAKE(IPVG_F32, 0, 2, heads, lq + lk - 1);
    const float scale = 1 / sqrtf((float)d);
    RUN(cpu,
        ipvg_attention(&cpu, &o.host, &q.host, &k.host, &v.host, heads, scale, biased ? &bias.host : NULL, repeat));
    RUN(gpu, ipvg_attention(&gpu, &o.device, &q.device, &k.device, &v.device, heads, scale,
                            biased ? &bias.device : NULL, repeat));
    judge(repeat > 1 ? "attention with a key repeated"
          : biased   ? "attention with a bias"
                     : "attention",
          &o, is_half() ? 5e-3 : 1e-5);
    release(&q), release(&k), release(&v), release(&o), release(&bias);
}

/* ==== convolutions ==== */

static ipvg_status convolve(ipvg_exec *ex, ipvg_conv conv, const ipvg_conv_out *out, const ipvg_tensor *const *x, int n)
{
    size_t mark = ipvg_arena_mark(ex->arena);
    ipvg_status status;
    IPVG_TRY(ipvg_conv_prepare(ex, &conv));
    IPVG_TRY(ipvg_conv_run(ex, out, x, n, &conv));
done:
    ipvg_conv_release(ex->be, &conv);
    ipvg_arena_reset(ex->arena, mark);
    return status;
}

/* Frames in a ring of kt slots, the oldest in any of them, as the autoencoder has them. */
static void test_conv(int64_t cin, int64_t cout, int64_t h, int64_t w)
{
    const ipvg_dtype dtype = gpu.be->video;
    const int kt = pick(0, 1) ? 3 : 1, k = pick(0, 3) ? 3 : 1, n = pick(1, kt), first = pick(0, kt - 1);
    const int stride = k == 3 && pick(0, 2) == 0 ? 2 : 1, around = k == 3, up = stride == 1 && pick(0, 3) == 0;
    const int outputs = pick(1, 3), added = pick(0, 1), silu = pick(0, 1);
    const double bound = is_half() ? 2e-3 : 1e-5;
    ipvg_conv conv = {.stride = stride,
                      .top = stride == 1 ? around : 0,
                      .left = stride == 1 ? around : 0,
                      .bottom = around,
                      .right = around,
                      .upsample = up};
    const int64_t oh = ((up ? 2 : 1) * h + conv.top + conv.bottom - k) / stride + 1,
                  ow = ((up ? 2 : 1) * w + conv.left + conv.right - k) / stride + 1;
    both ring = MAKE(dtype, 0, 1, kt, h, w, cin), weights = MAKE(dtype, 0, 1, cout, cin, kt, k, k);
    both bias = MAKE(IPVG_F32, 0, 1, cout), gamma = MAKE(IPVG_F32, 0, 1, cout);
    both y = MAKE(dtype, 0, 0, oh, ow, cout), z = MAKE(dtype, 0, 0, oh, ow, cout), r = MAKE(dtype, 0, 1, oh, ow, cout);
    for (int device = 0; device < 2; device++) {
        ipvg_tensor frame[3];
        const ipvg_tensor *x[3];
        for (int i = 0; i < n; i++) {
            ipvg_tensor slot = ipvg_tensor_slice(device ? &ring.device : &ring.host, (first + i) % kt, 1);
            frame[i] = ipvg_tensor_make(slot.data, slot.dtype, 3, slot.shape + 1);
            x[i] = &frame[i];
        }
        conv.w = device ? weights.device : weights.host;
        conv.b = device ? bias.device : bias.host;
        const ipvg_conv_out out = {.y = outputs & 1 ? device ? &y.device : &y.host : NULL,
                                   .z = outputs & 2 ? device ? &z.device : &z.host : NULL,
                                   .gamma = device ? &gamma.device : &gamma.host,
                                   .silu = silu,
                                   .residual = !added   ? NULL
                                               : device ? &r.device
                                                        : &r.host};
        if (device)
            RUN(gpu, convolve(&gpu, conv, &out, x, n));
        else
            RUN(cpu, convolve(&cpu, conv, &out, x, n));
    }
    if (outputs & 1) judge("conv", &y, bound);
    if (outputs & 2) judge("conv: norm and SiLU", &z, 2 * bound);
    release(&ring), release(&weights), release(&bias), release(&gamma), release(&y), release(&z), release(&r);
}

/* ==== copies ==== */

/* Rows of a table on the host, in pieces that end within a row. */
static void test_rows(int64_t count, int64_t d)
{
    const int64_t rows = pick(1, 40);
    both table = MAKE(IPVG_F32, 0, 1, rows, d), y = MAKE(IPVG_F32, 0, 0, count, d);
    int32_t *numbers = malloc((size_t)count * sizeof *numbers);
    ipvg_tensor ids = ipvg_tensor_of(numbers, IPVG_I32, count);
    for (int64_t i = 0; i < count; i++) numbers[i] = pick(0, (int)rows - 1);
    RUN(cpu, ipvg_gather_rows(&cpu, &y.host, &table.host, &ids));
    RUN(gpu, ipvg_gather_rows(&gpu, &y.device, &table.host, &ids));
    judge("rows of a table", &y, 0);
    release(&table), release(&y), free(numbers);
}

/* Without scratch, whose end would wait for all that is under way. */
#define QUEUE(call)                                              \
    do {                                                         \
        if ((call) != IPVG_OK) FAIL("%s: %s", #call, ctx.error); \
    } while (0)

/* As ipvg_planes_new makes it, of memory that work under way still reads: before -> after. */
static both room_of(int64_t h, int64_t w, int64_t channels, both *after)
{
    const int64_t count = (h * w * channels + 63) / 64 * 64;
    both room = MAKE(IPVG_F32, 0, 1, 2, count);
    *after = MAKE(IPVG_F32, 0, 0, 2, count);
    memcpy(after->host.data, room.host.data, ipvg_tensor_bytes(&room.host));
    QUEUE(ipvg_cast(&gpu, &after->device, &room.device));
    QUEUE(gpu.be->planes_begin(&gpu));
    return room;
}

/* More frames than there are slots, all of them under way before anyone looks; of those that go out two, and one that the next
 * is sent over. */
static void test_planes(int64_t h, int64_t w, int64_t channels)
{
    enum { FRAMES = 5 };
    const int64_t step = h * w + pick(0, 9);
    float *planes = malloc((size_t)(FRAMES * channels * step) * sizeof *planes);
    both frame[FRAMES], kept[2];
    for (int i = 0; i < FRAMES; i++) {
        frame[i] = MAKE(gpu.be->video, 0, 0, h, w, channels);
        float *v = frame[i].host.data;
        for (int64_t c = 0; c < channels; c++)
            for (int64_t p = 0; p < h * w; p++)
                v[p * channels + c] = planes[(i * channels + c) * step + p] = (float)pick(-128, 128);
    }
    both out = room_of(h, w, channels, &kept[0]), in = room_of(h, w, channels, &kept[1]);
    for (int i = 0; i < FRAMES; i++)
        QUEUE(ipvg_planes_load(&gpu, &frame[i].device, planes + i * channels * step, step, &in.device));
    for (int i = 0; i < 3; i++) QUEUE(ipvg_planes_send(&gpu, i % 2, &frame[i].device, &out.device));
    for (int i = 1; i < 3; i++) {
        QUEUE(ipvg_planes_receive(&gpu, i % 2, planes, step, &frame[i].device));
        const float *v = frame[i].host.data;
        for (int64_t c = 0; c < channels; c++)
            for (int64_t p = 0; p < h * w; p++)
                if (planes[c * step + p] != v[p * channels + c]) {
                    FAIL("planes out: frame %d, channel %ld, pixel %ld", i, c, p);
                    c = channels;
                    break;
                }
    }
    for (int i = 0; i < FRAMES; i++) judge("planes in", &frame[i], 0);
    float *last = planes + (FRAMES - 1) * channels * step; /* alone: nobody waits for it but the GPU */
    QUEUE(ipvg_planes_load(&gpu, &frame[FRAMES - 1].device, last, step, &in.device));
    judge("planes in", &frame[FRAMES - 1], 0);
    for (int i = 0; i < FRAMES; i++) release(&frame[i]);
    for (int i = 0; i < 2; i++) judge("room for planes", &kept[i], 0), release(&kept[i]);
    release(&in), release(&out), free(planes);
}

/* As bytes, beyond what they hold and on the borders between two of them; a number that is not finite is told. */
static void test_bytes(int64_t h, int64_t w, int64_t channels)
{
    const size_t count = (size_t)(h * w * channels);
    both frame = MAKE(gpu.be->video, 0, 1.5, h, w, channels), kept, room = room_of(h, w, channels, &kept);
    uint8_t *want = malloc(count), *got = malloc(count);
    RUN(cpu, ipvg_bytes_receive(&cpu, 0, want, &frame.host));
    RUN(gpu, ipvg_bytes_send(&gpu, 1, &frame.device, &room.device));
    RUN(gpu, ipvg_bytes_receive(&gpu, 1, got, &frame.device));
    if (memcmp(want, got, count)) FAIL("bytes of a frame");
    release(&frame);
    frame = MAKE(gpu.be->video, 0, 0, h, w, channels); /* NaN */
    RUN(gpu, ipvg_bytes_send(&gpu, 1, &frame.device, &room.device));
    if (ipvg_bytes_receive(&gpu, 1, got, &frame.device) != IPVG_E_ARGUMENT || !strstr(ctx.error, "NaN"))
        FAIL("bytes of NaN: %s", ctx.error);
    if (ipvg_bytes_receive(&cpu, 1, got, &frame.host) != IPVG_E_ARGUMENT) FAIL("bytes of NaN, on the CPU");
    release(&frame), release(&room), release(&kept), free(want), free(got);
}

static void test_all(ipvg_dtype dtype, int rounds)
{
    if (!open_gpu(dtype)) return;
    const ipvg_dtype activation = gpu.be->activation;
    for (int i = 0; i < rounds; i++) {
        const int64_t unit = pick(0, 1) ? 8 : 1;
        test_linear(pick(1, 40), unit * pick(1, 90 / (int)unit), unit * pick(1, 90 / (int)unit));
        test_attention(activation, pick(1, 4), pick(0, 2) ? 16 * pick(1, 8) : pick(1, 40), pick(1, 40), pick(1, 60));
        test_attention(activation, pick(1, 2), 64 * pick(1, 2), pick(1, 40), pick(1, 60)); /* our own kernel's */
        test_attention(gpu.be->video, 1, 8 * pick(33, 50), pick(1, 40), pick(1, 60));      /* the autoencoder's: wide */
        test_conv(unit * pick(1, 24 / (int)unit), unit * pick(1, 24 / (int)unit), pick(2, 9), pick(2, 12));
        test_planes(pick(1, 9), pick(1, 30), pick(1, 5));
        test_bytes(pick(1, 9), pick(1, 30), pick(1, 5));
        if (dtype == IPVG_E4M3) test_linear_e4m3(pick(1, 40), 16 * pick(1, 9), 16 * pick(1, 9), pick(0, 1));
    }
    if (dtype == IPVG_E4M3) {
        /* From 8960 or 13824 inputs cuBLASLt has no product that is 64 or 128 wide. */
        static const int64_t of_models[][2] = {{1536, 128}, {8960, 1536}, {5120, 128}, {13824, 1536}};
        for (int i = 0; i < 8; i++) test_linear_e4m3(pick(1, 40), of_models[i % 4][1], of_models[i % 4][0], pick(0, 1));
        test_linear_e4m3(20000 + pick(0, 300), 16, 32, true); /* in parts */
        test_refusals_e4m3();
    }
    test_rows(pick(1, 9), pick(1, 99)), test_rows(700, 1201);
    ipvg_arena_free(&gpu_arena);
    gpu.be->free((ipvg_backend *)(uintptr_t)gpu.be);
}

int main(int argc, char **argv)
{
    ipvg_backend *be;
    const int rounds = argc > 1 ? atoi(argv[1]) : 30;
    ipvg_context_init(&ctx, 2);
    if (ipvg_backend_cpu(&ctx, &be, IPVG_F32) != IPVG_OK) return 1;
    cpu = (ipvg_exec){.ctx = &ctx, .be = be, .arena = &cpu_arena};
    static const ipvg_dtype dtypes[] = {IPVG_F32, IPVG_BF16, IPVG_E4M3};
    for (int d = 0; d < 3; d++) {
        memset(table, 0, sizeof table);
        test_all(dtypes[d], rounds);
        for (int i = 0; table[i].name; i++)
            printf("%-9s %-24s %4d times  %.1e of %.1e\n", ipvg_dtype_name(dtypes[d]), table[i].name, table[i].times,
                   table[i].worst, table[i].bound);
    }
    ipvg_arena_free(&cpu_arena);
    ipvg_backend_free(&be);
    printf(failures ? "%d failures\n" : "ok\n", failures);
    return failures != 0;
}

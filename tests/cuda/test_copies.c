/* Bytes to the device and back, one by one and many together, and operations that are kept: against what a copy and a cast
 * give, with exact scratch. */
#include <unistd.h>

#include "engine.h"

static ipvg_tensor room(int64_t count)
{
    ipvg_tensor t = ipvg_tensor_of(NULL, IPVG_U8, count);
    if (gpu.be->memory.alloc(&gpu.be->memory, &ctx, &t.data, (size_t)count) != IPVG_OK) FAIL("%s", ctx.error), exit(1);
    return t;
}

/* One after the other without a wait, of all sizes, more than the pinned ring holds. */
static void test_copies(void)
{
    enum { COUNT = 40 };
    const int64_t most = (int64_t)9 << 20, sizes[] = {1, 300, 256 << 10, (256 << 10) + 1, 1 << 20, most};
    unsigned char *from = malloc((size_t)most), *back = malloc((size_t)most);
    ipvg_tensor t[COUNT];
    int64_t at[COUNT];
    for (int64_t i = 0; i < most; i++) from[i] = (unsigned char)(i * 31 ^ i >> 13);
    for (int k = 0; k < COUNT; k++) {
        t[k] = room(k < 6 ? sizes[k] : pick(1, (int)most / (k % 4 ? 40 : 1)));
        at[k] = pick(0, (int)(most - t[k].shape[0]));
        if (gpu.be->copy_in(&gpu, &t[k], from + at[k]) != IPVG_OK) FAIL("%s", ctx.error);
    }
    for (int k = 0; k < COUNT; k++) {
        if (gpu.be->copy_out(&gpu, back, &t[k]) != IPVG_OK) FAIL("%s", ctx.error);
        if (memcmp(from + at[k], back, (size_t)t[k].shape[0])) FAIL("other bytes came back of copy %d", k);
        gpu.be->memory.free(&gpu.be->memory, t[k].data);
    }
    free(from), free(back);
}

/* (rows, d) in a block of the device's memory, behind them the scales if they are E4M3. */
static ipvg_tensor matrix(ipvg_dtype dtype, int64_t rows, int64_t d)
{
    const int64_t shape[] = {rows, d};
    ipvg_tensor t = ipvg_tensor_make(NULL, dtype, 2, shape);
    const size_t bytes = ipvg_tensor_bytes(&t), scales = dtype == IPVG_E4M3 ? (size_t)rows * sizeof *t.scale : 0;
    t.data = room((int64_t)(bytes + scales)).data;
    if (scales) t.scale = (float *)(void *)((char *)t.data + bytes);
    return t;
}

/* Many together, from memory and from a file, each in a dtype of its own: the bytes of a copy and a cast one by one.
 * What comes later to the same place waits until they have been used. Then the file ends early. size: of the largest, which are 4800 wide. */
static void test_uploads(int n, int size)
{
    static const ipvg_dtype to[] = {IPVG_BF16, IPVG_F32, IPVG_F16, IPVG_E4M3}, from[] = {IPVG_F32, IPVG_F32, IPVG_BF16};
    const int64_t most = (int64_t)size * 16 * 300;
    char path[] = "/tmp/ipvg_uploads_XXXXXX";
    const ipvg_file file = {path, mkstemp(path)};
    ipvg_upload u[IPVG_UPLOADS], later[IPVG_UPLOADS];
    ipvg_tensor want[IPVG_UPLOADS], came[IPVG_UPLOADS];
    float *numbers = malloc((size_t)most * sizeof *numbers), *zeros = calloc((size_t)most, sizeof *zeros);
    for (int64_t i = 0; i < most; i++) numbers[i] = (float)uniform();
    if (write(file.fd, numbers, (size_t)most * sizeof *numbers) != most * (int64_t)sizeof *numbers) FAIL("no file");
    for (int k = 0; k < n; k++) {
        const int64_t rows = k % 5 ? pick(1, size / 3) : size, d = 16 * (k % 5 ? pick(1, 300) : 300);
        const int64_t at = pick(0, (int)(most - rows * d));
        const ipvg_dtype given = from[pick(0, 2)];
        ipvg_tensor raw = matrix(given, rows, d);
        bool same;
        u[k] = (ipvg_upload){.to = matrix(to[pick(0, gpu.be->compute == IPVG_E4M3 ? 3 : 2)], rows, d), .dtype = given};
        want[k] = matrix(u[k].to.dtype, rows, d);
        same = given == want[k].dtype; /* a NaN among the bits then stays the one that it is */
        if (k % 2)
            u[k].data = numbers + at;
        else
            u[k].file = &file, u[k].offset = (uint64_t)at * sizeof *numbers;
        if (gpu.be->copy_in(&gpu, same ? &want[k] : &raw, numbers + at) != IPVG_OK) FAIL("%s", ctx.error);
        if (!same) RUN(gpu, ipvg_cast(&gpu, &want[k], &raw));
        gpu.be->memory.free(&gpu.be->memory, raw.data);
    }
    RUN(gpu, gpu.be->upload(&gpu, u, n));
    for (int k = 0; k < n; k++) {
        const int64_t scales = want[k].scale ? want[k].shape[0] * (int64_t)sizeof *want[k].scale : 0;
        later[k] = (ipvg_upload){.to = u[k].to, .dtype = u[k].dtype, .data = zeros};
        came[k] = room((int64_t)ipvg_tensor_bytes(&want[k]) + scales);
        if (gpu.be->copy_in(&gpu, &came[k], u[k].to.data) != IPVG_OK) FAIL("%s", ctx.error);
    }
    if (gpu.be->upload(&gpu, later, n) != IPVG_OK) FAIL("%s", ctx.error);
    for (int k = 0; k < n; k++) {
        const ipvg_tensor all = ipvg_tensor_of(want[k].data, IPVG_U8, came[k].shape[0]);
        char *ours = malloc(ipvg_tensor_bytes(&all)), *theirs = malloc(ipvg_tensor_bytes(&all));
        if (gpu.be->copy_out(&gpu, ours, &came[k]) != IPVG_OK || gpu.be->copy_out(&gpu, theirs, &all) != IPVG_OK)
            FAIL("%s", ctx.error);
        if (memcmp(ours, theirs, ipvg_tensor_bytes(&all)))
            FAIL("upload %d of %d, in %s", k, n, ipvg_dtype_name(want[k].dtype));
        gpu.be->memory.free(&gpu.be->memory, want[k].data);
        gpu.be->memory.free(&gpu.be->memory, came[k].data);
        free(ours), free(theirs);
    }
    if (ftruncate(file.fd, 0) || gpu.be->upload(&gpu, u, n) != IPVG_E_FORMAT || !strstr(ctx.error, path) ||
        !strstr(ctx.error, "cut short"))
        FAIL("a file that was cut short: %s", ctx.error);
    close(file.fd);
    if (gpu.be->upload(&gpu, u, n) != IPVG_E_IO) FAIL("a file that is not open: %s", ctx.error);
    for (int k = 0; k < n; k++) gpu.be->memory.free(&gpu.be->memory, u[k].to.data);
    unlink(path);
    free(numbers), free(zeros);
}

/* By one thread too: a lane has a ring of its own. */
static void test_uploads_alone(void)
{
    const ipvg_exec all = gpu;
    const int threads = ctx.threads;
    ipvg_backend *lane;
    ctx.threads = 1;
    if (all.be->lane(all.be, &ctx, &lane) != IPVG_OK) FAIL("%s", ctx.error), exit(1);
    gpu.be = lane;
    test_uploads(20, 60);
    gpu = all;
    ctx.threads = threads;
    ipvg_arena_free(&gpu_arena);
    ipvg_backend_free(&lane);
}

static void test_refused_uploads(void)
{
    ipvg_upload wide = {.to = ipvg_tensor_of(NULL, IPVG_E4M3, 1, 1 << 19), .dtype = IPVG_F32};
    ipvg_upload odd = {.to = ipvg_tensor_of(NULL, IPVG_BF16, 1), .dtype = IPVG_F64};
    if (gpu.be->upload(&gpu, &wide, 1) != IPVG_E_UNSUPPORTED || !strstr(ctx.error, "262144 numbers, not 524288"))
        FAIL("rows that are too long for a piece: %s", ctx.error);
    if (gpu.be->upload(&gpu, &odd, 1) != IPVG_E_TYPE || !strstr(ctx.error, "float64")) FAIL("float64: %s", ctx.error);
}

/* What is kept does not run, and each time it is played it computes from what its tensors hold then. */
static void test_kept(void)
{
    enum { ROWS = 3, D = 50 };
    ipvg_tensor x = matrix(IPVG_F32, ROWS, D), y = matrix(IPVG_F32, ROWS, D);
    float from[ROWS * D], back[ROWS * D];
    void *kept;
    for (int i = 0; i < ROWS * D; i++) from[i] = 7.f;
    if (gpu.be->copy_in(&gpu, &y, from) != IPVG_OK || gpu.be->keep(&gpu) != IPVG_OK) FAIL("%s", ctx.error);
    if (ipvg_pace(&gpu) != IPVG_OK ||
        ipvg_combine(&gpu, &y, 1, (const ipvg_tensor *[]){&x}, (const float[]){2.f}) != IPVG_OK)
        FAIL("%s", ctx.error);
    kept = gpu.be->kept(&gpu);
    if (gpu.be->copy_out(&gpu, back, &y) != IPVG_OK || back[0] != 7.f) FAIL("what is kept has run");
    for (int k = 0; kept && k < 3; k++) {
        for (int i = 0; i < ROWS * D; i++) from[i] = (float)uniform();
        if (gpu.be->copy_in(&gpu, &x, from) != IPVG_OK || gpu.be->play(&gpu, kept) != IPVG_OK ||
            gpu.be->copy_out(&gpu, back, &y) != IPVG_OK)
            FAIL("%s", ctx.error);
        for (int i = 0; i < ROWS * D; i++)
            if (back[i] != 2 * from[i]) FAIL("played %d times, %g and not %g", k + 1, (double)back[i], 2. * from[i]);
    }
    if (kept)
        gpu.be->drop(gpu.be, kept);
    else
        FAIL("nothing was kept");
    gpu.be->memory.free(&gpu.be->memory, x.data), gpu.be->memory.free(&gpu.be->memory, y.data);
}

int main(void)
{
    static const ipvg_dtype dtypes[] = {IPVG_F32, IPVG_BF16, IPVG_E4M3};
    ipvg_context_init(&ctx, 2);
    for (int d = 0; d < 3; d++) {
        if (!open_gpu(dtypes[d])) continue;
        test_copies();
        test_uploads(5, 6), test_uploads(IPVG_UPLOADS, 60), test_uploads_alone(), test_refused_uploads();
        test_kept();
        ipvg_arena_free(&gpu_arena);
        gpu.be->free((ipvg_backend *)(uintptr_t)gpu.be);
    }
    printf(failures ? "%d failures\n" : "ok\n", failures);
    return failures != 0;
}

/* Weights: names to views in mapped files, with bounds that no source can talk its way around. */
#include "../../csrc/model/weights.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "check.h"

static ipvg_context ctx;
static char path[] = "/tmp/ipvg_weights_XXXXXX";
static unsigned char bytes[4096];

static ipvg_weight_source in_file(const char *name, uint64_t offset, ipvg_dtype dtype, int ndim, int64_t a, int64_t b)
{
    return (ipvg_weight_source){
        .name = name, .path = path, .offset = offset, .dtype = dtype, .ndim = ndim, .shape = {a, b}};
}

static ipvg_status open_one(ipvg_weights **w, ipvg_weight_source source)
{
    return ipvg_weights_open(&ctx, w, &source, 1);
}

static void tensors_are_views_by_name(void)
{
    const ipvg_weight_source sources[] = {
        in_file("blocks.1.w", 16, IPVG_F32, 2, 3, 4), in_file("blocks.0.w", 64, IPVG_BF16, 1, 8, 0),
        in_file("odd", 3, IPVG_F32, 1, 4, 0), in_file("empty", sizeof bytes, IPVG_F32, 2, 0, 7),
        in_file("scalar", 0, IPVG_F16, 0, 0, 0)};
    ipvg_weights *w = NULL;
    ipvg_tensor t, again;
    const char *names[2];

    CHECK(ipvg_weights_open(&ctx, &w, sources, 5) == IPVG_OK && ipvg_weights_count(w) == 5);
    CHECK(ipvg_weights_untaken(w, names, 2) == 5 && strcmp(names[1], "blocks.0.w") == 0);
    CHECK(ipvg_weights_has(w, "blocks.%d.w", 1) && !ipvg_weights_has(w, "blocks.%d.w", 2));
    CHECK(ipvg_weights_take(&ctx, w, &t, (int64_t[]){3, 4}, 2, "blocks.%d.w", 1) == IPVG_OK);
    CHECK(t.dtype == IPVG_F32 && t.shape[1] == 4 && t.ld == 4 && memcmp(t.data, bytes + 16, 48) == 0);
    CHECK(ipvg_weights_take(&ctx, w, &t, (int64_t[]){8}, 1, "blocks.%d.w", 0) == IPVG_OK && t.dtype == IPVG_BF16);
    CHECK(ipvg_weights_take(&ctx, w, &t, (int64_t[]){4}, 1, "odd") == IPVG_OK);
    CHECK((uintptr_t)t.data % 4 == 0 && memcmp(t.data, bytes + 3, 16) == 0); /* copied, since 4 does not divide 3 */
    CHECK(ipvg_weights_take(&ctx, w, &again, (int64_t[]){4}, 1, "odd") == IPVG_OK && again.data == t.data);
    CHECK(ipvg_weights_all_taken(&ctx, w) == IPVG_E_FORMAT && strstr(ctx.error, "2 tensors are no part of this model"));
    CHECK(ipvg_weights_take(&ctx, w, &t, (int64_t[]){0, 7}, 2, "empty") == IPVG_OK && ipvg_tensor_count(&t) == 0);
    CHECK(ipvg_weights_take(&ctx, w, &t, NULL, 0, "scalar") == IPVG_OK && t.ndim == 0);
    CHECK(ipvg_weights_all_taken(&ctx, w) == IPVG_OK);
    ipvg_weights_free(&w);
    CHECK(w == NULL);
    ipvg_weights_free(&w);
}

static void what_is_missing_or_misshapen_is_named(void)
{
    char name[600];
    ipvg_weights *w = NULL;
    ipvg_tensor t;

    CHECK(open_one(&w, in_file("a", 0, IPVG_F32, 2, 3, 4)) == IPVG_OK);
    CHECK(ipvg_weights_take(&ctx, w, &t, (int64_t[]){4, 3}, 2, "a") == IPVG_E_FORMAT);
    CHECK(strstr(ctx.error, path) && strstr(ctx.error, "tensor 'a': expected shape (4, 3), found (3, 4)"));
    CHECK(ipvg_weights_take(&ctx, w, &t, (int64_t[]){3, 4, 1}, 3, "a") == IPVG_E_FORMAT);
    CHECK(ipvg_weights_take(&ctx, w, &t, (int64_t[]){3}, 1, "b.%d", 7) == IPVG_E_FORMAT);
    CHECK(strstr(ctx.error, "tensor 'b.7' is missing: expected it with shape (3,)"));
    memset(name, 'a', sizeof name - 1);
    name[sizeof name - 1] = 0;
    CHECK(ipvg_weights_take(&ctx, w, &t, (int64_t[]){3}, 1, "%s", name) == IPVG_E_FORMAT);
    CHECK(!ipvg_weights_has(w, "%s", name));
    CHECK(ipvg_weights_untaken(w, NULL, 0) == 1); /* a failed take takes nothing */
    ipvg_weights_free(&w);
}

static void memory_and_bare_shapes(void)
{
    static float x[6] = {1, 2, 3, 4, 5, 6};
    ipvg_weight_source s = {.name = "x", .data = x, .bytes = sizeof x, .dtype = IPVG_F32, .ndim = 2, .shape = {2, 3}};
    ipvg_weights *w = NULL;
    ipvg_tensor t;

    CHECK(open_one(&w, s) == IPVG_OK);
    CHECK(ipvg_weights_take(&ctx, w, &t, (int64_t[]){2, 3}, 2, "x") == IPVG_OK && t.data == x);
    ipvg_weights_free(&w);
    s.bytes--;
    CHECK(open_one(&w, s) == IPVG_E_FORMAT && w == NULL && strstr(ctx.error, "takes 24 bytes, the buffer has 23"));
    s.data = NULL;
    s.shape[0] = (int64_t)1 << 50; /* planning: no memory stands behind it */
    CHECK(open_one(&w, s) == IPVG_OK);
    CHECK(ipvg_weights_take(&ctx, w, &t, s.shape, 2, "x") == IPVG_OK && t.data == NULL);
    ipvg_weights_free(&w);
    CHECK(ipvg_weights_open(&ctx, &w, NULL, 0) == IPVG_OK && ipvg_weights_all_taken(&ctx, w) == IPVG_OK);
    ipvg_weights_free(&w);
}

static void sources_that_lie(void)
{
    const int64_t big = (int64_t)1 << 62;
    const ipvg_weight_source lies[] = {
        in_file("a", sizeof bytes, IPVG_U8, 1, 1, 0),
        in_file("a", sizeof bytes - 3, IPVG_F32, 1, 1, 0),
        in_file("a", UINT64_MAX, IPVG_U8, 1, 1, 0),
        in_file("a", UINT64_MAX - 3, IPVG_F32, 1, 1, 0), /* offset + size wraps to 0 */
        in_file("a", 0, IPVG_F32, 2, big, 4),            /* the size wraps to 0 */
        in_file("a", 0, IPVG_U8, 2, big, big),
        in_file("a", 0, IPVG_U8, 2, -1, -1),
        in_file("a", 0, IPVG_U8, 1, INT64_MIN, 0),
        in_file("a", 0, IPVG_U8, IPVG_MAX_DIMS + 1, 1, 1),
        in_file("a", 0, IPVG_U8, -1, 1, 1),
        in_file("a", 0, IPVG_DTYPES, 1, 1, 0),
        in_file("a", 0, (ipvg_dtype)-1, 1, 1, 0),
        in_file("", 0, IPVG_U8, 1, 1, 0),
        in_file(NULL, 0, IPVG_U8, 1, 1, 0),
        {.name = "a", .path = "/tmp", .dtype = IPVG_U8, .ndim = 1, .shape = {1}},
        {.name = "a", .path = "/dev/zero", .dtype = IPVG_U8, .ndim = 1, .shape = {1}},
    };
    ipvg_weights *w = NULL;

    for (size_t i = 0; i < sizeof lies / sizeof lies[0]; i++)
        CHECK(open_one(&w, lies[i]) == IPVG_E_FORMAT && w == NULL && ctx.error[0]);
    const ipvg_weight_source twice[] = {in_file("a", 0, IPVG_U8, 1, 1, 0), in_file("b", 0, IPVG_U8, 1, 1, 0),
                                        in_file("a", 1, IPVG_U8, 1, 1, 0)};
    CHECK(ipvg_weights_open(&ctx, &w, twice, 3) == IPVG_E_FORMAT && strstr(ctx.error, "'a' is there twice"));
    ipvg_weight_source nowhere = in_file("a", 0, IPVG_U8, 1, 1, 0);
    nowhere.path = "/nonexistent/file";
    CHECK(open_one(&w, nowhere) == IPVG_E_IO && strstr(ctx.error, "/nonexistent/file"));
}

static void an_empty_file_holds_empty_tensors_only(void)
{
    char empty[] = "/tmp/ipvg_empty_XXXXXX";
    ipvg_weights *w = NULL;
    ipvg_tensor t;
    int fd = mkstemp(empty);

    CHECK(fd >= 0);
    ipvg_weight_source s = in_file("a", 0, IPVG_F32, 1, 0, 0);
    s.path = empty;
    CHECK(open_one(&w, s) == IPVG_OK && ipvg_weights_take(&ctx, w, &t, s.shape, 1, "a") == IPVG_OK);
    ipvg_weights_free(&w);
    s.shape[0] = 1;
    CHECK(open_one(&w, s) == IPVG_E_FORMAT);
    close(fd);
    unlink(empty);
}

static void the_pages_are_read_only_and_gone_after_free(void)
{
    ipvg_weights *w = NULL;
    ipvg_tensor t;

    CHECK(open_one(&w, in_file("a", 0, IPVG_U8, 1, 16, 0)) == IPVG_OK);
    CHECK(ipvg_weights_take(&ctx, w, &t, (int64_t[]){16}, 1, "a") == IPVG_OK);
    CHECK(msync(t.data, 16, MS_ASYNC) == 0); /* the page is mapped */
    ipvg_weights_free(&w);
    CHECK(msync(t.data, 16, MS_ASYNC) != 0); /* and is not any more */
}

static void a_tensor_is_found_in_its_file(void)
{
    static const float x[4] = {0};
    char cut[] = "/tmp/ipvg_cut_XXXXXX";
    const ipvg_weight_source sources[] = {
        in_file("a", 40, IPVG_F32, 1, 8, 0),
        in_file("odd", 3, IPVG_F32, 1, 4, 0),
        {.name = "x", .data = x, .bytes = sizeof x, .dtype = IPVG_F32, .ndim = 1, .shape = {4}},
        {.name = "cut", .path = cut, .offset = 8, .dtype = IPVG_U8, .ndim = 1, .shape = {100}}};
    unsigned char back[100];
    const ipvg_file *file;
    ipvg_weights *w = NULL;
    ipvg_tensor t;
    uint64_t at = 0;
    int fd = mkstemp(cut);

    CHECK(fd >= 0 && write(fd, bytes, 108) == 108);
    CHECK(ipvg_weights_open(&ctx, &w, sources, 4) == IPVG_OK);
    CHECK(ipvg_weights_take(&ctx, w, &t, (int64_t[]){8}, 1, "a") == IPVG_OK);
    file = ipvg_weights_file(w, (char *)t.data + 4, &at);
    CHECK(file && !strcmp(file->path, path) && at == 44);
    CHECK(ipvg_file_read(file, back, 28, at) == 0 && !memcmp(back, bytes + 44, 28));
    CHECK(ipvg_weights_take(&ctx, w, &t, (int64_t[]){4}, 1, "odd") == IPVG_OK);
    CHECK(!ipvg_weights_file(w, t.data, &at)); /* a copy, since 4 does not divide 3 */
    CHECK(ipvg_weights_take(&ctx, w, &t, (int64_t[]){4}, 1, "x") == IPVG_OK && !ipvg_weights_file(w, t.data, &at));
    CHECK(!ipvg_weights_file(w, NULL, &at));
    CHECK(ipvg_weights_take(&ctx, w, &t, (int64_t[]){100}, 1, "cut") == IPVG_OK);
    file = ipvg_weights_file(w, t.data, &at);
    CHECK(file && at == 8 && ipvg_file_read(file, back, 100, at) == 0 && !memcmp(back, bytes + 8, 100));
    CHECK(ftruncate(fd, 107) == 0 && ipvg_file_read(file, back, 100, at) == IPVG_FILE_CUT);
    CHECK(ipvg_file_fail(&ctx, file, IPVG_FILE_CUT) == IPVG_E_FORMAT && strstr(ctx.error, cut));
    CHECK(ipvg_file_read(&(ipvg_file){cut, -1}, back, 1, 0) == EBADF);
    CHECK(ipvg_file_fail(&ctx, file, EIO) == IPVG_E_IO && ctx.sys_errno == EIO && strstr(ctx.error, cut));
    ipvg_weights_free(&w);
    close(fd);
    unlink(cut);
}

/* More than are kept open: the tensors are there, the last ones to be read through their mappings alone. */
static void many_files(void)
{
    enum { COUNT = 70 };
    char paths[COUNT][64], names[COUNT][16];
    ipvg_weight_source sources[COUNT];
    ipvg_weights *w = NULL;
    ipvg_tensor t;
    uint64_t at;
    int open_ones = 0;

    for (int i = 0; i < COUNT; i++) {
        snprintf(paths[i], sizeof paths[i], "%s.%d", path, i);
        snprintf(names[i], sizeof names[i], "%d", i);
        CHECK(link(path, paths[i]) == 0);
        sources[i] = in_file(names[i], (uint64_t)i, IPVG_U8, 1, 1, 0);
        sources[i].path = paths[i];
    }
    CHECK(ipvg_weights_open(&ctx, &w, sources, COUNT) == IPVG_OK);
    for (int i = 0; i < COUNT; i++) {
        CHECK(ipvg_weights_take(&ctx, w, &t, (int64_t[]){1}, 1, "%d", i) == IPVG_OK);
        CHECK(*(unsigned char *)t.data == bytes[i]);
        open_ones += ipvg_weights_file(w, t.data, &at) != NULL;
        CHECK(unlink(paths[i]) == 0);
    }
    CHECK(open_ones == 64);
    ipvg_weights_free(&w);
}

static void many_tensors(void)
{
    enum { COUNT = 20000 };
    ipvg_weight_source *sources = calloc(COUNT, sizeof *sources);
    char(*names)[16] = calloc(COUNT, sizeof *names);
    ipvg_weights *w = NULL;
    ipvg_tensor t;

    CHECK(sources && names);
    for (int i = 0; i < COUNT; i++) {
        snprintf(names[i], sizeof names[i], "t.%d", (i * 7919) % COUNT);
        sources[i] = in_file(names[i], (uint64_t)(i % 4096), IPVG_U8, 1, 1, 0);
    }
    CHECK(ipvg_weights_open(&ctx, &w, sources, COUNT) == IPVG_OK);
    for (int i = 0; i < COUNT; i++) {
        CHECK(ipvg_weights_take(&ctx, w, &t, (int64_t[]){1}, 1, "t.%d", (i * 7919) % COUNT) == IPVG_OK);
        CHECK(*(unsigned char *)t.data == bytes[i % 4096]);
    }
    CHECK(ipvg_weights_all_taken(&ctx, w) == IPVG_OK);
    ipvg_weights_free(&w);
    free(sources);
    free(names);
}

int main(void)
{
    int fd = mkstemp(path);

    ipvg_context_init(&ctx, 1);
    for (size_t i = 0; i < sizeof bytes; i++) bytes[i] = (unsigned char)(i * 37 + i / 256);
    CHECK(fd >= 0 && write(fd, bytes, sizeof bytes) == (ssize_t)sizeof bytes && close(fd) == 0);
    tensors_are_views_by_name();
    what_is_missing_or_misshapen_is_named();
    memory_and_bare_shapes();
    sources_that_lie();
    an_empty_file_holds_empty_tensors_only();
    the_pages_are_read_only_and_gone_after_free();
    a_tensor_is_found_in_its_file();
    many_files();
    many_tensors();
    unlink(path);
    return 0;
}

/* libFuzzer over csrc/model/weights.c: any bytes become sources, which point into one file of 256 known bytes. What is
 * accepted must lie inside it, hold its bytes, and be found again by its name. */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "../../csrc/model/weights.h"

enum { FILE_BYTES = 256, MOST = 32 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void require(int condition)
{
    if (!condition) abort();
}

static const char *file(void)
{
    static char path[] = "/tmp/ipvg_fuzz_XXXXXX";
    static int made;
    unsigned char bytes[FILE_BYTES];

    if (made) return path;
    for (int i = 0; i < FILE_BYTES; i++) bytes[i] = (unsigned char)i;
    int fd = mkstemp(path);
    require(fd >= 0 && write(fd, bytes, sizeof bytes) == FILE_BYTES && close(fd) == 0);
    made = 1;
    return path;
}

/* The next n bytes as a number, zeros past the end. */
static uint64_t number(const uint8_t **data, const uint8_t *end, int n)
{
    uint64_t v = 0;
    for (int i = 0; i < n && *data < end; i++) v |= (uint64_t) * (*data)++ << (8 * i);
    return v;
}

/* Small numbers are likely, and every 64-bit one is possible. */
static uint64_t size_number(const uint8_t **data, const uint8_t *end)
{
    uint64_t kind = number(data, end, 1);
    return kind < 192 ? kind % 24 : kind < 224 ? (uint64_t)1 << (kind % 64) : number(data, end, 8);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const uint8_t *end = data + size;
    ipvg_weight_source sources[MOST] = {{0}};
    char names[MOST][4];
    unsigned char *memory = NULL; /* of exactly the claimed size, so that a byte beyond it is seen */
    ipvg_context ctx;
    ipvg_weights *w = NULL;
    ipvg_tensor t;
    size_t count = 0;

    ipvg_context_init(&ctx, 1);
    while (data < end && count < MOST) {
        ipvg_weight_source *s = &sources[count];
        uint64_t kind = number(&data, end, 1);
        for (int i = 0; i < 3; i++) names[count][i] = (char)("\0ab"[number(&data, end, 1) % 3]);
        names[count][3] = 0;
        s->name = names[count];
        s->dtype = (ipvg_dtype)(int8_t)number(&data, end, 1);
        if (kind & 4) s->dtype = (ipvg_dtype)((unsigned)s->dtype % IPVG_DTYPES);
        s->ndim = (int)(int8_t)number(&data, end, 1);
        if (kind & 8) s->ndim = (int)((unsigned)s->ndim % (IPVG_MAX_DIMS + 1));
        for (int i = 0; i < IPVG_MAX_DIMS; i++) s->shape[i] = (int64_t)size_number(&data, end);
        s->offset = size_number(&data, end);
        if (kind & 1) {
            s->path = file();
        } else if (kind & 2 && !memory) {
            s->bytes = number(&data, end, 1) + 1;
            s->data = memory = calloc(1, s->bytes);
            require(memory != NULL);
        }
        count++;
    }
    if (ipvg_weights_open(&ctx, &w, sources, count) != IPVG_OK) {
        require(w == NULL && ctx.error[0] && strlen(ctx.error) < sizeof ctx.error);
    } else {
        require(ipvg_weights_count(w) == count && ipvg_weights_untaken(w, NULL, 0) == count);
        for (size_t i = 0; i < count; i++) {
            const ipvg_weight_source *s = &sources[i];
            require(ipvg_weights_has(w, "%s", s->name));
            require(ipvg_weights_take(&ctx, w, &t, s->shape, s->ndim, "%s", s->name) == IPVG_OK);
            if (!s->path && !s->data) continue; /* a shape for planning */
            const unsigned char *p = t.data;
            size_t n = ipvg_tensor_bytes(&t);
            require(n == 0 || (uintptr_t)p % ipvg_dtype_size(t.dtype) == 0);
            for (size_t k = 0; k < n; k++) require(p[k] == (s->path ? (unsigned char)(s->offset + k) : 0));
        }
        require(ipvg_weights_all_taken(&ctx, w) == IPVG_OK);
    }
    ipvg_weights_free(&w);
    free(memory);
    return 0;
}

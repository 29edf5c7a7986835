#define _POSIX_C_SOURCE 200809L /* strdup, O_CLOEXEC */

#include "weights.h"

#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define NAME_MAX_BYTES 256 /* of a name that a model asks for; names in a file may be longer */
#define KEPT_OPEN 64       /* files: a process may have 1024, and a checkpoint as many shards */

typedef struct mapped_file {
    char *path;
    void *base; /* NULL for an empty file */
    uint64_t size;
    ipvg_file file;
} mapped_file;

typedef struct weight {
    char *name;
    ptrdiff_t file; /* index into `files`; -1 in memory */
    ipvg_tensor tensor;
    void *copy; /* owned: data that were not aligned */
    bool taken;
} weight;

struct ipvg_weights {
    mapped_file *files;
    size_t file_count;
    weight *items; /* in the order of the sources */
    size_t count;
    weight **sorted; /* by name: a search needs no hash that a hostile file could make collide */
};

/* ---- opening ---- */

static int by_name(const void *a, const void *b)
{
    return strcmp((*(weight *const *)a)->name, (*(weight *const *)b)->name);
}

/* The file of that path, mapped once however many tensors lie in it. */
static ipvg_status map_file(ipvg_context *ctx, ipvg_weights *w, ptrdiff_t *out, const char *path)
{
    ipvg_status status = IPVG_OK;
    mapped_file file = {.file.fd = -1};
    struct stat st;
    int fd = -1;

    for (size_t i = w->file_count; i-- > 0;) { /* the last one first: sources come file by file */
        if (strcmp(w->files[i].path, path) == 0) {
            *out = (ptrdiff_t)i;
            return IPVG_OK;
        }
    }
    fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* O_NONBLOCK: do not wait on a pipe */
    if (fd < 0 || fstat(fd, &st) != 0) {
        status = ipvg_fail_errno(ctx, "%s", path);
        goto done;
    }
    if (!S_ISREG(st.st_mode)) {
        status = ipvg_fail(ctx, IPVG_E_FORMAT, "%s: not a regular file", path);
        goto done;
    }
    file.size = (uint64_t)st.st_size;
    if (file.size > 0) {
        void *base = mmap(NULL, (size_t)file.size, PROT_READ, MAP_PRIVATE, fd, 0);
        if (base == MAP_FAILED) {
            status = ipvg_fail_errno(ctx, "%s: cannot map %llu bytes", path, (unsigned long long)file.size);
            goto done;
        }
        file.base = base;
    }
    file.path = strdup(path);
    mapped_file *files = realloc(w->files, (w->file_count + 1) * sizeof(*files));
    if (files) w->files = files;
    if (!file.path || !files) {
        status = ipvg_fail(ctx, IPVG_E_MEMORY, "%s: no memory for its entry", path);
        goto done;
    }
    file.file = (ipvg_file){file.path, w->file_count < KEPT_OPEN ? fd : -1};
    if (file.file.fd >= 0) fd = -1;
    *out = (ptrdiff_t)w->file_count;
    w->files[w->file_count++] = file;
    file = (mapped_file){0};
done:
    if (file.base) munmap(file.base, (size_t)file.size);
    free(file.path);
    if (fd >= 0) close(fd);
    return status;
}

/* The bytes of a contiguous tensor, with every product checked. False: not a size that can exist. The product skips
 * zeros, so that ipvg_tensor_count cannot overflow on an empty tensor either. */
static bool source_bytes(const ipvg_weight_source *s, uint64_t *out)
{
    int64_t product;
    bool empty = false;

    if ((int)s->dtype < 0 || s->dtype >= IPVG_DTYPES || s->ndim < 0 || s->ndim > IPVG_MAX_DIMS) return false;
    product = (int64_t)ipvg_dtype_size(s->dtype);
    for (int i = 0; i < s->ndim; i++) {
        if (s->shape[i] < 0) return false;
        if (s->shape[i] == 0)
            empty = true;
        else if (__builtin_mul_overflow(product, s->shape[i], &product))
            return false;
    }
    *out = empty ? 0 : (uint64_t)product;
    return true;
}

static ipvg_status add(ipvg_context *ctx, ipvg_weights *w, const ipvg_weight_source *s)
{
    weight *item = &w->items[w->count];
    const mapped_file *file;
    uint64_t bytes;
    const void *data = s->data;
    ipvg_status status;

    if (!s->name || !s->name[0]) return ipvg_fail(ctx, IPVG_E_FORMAT, "a tensor has no name");
    if (!source_bytes(s, &bytes))
        return ipvg_fail(ctx, IPVG_E_FORMAT, "tensor '%.200s': dtype, rank or size cannot be (at most %d dimensions)",
                         s->name, IPVG_MAX_DIMS);
    item->file = -1;
    if (s->path) {
        if ((status = map_file(ctx, w, &item->file, s->path)) != IPVG_OK) return status;
        file = &w->files[item->file];
        if (s->offset > file->size || bytes > file->size - s->offset)
            return ipvg_fail(ctx, IPVG_E_FORMAT,
                             "%s: tensor '%.200s' needs bytes %llu..%llu, the file has %llu: is it truncated?", s->path,
                             s->name, (unsigned long long)s->offset, (unsigned long long)(s->offset + bytes),
                             (unsigned long long)file->size);
        data = file->base ? (const char *)file->base + s->offset : NULL;
    } else if (s->data && s->bytes != bytes) {
        return ipvg_fail(ctx, IPVG_E_FORMAT, "tensor '%.200s': its shape takes %llu bytes, the buffer has %llu",
                         s->name, (unsigned long long)bytes, (unsigned long long)s->bytes);
    }
    item->name = strdup(s->name);
    if (!item->name) return ipvg_fail(ctx, IPVG_E_MEMORY, "no memory for the name of a tensor");
    /* The cast drops const: an ipvg_tensor is a view for reading and for writing, and these pages are read-only. */
    item->tensor = ipvg_tensor_make((void *)(uintptr_t)data, s->dtype, s->ndim, s->shape);
    w->count++;
    return IPVG_OK;
}

ipvg_status ipvg_weights_open(ipvg_context *ctx, ipvg_weights **out, const ipvg_weight_source *sources, size_t count)
{
    ipvg_status status = IPVG_OK;
    ipvg_weights *w = calloc(1, sizeof(*w));

    *out = NULL;
    if (w) {
        w->items = calloc(count ? count : 1, sizeof(*w->items));
        w->sorted = calloc(count ? count : 1, sizeof(*w->sorted));
    }
    if (!w || !w->items || !w->sorted) {
        status = ipvg_fail(ctx, IPVG_E_MEMORY, "no memory for the index of %zu tensors", count);
        goto done;
    }
    for (size_t i = 0; i < count; i++) IPVG_TRY(add(ctx, w, &sources[i]));
    for (size_t i = 0; i < count; i++) w->sorted[i] = &w->items[i];
    qsort(w->sorted, count, sizeof(*w->sorted), by_name);
    for (size_t i = 1; i < count; i++) {
        if (by_name(&w->sorted[i - 1], &w->sorted[i]) != 0) continue;
        status = ipvg_fail(ctx, IPVG_E_FORMAT, "tensor '%.200s' is there twice", w->sorted[i]->name);
        goto done;
    }
    *out = w;
    w = NULL;
done:
    ipvg_weights_free(&w);
    return status;
}

void ipvg_weights_free(ipvg_weights **w)
{
    if (!*w) return;
    for (size_t i = 0; i < (*w)->count; i++) {
        free((*w)->items[i].name);
        free((*w)->items[i].copy);
    }
    for (size_t i = 0; i < (*w)->file_count; i++) {
        if ((*w)->files[i].base) munmap((*w)->files[i].base, (size_t)(*w)->files[i].size);
        if ((*w)->files[i].file.fd >= 0) close((*w)->files[i].file.fd);
        free((*w)->files[i].path);
    }
    free((*w)->files);
    free((*w)->items);
    free((*w)->sorted);
    free(*w);
    *w = NULL;
}

/* ---- taking ---- */

/* False when the formatted name does not fit: no tensor is called so. */
static bool format_name(char *buf, const char *fmt, va_list args)
{
    int n = vsnprintf(buf, NAME_MAX_BYTES, fmt, args);
    return n >= 0 && n < NAME_MAX_BYTES;
}

static weight *find(const ipvg_weights *w, const char *name)
{
    weight key = {.name = (char *)(uintptr_t)name};
    const weight *pointer = &key;
    weight **found = bsearch(&pointer, w->sorted, w->count, sizeof(*w->sorted), by_name);
    return found ? *found : NULL;
}

ipvg_status ipvg_weights_take(ipvg_context *ctx, ipvg_weights *w, ipvg_tensor *out, const int64_t *shape, int ndim,
                              const char *name_format, ...)
{
    char name[NAME_MAX_BYTES], expected[160], found[160];
    va_list args;
    bool fits;
    weight *item;

    va_start(args, name_format);
    fits = format_name(name, name_format, args);
    va_end(args);
    item = fits ? find(w, name) : NULL;
    ipvg_shape_text(expected, sizeof(expected), ndim, shape);
    if (!item)
        return ipvg_fail(ctx, IPVG_E_FORMAT, "tensor '%s' is missing: expected it with shape %s", name, expected);
    if (item->tensor.ndim != ndim ||
        (ndim > 0 && memcmp(item->tensor.shape, shape, (size_t)ndim * sizeof(*shape)) != 0))
        return ipvg_fail(ctx, IPVG_E_FORMAT, "%s%stensor '%s': expected shape %s, found %s",
                         item->file >= 0 ? w->files[item->file].path : "", item->file >= 0 ? ": " : "", name, expected,
                         ipvg_shape_text(found, sizeof(found), item->tensor.ndim, item->tensor.shape));

    size_t element = ipvg_dtype_size(item->tensor.dtype), bytes = ipvg_tensor_bytes(&item->tensor);
    if (bytes > 0 && (uintptr_t)item->tensor.data % element != 0) {
        size_t padded = (bytes + 63) / 64 * 64; /* aligned_alloc wants a multiple of the alignment */
        item->copy = aligned_alloc(64, padded);
        if (!item->copy)
            return ipvg_fail(ctx, IPVG_E_MEMORY, "no memory to align tensor '%s' (%zu bytes)", name, bytes);
        memcpy(item->copy, item->tensor.data, bytes);
        item->tensor.data = item->copy;
    }
    item->taken = true;
    *out = item->tensor;
    return IPVG_OK;
}

bool ipvg_weights_has(const ipvg_weights *w, const char *name_format, ...)
{
    char name[NAME_MAX_BYTES];
    va_list args;
    bool fits;

    va_start(args, name_format);
    fits = format_name(name, name_format, args);
    va_end(args);
    return fits && find(w, name);
}

size_t ipvg_weights_count(const ipvg_weights *w) { return w->count; }

bool ipvg_weights_at(const ipvg_weights *w, size_t i, const char **name, ipvg_tensor *out)
{
    if (i >= w->count) return false;
    *name = w->items[i].name;
    *out = w->items[i].tensor;
    return true;
}

const ipvg_file *ipvg_weights_file(const ipvg_weights *w, const void *data, uint64_t *offset)
{
    for (size_t i = 0; i < w->file_count; i++) {
        const mapped_file *f = &w->files[i];
        const uintptr_t at = (uintptr_t)data - (uintptr_t)f->base;
        if (!f->base || f->file.fd < 0 || at >= f->size) continue;
        *offset = at;
        return &f->file;
    }
    return NULL;
}

size_t ipvg_weights_untaken(const ipvg_weights *w, const char **names, size_t max)
{
    size_t n = 0;
    for (size_t i = 0; i < w->count; i++) {
        if (w->items[i].taken) continue;
        if (n < max) names[n] = w->items[i].name;
        n++;
    }
    return n;
}

ipvg_status ipvg_weights_all_taken(ipvg_context *ctx, const ipvg_weights *w)
{
    const char *names[3] = {"", "", ""};
    size_t n = ipvg_weights_untaken(w, names, 3);

    if (n == 0) return IPVG_OK;
    return ipvg_fail(ctx, IPVG_E_FORMAT, "%zu tensor%s no part of this model: %.200s%s%.200s%s%.200s%s", n,
                     n == 1 ? " is" : "s are", names[0], n > 1 ? ", " : "", names[1], n > 2 ? ", " : "", names[2],
                     n > 3 ? ", ..." : "");
}

/* The weights of one model: names to tensors that lie in mapped files (or in memory that the caller keeps alive).
 * Nothing is copied or read until a model touches it. Python parses the headers (ipvg/checkpoint); here every length,
 * offset and bound is checked again, against the size that the file really has.
 *
 *     ipvg_weights *w = NULL;
 *     IPVG_TRY(ipvg_weights_open(ctx, &w, sources, count));
 *     for (int i = 0; i < layers; i++)
 *         IPVG_TRY(ipvg_weights_take(ctx, w, &block[i].q, (int64_t[]){dim, dim}, 2, "blocks.%d.self_attn.q.weight", i));
 *     IPVG_TRY(ipvg_weights_all_taken(ctx, w));                        // an unknown tensor is an error too
 *     ...
 *     ipvg_weights_free(&w);                                           // after the last model that took from it
 *
 * Names are the official ones of Wan2.1 (ipvg/checkpoint/names.py brings diffusers' names to them).
 * Taking marks tensors and may copy one: one thread at a time. The views are read-only: a write ends the process. A file
 * that is cut short while it is mapped ends it too, with SIGBUS, at the first touch of a lost page (a GPU reads the file, and
 * that is an error): do not rewrite a checkpoint in place (write beside it and rename). */
#ifndef IPVG_MODEL_WEIGHTS_H
#define IPVG_MODEL_WEIGHTS_H

#include <stdbool.h>

#include "../base/file.h"
#include "../base/tensor.h"

typedef struct ipvg_weights ipvg_weights;

/* Where one tensor is. Not trusted: any values may stand here. The strings are copied. */
typedef struct ipvg_weight_source {
    const char *name;
    const char *path; /* a file to map; NULL: the tensor is in memory, at `data` */
    uint64_t offset;  /* bytes from the start of the file */
    const void *data; /* with path NULL. NULL here as well: shapes only, for planning without files */
    uint64_t bytes;   /* of `data`: checked against dtype and shape */
    ipvg_dtype dtype;
    int ndim; /* 0..IPVG_MAX_DIMS */
    int64_t shape[IPVG_MAX_DIMS];
} ipvg_weight_source;

/* IPVG_E_FORMAT: a bound, a duplicate name, a size that overflows. IPVG_E_IO: a file that cannot be opened or mapped. */
ipvg_status ipvg_weights_open(ipvg_context *ctx, ipvg_weights **out, const ipvg_weight_source *sources, size_t count);
void ipvg_weights_free(ipvg_weights **w);

/* The tensor of that (printf) name, which must have that shape, as a contiguous read-only view in the file's own dtype;
 * it lives as long as `w`. Data that its element size does not divide is copied once to an aligned buffer of `w`.
 * out->data is NULL where the source gave no data. Taking twice gives the same view.
 * IPVG_E_FORMAT names the tensor, what was expected and what is there. */
__attribute__((format(printf, 6, 7))) ipvg_status ipvg_weights_take(ipvg_context *ctx, ipvg_weights *w,
                                                                    ipvg_tensor *out, const int64_t *shape, int ndim,
                                                                    const char *name, ...);

/* Is there a tensor of that (printf) name? Does not take it. */
__attribute__((format(printf, 2, 3))) bool ipvg_weights_has(const ipvg_weights *w, const char *name, ...);

size_t ipvg_weights_count(const ipvg_weights *w);
/* The i-th tensor in the order of the sources, as it lies there (perhaps unaligned): for listings, not for models.
 * False past the end. */
bool ipvg_weights_at(const ipvg_weights *w, size_t i, const char **name, ipvg_tensor *out);

/* The file that the bytes at `data` are mapped from, and where in it; NULL: they are not, or it is not open. */
const ipvg_file *ipvg_weights_file(const ipvg_weights *w, const void *data, uint64_t *offset);

/* How many tensors nobody took; the first `max` of their names (in the order of the sources) go to `names`. */
size_t ipvg_weights_untaken(const ipvg_weights *w, const char **names, size_t max);
/* IPVG_E_FORMAT that names a few of them, or IPVG_OK. */
ipvg_status ipvg_weights_all_taken(ipvg_context *ctx, const ipvg_weights *w);

#endif

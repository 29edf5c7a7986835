/* A tensor is a view: dtype, shape and a pointer. It never owns memory; an arena, a weight file or NumPy does.
 * C order. Only the rows of a matrix may lie apart (`ld`), so that q, k and v can be slices of one buffer. */
#ifndef IPVG_BASE_TENSOR_H
#define IPVG_BASE_TENSOR_H

#include <stddef.h>
#include <stdint.h>

#define IPVG_MAX_DIMS 5

typedef enum ipvg_dtype {
    IPVG_F32,
    IPVG_BF16,
    IPVG_F16,
    IPVG_E4M3, /* 8-bit float, finite up to 448: of matrices on a GPU alone */
    IPVG_F64,
    IPVG_I32,
    IPVG_I64,
    IPVG_U8,
    IPVG_DTYPES
} ipvg_dtype;

typedef struct ipvg_tensor {
    ipvg_dtype dtype;
    int ndim;
    int64_t shape[IPVG_MAX_DIMS];
    int64_t ld; /* elements from one row (last axis) to the next; shape[ndim-1] when contiguous */
    void *data;
    float *scale; /* E4M3: what the numbers of each row are times, in the same memory; else NULL */
} ipvg_tensor;

size_t ipvg_dtype_size(ipvg_dtype dtype);
const char *ipvg_dtype_name(ipvg_dtype dtype); /* "float32", "bfloat16", "fp8", ... */

/* A contiguous view of `data`. ipvg_tensor_of(x, IPVG_F32, 2, rows, cols) */
#define ipvg_tensor_of(data, dtype, ...)                                                         \
    ipvg_tensor_make((data), (dtype), (int)(sizeof((int64_t[]){__VA_ARGS__}) / sizeof(int64_t)), \
                     (const int64_t[]){__VA_ARGS__})
ipvg_tensor ipvg_tensor_make(void *data, ipvg_dtype dtype, int ndim, const int64_t *shape);

int64_t ipvg_tensor_count(const ipvg_tensor *t); /* elements */
int64_t ipvg_tensor_rows(const ipvg_tensor *t);  /* elements / shape[ndim-1]; 1 for a scalar */
size_t ipvg_tensor_bytes(const ipvg_tensor *t);  /* of a contiguous tensor */

/* Element i of a contiguous float tensor in host memory, widened: for small tables, it is slow. */
float ipvg_tensor_at(const ipvg_tensor *t, int64_t i);

/* Rows [first, first + count) of the first axis. */
ipvg_tensor ipvg_tensor_slice(const ipvg_tensor *t, int64_t first, int64_t count);
/* Columns [first, first + count) of a matrix: the only view with ld != shape[1]. */
ipvg_tensor ipvg_tensor_columns(const ipvg_tensor *t, int64_t first, int64_t count);

/* "(16, 4, 6, 8)" into buf, for error texts. Returns buf. */
const char *ipvg_shape_text(char *buf, size_t size, int ndim, const int64_t *shape);

#endif

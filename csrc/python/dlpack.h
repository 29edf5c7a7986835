/* The structures of DLPack 1.0, by which array libraries lend each other memory: https://dmlc.github.io/dlpack */
#ifndef IPVG_PYTHON_DLPACK_H
#define IPVG_PYTHON_DLPACK_H

#include <stdint.h>

enum { IPVG_DL_CPU = 1, IPVG_DL_CUDA = 2, IPVG_DL_CUDA_HOST = 3 };
enum { IPVG_DL_INT = 0, IPVG_DL_UINT = 1, IPVG_DL_FLOAT = 2, IPVG_DL_BFLOAT = 4 };
enum { IPVG_DL_READ_ONLY = 1, IPVG_DL_COPIED = 2 };

typedef struct ipvg_dl_tensor {
    void *data;
    struct {
        int32_t type, id;
    } device;
    int32_t ndim;
    struct {
        uint8_t code, bits;
        uint16_t lanes;
    } dtype;
    int64_t *shape, *strides; /* in elements; strides NULL: C order, before 1.2 */
    uint64_t byte_offset;
} ipvg_dl_tensor;

/* What a capsule "dltensor" holds, and since 1.0 one called "dltensor_versioned". Whoever takes it renames the capsule to
 * "used_..." and calls the deleter, once. */
typedef struct ipvg_dl_legacy {
    ipvg_dl_tensor tensor;
    void *user;
    void (*deleter)(struct ipvg_dl_legacy *self);
} ipvg_dl_legacy;

typedef struct ipvg_dl_versioned {
    uint32_t major, minor;
    void *user;
    void (*deleter)(struct ipvg_dl_versioned *self);
    uint64_t flags;
    ipvg_dl_tensor tensor;
} ipvg_dl_versioned;

#endif

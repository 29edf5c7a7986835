/* _core.Tensor, an array in a device's memory, and arrays that callers give. */
#ifndef IPVG_PYTHON_TENSOR_H
#define IPVG_PYTHON_TENSOR_H

#include "common.h"

typedef struct ipvg_py_tensor {
    PyObject_HEAD
    ipvg_py_device *dev; /* owned */
    PyObject *owner;     /* whose memory it is, kept alive; NULL: its own */
    void *memory;        /* its own, else NULL */
    ipvg_tensor t;
    int64_t strides[IPVG_MAX_DIMS]; /* in elements */
    int writable;
} ipvg_py_tensor;

extern PyTypeObject *ipvg_py_tensor_type;

/* A Tensor of `owner`'s memory, without the first `skip` of the second axis. */
PyObject *ipvg_py_tensor_of(PyObject *owner, ipvg_py_device *dev, const ipvg_tensor *t, int64_t skip, int writable);

/* An array as runs of elements that lie together: `count` runs of `run` elements, in C order. */
typedef struct ipvg_py_runs {
    int64_t count, run;
    int outer; /* axes that tell them apart */
} ipvg_py_runs;
ipvg_py_runs ipvg_py_runs_of(int ndim, const int64_t *shape, const int64_t *strides);
/* Where run k begins, in elements. */
int64_t ipvg_py_run_at(const ipvg_py_runs *runs, const int64_t *shape, const int64_t *strides, int64_t k);

/* An array that a caller gives: a Tensor, any object with __dlpack__ on the host or on this device, or what NumPy takes.
 * `tensor` is float32, in C order and finite, in the host's memory or the device's: ipvg_backend's copy_in takes both. It is
 * the caller's own memory where dtype and layout fit. ndim -1: any; shape NULL or -1 in it: any.
 *     if (!ipvg_py_take(&x, dev, obj, "latent", 4, shape)) return NULL;   // raised
 *     ... copy_in(ex, to, x.tensor.data) ...
 *     ipvg_py_drop(&x);                                                   // waits for that copy where the memory is lent */
typedef struct ipvg_py_input {
    ipvg_tensor tensor;
    PyObject *keep;      /* owned: the array, the Tensor, or a capsule that gives lent memory back */
    ipvg_py_device *dev; /* owned, where the memory is the device's; else NULL */
    void *block;         /* device memory that it was brought together in, or NULL */
    int lent;            /* device memory of another library */
} ipvg_py_input;
int ipvg_py_take(ipvg_py_input *out, ipvg_py_device *dev, PyObject *obj, const char *what, int ndim,
                 const int64_t *shape);
void ipvg_py_drop(ipvg_py_input *in);

#endif

/* Shared by the files of _core: NumPy in and out, statuses to exceptions, the device that models run on.
 * NumPy's C API is imported once, in module.c; every file includes this header only. */
#ifndef IPVG_PYTHON_COMMON_H
#define IPVG_PYTHON_COMMON_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#define NPY_NO_DEPRECATED_API NPY_2_0_API_VERSION
#define PY_ARRAY_UNIQUE_SYMBOL ipvg_array_api
#ifndef IPVG_PYTHON_MODULE
#define NO_IMPORT_ARRAY
#endif
#include <numpy/arrayobject.h>
#include <pthread.h>

#include "../ops/ops.h"

/* Raises the exception that `status` stands for, with the context's text. Always returns NULL. */
PyObject *ipvg_py_raise(const ipvg_context *ctx, ipvg_status status);

/* A device is a backend with its context and scratch. Models hold a reference. One call at a time: ipvg_py_enter takes
 * the device's lock (waiting without the GIL), installs the signal poll and releases the GIL; ipvg_py_leave undoes it.
 *     if (!ipvg_py_enter(dev, &run)) return NULL;
 *     status = ipvg_vae_decode(&dev->ex, ...);
 *     if (!ipvg_py_leave(&run, status)) return NULL;     // raised */
typedef struct ipvg_py_device {
    PyObject_HEAD
    ipvg_context ctx;
    ipvg_backend *be;
    ipvg_arena arena;
    ipvg_exec ex; /* points at the three above */
    PyThread_type_lock lock;
    pthread_mutex_t gate; /* so that a cancel meets the call it is for, and no later one: */
    int running;          /* a call has the lock */
    atomic_int lent;      /* tensors of it that other libraries hold; see tensor.h */
    atomic_int touched;   /* they may have read or written since the last call */
} ipvg_py_device;

extern PyTypeObject *ipvg_py_device_type; /* set when the module loads; a heap type */

typedef struct ipvg_py_run {
    ipvg_py_device *dev;
    PyThreadState *thread;
} ipvg_py_run;
int ipvg_py_enter(ipvg_py_device *dev, ipvg_py_run *run);
/* The same for a call that neither reads nor writes what others may hold: it does not wait for them. */
int ipvg_py_enter_unsettled(ipvg_py_device *dev, ipvg_py_run *run);
/* 0 and an exception set: the status says so, or what ran raised one itself (a trace, a report of progress). */
int ipvg_py_leave(ipvg_py_run *run, ipvg_status status);
/* Tells the call that runs to stop; with `only`, if that is not 0. 0: none runs. */
int ipvg_py_cancel(ipvg_py_device *dev, const atomic_int *only);

/* A Python callable trace(name, array) as the trace of a run. After ipvg_py_enter; ipvg_py_leave takes it off again. An
 * exception in the callable ends the run and is what the caller sees. NULL and None: no trace; else a callable, which
 * ipvg_py_trace_check makes sure of before the run (0 and TypeError set otherwise). */
typedef struct ipvg_py_trace {
    ipvg_trace trace;
    ipvg_py_run *run;
    PyObject *call;
} ipvg_py_trace;
int ipvg_py_trace_check(PyObject *callable);
void ipvg_py_trace_set(ipvg_py_trace *t, ipvg_py_run *run, PyObject *callable);

/* A C-contiguous float32 array of exactly `ndim` dimensions from any array-like number array; `what` names it in errors
 * (TypeError for a wrong dtype, ValueError for wrong ndim, size or a NaN / infinity). New reference. shape: -1 = any.
 * threads: that look at the numbers, without the GIL. */
PyArrayObject *ipvg_py_float_array(PyObject *obj, const char *what, int ndim, const int64_t *shape, int threads);
/* A tensor of the run's device for one of the host's: the same where the device's memory is the host's, else a block of its
 * own, filled from `host` if `fill`. ipvg_py_unstage takes the result to `host` if that is not NULL, and frees the block. */
ipvg_status ipvg_py_stage(ipvg_py_device *dev, ipvg_tensor *out, const ipvg_tensor *host, int fill);
ipvg_status ipvg_py_unstage(ipvg_py_device *dev, ipvg_tensor *staged, const ipvg_tensor *host, ipvg_status status);
/* Brings a new model's weights to the device. 0 and an exception set on failure. */
int ipvg_py_place(ipvg_py_device *dev, ipvg_status (*place)(ipvg_exec *ex, void *model), void *model);
/* bfloat16, which NumPy has not and keeps as uint16, as float32 of the same values. Takes `half`, which may be NULL. */
PyObject *ipvg_py_widen(PyObject *half);
/* A tensor that views a C-contiguous array. */
ipvg_tensor ipvg_py_view(PyArrayObject *a);
/* A new float32 array. */
PyArrayObject *ipvg_py_new(int ndim, const int64_t *shape);

/* An integer or a number as an argument, with its range; `what` names it in errors (TypeError, ValueError). Return 0 and
 * raise on failure. */
int ipvg_py_int(PyObject *value, const char *what, int64_t min, int64_t max, int64_t *out);
int ipvg_py_number(PyObject *value, const char *what, double min, double max, double *out);
/* Which of the words a str is; -1 with TypeError or ValueError set if none. */
int ipvg_py_choice(PyObject *value, const char *what, const char *const *words, int count);

/* dict[key], borrowed; NULL with or without an exception. PyDict_GetItemString would take no memory for "not there". */
PyObject *ipvg_py_dict_item(PyObject *dict, const char *key);
/* An int / float item of a config dict, with range check. Return 0 and raise on failure. */
int ipvg_py_dict_int(PyObject *dict, const char *key, int min, int max, int *out);
int ipvg_py_dict_float(PyObject *dict, const char *key, double min, double max, float *out);
/* A list of ints; *count is set. */
int ipvg_py_dict_ints(PyObject *dict, const char *key, int min, int max, int *out, int capacity, int *count);

/* Each file adds its types here; 0 or -1 with an exception set. Registered in module.c. */
int ipvg_py_add_device(PyObject *module);
int ipvg_py_add_tensor(PyObject *module);
int ipvg_py_add_weights(PyObject *module);
int ipvg_py_add_umt5(PyObject *module);
int ipvg_py_add_vae(PyObject *module);
int ipvg_py_add_dit(PyObject *module);
int ipvg_py_add_sampler(PyObject *module);
int ipvg_py_add_prepare(PyObject *module);

#endif

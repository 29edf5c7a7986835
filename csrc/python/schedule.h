/* Shared by schedule.c and sampler.c. */
#ifndef IPVG_PYTHON_SCHEDULE_H
#define IPVG_PYTHON_SCHEDULE_H

#include "../sample/schedule.h"
#include "common.h"

typedef struct ipvg_py_schedule {
    PyObject_HEAD
    ipvg_schedule *schedule;
} ipvg_py_schedule;

extern PyTypeObject *ipvg_py_schedule_type;

/* A read-only NumPy view of a tensor; `base` owns the memory and is kept alive by the view. */
PyObject *ipvg_py_borrow(PyObject *base, const ipvg_tensor *tensor);
/* The same for a tensor of a device: a view where its memory is the host's, else a copy. */
PyObject *ipvg_py_read(PyObject *base, ipvg_py_device *dev, const ipvg_tensor *tensor);

int ipvg_py_add_schedule(PyObject *module);

#endif

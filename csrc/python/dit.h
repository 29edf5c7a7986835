/* What other files of _core (the sampler) need of the DiT's Python types to call the C model without Python. */
#ifndef IPVG_PYTHON_DIT_H
#define IPVG_PYTHON_DIT_H

#include "../model/dit.h"
#include "common.h"

typedef struct ipvg_py_dit {
    PyObject_HEAD
    ipvg_py_device *device; /* owned references */
    PyObject *weights;
    ipvg_dit *dit;
} ipvg_py_dit;

typedef struct ipvg_py_dit_text {
    PyObject_HEAD
    ipvg_py_dit *model; /* owned: a text is for one model only */
    ipvg_dit_text *text;
} ipvg_py_dit_text;

typedef struct ipvg_py_dit_context {
    PyObject_HEAD
    ipvg_py_dit *model; /* owned */
    ipvg_dit_context *context;
} ipvg_py_dit_context;

/* Heap types, set when the module loads. */
extern PyTypeObject *ipvg_py_dit_type, *ipvg_py_dit_text_type, *ipvg_py_dit_context_type;

#endif

/* _core.Weights: what the model types take their tensors from. A model keeps a reference to the object, since its
 * tensors point into the files that the object maps. */
#ifndef IPVG_PYTHON_WEIGHTS_H
#define IPVG_PYTHON_WEIGHTS_H

#include "common.h"

#include "../model/weights.h"

/* The weights inside a _core.Weights (borrowed), or NULL with TypeError set. */
ipvg_weights *ipvg_py_weights(PyObject *obj);

#endif

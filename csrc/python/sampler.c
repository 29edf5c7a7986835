/* _core.Sampler: see csrc/sample/sampler.h. */
#include "schedule.h"

int ipvg_py_add_sampler(PyObject *module) { return ipvg_py_add_schedule(module); }

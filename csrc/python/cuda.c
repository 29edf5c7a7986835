/* The _cuda module: the CUDA backend in a capsule, for _core. It uses Python's stable interface alone, so that one build
 * serves every Python. */
#define Py_LIMITED_API 0x030A0000
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "../ops/cuda/device.h"

static const ipvg_cuda_api api = {IPVG_CUDA_API, sizeof(ipvg_backend), ipvg_backend_cuda};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, .m_name = "ipvg._cuda",
                                        .m_doc = "The CUDA backend of ipvg; _core takes it from `api`.", .m_size = -1};

PyMODINIT_FUNC PyInit__cuda(void)
{
    PyObject *m = PyModule_Create(&definition), *capsule = NULL;
    if (!m) return NULL;
    capsule = PyCapsule_New((void *)(uintptr_t)&api, IPVG_CUDA_CAPSULE, NULL);
    if (!capsule || PyModule_AddObjectRef(m, "api", capsule)) {
        Py_XDECREF(capsule);
        Py_DECREF(m);
        return NULL;
    }
    Py_DECREF(capsule);
    return m;
}

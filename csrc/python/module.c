/* The _core module: its exceptions, NumPy conversions and the list of types. Status to exception is decided here. */
#define IPVG_PYTHON_MODULE
#include "common.h"

static PyObject *format_error, *cancelled, *unsupported_error, *backend_error;

PyObject *ipvg_py_raise(const ipvg_context *ctx, ipvg_status status)
{
    if (PyErr_Occurred()) return NULL; /* a signal handler's own exception (KeyboardInterrupt) wins */
    PyObject *type = PyExc_RuntimeError;
    switch (status) {
    case IPVG_E_ARGUMENT: type = PyExc_ValueError; break;
    case IPVG_E_TYPE: type = PyExc_TypeError; break;
    case IPVG_E_MEMORY: type = PyExc_MemoryError; break;
    case IPVG_E_FORMAT: type = format_error; break;
    case IPVG_E_CANCELLED: type = cancelled; break;
    case IPVG_E_UNSUPPORTED: type = unsupported_error; break;
    case IPVG_E_BACKEND: type = backend_error; break;
    case IPVG_E_IO: {
        PyObject *args = Py_BuildValue("(is)", ctx->sys_errno, ctx->error);
        if (args) PyErr_SetObject(PyExc_OSError, args);
        Py_XDECREF(args);
        return NULL;
    }
    case IPVG_OK: break;
    }
    PyErr_SetString(type, ctx->error);
    return NULL;
}

/* ---- NumPy ---- */

ipvg_tensor ipvg_py_view(PyArrayObject *a)
{
    ipvg_dtype dtype = IPVG_F32;
    switch (PyArray_TYPE(a)) {
    case NPY_INT32: dtype = IPVG_I32; break;
    case NPY_INT64: dtype = IPVG_I64; break;
    case NPY_UINT8: dtype = IPVG_U8; break;
    case NPY_FLOAT16: dtype = IPVG_F16; break;
    case NPY_FLOAT64: dtype = IPVG_F64; break;
    default: break;
    }
    int64_t shape[IPVG_MAX_DIMS];
    for (int i = 0; i < PyArray_NDIM(a); i++) shape[i] = PyArray_DIM(a, i);
    return ipvg_tensor_make(PyArray_DATA(a), dtype, PyArray_NDIM(a), shape);
}

PyArrayObject *ipvg_py_new(int ndim, const int64_t *shape)
{
    npy_intp dims[IPVG_MAX_DIMS];
    for (int i = 0; i < ndim; i++) dims[i] = (npy_intp)shape[i];
    return (PyArrayObject *)PyArray_SimpleNew(ndim, dims, NPY_FLOAT32);
}

/* ---- numbers ---- */

int ipvg_py_int(PyObject *value, const char *what, int64_t min, int64_t max, int64_t *out)
{
    PyObject *index = PyNumber_Index(value);
    if (!index) {
        if (PyErr_ExceptionMatches(PyExc_TypeError))
            PyErr_Format(PyExc_TypeError, "%s: expected an integer, got %.100s", what, Py_TYPE(value)->tp_name);
        return 0;
    }
    int overflow;
    long long x = PyLong_AsLongLongAndOverflow(index, &overflow);
    int fits = !overflow && x >= min && x <= max;
    if (!fits && !PyErr_Occurred())
        PyErr_Format(PyExc_ValueError, "%s: expected %lld to %lld, got %R", what, (long long)min, (long long)max,
                     index);
    Py_DECREF(index);
    *out = x;
    return fits;
}

int ipvg_py_number(PyObject *value, const char *what, double min, double max, double *out)
{
    double x = PyFloat_AsDouble(value);
    if (x == -1.0 && PyErr_Occurred()) {
        if (PyErr_ExceptionMatches(PyExc_TypeError) || PyErr_ExceptionMatches(PyExc_OverflowError))
            PyErr_Format(PyExc_TypeError, "%s: expected a number, got %.100s", what, Py_TYPE(value)->tp_name);
        return 0;
    }
    if (!(x >= min && x <= max)) {
        char range[64];
        snprintf(range, sizeof range, "%g to %g", min, max);
        PyErr_Format(PyExc_ValueError, "%s: expected a number from %s, got %R", what, range, value);
        return 0;
    }
    *out = x;
    return 1;
}

int ipvg_py_choice(PyObject *value, const char *what, const char *const *words, int count)
{
    char list[256] = "";
    for (int i = 0; i < count; i++) {
        if (PyUnicode_Check(value) && PyUnicode_CompareWithASCIIString(value, words[i]) == 0) return i;
        size_t n = strlen(list);
        snprintf(list + n, sizeof list - n, i ? ", '%s'" : "'%s'", words[i]);
    }
    PyErr_Format(PyUnicode_Check(value) ? PyExc_ValueError : PyExc_TypeError, "%s: expected one of %s, got %R", what,
                 list, value);
    return -1;
}

/* ---- config dicts ---- */

PyObject *ipvg_py_dict_item(PyObject *dict, const char *key)
{
    PyObject *name = PyUnicode_FromString(key), *v = name ? PyDict_GetItemWithError(dict, name) : NULL;
    Py_XDECREF(name);
    return v;
}

static PyObject *item(PyObject *dict, const char *key)
{
    PyObject *v = ipvg_py_dict_item(dict, key);
    if (!v && !PyErr_Occurred()) PyErr_Format(PyExc_ValueError, "config: '%s' is missing", key);
    return v;
}

int ipvg_py_dict_int(PyObject *dict, const char *key, int min, int max, int *out)
{
    PyObject *v = item(dict, key);
    if (!v) return 0;
    long x = PyLong_AsLong(v);
    if (x == -1 && PyErr_Occurred()) {
        PyErr_Format(PyExc_TypeError, "config: '%s' must be an integer, got %R", key, v);
        return 0;
    }
    if (x < min || x > max) {
        PyErr_Format(PyExc_ValueError, "config: '%s' is %ld, expected %d to %d", key, x, min, max);
        return 0;
    }
    *out = (int)x;
    return 1;
}

int ipvg_py_dict_float(PyObject *dict, const char *key, double min, double max, float *out)
{
    PyObject *v = item(dict, key);
    if (!v) return 0;
    double x = PyFloat_AsDouble(v);
    if (x == -1.0 && PyErr_Occurred()) {
        PyErr_Format(PyExc_TypeError, "config: '%s' must be a number, got %R", key, v);
        return 0;
    }
    if (!(x >= min && x <= max)) {
        PyErr_Format(PyExc_ValueError, "config: '%s' is %R, out of range", key, v);
        return 0;
    }
    *out = (float)x;
    return 1;
}

int ipvg_py_dict_ints(PyObject *dict, const char *key, int min, int max, int *out, int capacity, int *count)
{
    PyObject *v = item(dict, key);
    if (!v) return 0;
    PyObject *fast = PySequence_Fast(v, "");
    if (!fast && PyErr_ExceptionMatches(PyExc_MemoryError)) return 0;
    if (!fast || PySequence_Fast_GET_SIZE(fast) > capacity) {
        PyErr_Format(PyExc_ValueError, "config: '%s' must be a list of at most %d integers", key, capacity);
        Py_XDECREF(fast);
        return 0;
    }
    *count = (int)PySequence_Fast_GET_SIZE(fast);
    int ok = 1;
    for (int i = 0; ok && i < *count; i++) {
        long x = PyLong_AsLong(PySequence_Fast_GET_ITEM(fast, i));
        if ((x == -1 && PyErr_Occurred()) || x < min || x > max) {
            PyErr_Format(PyExc_ValueError, "config: '%s' must hold integers from %d to %d, got %R", key, min, max, v);
            ok = 0;
        }
        out[i] = (int)x;
    }
    Py_DECREF(fast);
    return ok;
}

/* ---- module ---- */

static int add_exception(PyObject *m, PyObject **out, const char *name, const char *full, const char *doc,
                         PyObject *base)
{
    *out = PyErr_NewExceptionWithDoc(full, doc, base, NULL);
    return *out && PyModule_AddObjectRef(m, name, *out) == 0 ? 0 : -1;
}

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, .m_name = "ipvg._core",
                                        .m_doc = "The C core of ipvg: models, sampler, weights.", .m_size = -1};

PyMODINIT_FUNC PyInit__core(void)
{
    import_array();
    PyObject *m = PyModule_Create(&definition);
    if (!m) return NULL;
    if (add_exception(m, &format_error, "FormatError", "ipvg.FormatError",
                      "A file's bytes are not what they claim to be.", PyExc_ValueError) ||
        add_exception(m, &cancelled, "Cancelled", "ipvg.Cancelled", "cancel() stopped the call; the object is usable.",
                      PyExc_RuntimeError) ||
        add_exception(m, &unsupported_error, "UnsupportedError", "ipvg.UnsupportedError",
                      "Valid, but not by this build or on this machine.", PyExc_RuntimeError) ||
        add_exception(m, &backend_error, "BackendError", "ipvg.BackendError", "A library below ipvg failed.",
                      PyExc_RuntimeError) ||
        ipvg_py_add_device(m) || ipvg_py_add_tensor(m) || ipvg_py_add_weights(m) || ipvg_py_add_umt5(m) ||
        ipvg_py_add_vae(m) || ipvg_py_add_dit(m) || ipvg_py_add_sampler(m) || ipvg_py_add_prepare(m)) {
        Py_DECREF(m);
        return NULL;
    }
    return m;
}

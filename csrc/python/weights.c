#include "weights.h"

#include <string.h>

typedef struct weights_object {
    PyObject_HEAD
    ipvg_weights *weights;
    Py_buffer *buffers; /* what in-memory tensors point into; the arrays stay alive and cannot be resized */
    size_t buffer_count;
} weights_object;

static PyTypeObject *weights_type;

ipvg_weights *ipvg_py_weights(PyObject *obj)
{
    if (!PyObject_TypeCheck(obj, weights_type)) {
        PyErr_Format(PyExc_TypeError, "weights: expected _core.Weights, got %.100s", Py_TYPE(obj)->tp_name);
        return NULL;
    }
    return ((weights_object *)obj)->weights;
}

/* ---- building the sources ---- */

static int dtype_of_name(PyObject *obj, const char *tensor, ipvg_dtype *out)
{
    const char *name = PyUnicode_Check(obj) ? PyUnicode_AsUTF8(obj) : NULL;
    for (int d = 0; name && d < IPVG_DTYPES; d++) {
        if (d != IPVG_E4M3 && strcmp(name, ipvg_dtype_name(d)) == 0) {
            *out = (ipvg_dtype)d;
            return 0;
        }
    }
    if (!PyErr_Occurred())
        PyErr_Format(PyExc_TypeError,
                     "tensor '%s': dtype %R is none of float32, bfloat16, float16, float64, int32, "
                     "int64, uint8",
                     tensor, obj);
    return -1;
}

/* From a buffer's format; native byte order only. */
static int dtype_of_format(const Py_buffer *buf, const char *tensor, ipvg_dtype *out)
{
    const char *f = buf->format ? buf->format : "B";
    if (*f == '@' || *f == '=' || *f == '<') f++; /* x86-64 and every host this builds on are little-endian */
    if (f[0] && !f[1]) {
        if (*f == 'f' && buf->itemsize == 4) return *out = IPVG_F32, 0;
        if (*f == 'e' && buf->itemsize == 2) return *out = IPVG_F16, 0;
        if (*f == 'd' && buf->itemsize == 8) return *out = IPVG_F64, 0;
        if (strchr("ilq", *f) && buf->itemsize == 4) return *out = IPVG_I32, 0;
        if (strchr("ilq", *f) && buf->itemsize == 8) return *out = IPVG_I64, 0;
        if (*f == 'B') return *out = IPVG_U8, 0;
    }
    PyErr_Format(PyExc_TypeError,
                 "tensor '%s': cannot use elements of format '%s'; for bfloat16 pass "
                 "(array of uint16, 'bfloat16')",
                 tensor, f);
    return -1;
}

static int shape_of(PyObject *obj, ipvg_weight_source *s)
{
    PyObject *seq = PySequence_Fast(obj, "shape: expected a sequence of ints");
    if (!seq) return -1;
    Py_ssize_t n = PySequence_Fast_GET_SIZE(seq);
    if (n > IPVG_MAX_DIMS) {
        PyErr_Format(PyExc_ValueError, "tensor '%s': %zd dimensions, at most %d are possible", s->name, n,
                     IPVG_MAX_DIMS);
        Py_DECREF(seq);
        return -1;
    }
    s->ndim = (int)n;
    for (Py_ssize_t i = 0; i < n; i++) {
        s->shape[i] = PyLong_AsLongLong(PySequence_Fast_GET_ITEM(seq, i));
        if (s->shape[i] == -1 && PyErr_Occurred()) {
            Py_DECREF(seq);
            return -1;
        }
    }
    Py_DECREF(seq);
    return 0;
}

/* (path | None, offset, dtype, shape). The path's bytes object goes to `keep`. */
static int source_of_tuple(PyObject *entry, ipvg_weight_source *s, PyObject *keep)
{
    PyObject *path = PyTuple_GET_ITEM(entry, 0), *bytes = NULL;

    if (path != Py_None) {
        if (!PyUnicode_FSConverter(path, &bytes)) return -1;
        int failed = PyList_Append(keep, bytes);
        s->path = PyBytes_AS_STRING(bytes);
        Py_DECREF(bytes); /* `keep` has it */
        if (failed) return -1;
    }
    s->offset = PyLong_AsUnsignedLongLong(PyTuple_GET_ITEM(entry, 1));
    if (s->offset == (uint64_t)-1 && PyErr_Occurred()) return -1;
    if (dtype_of_name(PyTuple_GET_ITEM(entry, 2), s->name, &s->dtype)) return -1;
    return shape_of(PyTuple_GET_ITEM(entry, 3), s);
}

/* array, or (array, dtype name). */
static int source_of_buffer(PyObject *obj, PyObject *dtype, ipvg_weight_source *s, weights_object *self)
{
    Py_buffer *buf = &self->buffers[self->buffer_count];

    if (PyObject_GetBuffer(obj, buf, PyBUF_FORMAT | PyBUF_C_CONTIGUOUS)) return -1;
    self->buffer_count++;
    if (buf->ndim > IPVG_MAX_DIMS) {
        PyErr_Format(PyExc_ValueError, "tensor '%s': %d dimensions, at most %d are possible", s->name, buf->ndim,
                     IPVG_MAX_DIMS);
        return -1;
    }
    if (dtype ? dtype_of_name(dtype, s->name, &s->dtype) : dtype_of_format(buf, s->name, &s->dtype)) return -1;
    if ((size_t)buf->itemsize != ipvg_dtype_size(s->dtype)) {
        PyErr_Format(PyExc_TypeError, "tensor '%s': %s takes %zu bytes an element, the array has %zd", s->name,
                     ipvg_dtype_name(s->dtype), ipvg_dtype_size(s->dtype), buf->itemsize);
        return -1;
    }
    s->ndim = buf->ndim;
    for (int i = 0; i < buf->ndim; i++) s->shape[i] = buf->shape[i];
    s->data = buf->len ? buf->buf : NULL;
    s->bytes = (uint64_t)buf->len;
    return 0;
}

static int source_of(PyObject *key, PyObject *value, ipvg_weight_source *s, weights_object *self, PyObject *keep)
{
    Py_ssize_t size;

    if (!PyUnicode_Check(key)) {
        PyErr_Format(PyExc_TypeError, "the name of a tensor is a str, got %.100s", Py_TYPE(key)->tp_name);
        return -1;
    }
    s->name = PyUnicode_AsUTF8AndSize(key, &size); /* lives as long as the key, which the dict keeps */
    if (!s->name) return -1;
    if (strlen(s->name) != (size_t)size) {
        PyErr_Format(PyExc_ValueError, "the name of a tensor holds a NUL character: %R", key);
        return -1;
    }
    if (PyTuple_Check(value) && PyTuple_GET_SIZE(value) == 4) return source_of_tuple(value, s, keep);
    if (PyTuple_Check(value) && PyTuple_GET_SIZE(value) == 2)
        return source_of_buffer(PyTuple_GET_ITEM(value, 0), PyTuple_GET_ITEM(value, 1), s, self);
    return source_of_buffer(value, NULL, s, self);
}

/* ---- the type ---- */

static PyObject *weights_new(PyTypeObject *type, PyObject *args, PyObject *kwds)
{
    static char *names[] = {"entries", NULL};
    PyObject *mapping, *entries = NULL, *keep = NULL, *key, *value;
    weights_object *self = NULL;
    ipvg_weight_source *sources = NULL;
    ipvg_context ctx;
    ipvg_status status;
    Py_ssize_t pos = 0;
    size_t n = 0;

    if (!PyArg_ParseTupleAndKeywords(args, kwds, "O:Weights", names, &mapping)) return NULL;
    entries = PyDict_New(); /* a copy: converting a value may run Python code that changes the caller's dict */
    if (!entries || PyDict_Update(entries, mapping)) goto fail;
    self = (weights_object *)type->tp_alloc(type, 0);
    keep = PyList_New(0);
    size_t count = (size_t)PyDict_Size(entries);
    sources = PyMem_Calloc(count ? count : 1, sizeof(*sources));
    if (!self || !keep) goto fail;
    self->buffers = PyMem_Calloc(count ? count : 1, sizeof(*self->buffers));
    if (!sources || !self->buffers) {
        PyErr_NoMemory();
        goto fail;
    }
    while (PyDict_Next(entries, &pos, &key, &value))
        if (source_of(key, value, &sources[n++], self, keep)) goto fail;
    ipvg_context_init(&ctx, 1);
    status = ipvg_weights_open(&ctx, &self->weights, sources, n);
    if (status != IPVG_OK) {
        ipvg_py_raise(&ctx, status);
        goto fail;
    }
    PyMem_Free(sources);
    Py_DECREF(keep);
    Py_DECREF(entries);
    return (PyObject *)self;
fail:
    PyMem_Free(sources);
    Py_XDECREF(keep);
    Py_XDECREF(entries);
    Py_XDECREF(self);
    return NULL;
}

static void weights_dealloc(PyObject *obj)
{
    weights_object *self = (weights_object *)obj;
    PyTypeObject *type = Py_TYPE(obj);

    ipvg_weights_free(&self->weights);
    for (size_t i = 0; i < self->buffer_count; i++) PyBuffer_Release(&self->buffers[i]);
    PyMem_Free(self->buffers);
    type->tp_free(obj);
    Py_DECREF(type);
}

static Py_ssize_t weights_length(PyObject *obj)
{
    return (Py_ssize_t)ipvg_weights_count(((weights_object *)obj)->weights);
}

static int weights_contains(PyObject *obj, PyObject *key)
{
    const char *name = PyUnicode_Check(key) ? PyUnicode_AsUTF8(key) : NULL;
    if (!name) return PyErr_Occurred() ? -1 : 0;
    return ipvg_weights_has(((weights_object *)obj)->weights, "%s", name);
}

static PyObject *weights_names(PyObject *obj, PyObject *Py_UNUSED(args))
{
    const ipvg_weights *w = ((weights_object *)obj)->weights;
    PyObject *list = PyList_New((Py_ssize_t)ipvg_weights_count(w));
    const char *name;
    ipvg_tensor t;

    for (size_t i = 0; list && ipvg_weights_at(w, i, &name, &t); i++) {
        PyObject *s = PyUnicode_FromString(name);
        if (!s) Py_CLEAR(list);
        if (s) PyList_SET_ITEM(list, (Py_ssize_t)i, s);
    }
    return list;
}

static PyObject *weights_untaken(PyObject *obj, PyObject *Py_UNUSED(args))
{
    const ipvg_weights *w = ((weights_object *)obj)->weights;
    size_t n = ipvg_weights_untaken(w, NULL, 0);
    const char **names = PyMem_Calloc(n ? n : 1, sizeof(*names));
    PyObject *list = names ? PyList_New((Py_ssize_t)n) : PyErr_NoMemory();

    if (list) ipvg_weights_untaken(w, names, n);
    for (size_t i = 0; list && i < n; i++) {
        PyObject *s = PyUnicode_FromString(names[i]);
        if (!s) Py_CLEAR(list);
        if (s) PyList_SET_ITEM(list, (Py_ssize_t)i, s);
    }
    PyMem_Free(names);
    return list;
}

static PyObject *weights_array(PyObject *obj, PyObject *arg)
{
    static const int types[IPVG_DTYPES] = {
        [IPVG_F32] = NPY_FLOAT32, [IPVG_BF16] = NPY_UINT16, [IPVG_F16] = NPY_FLOAT16, [IPVG_F64] = NPY_FLOAT64,
        [IPVG_I32] = NPY_INT32,   [IPVG_I64] = NPY_INT64,   [IPVG_U8] = NPY_UINT8,
    };
    const ipvg_weights *w = ((weights_object *)obj)->weights;
    const char *wanted = PyUnicode_Check(arg) ? PyUnicode_AsUTF8(arg) : NULL, *name;
    npy_intp shape[IPVG_MAX_DIMS];
    ipvg_tensor t;

    for (size_t i = 0; wanted && ipvg_weights_at(w, i, &name, &t); i++) {
        if (strcmp(name, wanted) != 0) continue;
        for (int d = 0; d < t.ndim; d++) shape[d] = t.shape[d];
        if (!t.data && ipvg_tensor_count(&t) > 0) {
            PyErr_Format(PyExc_ValueError, "tensor '%s' has a shape but no data", name);
            return NULL;
        }
        if (!t.data) return PyArray_ZEROS(t.ndim, shape, types[t.dtype], 0);
        /* flags 0: neither writeable nor claimed to be aligned */
        PyArrayObject *a =
            (PyArrayObject *)PyArray_New(&PyArray_Type, t.ndim, shape, types[t.dtype], NULL, t.data, 0, 0, NULL);
        if (!a) return NULL;
        PyArray_UpdateFlags(a, NPY_ARRAY_C_CONTIGUOUS | NPY_ARRAY_F_CONTIGUOUS | NPY_ARRAY_ALIGNED);
        Py_INCREF(obj);
        if (PyArray_SetBaseObject(a, obj)) Py_CLEAR(a); /* steals the reference, also when it fails */
        return (PyObject *)a;
    }
    if (!PyErr_Occurred()) PyErr_SetObject(PyExc_KeyError, arg);
    return NULL;
}

static PyMethodDef weights_methods[] = {
    {"names", weights_names, METH_NOARGS, "names() -> list[str]: every tensor, in the order it was given."},
    {"untaken", weights_untaken, METH_NOARGS, "untaken() -> list[str]: the tensors that no model has taken."},
    {"array", weights_array, METH_O,
     "array(name) -> numpy.ndarray: a read-only view of a tensor's data, bfloat16 as uint16. KeyError if there is "
     "none."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot weights_slots[] = {
    {Py_tp_doc,
     "Weights(entries)\n\n"
     "Tensors by name, for a model to take. entries: {name: entry}, an entry being one of\n"
     "  (path, offset, dtype, shape)   in a file, mapped read-only: dtype 'float32', 'bfloat16', 'float16', ...\n"
     "  array                          anything with a C-contiguous buffer, kept alive and not copied\n"
     "  (array, dtype)                 the same with its elements read as dtype: bfloat16 as uint16\n"
     "  (None, 0, dtype, shape)        a shape without data, to plan memory\n"
     "Raises FormatError for a tensor outside its file, OSError for a file that cannot be read, TypeError, "
     "ValueError.\n"
     "The files must not be changed in place while this object lives: a page that is cut off ends the process."},
    {Py_tp_new, weights_new},
    {Py_tp_dealloc, weights_dealloc},
    {Py_tp_methods, weights_methods},
    {Py_mp_length, weights_length},
    {Py_sq_length, weights_length},
    {Py_sq_contains, weights_contains},
    {0, NULL},
};

static PyType_Spec weights_spec = {"ipvg._core.Weights", sizeof(weights_object), 0, Py_TPFLAGS_DEFAULT, weights_slots};

int ipvg_py_add_weights(PyObject *module)
{
    weights_type = (PyTypeObject *)PyType_FromSpec(&weights_spec);
    if (!weights_type) return -1;
    return PyModule_AddObjectRef(module, "Weights", (PyObject *)weights_type);
}

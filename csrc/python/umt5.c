/* _core.TextEncoder: umT5 from Python. */
#include "common.h"
#include "weights.h"

#include "../model/umt5.h"

typedef struct encoder_object {
    PyObject_HEAD
    ipvg_py_device *dev;
    PyObject *weights; /* the model's tensors point into the files it maps */
    ipvg_umt5 *umt5;
} encoder_object;

static PyObject *encoder_new(PyTypeObject *type, PyObject *args, PyObject *kwds)
{
    static char *names[] = {"device", "config", "weights", NULL};
    PyObject *device, *config, *weights;
    ipvg_umt5_config c;
    ipvg_context ctx;

    if (!PyArg_ParseTupleAndKeywords(args, kwds, "O!O!O:TextEncoder", names, ipvg_py_device_type, &device, &PyDict_Type,
                                     &config, &weights))
        return NULL;
    ipvg_weights *w = ipvg_py_weights(weights);
    if (!w) return NULL;
    if (!ipvg_py_dict_int(config, "vocab", 1, INT_MAX, &c.vocab) ||
        !ipvg_py_dict_int(config, "dim", 1, 1 << 20, &c.dim) ||
        !ipvg_py_dict_int(config, "dim_attn", 1, 1 << 20, &c.dim_attn) ||
        !ipvg_py_dict_int(config, "dim_ffn", 1, 1 << 20, &c.dim_ffn) ||
        !ipvg_py_dict_int(config, "num_heads", 1, 1 << 12, &c.heads) ||
        !ipvg_py_dict_int(config, "num_layers", 1, IPVG_UMT5_MAX_LAYERS, &c.layers) ||
        !ipvg_py_dict_int(config, "num_buckets", 4, 1 << 12, &c.buckets) ||
        !ipvg_py_dict_int(config, "max_distance", 2, 1 << 20, &c.max_distance) ||
        !ipvg_py_dict_float(config, "eps", 1e-30, 1.0, &c.eps))
        return NULL;
    encoder_object *self = (encoder_object *)type->tp_alloc(type, 0);
    if (!self) return NULL;
    ipvg_context_init(&ctx, 1);
    ipvg_status status = ipvg_umt5_new(&ctx, &self->umt5, &c, w);
    if (status != IPVG_OK) {
        Py_DECREF(self);
        return ipvg_py_raise(&ctx, status);
    }
    self->dev = (ipvg_py_device *)Py_NewRef(device);
    self->weights = Py_NewRef(weights);
    if (!ipvg_py_place(self->dev, (ipvg_status(*)(ipvg_exec *, void *))ipvg_umt5_place, self->umt5)) Py_CLEAR(self);
    return (PyObject *)self;
}

static void encoder_dealloc(PyObject *obj)
{
    encoder_object *self = (encoder_object *)obj;
    PyTypeObject *type = Py_TYPE(obj);

    ipvg_umt5_free(&self->umt5);
    Py_XDECREF(self->weights);
    Py_XDECREF(self->dev);
    type->tp_free(obj);
    Py_DECREF(type);
}

/* Plans with a text of `tokens`; the arena's peak is then what the text needs. The device must be entered. */
static ipvg_status plan(encoder_object *self, int64_t tokens)
{
    ipvg_tensor ids = ipvg_tensor_of(NULL, IPVG_I32, tokens);
    ipvg_tensor states = ipvg_tensor_of(NULL, IPVG_F32, tokens, ipvg_umt5_get_config(self->umt5)->dim);
    ipvg_arena_plan(&self->dev->arena);
    return ipvg_umt5_encode(&self->dev->ex, &states, &ids, self->umt5);
}

/* (n,) int32 from a list or integer array, 1 to 512 of them. New reference. */
static PyArrayObject *ids_array(PyObject *obj)
{
    PyArrayObject *any = (PyArrayObject *)PyArray_FROM_O(obj), *ids = NULL;
    if (!any) return NULL;
    if (PyArray_SIZE(any) && !PyArray_ISINTEGER(any))
        PyErr_Format(PyExc_TypeError, "ids: expected integers, got %R", (PyObject *)PyArray_DESCR(any));
    else if (PyArray_NDIM(any) != 1 || PyArray_SIZE(any) < 1 || PyArray_SIZE(any) > IPVG_UMT5_MAX_TOKENS)
        PyErr_Format(PyExc_ValueError, "ids: expected one row of 1 to %d token ids, got %zd in %d dimension(s)",
                     IPVG_UMT5_MAX_TOKENS, (Py_ssize_t)PyArray_SIZE(any), PyArray_NDIM(any));
    else {
        PyArrayObject *wide = (PyArrayObject *)PyArray_FROMANY((PyObject *)any, NPY_INT64, 1, 1,
                                                               NPY_ARRAY_IN_ARRAY | NPY_ARRAY_FORCECAST);
        npy_intp n = PyArray_SIZE(any);
        if (wide) ids = (PyArrayObject *)PyArray_SimpleNew(1, &n, NPY_INT32);
        for (npy_intp i = 0; ids && i < n; i++) {
            int64_t id = ((int64_t *)PyArray_DATA(wide))[i];
            if (id < 0 || id > INT32_MAX) {
                PyErr_Format(PyExc_ValueError, "ids: token %zd is %lld, not an id", (Py_ssize_t)i, (long long)id);
                Py_CLEAR(ids);
                break;
            }
            ((int32_t *)PyArray_DATA(ids))[i] = (int32_t)id;
        }
        Py_XDECREF(wide);
    }
    Py_DECREF(any);
    return ids;
}

static PyObject *encoder_encode(PyObject *obj, PyObject *args, PyObject *kwds)
{
    static char *names[] = {"ids", "trace", NULL};
    encoder_object *self = (encoder_object *)obj;
    PyObject *given, *trace = NULL;
    ipvg_py_trace tracing;
    ipvg_py_run run;

    if (!PyArg_ParseTupleAndKeywords(args, kwds, "O|O:encode", names, &given, &trace) || !ipvg_py_trace_check(trace))
        return NULL;
    PyArrayObject *ids = ids_array(given);
    if (!ids) return NULL;
    const int64_t shape[] = {PyArray_DIM(ids, 0), ipvg_umt5_get_config(self->umt5)->dim};
    PyArrayObject *states = ipvg_py_new(2, shape);
    if (!states || !ipvg_py_enter(self->dev, &run)) goto fail;
    ipvg_py_trace_set(&tracing, &run, trace);

    ipvg_exec *ex = &self->dev->ex;
    ipvg_tensor x = ipvg_py_view(ids), host = ipvg_py_view(states), y = host;
    const size_t staged = ex->be->host ? 0 : ipvg_tensor_bytes(&host) + IPVG_ALIGN; /* a GPU's, beneath the scratch */
    ipvg_status status = plan(self, shape[0]);
    if (status == IPVG_OK) status = ipvg_arena_reserve(ex->ctx, &ex->be->memory, ex->arena, ex->arena->peak + staged);
    if (status == IPVG_OK && staged) status = ipvg_arena_tensor(ex->ctx, ex->arena, &y, IPVG_F32, 2, shape);
    if (status == IPVG_OK) status = ipvg_umt5_encode(ex, &y, &x, self->umt5);
    if (status == IPVG_OK && staged) status = ex->be->copy_out(ex, host.data, &y);
    ipvg_arena_reset(ex->arena, 0);
    if (!ipvg_py_leave(&run, status)) goto fail;
    Py_DECREF(ids);
    return (PyObject *)states;
fail:
    Py_DECREF(ids);
    Py_XDECREF(states);
    return NULL;
}

static PyObject *encoder_scratch(PyObject *obj, PyObject *arg)
{
    encoder_object *self = (encoder_object *)obj;
    ipvg_py_run run;
    long long tokens = PyLong_AsLongLong(arg);
    if (tokens == -1 && PyErr_Occurred()) return NULL;
    if (tokens < 1 || tokens > IPVG_UMT5_MAX_TOKENS)
        return PyErr_Format(PyExc_ValueError, "tokens: expected 1 to %d, got %lld", IPVG_UMT5_MAX_TOKENS, tokens);
    if (!ipvg_py_enter(self->dev, &run)) return NULL;
    ipvg_status status = plan(self, tokens);
    size_t peak = self->dev->arena.peak;
    if (!ipvg_py_leave(&run, status)) return NULL;
    return PyLong_FromSize_t(peak);
}

static PyObject *encoder_memory(PyObject *obj, PyObject *unused)
{
    (void)unused;
    ipvg_umt5_bytes bytes = ipvg_umt5_memory(((encoder_object *)obj)->umt5);
    return Py_BuildValue("{s:n,s:n}", "weights", (Py_ssize_t)bytes.weights, "least", (Py_ssize_t)bytes.least);
}

static PyMethodDef encoder_methods[] = {
    {"memory", encoder_memory, METH_NOARGS,
     "memory() -> {'weights': int, 'least': int}\n\n"
     "Bytes of the weights on a GPU: all of them, and streamed, as under a memory_limit."},
    {"encode", (PyCFunction)(void (*)(void))encoder_encode, METH_VARARGS | METH_KEYWORDS,
     "encode(ids, trace=None) -> (n, dim) float32\n\n"
     "The text states of n = 1 to 512 token ids, after the final norm, without padding.\n"
     "trace: a callable(name, array) that sees copies of the intermediates; it must not use this device.\n"
     "Raises TypeError, ValueError (an id outside the vocabulary, too many), ipvg.Cancelled, KeyboardInterrupt."},
    {"scratch", encoder_scratch, METH_O,
     "scratch(tokens) -> int\n\nBytes of working memory for a text of that many tokens. Nothing is computed."},
    {NULL, NULL, 0, NULL}};

static PyType_Slot encoder_slots[] = {
    {Py_tp_doc,
     "TextEncoder(device, config, weights)\n\n"
     "umT5's encoder. config: a dict with vocab, dim, dim_attn, dim_ffn, num_heads, num_layers, num_buckets,\n"
     "max_distance and eps; weights: a _core.Weights with official tensor names (blocks.0.attn.q.weight, ...).\n"
     "The weights keep their dtype and stay where they are; of the embedding only the rows of a text are read.\n"
     "Raises ipvg.FormatError for a missing, misshapen or unknown tensor."},
    {Py_tp_new, encoder_new},
    {Py_tp_dealloc, encoder_dealloc},
    {Py_tp_methods, encoder_methods},
    {0, NULL}};

static PyType_Spec encoder_spec = {"ipvg._core.TextEncoder", sizeof(encoder_object), 0, Py_TPFLAGS_DEFAULT,
                                   encoder_slots};

int ipvg_py_add_umt5(PyObject *module)
{
    PyObject *type = PyType_FromSpec(&encoder_spec);
    if (!type) return -1;
    int failed = PyModule_AddObjectRef(module, "TextEncoder", type);
    Py_DECREF(type);
    return failed;
}

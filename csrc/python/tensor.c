/* _core.Tensor: an array where the model runs, which NumPy reads and other libraries share by DLPack. */
#include "tensor.h"

#include "dlpack.h"

PyTypeObject *ipvg_py_tensor_type;

ipvg_py_runs ipvg_py_runs_of(int ndim, const int64_t *shape, const int64_t *strides)
{
    ipvg_py_runs r = {.count = 1, .run = 1, .outer = ndim};
    while (r.outer && (shape[r.outer - 1] == 1 || strides[r.outer - 1] == r.run)) r.run *= shape[--r.outer];
    for (int i = 0; i < r.outer; i++) r.count *= shape[i];
    return r;
}

int64_t ipvg_py_run_at(const ipvg_py_runs *r, const int64_t *shape, const int64_t *strides, int64_t k)
{
    int64_t at = 0;
    for (int i = r->outer - 1; i >= 0; k /= shape[i--]) at += k % shape[i] * strides[i];
    return at;
}

static void compact(int64_t *strides, const ipvg_tensor *t)
{
    int64_t n = 1;
    for (int i = t->ndim - 1; i >= 0; n *= t->shape[i--]) strides[i] = n;
}

PyObject *ipvg_py_tensor_of(PyObject *owner, ipvg_py_device *dev, const ipvg_tensor *t, int64_t skip, int writable)
{
    ipvg_py_tensor *self = (ipvg_py_tensor *)ipvg_py_tensor_type->tp_alloc(ipvg_py_tensor_type, 0);
    if (!self) return NULL;
    self->dev = (ipvg_py_device *)Py_NewRef((PyObject *)dev);
    self->owner = Py_XNewRef(owner);
    self->t = *t;
    self->writable = writable;
    compact(self->strides, t);
    if (skip) {
        self->t.data = (char *)t->data + (size_t)(skip * self->strides[1]) * ipvg_dtype_size(t->dtype);
        self->t.shape[1] -= skip;
    }
    return (PyObject *)self;
}

static void tensor_dealloc(PyObject *obj)
{
    ipvg_py_tensor *self = (ipvg_py_tensor *)obj;
    PyTypeObject *type = Py_TYPE(obj);
    if (self->memory) self->dev->be->memory.free(&self->dev->be->memory, self->memory);
    Py_XDECREF(self->owner);
    Py_XDECREF(self->dev);
    type->tp_free(obj);
    Py_DECREF(type);
}

/* ==== read ==== */

/* Into C order at `to`: of the host, or of the device. */
static ipvg_status gather(ipvg_exec *ex, char *to, const ipvg_py_tensor *self, int device)
{
    const ipvg_py_runs r = ipvg_py_runs_of(self->t.ndim, self->t.shape, self->strides);
    const size_t size = ipvg_dtype_size(self->t.dtype);
    ipvg_status status = IPVG_OK;
    for (int64_t k = 0; k < r.count && status == IPVG_OK; k++) {
        const size_t from = (size_t)ipvg_py_run_at(&r, self->t.shape, self->strides, k) * size;
        ipvg_tensor source = ipvg_tensor_of((char *)self->t.data + from, self->t.dtype, r.run), target = source;
        target.data = to + (size_t)(k * r.run) * size;
        status = device ? ex->be->copy_in(ex, &target, source.data) : ex->be->copy_out(ex, target.data, &source);
    }
    return status;
}

/* A view where the memory is the host's, else a copy; `own`: a copy that can be written to. */
static PyObject *to_host(PyObject *obj, int own)
{
    ipvg_py_tensor *self = (ipvg_py_tensor *)obj;
    const size_t size = ipvg_dtype_size(self->t.dtype);
    ipvg_py_run run;
    if (self->dev->be->host && !own) {
        npy_intp dims[IPVG_MAX_DIMS], steps[IPVG_MAX_DIMS];
        for (int i = 0; i < self->t.ndim; i++)
            dims[i] = (npy_intp)self->t.shape[i], steps[i] = (npy_intp)(self->strides[i] * (int64_t)size);
        PyObject *view = PyArray_New(&PyArray_Type, self->t.ndim, dims, NPY_FLOAT32, steps, self->t.data, 0, 0, NULL);
        if (view && PyArray_SetBaseObject((PyArrayObject *)view, Py_NewRef(obj)) < 0) Py_CLEAR(view);
        return view;
    }
    PyArrayObject *a = ipvg_py_new(self->t.ndim, self->t.shape);
    if (!a || !ipvg_py_enter(self->dev, &run)) {
        Py_XDECREF(a);
        return NULL;
    }
    if (!ipvg_py_leave(&run, gather(&self->dev->ex, PyArray_DATA(a), self, 0))) Py_CLEAR(a);
    if (a && !own) PyArray_CLEARFLAGS(a, NPY_ARRAY_WRITEABLE); /* as the view is */
    return (PyObject *)a;
}

/* NumPy's protocol: it converts the dtype and copies, if need be, itself. */
static PyObject *tensor_array(PyObject *obj, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"dtype", "copy", NULL};
    PyObject *dtype = Py_None, *copy = Py_None;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|OO:__array__", names, &dtype, &copy)) return NULL;
    const int host = ((ipvg_py_tensor *)obj)->dev->be->host;
    if (copy == Py_False && !host) {
        PyErr_SetString(PyExc_ValueError, "copy=False: the tensor lies on a GPU and can only be copied to the host");
        return NULL;
    }
    PyObject *array = to_host(obj, copy == Py_True);
    if (!array || dtype == Py_None) return array;
    PyArray_Descr *descr = NULL;
    PyObject *cast = NULL;
    if (PyArray_DescrConverter(dtype, &descr)) {
        if (copy == Py_False && descr->type_num != NPY_FLOAT32)
            PyErr_SetString(PyExc_ValueError, "copy=False: the tensor is float32, another dtype takes a copy");
        else
            cast = PyArray_FromArray((PyArrayObject *)array, (PyArray_Descr *)Py_NewRef((PyObject *)descr),
                                     NPY_ARRAY_FORCECAST);
        Py_DECREF(descr);
    }
    Py_DECREF(array);
    return cast;
}

static PyObject *tensor_copy(PyObject *obj, PyObject *unused)
{
    (void)unused;
    ipvg_py_tensor *self = (ipvg_py_tensor *)obj;
    const ipvg_memory *m = &self->dev->be->memory;
    ipvg_py_tensor *copy = (ipvg_py_tensor *)ipvg_py_tensor_of(NULL, self->dev, &self->t, 0, 1);
    ipvg_py_run run;
    if (!copy || !ipvg_py_enter(self->dev, &run)) return (PyObject *)copy;
    copy->t.data = NULL;
    ipvg_status status = m->alloc(m, &self->dev->ctx, &copy->memory, ipvg_tensor_bytes(&copy->t));
    copy->t.data = copy->memory;
    if (status == IPVG_OK) status = gather(&self->dev->ex, copy->memory, self, 1);
    if (!ipvg_py_leave(&run, status)) Py_CLEAR(copy);
    return (PyObject *)copy;
}

/* ==== lend ==== */

typedef struct loan {
    union {
        ipvg_dl_legacy legacy;
        ipvg_dl_versioned versioned;
    } managed; /* first: the deleter gets its address */
    int64_t shape[IPVG_MAX_DIMS], strides[IPVG_MAX_DIMS];
    PyObject *tensor;
} loan;

/* In any thread, with the GIL or without. */
static void give_back(loan *l)
{
    if (!Py_IsInitialized()) return; /* the process is ending */
    PyGILState_STATE state = PyGILState_Ensure();
    atomic_fetch_sub(&((ipvg_py_tensor *)l->tensor)->dev->lent, 1);
    Py_DECREF(l->tensor);
    PyGILState_Release(state);
    free(l);
}

static void delete_legacy(ipvg_dl_legacy *self) { give_back(self->user); }
static void delete_versioned(ipvg_dl_versioned *self) { give_back(self->user); }

/* Of a capsule that nobody took: then its name is the first one still. */
static void capsule_end(PyObject *capsule)
{
    const char *name = PyCapsule_GetName(capsule);
    if (name && strncmp(name, "dltensor", 8) == 0) give_back(PyCapsule_GetContext(capsule));
}

static PyObject *lend(ipvg_py_tensor *self, int versioned, uint64_t flags)
{
    loan *l = calloc(1, sizeof *l);
    if (!l) return PyErr_SetString(PyExc_MemoryError, "no memory to lend a tensor"), NULL;
    ipvg_dl_tensor *t = versioned ? &l->managed.versioned.tensor : &l->managed.legacy.tensor;
    memcpy(l->shape, self->t.shape, sizeof l->shape);
    memcpy(l->strides, self->strides, sizeof l->strides);
    t->data = self->t.data;
    t->device.type = self->dev->be->host ? IPVG_DL_CPU : IPVG_DL_CUDA;
    t->device.id = self->dev->be->device;
    t->ndim = self->t.ndim;
    t->dtype.code = IPVG_DL_FLOAT, t->dtype.bits = 32, t->dtype.lanes = 1;
    t->shape = l->shape;
    t->strides = l->strides;
    if (versioned)
        l->managed.versioned = (ipvg_dl_versioned){1, 0, l, delete_versioned, flags, *t};
    else
        l->managed.legacy.user = l, l->managed.legacy.deleter = delete_legacy;
    l->tensor = Py_NewRef((PyObject *)self);
    PyObject *capsule = PyCapsule_New(l, versioned ? "dltensor_versioned" : "dltensor", capsule_end);
    if (!capsule || PyCapsule_SetContext(capsule, l)) {
        Py_XDECREF(capsule);
        Py_DECREF(l->tensor);
        free(l);
        return NULL;
    }
    atomic_fetch_add(&self->dev->lent, 1);
    atomic_store(&self->dev->touched, 1); /* after `lent`: ipvg_py_enter looks the other way round */
    return capsule;
}

/* The consumer's stream waits for ours. None is the legacy default stream, -1 asks for nothing. */
static int follow(ipvg_py_device *dev, PyObject *stream)
{
    ipvg_py_run run;
    long long handle = 1;
    if (dev->be->host) {
        if (stream == Py_None) return 1;
        return PyErr_SetString(PyExc_ValueError, "stream: expected None, the tensor lies in the host's memory"), 0;
    }
    if (stream != Py_None) {
        if (PyBool_Check(stream) || !PyLong_Check(stream))
            return PyErr_Format(PyExc_TypeError, "stream: expected None or an integer, got %R", stream), 0;
        handle = PyLong_AsLongLong(stream);
        if (handle == -1 && PyErr_Occurred()) return 0;
        if (handle < -1 || handle == 0)
            return PyErr_Format(PyExc_ValueError, "stream: expected 1, 2, -1 or a stream's handle, got %R", stream), 0;
    }
    if (handle == -1) return 1;
    ipvg_py_enter_unsettled(dev, &run);
    return ipvg_py_leave(&run, dev->be->follow(&dev->ex, (void *)(intptr_t)handle));
}

static PyObject *refuse(const char *why) { return PyErr_SetString(PyExc_BufferError, why), NULL; }

static PyObject *tensor_dlpack(PyObject *obj, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"stream", "max_version", "dl_device", "copy", NULL};
    ipvg_py_tensor *self = (ipvg_py_tensor *)obj;
    const ipvg_backend *be = self->dev->be;
    PyObject *stream = Py_None, *version = Py_None, *where = Py_None, *copy = Py_None;
    int major = 0, minor, type, id;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|$OOOO:__dlpack__", names, &stream, &version, &where, &copy))
        return NULL;
    if (version != Py_None && (!PyTuple_Check(version) || !PyArg_ParseTuple(version, "ii", &major, &minor)))
        return PyErr_Format(PyExc_TypeError, "max_version: expected (major, minor), got %R", version);
    if (where != Py_None) {
        if (!PyTuple_Check(where) || !PyArg_ParseTuple(where, "ii", &type, &id))
            return PyErr_Format(PyExc_TypeError, "dl_device: expected (type, number), got %R", where);
        if (type == IPVG_DL_CPU && !be->host) {
            if (copy == Py_False)
                return refuse("copy=False: the tensor lies on a GPU and can only be copied to the host");
            PyObject *array = to_host(obj, 1), *to = array ? PyObject_GetAttrString(array, "__dlpack__") : NULL;
            PyObject *none = to ? PyTuple_New(0) : NULL, *capsule = NULL;
            PyObject *options = none ? major ? Py_BuildValue("{s:O}", "max_version", version) : PyDict_New() : NULL;
            if (options) capsule = PyObject_Call(to, none, options);
            Py_XDECREF(options);
            Py_XDECREF(none);
            Py_XDECREF(to);
            Py_XDECREF(array);
            return capsule;
        }
        if (type != (be->host ? IPVG_DL_CPU : IPVG_DL_CUDA) || id != be->device)
            return refuse("dl_device: the tensor can be had where it lies or on the host, (1, 0), alone");
    }
    if (copy == Py_True) {
        PyObject *own = tensor_copy(obj, NULL), *capsule = NULL;
        if (own && follow(self->dev, stream)) capsule = lend((ipvg_py_tensor *)own, major >= 1, IPVG_DL_COPIED);
        Py_XDECREF(own);
        return capsule;
    }
    if (!self->writable && major < 1)
        return refuse(
            "the tensor is read-only, which DLPack can tell from 1.0 on alone; give away a copy: tensor.copy()");
    if (!follow(self->dev, stream)) return NULL;
    return lend(self, major >= 1, self->writable ? 0 : IPVG_DL_READ_ONLY);
}

static PyObject *tensor_dlpack_device(PyObject *obj, PyObject *unused)
{
    (void)unused;
    const ipvg_backend *be = ((ipvg_py_tensor *)obj)->dev->be;
    return Py_BuildValue("(ii)", be->host ? IPVG_DL_CPU : IPVG_DL_CUDA, be->device);
}

/* ==== the type ==== */

static PyObject *tensor_shape(PyObject *obj, void *unused)
{
    (void)unused;
    const ipvg_tensor *t = &((ipvg_py_tensor *)obj)->t;
    PyObject *shape = PyTuple_New(t->ndim);
    for (int i = 0; shape && i < t->ndim; i++) {
        PyObject *size = PyLong_FromLongLong(t->shape[i]);
        if (size)
            PyTuple_SET_ITEM(shape, i, size);
        else
            Py_CLEAR(shape);
    }
    return shape;
}

static PyObject *tensor_dtype(PyObject *obj, void *unused)
{
    (void)obj, (void)unused;
    return (PyObject *)PyArray_DescrFromType(NPY_FLOAT32);
}

static PyObject *tensor_device(PyObject *obj, void *unused)
{
    (void)unused;
    return Py_NewRef((PyObject *)((ipvg_py_tensor *)obj)->dev);
}

static PyObject *tensor_writable(PyObject *obj, void *unused)
{
    (void)unused;
    return PyBool_FromLong(((ipvg_py_tensor *)obj)->writable);
}

static PyObject *tensor_repr(PyObject *obj)
{
    const ipvg_py_tensor *self = (ipvg_py_tensor *)obj;
    char shape[96];
    return PyUnicode_FromFormat("<Tensor float32 %s on %s%s>",
                                ipvg_shape_text(shape, sizeof shape, self->t.ndim, self->t.shape), self->dev->be->name,
                                self->writable ? ", writable" : "");
}

static PyMethodDef methods[] = {
    {"__array__", (PyCFunction)(void (*)(void))tensor_array, METH_VARARGS | METH_KEYWORDS,
     "For numpy.asarray: a read-only view where the memory is the host's, else a copy."},
    {"__dlpack__", (PyCFunction)(void (*)(void))tensor_dlpack, METH_VARARGS | METH_KEYWORDS,
     "__dlpack__(*, stream=None, max_version=None, dl_device=None, copy=None) -> capsule\n\n"
     "For from_dlpack of other libraries (DLPack 1.0, array API 2024.12): the same memory. `stream`, which waits for "
     "what\n"
     "ipvg has under way: 1 or None, 2, a handle, or -1. dl_device (1, 0): a copy on the host. Raises BufferError for\n"
     "another device, or without max_version for a tensor that is read-only."},
    {"__dlpack_device__", tensor_dlpack_device, METH_NOARGS,
     "__dlpack_device__() -> (1, 0) on the CPU, (2, n) on GPU n"},
    {"copy", tensor_copy, METH_NOARGS,
     "copy() -> Tensor\n\nIts own memory on the same device, which nothing overwrites."},
    {NULL, NULL, 0, NULL}};

static PyGetSetDef getset[] = {{"shape", tensor_shape, NULL, "Its sizes.", NULL},
                               {"dtype", tensor_dtype, NULL, "NumPy's float32.", NULL},
                               {"device", tensor_device, NULL, "The Device that it lies on.", NULL},
                               {"writable", tensor_writable, NULL, "May others write to it?", NULL},
                               {NULL, NULL, NULL, NULL, NULL}};

static PyType_Slot slots[] = {
    {Py_tp_doc,
     "A float32 array where the model runs. numpy.asarray(t) reads it; torch.from_dlpack(t), cupy.from_dlpack(t) and\n"
     "numpy.from_dlpack(t) (CPU) share its memory, and t.copy() has its own. Memory of a sampler stays valid for as "
     "long\n"
     "as somebody holds it, and the next step writes to it. While memory of a GPU is lent, each call of ipvg on that "
     "device\n"
     "begins when all work queued on the GPU is done, so that what others wrote is seen and what they read is not "
     "lost."},
    {Py_tp_dealloc, tensor_dealloc},
    {Py_tp_repr, tensor_repr},
    {Py_tp_methods, methods},
    {Py_tp_getset, getset},
    {0, NULL}};

static PyType_Spec spec = {"ipvg._core.Tensor", sizeof(ipvg_py_tensor), 0,
                           Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION, slots};

int ipvg_py_add_tensor(PyObject *module)
{
    ipvg_py_tensor_type = (PyTypeObject *)PyType_FromSpec(&spec);
    return ipvg_py_tensor_type ? PyModule_AddObjectRef(module, "Tensor", (PyObject *)ipvg_py_tensor_type) : -1;
}

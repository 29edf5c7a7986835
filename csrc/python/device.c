/* _core.Device: a backend with its context and scratch. Every model holds one. */
#include "common.h"

#include "../ops/cuda/device.h"

#include <math.h>
#include <structmember.h>

PyTypeObject *ipvg_py_device_type;

/* Runs about once a block in the calling thread, without the GIL: a pending Ctrl-C becomes an exception here. Only the
 * main thread has signal handlers to run; elsewhere PyErr_CheckSignals returns at once. */
static int poll_signals(void *user)
{
    ipvg_py_run *run = user;
    PyEval_RestoreThread(run->thread);
    int raised = PyErr_CheckSignals() != 0;
    run->thread = PyEval_SaveThread();
    return raised;
}

static void set_running(ipvg_py_device *dev, int running)
{
    pthread_mutex_lock(&dev->gate);
    dev->running = running;
    atomic_store(&dev->ctx.cancel, 0);
    pthread_mutex_unlock(&dev->gate);
}

int ipvg_py_enter_unsettled(ipvg_py_device *dev, ipvg_py_run *run)
{
    Py_INCREF(dev);
    run->dev = dev;
    run->thread = PyEval_SaveThread();
    PyThread_acquire_lock(dev->lock, WAIT_LOCK);
    set_running(dev, 1);
    if (dev->be->begin) dev->be->begin(dev->be);
    dev->ctx.error[0] = 0;
    dev->ctx.poll = poll_signals;
    dev->ctx.poll_user = run;
    return 1;
}

int ipvg_py_enter(ipvg_py_device *dev, ipvg_py_run *run)
{
    ipvg_py_enter_unsettled(dev, run);
    if (atomic_exchange(&dev->touched, 0) && dev->be->settle)
        dev->be->settle(&dev->ex); /* what fails, fails again below */
    if (atomic_load(&dev->lent)) atomic_store(&dev->touched, 1);
    return 1;
}

int ipvg_py_leave(ipvg_py_run *run, ipvg_status status)
{
    ipvg_py_device *dev = run->dev;
    dev->ctx.poll = NULL;
    dev->ctx.progress = NULL;
    dev->ex.trace = NULL;
    set_running(dev, 0);
    ipvg_arena_unplan(&dev->arena); /* a call that failed while it planned */
    ipvg_context failed = {0};
    if (status != IPVG_OK) failed = dev->ctx; /* the text must survive the next call's start */
    PyThread_release_lock(dev->lock);
    PyEval_RestoreThread(run->thread);
    Py_DECREF(dev);
    if (status == IPVG_OK) return !PyErr_Occurred();
    ipvg_py_raise(&failed, status);
    return 0;
}

int ipvg_py_cancel(ipvg_py_device *dev, const atomic_int *only)
{
    pthread_mutex_lock(&dev->gate);
    const int told = dev->running && (!only || atomic_load(only));
    if (told) atomic_store(&dev->ctx.cancel, 1);
    pthread_mutex_unlock(&dev->gate);
    return told;
}

/* ---- host arrays for a device with memory of its own ---- */

ipvg_status ipvg_py_stage(ipvg_py_device *dev, ipvg_tensor *out, const ipvg_tensor *host, int fill)
{
    const ipvg_memory *m = &dev->be->memory;
    *out = *host;
    if (dev->be->host) return IPVG_OK;
    out->data = NULL;
    ipvg_status status = m->alloc(m, &dev->ctx, &out->data, ipvg_tensor_bytes(host));
    if (status == IPVG_OK && fill) status = dev->be->copy_in(&dev->ex, out, host->data);
    return status;
}

ipvg_status ipvg_py_unstage(ipvg_py_device *dev, ipvg_tensor *staged, const ipvg_tensor *host, ipvg_status status)
{
    const ipvg_memory *m = &dev->be->memory;
    if (dev->be->host) return status;
    if (status == IPVG_OK && host) status = dev->be->copy_out(&dev->ex, host->data, staged);
    if (staged->data) m->free(m, staged->data);
    staged->data = NULL;
    return status;
}

int ipvg_py_place(ipvg_py_device *dev, ipvg_status (*place)(ipvg_exec *ex, void *model), void *model)
{
    ipvg_py_run run;
    if (dev->be->host) return 1;
    if (!ipvg_py_enter(dev, &run)) return 0;
    return ipvg_py_leave(&run, place(&dev->ex, model));
}

/* ---- trace ---- */

PyObject *ipvg_py_widen(PyObject *half)
{
    PyArrayObject *from = (PyArrayObject *)half;
    PyObject *wide = half ? PyArray_SimpleNew(PyArray_NDIM(from), PyArray_DIMS(from), NPY_FLOAT32) : NULL;
    if (wide) {
        const uint16_t *in = PyArray_DATA(from);
        uint32_t *out = PyArray_DATA((PyArrayObject *)wide);
        for (npy_intp i = 0, n = PyArray_SIZE(from); i < n; i++) out[i] = (uint32_t)in[i] << 16;
    }
    Py_XDECREF(half);
    return wide;
}

static float e4m3(uint8_t bits)
{
    const int exponent = bits >> 3 & 15, fraction = bits & 7;
    const float size = (bits & 127) == 127 ? NAN
                       : exponent          ? ldexpf((float)(8 + fraction), exponent - 10)
                                           : ldexpf((float)fraction, -9);
    return bits >> 7 ? -size : size;
}

/* A matrix of E4M3 as the float32 of its values. */
static PyObject *scaled(ipvg_exec *ex, PyObject *bytes, float *scale)
{
    PyArrayObject *from = (PyArrayObject *)bytes, *wide = NULL, *by = NULL;
    npy_intp *dims = PyArray_DIMS(from);
    ipvg_tensor scales = ipvg_tensor_of(scale, IPVG_F32, dims[0]);
    ipvg_status status = IPVG_OK;
    wide = (PyArrayObject *)PyArray_SimpleNew(2, dims, NPY_FLOAT32);
    by = (PyArrayObject *)PyArray_SimpleNew(1, dims, NPY_FLOAT32);
    if (wide && by) status = ex->be->copy_out(ex, PyArray_DATA(by), &scales);
    for (npy_intp i = 0; wide && by && status == IPVG_OK && i < PyArray_SIZE(from); i++)
        ((float *)PyArray_DATA(wide))[i] =
            e4m3(((uint8_t *)PyArray_DATA(from))[i]) * ((float *)PyArray_DATA(by))[i / dims[1]];
    if (!by || status != IPVG_OK) Py_CLEAR(wide);
    Py_XDECREF(by);
    Py_DECREF(bytes);
    return status == IPVG_OK ? (PyObject *)wide : ipvg_py_raise(ex->ctx, status);
}

static PyObject *array_of(ipvg_exec *ex, const ipvg_tensor *t)
{
    static const int types[IPVG_DTYPES] = {
        [IPVG_F32] = NPY_FLOAT32, [IPVG_BF16] = NPY_UINT16, [IPVG_F16] = NPY_FLOAT16, [IPVG_F64] = NPY_FLOAT64,
        [IPVG_I32] = NPY_INT32,   [IPVG_I64] = NPY_INT64,   [IPVG_U8] = NPY_UINT8,    [IPVG_E4M3] = NPY_UINT8};
    npy_intp dims[IPVG_MAX_DIMS];
    for (int i = 0; i < t->ndim; i++) dims[i] = (npy_intp)t->shape[i];
    PyObject *array = PyArray_SimpleNew(t->ndim, dims, types[t->dtype]);
    if (!array) return NULL;
    ipvg_status status = IPVG_OK;
    char *to = PyArray_DATA((PyArrayObject *)array);
    if (t->ndim == 2 && t->ld != t->shape[1]) /* rows lie apart */
        for (int64_t r = 0; r < t->shape[0] && status == IPVG_OK; r++) {
            ipvg_tensor row = ipvg_tensor_slice(t, r, 1);
            row.ld = row.shape[1];
            status = ex->be->copy_out(ex, to + (size_t)r * ipvg_tensor_bytes(&row), &row);
        }
    else
        status = ex->be->copy_out(ex, to, t);
    if (status != IPVG_OK) {
        Py_DECREF(array);
        return ipvg_py_raise(ex->ctx, status);
    }
    return t->dtype == IPVG_BF16 ? ipvg_py_widen(array) : t->dtype == IPVG_E4M3 ? scaled(ex, array, t->scale) : array;
}

static ipvg_status trace_see(void *user, ipvg_exec *ex, const char *name, const ipvg_tensor *tensor)
{
    ipvg_py_trace *t = user;
    PyEval_RestoreThread(t->run->thread);
    PyObject *array = array_of(ex, tensor), *result = NULL;
    if (array) result = PyObject_CallFunction(t->call, "sN", name, array);
    Py_XDECREF(result);
    t->run->thread = PyEval_SaveThread();
    return result ? IPVG_OK : ipvg_fail(ex->ctx, IPVG_E_CANCELLED, "the trace raised an exception at '%s'", name);
}

int ipvg_py_trace_check(PyObject *callable)
{
    if (!callable || callable == Py_None || PyCallable_Check(callable)) return 1;
    PyErr_Format(PyExc_TypeError, "trace: expected a callable(name, array) or None, got %.100s",
                 Py_TYPE(callable)->tp_name);
    return 0;
}

void ipvg_py_trace_set(ipvg_py_trace *t, ipvg_py_run *run, PyObject *callable)
{
    if (!callable || callable == Py_None) return;
    *t = (ipvg_py_trace){.trace = {trace_see, t}, .run = run, .call = callable};
    run->dev->ex.trace = &t->trace;
}

/* "cpu", or "cuda" with the number of a GPU behind a colon: -1; 0 and an exception set for another name. */
static int read_name(PyObject *name, int *gpu)
{
    const char *text = name ? PyUnicode_Check(name) ? PyUnicode_AsUTF8(name) : NULL : "cpu";
    int used = 0;
    *gpu = -1;
    if (!text && !PyErr_Occurred())
        PyErr_Format(PyExc_TypeError, "device name: expected 'cpu', 'cuda' or 'cuda:1', got %.100s",
                     Py_TYPE(name)->tp_name);
    if (!text) return 0;
    if (strcmp(text, "cpu") == 0) return 1;
    if (strcmp(text, "cuda") == 0) return *gpu = 0, 1;
    if (sscanf(text, "cuda:%4d%n", gpu, &used) == 1 && !text[used] && *gpu >= 0) return 1;
    return PyErr_Format(PyExc_ValueError, "device name: expected 'cpu', 'cuda' or 'cuda:1', got %R", name), 0;
}

/* The CUDA backend's entry; NULL and an exception set. */
static const ipvg_cuda_api *cuda_api(ipvg_context *ctx)
{
    PyObject *home = PyImport_ImportModule("ipvg.cuda"), *module = NULL, *capsule = NULL;
    const ipvg_cuda_api *api = NULL;
    if (home) module = PyObject_CallMethod(home, "load", NULL);
    if (module) capsule = PyObject_GetAttrString(module, "api");
    if (capsule) api = PyCapsule_GetPointer(capsule, IPVG_CUDA_CAPSULE);
    if (api && (api->version != IPVG_CUDA_API || api->size != sizeof(ipvg_backend))) {
        api = NULL;
        ipvg_py_raise(ctx,
                      ipvg_fail(ctx, IPVG_E_UNSUPPORTED, "the CUDA extension is of another build: build ipvg again"));
    }
    if (!api && PyErr_ExceptionMatches(PyExc_ImportError)) {
        PyObject *type, *value, *where;
        PyErr_Fetch(&type, &value, &where);
        PyObject *text = value ? PyObject_Str(value) : NULL;
        const char *why = text ? PyUnicode_AsUTF8(text) : "it cannot be imported";
        ipvg_status status = ipvg_fail(ctx, IPVG_E_UNSUPPORTED, "%s", why ? why : "");
        PyErr_Clear();
        ipvg_py_raise(ctx, status);
        Py_XDECREF(text);
        Py_XDECREF(type);
        Py_XDECREF(value);
        Py_XDECREF(where);
    }
    Py_XDECREF(capsule);
    Py_XDECREF(module);
    Py_XDECREF(home);
    return api;
}

static ipvg_status set_limit(ipvg_py_device *self, size_t limit)
{
    ipvg_meter *m = self->be->meter;
    if (limit <= m->used)
        return ipvg_fail(&self->ctx, IPVG_E_MEMORY,
                         "memory_limit: is %.1f MiB, but CUDA and its libraries take %.1f MiB before any work",
                         (double)limit / 1048576.0, (double)m->used / 1048576.0);
    m->limit = limit;
    return IPVG_OK;
}

static PyObject *device_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"name", "threads", "dtype", "memory_limit", NULL};
    static const char *const dtypes[] = {"float32", "bfloat16", "fp8"};
    static const ipvg_dtype computes[] = {IPVG_F32, IPVG_BF16, IPVG_E4M3};
    PyObject *name = NULL, *count = NULL, *dtype = NULL, *most = NULL;
    int64_t threads = 0, limit = 0;
    const ipvg_cuda_api *cuda = NULL;
    int which = 0, gpu;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|OOOO:Device", names, &name, &count, &dtype, &most)) return NULL;
    if (!read_name(name, &gpu)) return NULL;
    if (count && !ipvg_py_int(count, "threads", 0, 4096, &threads)) return NULL; /* 0: all */
    if (dtype && (which = ipvg_py_choice(dtype, "dtype", dtypes, 3)) < 0) return NULL;
    if (most && most != Py_None) {
        if (gpu < 0) return PyErr_SetString(PyExc_ValueError, "memory_limit: is of a GPU; the device is 'cpu'"), NULL;
        if (!ipvg_py_int(most, "memory_limit", 1, INT64_MAX, &limit)) return NULL;
    }
    ipvg_py_device *self = (ipvg_py_device *)type->tp_alloc(type, 0);
    if (!self) return NULL;
    ipvg_context_init(&self->ctx, (int)threads);
    self->lock = PyThread_allocate_lock();
    pthread_mutex_init(&self->gate, NULL);
    if (gpu >= 0 && !(cuda = cuda_api(&self->ctx))) {
        Py_DECREF(self);
        return NULL;
    }
    ipvg_status status = !self->lock ? ipvg_fail(&self->ctx, IPVG_E_MEMORY, "no memory for a lock")
                         : cuda      ? cuda->open(&self->ctx, &self->be, gpu, computes[which])
                                     : ipvg_backend_cpu(&self->ctx, &self->be, computes[which]);
    if (status == IPVG_OK && limit) status = set_limit(self, (size_t)limit);
    if (status != IPVG_OK) {
        ipvg_py_raise(&self->ctx, status);
        Py_DECREF(self);
        return NULL;
    }
    self->ex = (ipvg_exec){.ctx = &self->ctx, .be = self->be, .arena = &self->arena};
    return (PyObject *)self;
}

static void device_dealloc(PyObject *obj)
{
    ipvg_py_device *self = (ipvg_py_device *)obj;
    PyTypeObject *type = Py_TYPE(obj);
    ipvg_arena_free(&self->arena);
    if (self->be) ipvg_backend_free(&self->be);
    if (self->lock) PyThread_free_lock(self->lock);
    pthread_mutex_destroy(&self->gate);
    type->tp_free(obj);
    Py_DECREF(type);
}

static PyObject *device_cancel(PyObject *obj, PyObject *unused)
{
    (void)unused;
    return PyBool_FromLong(ipvg_py_cancel((ipvg_py_device *)obj, NULL));
}

static PyObject *device_name(PyObject *obj, void *unused)
{
    (void)unused;
    return PyUnicode_FromString(((ipvg_py_device *)obj)->be->name);
}

static PyObject *device_threads(PyObject *obj, void *unused)
{
    (void)unused;
    return PyLong_FromLong(((ipvg_py_device *)obj)->ctx.threads);
}

static PyObject *device_dtype(PyObject *obj, void *unused)
{
    (void)unused;
    return PyUnicode_FromString(ipvg_dtype_name(((ipvg_py_device *)obj)->be->compute));
}

static PyObject *device_native(PyObject *obj, void *unused)
{
    (void)unused;
    return PyBool_FromLong(((ipvg_py_device *)obj)->be->native);
}

static PyObject *device_scratch(PyObject *obj, void *unused)
{
    (void)unused;
    return PyLong_FromSize_t(((ipvg_py_device *)obj)->arena.size);
}

static PyObject *device_memory(PyObject *obj, void *unused)
{
    (void)unused;
    const ipvg_meter *m = ((ipvg_py_device *)obj)->be->meter;
    if (!m) Py_RETURN_NONE;
    return Py_BuildValue("{s:n,s:n,s:n,s:n,s:n}", "total", (Py_ssize_t)m->total, "limit", (Py_ssize_t)m->limit, "used",
                         (Py_ssize_t)m->used, "peak", (Py_ssize_t)m->peak, "fixed", (Py_ssize_t)m->fixed);
}

static PyObject *device_release(PyObject *obj, PyObject *unused)
{
    (void)unused;
    ipvg_py_device *self = (ipvg_py_device *)obj;
    if (!PyThread_acquire_lock(self->lock, NOWAIT_LOCK)) {
        PyErr_SetString(PyExc_RuntimeError, "release(): a call is running on this device");
        return NULL;
    }
    ipvg_arena_free(&self->arena);
    PyThread_release_lock(self->lock);
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"cancel", device_cancel, METH_NOARGS,
     "cancel() -> bool\n\nStops the call that runs on this device in another thread within one block: it raises\n"
     "ipvg.Cancelled and its object stays usable (past its last block it returns instead). False when nothing ran."},
    {"release", device_release, METH_NOARGS,
     "release()\n\nGives the scratch memory back; the next call takes it anew."},
    {NULL, NULL, 0, NULL}};

static PyGetSetDef getset[] = {
    {"name", device_name, NULL, "'cpu' or 'cuda'", NULL},
    {"threads", device_threads, NULL, "OpenMP threads of a call.", NULL},
    {"dtype", device_dtype, NULL, "'float32', 'bfloat16' or 'fp8': what matrix products take.", NULL},
    {"native", device_native, NULL, "Does this machine have units for that dtype?", NULL},
    {"scratch", device_scratch, NULL, "Bytes of scratch held now.", NULL},
    {"memory", device_memory, NULL,
     "Bytes of a GPU's memory taken through this object: 'used' now, 'peak', of these 'fixed' for CUDA and its "
     "libraries\n"
     "(an allowance); the 'limit', 0 if there is none; the 'total' that the GPU has. None where memory is the host's.",
     NULL},
    {NULL, NULL, NULL, NULL, NULL}};

static PyType_Slot slots[] = {
    {Py_tp_doc,
     "Device(name='cpu', threads=0, dtype='float32', memory_limit=None)\n\nWhere models run. threads: 0 = as many as "
     "OpenMP would use.\n"
     "dtype: what the transformers' matrix products take. 'bfloat16' rounds their inputs to it and sums in float32;\n"
     "norms, attention, the timestep, the head and the VAE stay in float32. Without AVX-512 BF16 or AMX (`native` is\n"
     "False) the same numbers come at the speed of float32, not faster. 'fp8', on Hopper GPUs: 'bfloat16', but the\n"
     "diffusion model's large products take weights and activations as 8-bit numbers (E4M3, a scale for each output\n"
     "channel and token): faster and smaller, further from float32. One call runs at a time on a device; use one\n"
     "device per thread to run several. memory_limit: bytes of a GPU's memory. Within it transformers keep as many\n"
     "blocks there as fit and stream the others, each while the one before computes: the same bytes come out."},
    {Py_tp_new, device_new},
    {Py_tp_dealloc, device_dealloc},
    {Py_tp_methods, methods},
    {Py_tp_getset, getset},
    {0, NULL}};

static PyType_Spec spec = {"ipvg._core.Device", sizeof(ipvg_py_device), 0, Py_TPFLAGS_DEFAULT, slots};

int ipvg_py_add_device(PyObject *module)
{
    ipvg_py_device_type = (PyTypeObject *)PyType_FromSpec(&spec);
    return ipvg_py_device_type ? PyModule_AddObjectRef(module, "Device", (PyObject *)ipvg_py_device_type) : -1;
}

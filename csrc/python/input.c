/* Arrays that callers give, of NumPy or of another library, on the host or on the device. */
#include "dlpack.h"
#include "tensor.h"

#include <math.h>

/* ==== of the host ==== */

/* Any number of dimensions that a tensor can have, where `ndim` is -1; else that. 0 and an exception set. */
static int read_ndim(int *ndim, int64_t found, const char *what)
{
    if (*ndim < 0 && (found < 1 || found > IPVG_MAX_DIMS))
        return PyErr_Format(PyExc_ValueError, "%s: expected 1 to %d dimensions, got %lld", what, IPVG_MAX_DIMS,
                            (long long)found),
               0;
    if (*ndim < 0) *ndim = (int)found;
    return 1;
}

/* ValueError; takes `found`, a tuple or NULL. */
static void other_shape(const char *what, int ndim, const int64_t *shape, PyObject *found)
{
    char expected[128] = "";
    size_t n = 0;
    for (int i = 0; i < ndim && n < sizeof expected; i++)
        n += (size_t)(shape && shape[i] >= 0
                          ? snprintf(expected + n, sizeof expected - n, i ? ", %lld" : "%lld", (long long)shape[i])
                          : snprintf(expected + n, sizeof expected - n, i ? ", n" : "n"));
    if (found) PyErr_Format(PyExc_ValueError, "%s: expected shape (%s), got %R", what, expected, found);
    Py_XDECREF(found);
}

#define BLOCK ((npy_intp)1 << 16)
#define LOOKING 8 /* threads: they reach the memory's rate, and more would wait for the slowest */

static int is_odd(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return (bits & 0x7f800000u) == 0x7f800000u;
}

/* The first of n numbers that is not finite; n if all are. A video's pixels are some hundred MB: by blocks without a way out,
 * which the compiler can vectorise, and by several threads. */
static npy_intp first_odd(const float *p, npy_intp n, int threads)
{
    const int team = threads < LOOKING ? threads : LOOKING;
    npy_intp first = n;
    (void)team;
#pragma omp parallel for num_threads(team) schedule(dynamic) reduction(min : first) if (n > 8 * BLOCK)
    for (npy_intp at = 0; at < n; at += BLOCK) {
        npy_intp end = n - at < BLOCK ? n : at + BLOCK;
        int odd = 0;
        for (npy_intp i = at; i < end; i++) odd |= is_odd(p[i]);
        for (npy_intp i = at; odd && i < end; i++)
            if (is_odd(p[i])) {
                if (i < first) first = i;
                break;
            }
    }
    return first;
}

PyArrayObject *ipvg_py_float_array(PyObject *obj, const char *what, int ndim, const int64_t *shape, int threads)
{
    PyArrayObject *any = (PyArrayObject *)PyArray_FROM_O(obj), *a = NULL;
    if (!any) return NULL;
    if (!PyArray_ISFLOAT(any) && !PyArray_ISINTEGER(any)) {
        PyErr_Format(PyExc_TypeError, "%s: expected an array of float32, got %R", what, (PyObject *)PyArray_DESCR(any));
        goto done;
    }
    a = (PyArrayObject *)PyArray_FROMANY((PyObject *)any, NPY_FLOAT32, 0, 0, NPY_ARRAY_IN_ARRAY | NPY_ARRAY_FORCECAST);
    if (!a) goto done;
    int fits = PyArray_NDIM(a) == ndim;
    for (int i = 0; fits && shape && i < ndim; i++) fits = shape[i] < 0 || PyArray_DIM(a, i) == shape[i];
    if (!fits) {
        PyObject *found = PyObject_GetAttrString((PyObject *)a, "shape");
        other_shape(what, ndim, shape, found);
        Py_CLEAR(a);
        goto done;
    }
    npy_intp first;
    Py_BEGIN_ALLOW_THREADS;
    first = first_odd(PyArray_DATA(a), PyArray_SIZE(a), threads);
    Py_END_ALLOW_THREADS;
    if (first < PyArray_SIZE(a)) {
        PyErr_Format(PyExc_ValueError, "%s: element %zd is not finite", what, (Py_ssize_t)first);
        Py_CLEAR(a);
    }
done:
    Py_DECREF(any);
    return a;
}

/* ==== lent by DLPack ==== */

#define USED "used_dltensor"
#define USED_VERSIONED "used_dltensor_versioned"

/* Gives the memory back, as its owner wants it. */
static void return_loan(PyObject *capsule)
{
    PyObject *type, *value, *where;
    PyErr_Fetch(&type, &value, &where);
    if (PyCapsule_IsValid(capsule, USED_VERSIONED)) {
        ipvg_dl_versioned *m = PyCapsule_GetPointer(capsule, USED_VERSIONED);
        if (m->deleter) m->deleter(m);
    } else {
        ipvg_dl_legacy *m = PyCapsule_GetPointer(capsule, USED);
        if (m && m->deleter) m->deleter(m);
    }
    PyErr_Restore(type, value, where);
}

/* Takes a capsule over: a new one, whose end gives the memory back, and what it holds. */
static PyObject *take_over(PyObject *capsule, const ipvg_dl_tensor **t, const char *what)
{
    const char *name = PyCapsule_CheckExact(capsule) ? PyCapsule_GetName(capsule) : NULL;
    void *managed;
    if (name && strcmp(name, "dltensor_versioned") == 0) {
        ipvg_dl_versioned *m = managed = PyCapsule_GetPointer(capsule, name);
        if (m->major != 1) return PyErr_Format(PyExc_BufferError, "%s: DLPack %d, expected 1", what, (int)m->major);
        *t = &m->tensor;
        name = USED_VERSIONED;
    } else if (name && strcmp(name, "dltensor") == 0) {
        ipvg_dl_legacy *m = managed = PyCapsule_GetPointer(capsule, name);
        *t = &m->tensor;
        name = USED;
    } else {
        return PyErr_Format(PyExc_BufferError, "%s: __dlpack__ gave %R, expected a DLPack capsule that nobody has used",
                            what, capsule);
    }
    PyObject *ours = PyCapsule_New(managed, name, NULL);
    if (!ours || PyCapsule_SetName(capsule, name)) {
        Py_XDECREF(ours);
        return NULL;
    }
    PyCapsule_SetDestructor(ours, return_loan);
    return ours;
}

/* obj.__dlpack__(stream=..., max_version=(1, 0)), or as older libraries have it. */
static PyObject *ask(PyObject *obj, PyObject *method, const ipvg_backend *be, int device)
{
    PyObject *options =
        device ? Py_BuildValue("{s:K}", "stream", (unsigned long long)(uintptr_t)be->stream) : PyDict_New();
    PyObject *version = options ? Py_BuildValue("(ii)", 1, 0) : NULL, *none = version ? PyTuple_New(0) : NULL;
    PyObject *capsule = NULL;
    (void)obj;
    if (none && !PyDict_SetItemString(options, "max_version", version)) capsule = PyObject_Call(method, none, options);
    if (none && !capsule && PyErr_ExceptionMatches(PyExc_TypeError)) {
        PyErr_Clear();
        if (!PyDict_DelItemString(options, "max_version")) capsule = PyObject_Call(method, none, options);
    }
    Py_XDECREF(none);
    Py_XDECREF(version);
    Py_XDECREF(options);
    return capsule;
}

/* Size of an element; 0 and TypeError for dtypes that no array of ours can come from. *type: NumPy's number; bfloat16 is
 * NPY_USHORT. */
static int64_t element(const ipvg_dl_tensor *t, const char *what, int *type)
{
    static const struct {
        uint8_t code, bits;
        int type;
    } known[] = {{IPVG_DL_FLOAT, 32, NPY_FLOAT32}, {IPVG_DL_BFLOAT, 16, NPY_USHORT}, {IPVG_DL_FLOAT, 16, NPY_FLOAT16},
                 {IPVG_DL_FLOAT, 64, NPY_FLOAT64}, {IPVG_DL_INT, 8, NPY_INT8},       {IPVG_DL_INT, 16, NPY_INT16},
                 {IPVG_DL_INT, 32, NPY_INT32},     {IPVG_DL_INT, 64, NPY_INT64},     {IPVG_DL_UINT, 8, NPY_UINT8}};
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (known[i].code == t->dtype.code && known[i].bits == t->dtype.bits && t->dtype.lanes == 1)
            return *type = known[i].type, known[i].bits / 8;
    PyErr_Format(PyExc_TypeError, "%s: expected an array of float32, got DLPack's dtype (%d, %d, %d)", what,
                 t->dtype.code, t->dtype.bits, t->dtype.lanes);
    return 0;
}

/* What is to be read of a lent tensor: its first element, and strides that are always there. */
typedef struct lent {
    char *data;
    int64_t strides[IPVG_MAX_DIMS], count, size;
    int type;
} lent;

/* 0 and an exception set for what is no array of that shape, or lies where an element cannot. */
static int look(lent *out, const ipvg_dl_tensor *t, const char *what, int ndim, const int64_t *shape)
{
    if (!read_ndim(&ndim, t->ndim, what)) return 0;
    int fits = t->ndim == ndim && ndim <= IPVG_MAX_DIMS && t->shape;
    *out = (lent){.count = 1};
    for (int i = 0; fits && i < ndim; i++)
        fits = t->shape[i] >= 0 && (!shape || shape[i] < 0 || t->shape[i] == shape[i]);
    if (!fits) {
        PyObject *found = PyList_New(0);
        for (int i = 0; found && t->shape && i < t->ndim && i < 16; i++) {
            PyObject *n = PyLong_FromLongLong(t->shape[i]);
            if (!n || PyList_Append(found, n)) Py_CLEAR(found);
            Py_XDECREF(n);
        }
        PyObject *tuple = found ? PyList_AsTuple(found) : NULL;
        Py_XDECREF(found);
        return other_shape(what, ndim, shape, tuple), 0;
    }
    if (!(out->size = element(t, what, &out->type))) return 0;
    for (int i = ndim - 1; i >= 0; i--) {
        out->strides[i] = t->strides ? t->strides[i] : out->count;
        if (out->count && t->shape[i] > INT64_MAX / 16 / out->count)
            return PyErr_Format(PyExc_ValueError, "%s: more elements than any memory holds", what), 0;
        out->count *= t->shape[i];
    }
    out->data = (char *)t->data + t->byte_offset;
    if (out->count && (!t->data || (uintptr_t)out->data % (uintptr_t)out->size))
        return PyErr_Format(PyExc_ValueError, "%s: its memory is %s", what, t->data ? "not aligned" : "not there"), 0;
    return 1;
}

/* A view of lent memory of the host, as far as NumPy has such dtypes; bfloat16 as float32. */
static PyObject *host_array(PyObject *loan, const ipvg_dl_tensor *t, const lent *l)
{
    npy_intp dims[IPVG_MAX_DIMS], steps[IPVG_MAX_DIMS];
    for (int i = 0; i < t->ndim; i++) dims[i] = (npy_intp)t->shape[i], steps[i] = (npy_intp)(l->strides[i] * l->size);
    PyObject *view = PyArray_New(&PyArray_Type, t->ndim, dims, l->type, steps, l->data, 0, 0, NULL), *compact;
    if (view && PyArray_SetBaseObject((PyArrayObject *)view, Py_NewRef(loan)) < 0) Py_CLEAR(view);
    if (!view || l->type != NPY_USHORT) return view;
    compact = PyArray_FROM_OF(view, NPY_ARRAY_IN_ARRAY);
    Py_DECREF(view);
    return ipvg_py_widen(compact);
}

/* ==== of the device ==== */

/* Not finite: then neither is the sum of squares, which is summed in double. */
static ipvg_status check_finite(ipvg_exec *ex, const ipvg_tensor *t, const char *what)
{
    double sum = 0;
    ipvg_status status;
    ipvg_arena_plan(ex->arena);
    IPVG_TRY(ipvg_gram(ex, &sum, NULL, 1, &t));
    IPVG_TRY(ipvg_arena_reserve(ex->ctx, &ex->be->memory, ex->arena, ex->arena->peak));
    IPVG_TRY(ipvg_gram(ex, &sum, NULL, 1, &t));
    if (!isfinite(sum)) status = ipvg_fail(ex->ctx, IPVG_E_ARGUMENT, "%s: holds NaN or infinity", what);
done:
    return status;
}

/* in->tensor, from device memory of any strides and of a dtype that the device casts. */
static ipvg_status bring(ipvg_exec *ex, ipvg_py_input *in, const lent *l, const char *what)
{
    const ipvg_memory *m = &ex->be->memory;
    const ipvg_tensor shape = in->tensor;
    const ipvg_py_runs r = ipvg_py_runs_of(shape.ndim, shape.shape, l->strides);
    ipvg_tensor raw = shape;
    void *wide = NULL;
    ipvg_status status = IPVG_OK;

    raw.dtype = l->type == NPY_FLOAT32 ? IPVG_F32 : l->type == NPY_FLOAT16 ? IPVG_F16 : IPVG_BF16;
    raw.data = l->data;
    if (r.count > 1) {
        IPVG_TRY(m->alloc(m, ex->ctx, &in->block, ipvg_tensor_bytes(&raw)));
        raw.data = in->block;
        for (int64_t k = 0; k < r.count; k++) {
            ipvg_tensor to = ipvg_tensor_of((char *)raw.data + k * r.run * l->size, raw.dtype, r.run);
            IPVG_TRY(ex->be->copy_in(ex, &to, l->data + ipvg_py_run_at(&r, shape.shape, l->strides, k) * l->size));
        }
    }
    in->tensor.data = raw.data;
    if (raw.dtype != IPVG_F32) {
        IPVG_TRY(m->alloc(m, ex->ctx, &wide, ipvg_tensor_bytes(&shape)));
        in->tensor.data = wide;
        status = ipvg_cast(ex, &in->tensor, &raw);
        if (in->block) m->free(m, in->block); /* waits */
        in->block = wide;
        if (status != IPVG_OK) goto done;
    }
    if (ipvg_tensor_count(&shape)) IPVG_TRY(check_finite(ex, &in->tensor, what));
done:
    return status;
}

#define RUNS 65536 /* copies that bringing a strided tensor together may take */

static int take_device(ipvg_py_input *in, ipvg_py_device *dev, const int64_t *shape, int ndim, const lent *l,
                       const char *what)
{
    ipvg_py_run run;
    if (l->type != NPY_FLOAT32 && l->type != NPY_FLOAT16 && l->type != NPY_USHORT)
        return PyErr_Format(PyExc_TypeError, "%s: on a GPU expected float32, bfloat16 or float16", what), 0;
    if (ipvg_py_runs_of(ndim, shape, l->strides).count > RUNS)
        return PyErr_Format(PyExc_ValueError, "%s: its rows do not lie together; make it contiguous first", what), 0;
    in->dev = (ipvg_py_device *)Py_NewRef((PyObject *)dev);
    in->tensor = ipvg_tensor_make(NULL, IPVG_F32, ndim, shape);
    ipvg_py_enter(dev, &run);
    return ipvg_py_leave(&run, bring(&dev->ex, in, l, what));
}

/* ==== either ==== */

/* Keeps `array`, which may be NULL, as a float32 array of that shape. */
static int keep_array(ipvg_py_input *out, ipvg_py_device *dev, PyObject *array, const char *what, int ndim,
                      const int64_t *shape)
{
    PyArrayObject *any = array ? (PyArrayObject *)PyArray_FROM_O(array) : NULL, *a = NULL;
    if (any && read_ndim(&ndim, PyArray_NDIM(any), what))
        a = ipvg_py_float_array((PyObject *)any, what, ndim, shape, dev->ctx.threads);
    Py_XDECREF(any);
    if (!a) return 0;
    out->keep = (PyObject *)a;
    out->tensor = ipvg_py_view(a);
    return 1;
}

static int take_tensor(ipvg_py_input *out, ipvg_py_device *dev, PyObject *obj, const char *what, int ndim,
                       const int64_t *shape)
{
    const ipvg_py_tensor *t = (ipvg_py_tensor *)obj;
    ipvg_dl_tensor seen = {.data = t->t.data, .ndim = t->t.ndim, .strides = (int64_t *)(uintptr_t)t->strides};
    lent l;
    seen.shape = (int64_t *)(uintptr_t)t->t.shape;
    seen.dtype.code = IPVG_DL_FLOAT, seen.dtype.bits = 32, seen.dtype.lanes = 1;
    out->keep = Py_NewRef(obj);
    return look(&l, &seen, what, ndim, shape) && take_device(out, dev, t->t.shape, t->t.ndim, &l, what);
}

static int take_loan(ipvg_py_input *out, ipvg_py_device *dev, PyObject *obj, PyObject *method, const char *what,
                     int ndim, const int64_t *shape)
{
    PyObject *where = PyObject_CallMethod(obj, "__dlpack_device__", NULL), *capsule = NULL, *array = NULL;
    const ipvg_dl_tensor *t = NULL;
    int type, id, ok = 0;
    lent l;
    if (where && !PyTuple_Check(where))
        PyErr_Format(PyExc_TypeError, "%s: __dlpack_device__ gave %R, expected (type, number)", what, where);
    if (!where || !PyTuple_Check(where) || !PyArg_ParseTuple(where, "ii:__dlpack_device__", &type, &id)) goto done;
    const int host = type == IPVG_DL_CPU || type == IPVG_DL_CUDA_HOST;
    if (!host && (type != IPVG_DL_CUDA || dev->be->host || id != dev->be->device)) {
        PyErr_Format(PyExc_ValueError,
                     "%s: lies on DLPack's device %R, the model on %s %d; copy it there or to the host", what, where,
                     dev->be->name, dev->be->device);
        goto done;
    }
    capsule = ask(obj, method, dev->be, !host);
    if (!capsule || !(out->keep = take_over(capsule, &t, what))) goto done;
    if (t->device.type != type || (!host && t->device.id != id)) {
        PyErr_Format(PyExc_BufferError, "%s: its capsule is of device (%d, %d), not of %R", what, (int)t->device.type,
                     (int)t->device.id, where);
        goto done;
    }
    if (!look(&l, t, what, ndim, shape)) goto done;
    if (host) {
        array = host_array(out->keep, t, &l);
        Py_CLEAR(out->keep); /* the array keeps it */
        ok = keep_array(out, dev, array, what, ndim, shape);
    } else {
        out->lent = 1;
        ok = take_device(out, dev, t->shape, t->ndim, &l, what);
    }
done:
    Py_XDECREF(array);
    Py_XDECREF(capsule);
    Py_XDECREF(where);
    return ok;
}

int ipvg_py_take(ipvg_py_input *out, ipvg_py_device *dev, PyObject *obj, const char *what, int ndim,
                 const int64_t *shape)
{
    PyObject *method = NULL;
    int ok = 0;
    *out = (ipvg_py_input){.dev = NULL};
    if (Py_TYPE(obj) == ipvg_py_tensor_type && ((ipvg_py_tensor *)obj)->dev == dev && !dev->be->host) {
        ok = take_tensor(out, dev, obj, what, ndim, shape);
    } else if (!PyArray_Check(obj) && (method = PyObject_GetAttrString(obj, "__dlpack__"))) {
        ok = take_loan(out, dev, obj, method, what, ndim, shape);
    } else if (!PyErr_Occurred() || PyErr_ExceptionMatches(PyExc_AttributeError)) {
        PyErr_Clear();
        ok = keep_array(out, dev, obj, what, ndim, shape);
    }
    Py_XDECREF(method);
    if (!ok) ipvg_py_drop(out);
    return ok;
}

void ipvg_py_drop(ipvg_py_input *in)
{
    ipvg_py_run run;
    if (in->dev && (in->lent || in->block)) {
        ipvg_py_enter_unsettled(in->dev, &run);
        if (in->lent) in->dev->be->settle(&in->dev->ex); /* a copy from it may be under way */
        if (in->block) in->dev->be->memory.free(&in->dev->be->memory, in->block);
        ipvg_py_leave(&run, IPVG_OK);
    }
    Py_XDECREF(in->keep);
    Py_XDECREF(in->dev);
    *in = (ipvg_py_input){.dev = NULL};
}

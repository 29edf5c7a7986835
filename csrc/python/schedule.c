/* _core.Schedule, _core.Solver and _core.normals: a noise schedule, a run of its solver on arrays, the noise. */
#include "schedule.h"
#include "tensor.h"

#include "../base/random.h"

PyTypeObject *ipvg_py_schedule_type;

PyObject *ipvg_py_borrow(PyObject *base, const ipvg_tensor *t)
{
    static const int types[IPVG_DTYPES] = {[IPVG_F32] = NPY_FLOAT32, [IPVG_F64] = NPY_FLOAT64, [IPVG_I64] = NPY_INT64};
    npy_intp dims[IPVG_MAX_DIMS];
    for (int i = 0; i < t->ndim; i++) dims[i] = (npy_intp)t->shape[i];
    PyObject *a =
        PyArray_New(&PyArray_Type, t->ndim, dims, types[t->dtype], NULL, t->data, 0, NPY_ARRAY_CARRAY_RO, NULL);
    if (!a) return NULL;
    Py_INCREF(base);
    if (PyArray_SetBaseObject((PyArrayObject *)a, base) < 0) Py_CLEAR(a); /* takes base, on failure too */
    return a;
}

PyObject *ipvg_py_read(PyObject *base, ipvg_py_device *dev, const ipvg_tensor *t)
{
    ipvg_py_run run;
    if (dev->be->host) return ipvg_py_borrow(base, t);
    PyArrayObject *a = ipvg_py_new(t->ndim, t->shape);
    if (!a || !ipvg_py_enter(dev, &run)) {
        Py_XDECREF(a);
        return NULL;
    }
    if (!ipvg_py_leave(&run, dev->be->copy_out(&dev->ex, PyArray_DATA(a), t))) Py_CLEAR(a);
    if (a) PyArray_CLEARFLAGS(a, NPY_ARRAY_WRITEABLE); /* as the view is */
    return (PyObject *)a;
}

/* ---- Schedule ---- */

static int choice(const char *what, const char *name, const char *const *names, int count)
{
    for (int i = 0; i < count; i++)
        if (strcmp(name, names[i]) == 0) return i;
    PyErr_Format(PyExc_ValueError, "%s: '%s' is unknown", what, name);
    return -1;
}

static PyObject *schedule_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *keys[] = {"solver", "steps", "shift", "convention", "start", NULL};
    static const char *const solvers[] = {"unipc", "dpmpp", "euler"}; /* in the order of the enums */
    static const char *const conventions[] = {"official", "diffusers"};
    const char *solver, *convention = "official";
    ipvg_schedule_config config = {0};
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "sid|si:Schedule", keys, &solver, &config.steps, &config.shift,
                                     &convention, &config.start))
        return NULL;
    int s = choice("solver", solver, solvers, 3),
        c = s < 0 ? -1 : choice("sigma convention", convention, conventions, 2);
    if (c < 0) return NULL;
    config.solver = (ipvg_solver)s;
    config.convention = (ipvg_sigma_convention)c;
    ipvg_py_schedule *self = (ipvg_py_schedule *)type->tp_alloc(type, 0);
    if (!self) return NULL;
    ipvg_context ctx;
    ipvg_context_init(&ctx, 1);
    ipvg_status status = ipvg_schedule_new(&ctx, &self->schedule, &config);
    if (status == IPVG_OK) return (PyObject *)self;
    Py_DECREF(self);
    return ipvg_py_raise(&ctx, status);
}

static void schedule_dealloc(PyObject *obj)
{
    PyTypeObject *type = Py_TYPE(obj);
    ipvg_schedule_free(&((ipvg_py_schedule *)obj)->schedule);
    type->tp_free(obj);
    Py_DECREF(type);
}

static PyObject *schedule_sigmas(PyObject *obj, void *f64)
{
    const ipvg_schedule *s = ((ipvg_py_schedule *)obj)->schedule;
    ipvg_tensor t =
        f64 ? ipvg_tensor_of(s->sigmas_f64, IPVG_F64, s->steps + 1) : ipvg_tensor_of(s->sigmas, IPVG_F32, s->steps + 1);
    return ipvg_py_borrow(obj, &t);
}

static PyObject *schedule_timesteps(PyObject *obj, void *unused)
{
    (void)unused;
    const ipvg_schedule *s = ((ipvg_py_schedule *)obj)->schedule;
    npy_intp n = s->steps;
    PyObject *a = PyArray_SimpleNew(1, &n, NPY_INT64);
    if (a)
        for (int k = 0; k < s->steps; k++) ((int64_t *)PyArray_DATA((PyArrayObject *)a))[k] = s->step[k].timestep;
    return a;
}

static PyGetSetDef schedule_getset[] = {
    {"sigmas", schedule_sigmas, NULL, "(steps + 1,) float32: noise levels before each step, then 0.", NULL},
    {"sigmas_f64", schedule_sigmas, NULL, "(steps + 1,) float64: the same before rounding.", ""},
    {"timesteps", schedule_timesteps, NULL, "(steps,) int64: what the model is told.", NULL},
    {NULL, NULL, NULL, NULL, NULL}};

static PyType_Slot schedule_slots[] = {
    {Py_tp_doc,
     "Schedule(solver, steps, shift, convention='official', start=0)\n\nThe sigmas of a run and the weights of its "
     "solver. solver: 'unipc', 'dpmpp' or 'euler'; convention: 'official' or 'diffusers'."},
    {Py_tp_new, schedule_new},
    {Py_tp_dealloc, schedule_dealloc},
    {Py_tp_getset, schedule_getset},
    {0, NULL}};

static PyType_Spec schedule_spec = {"ipvg._core.Schedule", sizeof(ipvg_py_schedule), 0, Py_TPFLAGS_DEFAULT,
                                    schedule_slots};

/* ---- Solver ---- */

typedef struct solver_object {
    PyObject_HEAD
    ipvg_py_device *dev;
    ipvg_py_schedule *schedule;
    void *memory;
    ipvg_schedule_state state;
} solver_object;

static PyObject *solver_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *keys[] = {"device", "schedule", "noise", NULL};
    PyObject *dev, *schedule, *noise;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O!O!O:Solver", keys, ipvg_py_device_type, &dev,
                                     ipvg_py_schedule_type, &schedule, &noise))
        return NULL;
    ipvg_py_input x;
    if (!ipvg_py_take(&x, (ipvg_py_device *)dev, noise, "noise", -1, NULL)) return NULL;
    if (ipvg_tensor_count(&x.tensor) < 1) {
        ipvg_py_drop(&x);
        return PyErr_Format(PyExc_ValueError, "noise: expected at least one element");
    }
    solver_object *self = (solver_object *)type->tp_alloc(type, 0);
    if (!self) {
        ipvg_py_drop(&x);
        return NULL;
    }
    self->dev = (ipvg_py_device *)Py_NewRef(dev);
    self->schedule = (ipvg_py_schedule *)Py_NewRef(schedule);
    const ipvg_tensor from = x.tensor;
    ipvg_py_run run;
    ipvg_py_enter(self->dev, &run);
    const ipvg_memory *m = &self->dev->be->memory;
    ipvg_status status =
        m->alloc(m, &self->dev->ctx, &self->memory, ipvg_schedule_state_bytes(ipvg_tensor_count(&from)));
    if (status == IPVG_OK) {
        self->state = ipvg_schedule_state_at(self->memory, from.ndim, from.shape);
        self->state.step = self->schedule->schedule->config.start;
        status = self->dev->be->copy_in(&self->dev->ex, &self->state.x, from.data);
    }
    int ok = ipvg_py_leave(&run, status);
    ipvg_py_drop(&x);
    if (!ok) Py_CLEAR(self);
    return (PyObject *)self;
}

static void solver_dealloc(PyObject *obj)
{
    solver_object *self = (solver_object *)obj;
    PyTypeObject *type = Py_TYPE(obj);
    if (self->memory) self->dev->be->memory.free(&self->dev->be->memory, self->memory);
    Py_XDECREF(self->schedule);
    Py_XDECREF(self->dev);
    type->tp_free(obj);
    Py_DECREF(type);
}

static PyObject *solver_step(PyObject *obj, PyObject *arg)
{
    solver_object *self = (solver_object *)obj;
    ipvg_py_input v;
    if (!ipvg_py_take(&v, self->dev, arg, "velocity", self->state.x.ndim, self->state.x.shape)) return NULL;
    ipvg_tensor velocity = v.tensor, on_device = self->state.x;
    ipvg_py_run run;
    ipvg_py_enter(self->dev, &run);
    const ipvg_memory *m = &self->dev->be->memory;
    on_device.data = NULL;
    ipvg_status status = m->alloc(m, &self->dev->ctx, &on_device.data, ipvg_tensor_bytes(&velocity));
    if (status == IPVG_OK) status = self->dev->be->copy_in(&self->dev->ex, &on_device, velocity.data);
    if (status == IPVG_OK)
        status = ipvg_schedule_advance(&self->dev->ex, self->schedule->schedule, &self->state, &on_device);
    if (on_device.data) m->free(m, on_device.data);
    int ok = ipvg_py_leave(&run, status);
    ipvg_py_drop(&v);
    return ok ? ipvg_py_read(obj, self->dev, &self->state.x) : NULL;
}

static PyObject *solver_x(PyObject *obj, void *unused)
{
    (void)unused;
    return ipvg_py_read(obj, ((solver_object *)obj)->dev, &((solver_object *)obj)->state.x);
}

static PyObject *solver_x0(PyObject *obj, void *unused)
{
    (void)unused;
    const ipvg_schedule_state *state = &((solver_object *)obj)->state;
    if (state->step == ((solver_object *)obj)->schedule->schedule->config.start) Py_RETURN_NONE;
    return ipvg_py_read(obj, ((solver_object *)obj)->dev, ipvg_schedule_x0(state));
}

static PyObject *solver_index(PyObject *obj, void *unused)
{
    (void)unused;
    return PyLong_FromLong(((solver_object *)obj)->state.step);
}

static PyMethodDef solver_methods[] = {
    {"step", solver_step, METH_O,
     "step(velocity) -> array\n\nOne step; returns x, a view that the next step overwrites."},
    {NULL, NULL, 0, NULL}};

static PyGetSetDef solver_getset[] = {
    {"x", solver_x, NULL, "The sample that the model sees next: a read-only view, overwritten by step().", NULL},
    {"x0", solver_x0, NULL, "The clean sample that the last step predicted; None before the first.", NULL},
    {"index", solver_index, NULL, "Steps done.", NULL},
    {NULL, NULL, NULL, NULL, NULL}};

static PyType_Slot solver_slots[] = {
    {Py_tp_doc, "Solver(device, schedule, noise)\n\nA run of the schedule's solver on any float32 array."},
    {Py_tp_new, solver_new},
    {Py_tp_dealloc, solver_dealloc},
    {Py_tp_methods, solver_methods},
    {Py_tp_getset, solver_getset},
    {0, NULL}};

static PyType_Spec solver_spec = {"ipvg._core.Solver", sizeof(solver_object), 0, Py_TPFLAGS_DEFAULT, solver_slots};

/* ---- noise ---- */

static PyObject *normals(PyObject *module, PyObject *args)
{
    (void)module;
    unsigned long long seed, first;
    unsigned int stream;
    Py_ssize_t count;
    if (!PyArg_ParseTuple(args, "KIKn:normals", &seed, &stream, &first, &count)) return NULL;
    if (count < 0) return PyErr_Format(PyExc_ValueError, "count: expected 0 or more, got %zd", count);
    PyArrayObject *a = ipvg_py_new(1, (int64_t[]){count});
    if (!a) return NULL;
    Py_BEGIN_ALLOW_THREADS ipvg_normals(PyArray_DATA(a), seed, stream, first, count);
    Py_END_ALLOW_THREADS return (PyObject *)a;
}

static PyObject *philox(PyObject *module, PyObject *args)
{
    (void)module;
    uint32_t c[4], k[2], out[4];
    if (!PyArg_ParseTuple(args, "(IIII)(II):philox", &c[0], &c[1], &c[2], &c[3], &k[0], &k[1])) return NULL;
    ipvg_philox(out, c, k);
    return Py_BuildValue("(IIII)", out[0], out[1], out[2], out[3]);
}

static PyObject *normal_quantile(PyObject *module, PyObject *arg)
{
    (void)module;
    double u = PyFloat_AsDouble(arg);
    if (u == -1.0 && PyErr_Occurred()) return NULL;
    if (!(u > 0 && u < 1)) return PyErr_Format(PyExc_ValueError, "u: expected a number in (0, 1), got %R", arg);
    return PyFloat_FromDouble(ipvg_normal_quantile(u));
}

static PyMethodDef functions[] = {
    {"normals", normals, METH_VARARGS, "normals(seed, stream, first, count) -> (count,) float32; see base/random.h"},
    {"philox", philox, METH_VARARGS, "philox(counter, key) -> 4 words; for tests"},
    {"normal_quantile", normal_quantile, METH_O, "normal_quantile(u) -> float; for tests"},
    {NULL, NULL, 0, NULL}};

int ipvg_py_add_schedule(PyObject *module)
{
    ipvg_py_schedule_type = (PyTypeObject *)PyType_FromSpec(&schedule_spec);
    if (!ipvg_py_schedule_type || PyModule_AddObjectRef(module, "Schedule", (PyObject *)ipvg_py_schedule_type))
        return -1;
    PyObject *solver = PyType_FromSpec(&solver_spec);
    int failed = !solver || PyModule_AddObjectRef(module, "Solver", solver);
    Py_XDECREF(solver);
    return failed ? -1 : PyModule_AddFunctions(module, functions);
}

/* _core.Sampler: csrc/sample/sampler.h on Python objects. ipvg/sampler.py makes it pleasant. */
#include "../sample/sampler.h"
#include "branch.h"
#include "schedule.h"
#include "tensor.h"

typedef struct sampler_object {
    PyObject_HEAD
    ipvg_py_device *dev;
    ipvg_sampler *sampler;
    PyObject *keep; /* a tuple of the model, the schedule, the branches' texts and contexts */
    int busy;       /* a call is under way, without the GIL: the object must not be used from another thread */
    atomic_int running, cancel; /* a step holds the device; somebody wants it, or the next one, to stop */
} sampler_object;

/* ---- making one ---- */

/* One entry of `branches`: (text, context, options as of Dit.forward, field, 1 + its twin or 0). */
static int parse_branch(PyObject *entry, ipvg_py_dit *model, ipvg_sampler_branch *out, ipvg_py_branch *how)
{
    static char *names[] = {IPVG_PY_BRANCH_NAMES, NULL};
    PyObject *text, *context, *dict;
    ipvg_py_branch_options options = {0};
    int field, twin;
    if (!PyTuple_Check(entry)) return PyErr_SetString(PyExc_TypeError, "branches: expected a list of tuples"), 0;
    if (!PyArg_ParseTuple(entry, "O!O!O!pi:branch", ipvg_py_dit_text_type, &text, ipvg_py_dit_context_type, &context,
                          &PyDict_Type, &dict, &field, &twin))
        return 0;
    if (((ipvg_py_dit_text *)text)->model != model || ((ipvg_py_dit_context *)context)->model != model) {
        PyErr_SetString(PyExc_ValueError, "branch: its text or context was made for another model");
        return 0;
    }
    PyObject *none = PyTuple_New(0);
    int ok = none &&
             PyArg_ParseTupleAndKeywords(none, dict, "|$" IPVG_PY_BRANCH_FORMAT ":branch", names,
                                         IPVG_PY_BRANCH_ADDRESSES(&options)) &&
             ipvg_py_branch_read(how, &options, model);
    Py_XDECREF(none);
    how->how.text = ((ipvg_py_dit_text *)text)->text;
    how->how.context = ((ipvg_py_dit_context *)context)->context;
    *out = (ipvg_sampler_branch){.how = how->how, .field = field, .twin = twin};
    return ok;
}

/* One entry of `operations`: (kind, cond, uncond or -1, x0, three numbers that the kind asks for). */
static int parse_operation(PyObject *entry, ipvg_guidance_operation *out)
{
    static const char *const kinds[] = {"optimal_scale", "apg", "tcfg", "rescale"}; /* in the order of the enum */
    const char *kind;
    int x0, k = 0;
    double a, b, c;
    if (!PyTuple_Check(entry)) return PyErr_SetString(PyExc_TypeError, "operations: expected a list of tuples"), 0;
    if (!PyArg_ParseTuple(entry, "siipddd:operation", &kind, &out->cond, &out->uncond, &x0, &a, &b, &c)) return 0;
    while (k < 4 && strcmp(kind, kinds[k])) k++;
    if (k == 4) return PyErr_Format(PyExc_ValueError, "operation: '%s' is unknown", kind), 0;
    out->kind = (ipvg_guidance_kind)k;
    out->x0 = x0;
    out->momentum = a, out->norm = b, out->eta = c;
    out->phi = a;
    return 1;
}

static PyObject *sampler_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *keys[] = {"model", "schedule", "branches", "weights", "noise", "operations", NULL};
    PyObject *model, *schedule, *list, *weights_obj, *noise_obj, *op_list = NULL, *branches = NULL, *ops = NULL;
    PyArrayObject *weights = NULL;
    ipvg_py_input noise = {.dev = NULL};
    sampler_object *self = NULL;
    ipvg_py_branch *how = NULL;
    int ok = 0;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O!O!OOO|O:Sampler", keys, ipvg_py_dit_type, &model,
                                     ipvg_py_schedule_type, &schedule, &list, &weights_obj, &noise_obj, &op_list))
        return NULL;
    const ipvg_dit *dit = ((ipvg_py_dit *)model)->dit;
    const ipvg_dit_config *config = ipvg_dit_get_config(dit);
    const ipvg_schedule *s = ((ipvg_py_schedule *)schedule)->schedule;
    ipvg_sampler_branch branch[IPVG_SAMPLER_BRANCHES];
    ipvg_guidance_operation op[IPVG_GUIDANCE_OPERATIONS];

    branches = PySequence_Tuple(list);
    ops = op_list ? PySequence_Tuple(op_list) : PyTuple_New(0);
    if (!branches || !ops) goto done;
    Py_ssize_t count = PyTuple_GET_SIZE(branches), op_count = PyTuple_GET_SIZE(ops);
    if (count < 1 || count > IPVG_SAMPLER_BRANCHES || op_count > IPVG_GUIDANCE_OPERATIONS) {
        PyErr_Format(PyExc_ValueError, "expected 1 to %d branches and up to %d operations, got %zd and %zd",
                     IPVG_SAMPLER_BRANCHES, IPVG_GUIDANCE_OPERATIONS, count, op_count);
        goto done;
    }
    how = PyMem_Calloc((size_t)count, sizeof *how);
    if (!how) {
        PyErr_NoMemory();
        goto done;
    }
    for (Py_ssize_t b = 0; b < count; b++)
        if (!parse_branch(PyTuple_GET_ITEM(branches, b), (ipvg_py_dit *)model, &branch[b], &how[b])) goto done;
    for (Py_ssize_t i = 0; i < op_count; i++)
        if (!parse_operation(PyTuple_GET_ITEM(ops, i), &op[i])) goto done;
    weights = ipvg_py_float_array(weights_obj, "weights", 2, (int64_t[]){s->steps, count}, 1);
    if (!weights) goto done;
    int f, h, w;
    ipvg_dit_context_size(branch[0].how.context, &f, &h, &w);
    if (!ipvg_py_take(&noise, ((ipvg_py_dit *)model)->device, noise_obj, "noise", 4,
                      (int64_t[]){config->in_dim, f, h, w}))
        goto done;
    self = (sampler_object *)type->tp_alloc(type, 0);
    if (!self) goto done;
    self->dev = (ipvg_py_device *)Py_NewRef(((ipvg_py_dit *)model)->device);
    self->keep = PyTuple_Pack(3, model, schedule, branches); /* the options hold the texts of NAG */
    if (!self->keep) goto done;

    ipvg_py_run call;
    ipvg_py_enter(self->dev, &call);
    ipvg_status status = ipvg_sampler_new(&self->dev->ex, &self->sampler, dit, s, (int)count, branch,
                                          PyArray_DATA(weights), (int)op_count, op);
    if (status == IPVG_OK) status = ipvg_sampler_set(&self->dev->ex, self->sampler, noise.tensor.data);
    ok = ipvg_py_leave(&call, status);
done:
    PyMem_Free(how);
    Py_XDECREF(branches);
    Py_XDECREF(ops);
    Py_XDECREF(weights);
    ipvg_py_drop(&noise);
    if (!ok) Py_CLEAR(self);
    return (PyObject *)self;
}

static void sampler_dealloc(PyObject *obj)
{
    sampler_object *self = (sampler_object *)obj;
    PyTypeObject *type = Py_TYPE(obj);
    if (self->sampler) ipvg_sampler_free(self->dev->be, &self->sampler);
    Py_XDECREF(self->keep);
    Py_XDECREF(self->dev);
    type->tp_free(obj);
    Py_DECREF(type);
}

/* ---- a step ---- */

static int take(sampler_object *self)
{
    if (self->busy) return PyErr_SetString(PyExc_RuntimeError, "another thread is in a step of this sampler"), 0;
    return self->busy = 1;
}

typedef ipvg_status (*part)(ipvg_exec *, ipvg_sampler *);

static PyObject *run_part(PyObject *obj, part run)
{
    sampler_object *self = (sampler_object *)obj;
    if (!take(self)) return NULL;
    ipvg_py_run call;
    ipvg_py_enter(self->dev, &call);
    atomic_store(&self->running, 1); /* before the look at `cancel`, which sampler_cancel sets before it looks here */
    if (atomic_load(&self->cancel)) atomic_store(&self->dev->ctx.cancel, 1);
    ipvg_status status = run(&self->dev->ex, self->sampler);
    atomic_store(&self->running, 0);
    if (status == IPVG_E_CANCELLED) atomic_store(&self->cancel, 0);
    int ok = ipvg_py_leave(&call, status);
    self->busy = 0;
    if (!ok) return NULL;
    Py_RETURN_NONE;
}

static PyObject *sampler_step(PyObject *obj, PyObject *unused)
{
    return (void)unused, run_part(obj, ipvg_sampler_step);
}

static PyObject *sampler_predict(PyObject *obj, PyObject *unused)
{
    return (void)unused, run_part(obj, ipvg_sampler_predict);
}

static PyObject *sampler_combine(PyObject *obj, PyObject *unused)
{
    return (void)unused, run_part(obj, ipvg_sampler_combine);
}

static PyObject *sampler_advance(PyObject *obj, PyObject *unused)
{
    return (void)unused, run_part(obj, ipvg_sampler_advance);
}

/* Not Device.cancel: while this sampler waits for the device, the call that holds it is somebody else's. */
static PyObject *sampler_cancel(PyObject *obj, PyObject *unused)
{
    (void)unused;
    sampler_object *self = (sampler_object *)obj;
    atomic_store(&self->cancel, 1);
    ipvg_py_cancel(self->dev, &self->running);
    Py_RETURN_NONE;
}

/* ---- changes ---- */

/* Writes a latent-sized array to a tensor of the run. */
static int write_tensor(sampler_object *self, ipvg_tensor *to, PyObject *value, const char *what)
{
    ipvg_py_input x;
    if (!ipvg_py_take(&x, self->dev, value, what, 4, self->sampler->state.x.shape)) return 0;
    int ok = take(self);
    if (ok) {
        ipvg_py_run call;
        ipvg_py_enter(self->dev, &call);
        ok = ipvg_py_leave(&call, self->dev->be->copy_in(&self->dev->ex, to, x.tensor.data));
        self->busy = 0;
    }
    ipvg_py_drop(&x);
    return ok;
}

static PyObject *sampler_set(PyObject *obj, PyObject *arg)
{
    sampler_object *self = (sampler_object *)obj;
    if (!write_tensor(self, &self->sampler->state.x, arg, "latent")) return NULL;
    Py_RETURN_NONE;
}

static int branch_of(const ipvg_sampler *s, int b)
{
    if (b >= 0 && b < s->count) return 1;
    return PyErr_Format(PyExc_IndexError, "branch %d of %d", b, s->count), 0;
}

static PyObject *sampler_set_velocity(PyObject *obj, PyObject *args)
{
    sampler_object *self = (sampler_object *)obj;
    PyObject *value;
    int b;
    if (!PyArg_ParseTuple(args, "iO:set_velocity", &b, &value)) return NULL;
    if (b != -1 && !branch_of(self->sampler, b)) return NULL;
    ipvg_tensor *to = b == -1 ? &self->sampler->combined : &self->sampler->velocity[b];
    if (!write_tensor(self, to, value, "velocity")) return NULL;
    Py_RETURN_NONE;
}

static PyObject *sampler_set_field(PyObject *obj, PyObject *args)
{
    sampler_object *self = (sampler_object *)obj;
    PyObject *value;
    int b;
    if (!PyArg_ParseTuple(args, "iO:set_field", &b, &value) || !branch_of(self->sampler, b)) return NULL;
    if (!self->sampler->branch[b].field) return PyErr_Format(PyExc_ValueError, "branch %d has no field", b);
    if (!write_tensor(self, &self->sampler->field[b], value, "weight")) return NULL;
    Py_RETURN_NONE;
}

static PyObject *sampler_set_scale(PyObject *obj, PyObject *args)
{
    sampler_object *self = (sampler_object *)obj;
    const ipvg_dit_config *c = ipvg_dit_get_config(self->sampler->dit);
    float scale[IPVG_DIT_MAX_LAYERS], reference[IPVG_DIT_MAX_LAYERS];
    PyObject *a, *r = Py_None;
    int b;
    if (!PyArg_ParseTuple(args, "iO|O:set_scale", &b, &a, &r) || !branch_of(self->sampler, b)) return NULL;
    if (!ipvg_py_scale_read(scale, a, c) || (r != Py_None && !ipvg_py_scale_read(reference, r, c))) return NULL;
    if (!take(self)) return NULL;
    ipvg_sampler_set_scale(self->dev->be, self->sampler, b, scale, r == Py_None ? NULL : reference);
    self->busy = 0;
    Py_RETURN_NONE;
}

/* ---- what a run goes on from ---- */

static PyObject *sampler_state(PyObject *obj, PyObject *unused)
{
    (void)unused;
    sampler_object *self = (sampler_object *)obj;
    PyObject *list = PyList_New(0);
    ipvg_tensor *t;
    for (int i = 0; list && (t = ipvg_sampler_state(self->sampler, i)); i++) {
        PyObject *view = ipvg_py_read(obj, ((sampler_object *)obj)->dev, t);
        if (!view || PyList_Append(list, view)) Py_CLEAR(list);
        Py_XDECREF(view);
    }
    return list;
}

static PyObject *sampler_load(PyObject *obj, PyObject *args)
{
    sampler_object *self = (sampler_object *)obj;
    ipvg_sampler *s = self->sampler;
    long long forwards;
    PyObject *list;
    int index, count = 0;
    if (!PyArg_ParseTuple(args, "iLO!:load", &index, &forwards, &PyList_Type, &list)) return NULL;
    while (ipvg_sampler_state(s, count)) count++;
    if (index < 0 || index > s->schedule->steps || PyList_GET_SIZE(list) != count)
        return PyErr_Format(PyExc_ValueError, "load: expected a step up to %d and %d tensors", s->schedule->steps,
                            count);
    for (int i = 0; i < count; i++)
        if (!write_tensor(self, ipvg_sampler_state(s, i), PyList_GET_ITEM(list, i), "state")) return NULL;
    s->state.step = index;
    s->forwards = forwards;
    s->seen = -1;
    Py_RETURN_NONE;
}

/* ---- what it shows ---- */

static PyObject *sampler_needs(PyObject *obj, PyObject *args)
{
    const ipvg_sampler *s = ((sampler_object *)obj)->sampler;
    int k, b;
    if (!PyArg_ParseTuple(args, "ii:needs", &k, &b) || !branch_of(s, b)) return NULL;
    if (k < 0 || k >= s->schedule->steps) return PyErr_Format(PyExc_IndexError, "step %d of %d", k, s->schedule->steps);
    return PyBool_FromLong(ipvg_sampler_needs(s, k, b));
}

/* The tensor of that name, or of a branch; NULL and no exception where there is none now. */
static const ipvg_tensor *find(const ipvg_sampler *s, PyObject *what)
{
    static const char *const names[] = {"latent", "combined", "x0"};
    if (PyLong_Check(what)) {
        long b = PyLong_AsLong(what);
        if ((b == -1 && PyErr_Occurred()) || !branch_of(s, b)) return NULL;
        return s->seen >= 0 && ipvg_sampler_needs(s, s->seen, (int)b) ? &s->velocity[b] : NULL;
    }
    switch (ipvg_py_choice(what, "tensor", names, 3)) {
    case 0: return &s->state.x;
    case 1: return s->seen < 0 ? NULL : &s->combined;
    case 2: return s->state.step == s->schedule->config.start ? NULL : ipvg_schedule_x0(&s->state);
    default: return NULL;
    }
}

static PyObject *sampler_tensor(PyObject *obj, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"what", "skip", "writable", NULL};
    sampler_object *self = (sampler_object *)obj;
    PyObject *what;
    int skip = 0, writable = 0;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O|$ip:tensor", names, &what, &skip, &writable)) return NULL;
    const ipvg_tensor *t = find(self->sampler, what);
    if (!t && PyErr_Occurred()) return NULL;
    if (!t) Py_RETURN_NONE;
    if (skip < 0 || skip >= t->shape[1])
        return PyErr_Format(PyExc_ValueError, "skip: expected 0 to %d, got %d", (int)t->shape[1] - 1, skip);
    return ipvg_py_tensor_of(obj, self->dev, t, skip, writable);
}

static PyObject *sampler_index(PyObject *obj, void *unused)
{
    (void)unused;
    return PyLong_FromLong(((sampler_object *)obj)->sampler->state.step);
}

static PyObject *sampler_forwards(PyObject *obj, void *unused)
{
    (void)unused;
    return PyLong_FromLongLong(((sampler_object *)obj)->sampler->forwards);
}

static PyObject *sampler_bytes(PyObject *obj, void *unused)
{
    (void)unused;
    return PyLong_FromSize_t(((sampler_object *)obj)->sampler->bytes);
}

static PyObject *sampler_device(PyObject *obj, void *unused)
{
    (void)unused;
    return Py_NewRef(((sampler_object *)obj)->dev);
}

static PyObject *sampler_busy(PyObject *obj, void *unused)
{
    (void)unused;
    return PyBool_FromLong(((sampler_object *)obj)->busy);
}

static PyMethodDef methods[] = {
    {"step", sampler_step, METH_NOARGS, "step()\n\nOne denoising step; on failure the run stays where it was."},
    {"predict", sampler_predict, METH_NOARGS, "predict()\n\nThe first part of a step: the forwards."},
    {"combine", sampler_combine, METH_NOARGS, "combine()\n\nThe second part: `combined`, from the velocities."},
    {"advance", sampler_advance, METH_NOARGS, "advance()\n\nThe third part: the solver, from `combined`."},
    {"cancel", sampler_cancel, METH_NOARGS, "cancel()\n\nThe step that runs, or else the next one, raises Cancelled."},
    {"set_latent", sampler_set, METH_O, "set_latent(x)\n\nReplaces the sample that the model sees next."},
    {"set_velocity", sampler_set_velocity, METH_VARARGS,
     "set_velocity(branch, v)\n\nReplaces a prediction before combine(), or with branch -1 the combined one before\n"
     "advance()."},
    {"set_field", sampler_set_field, METH_VARARGS,
     "set_field(branch, weights)\n\nThe weight of each element of a branch that has a field, from now on."},
    {"set_scale", sampler_set_scale, METH_VARARGS,
     "set_scale(branch, scale, reference_scale=None)\n\nThe context scales of a branch from now on."},
    {"state", sampler_state, METH_NOARGS, "state() -> views of the tensors that the run goes on from"},
    {"load", sampler_load, METH_VARARGS, "load(index, forwards, state)\n\nGoes on from there: the inverse of state()."},
    {"needs", sampler_needs, METH_VARARGS, "needs(step, branch) -> is it predicted there?"},
    {"tensor", (PyCFunction)(void (*)(void))sampler_tensor, METH_VARARGS | METH_KEYWORDS,
     "tensor(what, *, skip=0, writable=False) -> Tensor or None\n\nA tensor of the run, which the next step "
     "overwrites:\n"
     "'latent', the sample with its reference slots; a branch's number, its prediction at the last step; 'combined' "
     "and\n"
     "'x0' of that step; None where it has none. skip: frames to leave out at the front."},
    {NULL, NULL, 0, NULL}};

static PyGetSetDef getset[] = {
    {"index", sampler_index, NULL, "Steps done.", NULL},
    {"forwards", sampler_forwards, NULL, "Model forwards done.", NULL},
    {"bytes", sampler_bytes, NULL, "Memory of the run's tensors, without the device's scratch.", NULL},
    {"device", sampler_device, NULL, "Where the model runs.", NULL},
    {"busy", sampler_busy, NULL, "Is a step running?", NULL},
    {NULL, NULL, NULL, NULL, NULL}};

static PyType_Slot slots[] = {
    {Py_tp_doc,
     "Sampler(model, schedule, branches, weights, noise, operations=())\n\nbranches: tuples (text, context, options of "
     "Dit.forward, has a field, 1 + the branch that is given the same or 0); weights: (steps, branches); operations: "
     "tuples (kind, cond, uncond, x0, a, b, c)."},
    {Py_tp_new, sampler_new},
    {Py_tp_dealloc, sampler_dealloc},
    {Py_tp_methods, methods},
    {Py_tp_getset, getset},
    {0, NULL}};

static PyType_Spec spec = {"ipvg._core.Sampler", sizeof(sampler_object), 0, Py_TPFLAGS_DEFAULT, slots};

int ipvg_py_add_sampler(PyObject *module)
{
    if (ipvg_py_add_schedule(module)) return -1;
    PyObject *type = PyType_FromSpec(&spec);
    int failed = !type || PyModule_AddObjectRef(module, "Sampler", type);
    Py_XDECREF(type);
    return failed ? -1 : 0;
}

/* _core.Sampler: csrc/sample/sampler.h on Python objects. ipvg/sampler.py makes it pleasant. */
#include "../sample/sampler.h"
#include "dit.h"
#include "schedule.h"

typedef struct sampler_object {
    PyObject_HEAD
    ipvg_py_device *dev;
    ipvg_sampler *sampler;
    PyObject *keep; /* a tuple of the model, the schedule, the branches' texts and contexts */
    int busy;       /* a call is under way, without the GIL: the object must not be used from another thread */
    atomic_int running, cancel; /* a step holds the device; somebody wants it, or the next one, to stop */
} sampler_object;

/* ---- making one ---- */

/* One entry of `branches`: (text, context, skip_blocks, keep_hint, context_scale). */
static int parse_branch(PyObject *entry, PyObject *model, const ipvg_dit_config *config, ipvg_sampler_branch *out,
                        unsigned char *run, float *scale)
{
    PyObject *text, *context, *skip;
    int keep_hint;
    float factor;
    if (!PyTuple_Check(entry)) return PyErr_SetString(PyExc_TypeError, "branches: expected a list of tuples"), 0;
    if (!PyArg_ParseTuple(entry, "O!O!O!pf:branch", ipvg_py_dit_text_type, &text, ipvg_py_dit_context_type, &context,
                          &PyTuple_Type, &skip, &keep_hint, &factor))
        return 0;
    if ((PyObject *)((ipvg_py_dit_text *)text)->model != model ||
        (PyObject *)((ipvg_py_dit_context *)context)->model != model) {
        PyErr_SetString(PyExc_ValueError, "branch: its text or context was made for another model");
        return 0;
    }
    memset(run, IPVG_DIT_RUN, (size_t)config->layers);
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(skip); i++) {
        long block = PyLong_AsLong(PyTuple_GET_ITEM(skip, i));
        if (block == -1 && PyErr_Occurred()) return 0;
        if (block < 0 || block >= config->layers) {
            PyErr_Format(PyExc_ValueError, "skip_blocks: block %ld of a model whose blocks are 0 to %d", block,
                         config->layers - 1);
            return 0;
        }
        run[block] = keep_hint ? IPVG_DIT_SKIP_KEEP_HINT : IPVG_DIT_SKIP;
    }
    for (int n = 0; n < config->n_vace; n++) scale[n] = factor;
    *out = (ipvg_sampler_branch){.text = ((ipvg_py_dit_text *)text)->text,
                                 .context = ((ipvg_py_dit_context *)context)->context,
                                 .how = {.run = run, .scale = scale}};
    return 1;
}

static PyObject *sampler_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *keys[] = {"model", "schedule", "branches", "weights", "noise", NULL};
    PyObject *model, *schedule, *list, *weights_obj, *noise_obj, *branches = NULL;
    PyArrayObject *weights = NULL, *noise = NULL;
    sampler_object *self = NULL;
    unsigned char *run = NULL;
    float *scale = NULL;
    int ok = 0;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O!O!OOO:Sampler", keys, ipvg_py_dit_type, &model,
                                     ipvg_py_schedule_type, &schedule, &list, &weights_obj, &noise_obj))
        return NULL;
    const ipvg_dit *dit = ((ipvg_py_dit *)model)->dit;
    const ipvg_dit_config *config = ipvg_dit_get_config(dit);
    const ipvg_schedule *s = ((ipvg_py_schedule *)schedule)->schedule;
    ipvg_sampler_branch branch[IPVG_SAMPLER_BRANCHES];

    branches = PySequence_Tuple(list);
    if (!branches) goto done;
    Py_ssize_t count = PyTuple_GET_SIZE(branches);
    if (count < 1 || count > IPVG_SAMPLER_BRANCHES) {
        PyErr_Format(PyExc_ValueError, "branches: expected 1 to %d, got %zd", IPVG_SAMPLER_BRANCHES, count);
        goto done;
    }
    run = PyMem_Calloc((size_t)count, (size_t)config->layers);
    scale = PyMem_Calloc((size_t)count * (size_t)config->n_vace + 1, sizeof *scale);
    if (!run || !scale) {
        PyErr_NoMemory();
        goto done;
    }
    for (Py_ssize_t b = 0; b < count; b++)
        if (!parse_branch(PyTuple_GET_ITEM(branches, b), model, config, &branch[b], run + b * config->layers,
                          scale + b * config->n_vace))
            goto done;
    weights = ipvg_py_float_array(weights_obj, "weights", 2, (int64_t[]){s->steps, count});
    if (!weights) goto done;
    int f, h, w;
    ipvg_dit_context_size(branch[0].context, &f, &h, &w);
    noise = ipvg_py_float_array(noise_obj, "noise", 4, (int64_t[]){config->in_dim, f, h, w});
    self = noise ? (sampler_object *)type->tp_alloc(type, 0) : NULL;
    if (!self) goto done;
    self->dev = (ipvg_py_device *)Py_NewRef(((ipvg_py_dit *)model)->device);
    self->keep = PyTuple_Pack(3, model, schedule, branches);
    if (!self->keep) goto done;

    ipvg_py_run call;
    ipvg_py_enter(self->dev, &call);
    ipvg_status status =
        ipvg_sampler_new(&self->dev->ex, &self->sampler, dit, s, (int)count, branch, PyArray_DATA(weights));
    if (status == IPVG_OK) status = ipvg_sampler_set(&self->dev->ex, self->sampler, PyArray_DATA(noise));
    ok = ipvg_py_leave(&call, status);
done:
    PyMem_Free(run);
    PyMem_Free(scale);
    Py_XDECREF(branches);
    Py_XDECREF(weights);
    Py_XDECREF(noise);
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

static PyObject *sampler_step(PyObject *obj, PyObject *unused)
{
    (void)unused;
    sampler_object *self = (sampler_object *)obj;
    if (!take(self)) return NULL;
    ipvg_py_run call;
    ipvg_py_enter(self->dev, &call);
    atomic_store(&self->running, 1); /* before the look at `cancel`, which sampler_cancel sets before it looks here */
    if (atomic_load(&self->cancel)) atomic_store(&self->dev->ctx.cancel, 1);
    ipvg_status status = ipvg_sampler_step(&self->dev->ex, self->sampler);
    atomic_store(&self->running, 0);
    if (status == IPVG_E_CANCELLED) atomic_store(&self->cancel, 0);
    int ok = ipvg_py_leave(&call, status);
    self->busy = 0;
    if (!ok) return NULL;
    Py_RETURN_NONE;
}

/* Not Device.cancel: while this sampler waits for the device, the call that holds it is somebody else's. */
static PyObject *sampler_cancel(PyObject *obj, PyObject *unused)
{
    (void)unused;
    sampler_object *self = (sampler_object *)obj;
    atomic_store(&self->cancel, 1);
    if (atomic_load(&self->running)) atomic_store(&self->dev->ctx.cancel, 1);
    Py_RETURN_NONE;
}

static PyObject *sampler_set(PyObject *obj, PyObject *arg)
{
    sampler_object *self = (sampler_object *)obj;
    PyArrayObject *x = ipvg_py_float_array(arg, "latent", 4, self->sampler->state.x.shape);
    if (!x || !take(self)) {
        Py_XDECREF(x);
        return NULL;
    }
    ipvg_py_run call;
    ipvg_py_enter(self->dev, &call);
    int ok = ipvg_py_leave(&call, ipvg_sampler_set(&self->dev->ex, self->sampler, PyArray_DATA(x)));
    self->busy = 0;
    Py_DECREF(x);
    if (!ok) return NULL;
    Py_RETURN_NONE;
}

/* ---- what it shows ---- */

static PyObject *sampler_velocity(PyObject *obj, PyObject *arg)
{
    const ipvg_sampler *s = ((sampler_object *)obj)->sampler;
    long b = PyLong_AsLong(arg);
    if (b == -1 && PyErr_Occurred()) return NULL;
    if (b < 0 || b >= s->count) return PyErr_Format(PyExc_IndexError, "branch %ld of %d", b, s->count);
    int k = s->state.step - 1;
    if (k < 0 || s->weight[(size_t)k * (size_t)s->count + (size_t)b] == 0) Py_RETURN_NONE;
    return ipvg_py_borrow(obj, &s->velocity[b]);
}

static PyObject *sampler_combined(PyObject *obj, void *unused)
{
    (void)unused;
    const ipvg_sampler *s = ((sampler_object *)obj)->sampler;
    if (s->state.step == 0) Py_RETURN_NONE;
    return ipvg_py_borrow(obj, &s->combined);
}

static PyObject *sampler_x0(PyObject *obj, void *unused)
{
    (void)unused;
    const ipvg_sampler *s = ((sampler_object *)obj)->sampler;
    if (s->state.step == 0) Py_RETURN_NONE;
    return ipvg_py_borrow(obj, ipvg_schedule_x0(&s->state));
}

static PyObject *sampler_latent(PyObject *obj, void *unused)
{
    (void)unused;
    return ipvg_py_borrow(obj, &((sampler_object *)obj)->sampler->state.x);
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
    {"cancel", sampler_cancel, METH_NOARGS, "cancel()\n\nThe step that runs, or else the next one, raises Cancelled."},
    {"set_latent", sampler_set, METH_O, "set_latent(x)\n\nReplaces the sample that the model sees next."},
    {"velocity", sampler_velocity, METH_O, "velocity(branch) -> view of the last step's, None where its weight was 0"},
    {NULL, NULL, 0, NULL}};

static PyGetSetDef getset[] = {
    {"combined", sampler_combined, NULL, "The last step's combined velocity: a view that the next step overwrites.",
     NULL},
    {"x0", sampler_x0, NULL, "The clean latent that the last step predicted: a view.", NULL},
    {"latent", sampler_latent, NULL, "The sample, reference slots included: a view.", NULL},
    {"index", sampler_index, NULL, "Steps done.", NULL},
    {"forwards", sampler_forwards, NULL, "Model forwards done.", NULL},
    {"bytes", sampler_bytes, NULL, "Memory of the run's tensors, without the device's scratch.", NULL},
    {"device", sampler_device, NULL, "Where the model runs.", NULL},
    {"busy", sampler_busy, NULL, "Is a step running?", NULL},
    {NULL, NULL, NULL, NULL, NULL}};

static PyType_Slot slots[] = {
    {Py_tp_doc,
     "Sampler(model, schedule, branches, weights, noise)\n\nbranches: tuples (text, context, skip_blocks, "
     "keep_hint, context_scale); weights: (steps, branches)."},
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

/* _core.Dit, DitText, DitContext: the diffusion transformer from Python. */
#include "dit.h"

#include "branch.h"
#include "tensor.h"
#include "weights.h"

PyTypeObject *ipvg_py_dit_type, *ipvg_py_dit_text_type, *ipvg_py_dit_context_type;

/* ==== prepared inputs ==== */

static void text_dealloc(PyObject *obj)
{
    ipvg_py_dit_text *self = (ipvg_py_dit_text *)obj;
    PyTypeObject *type = Py_TYPE(obj);

    if (self->model) ipvg_dit_text_free(self->model->device->be, &self->text);
    Py_XDECREF(self->model);
    type->tp_free(obj);
    Py_DECREF(type);
}

static void context_dealloc(PyObject *obj)
{
    ipvg_py_dit_context *self = (ipvg_py_dit_context *)obj;
    PyTypeObject *type = Py_TYPE(obj);

    if (self->model) ipvg_dit_context_free(self->model->device->be, &self->context);
    Py_XDECREF(self->model);
    type->tp_free(obj);
    Py_DECREF(type);
}

static PyObject *context_size(PyObject *obj, void *unused)
{
    (void)unused;
    int frames, height, width;
    ipvg_dit_context_size(((ipvg_py_dit_context *)obj)->context, &frames, &height, &width);
    return Py_BuildValue("(iii)", frames, height, width);
}

static PyObject *dit_text(PyObject *obj, PyObject *args, PyObject *kwds)
{
    static char *names[] = {"states", "trace", NULL};
    ipvg_py_dit *self = (ipvg_py_dit *)obj;
    PyObject *given, *trace = NULL;
    ipvg_py_dit_text *text = NULL;
    ipvg_py_trace tracing;
    ipvg_py_run run;

    if (!PyArg_ParseTupleAndKeywords(args, kwds, "O|O:text", names, &given, &trace) || !ipvg_py_trace_check(trace))
        return NULL;
    const int64_t shape[] = {-1, ipvg_dit_get_config(self->dit)->text_dim};
    ipvg_py_input states;
    if (!ipvg_py_take(&states, self->device, given, "states", 2, shape)) return NULL;
    text = (ipvg_py_dit_text *)ipvg_py_dit_text_type->tp_alloc(ipvg_py_dit_text_type, 0);
    if (!text) goto done;
    text->model = (ipvg_py_dit *)Py_NewRef(obj);
    if (!ipvg_py_enter(self->device, &run)) {
        Py_CLEAR(text);
        goto done;
    }
    ipvg_py_trace_set(&tracing, &run, trace);
    ipvg_status status = ipvg_dit_text_new(&self->device->ex, &text->text, self->dit, &states.tensor);
    if (!ipvg_py_leave(&run, status)) Py_CLEAR(text);
done:
    ipvg_py_drop(&states);
    return (PyObject *)text;
}

static PyObject *dit_context(PyObject *obj, PyObject *args, PyObject *kwds)
{
    static char *names[] = {"context", "frames", "trace", NULL};
    ipvg_py_dit *self = (ipvg_py_dit *)obj;
    const ipvg_dit_config *c = ipvg_dit_get_config(self->dit);
    PyObject *given, *frames = Py_None, *trace = NULL;
    ipvg_py_dit_context *context = NULL;
    ipvg_py_trace tracing;
    ipvg_py_run run;
    int64_t count;

    if (!PyArg_ParseTupleAndKeywords(args, kwds, "O|OO:context", names, &given, &frames, &trace) ||
        !ipvg_py_trace_check(trace))
        return NULL;
    const int64_t shape[] = {c->n_vace ? c->vace_in_dim : 0, -1, -1, -1};
    ipvg_py_input array;
    if (!ipvg_py_take(&array, self->device, given, "context", 4, shape)) return NULL;
    count = array.tensor.shape[1];
    if (frames != Py_None && !ipvg_py_int(frames, "frames", 1, IPVG_DIT_MAX_SIDE, &count)) goto done;
    context = (ipvg_py_dit_context *)ipvg_py_dit_context_type->tp_alloc(ipvg_py_dit_context_type, 0);
    if (!context) goto done;
    context->model = (ipvg_py_dit *)Py_NewRef(obj);
    if (!ipvg_py_enter(self->device, &run)) {
        Py_CLEAR(context);
        goto done;
    }
    ipvg_py_trace_set(&tracing, &run, trace);
    ipvg_status status =
        ipvg_dit_context_new(&self->device->ex, &context->context, self->dit, &array.tensor, (int)count);
    if (!ipvg_py_leave(&run, status)) Py_CLEAR(context);
done:
    ipvg_py_drop(&array);
    return (PyObject *)context;
}

/* ==== forward ==== */

/* The array to write to: `out` if given (float32, C order, of that shape, writable), else a new one. New reference. */
static PyArrayObject *output(PyObject *out, const int64_t *shape)
{
    if (!out || out == Py_None) return ipvg_py_new(4, shape);
    PyArrayObject *a = (PyArrayObject *)out;
    int fits = PyArray_Check(out) && PyArray_NDIM(a) == 4 && PyArray_TYPE(a) == NPY_FLOAT32 && PyArray_ISCARRAY(a);
    for (int i = 0; fits && i < 4; i++) fits = PyArray_DIM(a, i) == shape[i];
    if (fits) return (PyArrayObject *)Py_NewRef(out);
    char wanted[96];
    PyErr_Format(PyExc_ValueError, "out: expected a writable C-contiguous float32 array of shape %s",
                 ipvg_shape_text(wanted, sizeof wanted, 4, shape));
    return NULL;
}

static PyObject *dit_forward(PyObject *obj, PyObject *args, PyObject *kwds)
{
    static char *names[] = {"x", "t", "text", "context", IPVG_PY_BRANCH_NAMES, "out", "trace", NULL};
    ipvg_py_dit *self = (ipvg_py_dit *)obj;
    const ipvg_dit_config *c = ipvg_dit_get_config(self->dit);
    PyObject *given, *text_obj, *context_obj, *out = NULL, *trace = NULL;
    ipvg_py_branch_options options = {0};
    ipvg_py_branch branch;
    PyArrayObject *velocity = NULL;
    ipvg_py_input x = {.dev = NULL};
    ipvg_py_trace tracing;
    ipvg_py_run run;
    int frames, height, width;
    PyObject *timestep;
    double t;

    if (!PyArg_ParseTupleAndKeywords(args, kwds, "OOO!O!|$" IPVG_PY_BRANCH_FORMAT "OO:forward", names, &given,
                                     &timestep, ipvg_py_dit_text_type, &text_obj, ipvg_py_dit_context_type,
                                     &context_obj, IPVG_PY_BRANCH_ADDRESSES(&options), &out, &trace) ||
        !ipvg_py_number(timestep, "t", 0, 1000, &t) || !ipvg_py_trace_check(trace) ||
        !ipvg_py_branch_read(&branch, &options, self))
        return NULL;
    branch.how.text = ((ipvg_py_dit_text *)text_obj)->text;
    branch.how.context = ((ipvg_py_dit_context *)context_obj)->context;
    ipvg_dit_context_size(branch.how.context, &frames, &height, &width);
    const int64_t in[] = {c->in_dim, -1, -1, -1}, shape[] = {c->out_dim, frames, height, width};
    if (!ipvg_py_take(&x, self->device, given, "x", 4, in) || !(velocity = output(out, shape))) goto fail;
    if (!ipvg_py_enter(self->device, &run)) goto fail;
    ipvg_py_trace_set(&tracing, &run, trace);

    ipvg_exec *ex = &self->device->ex;
    ipvg_tensor x_host = x.tensor, v_host = ipvg_py_view(velocity), x_view = x_host, v_view = v_host;
    ipvg_tensor *const to[] = {&v_view};
    const ipvg_dit_branch *const how[] = {&branch.how};
    ipvg_arena_plan(ex->arena);
    ipvg_status status = ipvg_dit_forward(ex, to, &x_view, t, self->dit, how, 1, NULL);
    if (status == IPVG_OK) status = ipvg_arena_reserve(ex->ctx, &ex->be->memory, ex->arena, ex->arena->peak);
    if (!ex->be->host) x_view.data = v_view.data = NULL;
    if (status == IPVG_OK) status = ipvg_py_stage(self->device, &x_view, &x_host, 1);
    if (status == IPVG_OK) status = ipvg_py_stage(self->device, &v_view, &v_host, 0);
    if (status == IPVG_OK) status = ipvg_dit_settle(ex, self->dit);
    if (status == IPVG_OK) status = ipvg_dit_forward(ex, to, &x_view, t, self->dit, how, 1, NULL);
    status = ipvg_py_unstage(self->device, &v_view, &v_host, status);
    status = ipvg_py_unstage(self->device, &x_view, NULL, status);
    if (!ipvg_py_leave(&run, status)) goto fail;
    ipvg_py_drop(&x);
    return (PyObject *)velocity;
fail:
    ipvg_py_drop(&x);
    Py_XDECREF(velocity);
    return NULL;
}

static PyObject *dit_memory(PyObject *obj, PyObject *args, PyObject *kwds)
{
    static char *names[] = {"frames", "height", "width", "branches", "hints", "nag", "blur", NULL};
    ipvg_py_dit *self = (ipvg_py_dit *)obj;
    ipvg_dit_bytes bytes = {0};
    ipvg_context ctx;
    PyObject *frames, *height, *width, *branches = NULL, *hints = NULL;
    int nag = 0, blur = 0;
    int64_t f, h, w, b = 1, s;

    if (!PyArg_ParseTupleAndKeywords(args, kwds, "OOO|$OOpp:memory", names, &frames, &height, &width, &branches, &hints,
                                     &nag, &blur) ||
        !ipvg_py_int(frames, "frames", 1, IPVG_DIT_MAX_SIDE, &f) ||
        !ipvg_py_int(height, "height", 1, IPVG_DIT_MAX_SIDE, &h) ||
        !ipvg_py_int(width, "width", 1, IPVG_DIT_MAX_SIDE, &w) ||
        (branches && !ipvg_py_int(branches, "branches", 1, IPVG_DIT_BRANCHES, &b)))
        return NULL;
    s = b;
    if (hints && !ipvg_py_int(hints, "hints", 1, b, &s)) return NULL;
    const ipvg_dit_job job = {(int)f, (int)h, (int)w, .branches = (int)b, .hints = (int)s, .nag = nag, .blur = blur};
    ipvg_context_init(&ctx, self->device->ctx.threads); /* plans alone: needs neither the lock nor the device's arena */
    ipvg_status status = ipvg_dit_memory(&ctx, self->device->be, &bytes, self->dit, &job);
    if (status != IPVG_OK) return ipvg_py_raise(&ctx, status);
    return Py_BuildValue("{sK,sK,sK,sK,sK,sK}", "scratch", (unsigned long long)bytes.scratch, "text",
                         (unsigned long long)bytes.text, "context", (unsigned long long)bytes.context, "weights",
                         (unsigned long long)bytes.weights, "least", (unsigned long long)bytes.least, "block",
                         (unsigned long long)bytes.block);
}

/* ==== Dit ==== */

static PyObject *dit_new(PyTypeObject *type, PyObject *args, PyObject *kwds)
{
    static char *names[] = {"device", "config", "weights", NULL};
    PyObject *device, *config, *weights;
    ipvg_dit_config c = {0};
    ipvg_context ctx;

    if (!PyArg_ParseTupleAndKeywords(args, kwds, "O!O!O:Dit", names, ipvg_py_device_type, &device, &PyDict_Type,
                                     &config, &weights))
        return NULL;
    ipvg_weights *w = ipvg_py_weights(weights);
    if (!w) return NULL;
    if (!ipvg_py_dict_int(config, "dim", 1, 1 << 20, &c.dim) ||
        !ipvg_py_dict_int(config, "num_heads", 1, 1 << 12, &c.heads) ||
        !ipvg_py_dict_int(config, "ffn_dim", 1, 1 << 20, &c.ffn_dim) ||
        !ipvg_py_dict_int(config, "num_layers", 1, IPVG_DIT_MAX_LAYERS, &c.layers) ||
        !ipvg_py_dict_int(config, "in_dim", 1, 1 << 12, &c.in_dim) ||
        !ipvg_py_dict_int(config, "out_dim", 1, 1 << 12, &c.out_dim) ||
        !ipvg_py_dict_int(config, "freq_dim", 2, IPVG_DIT_MAX_FREQ, &c.freq_dim) ||
        !ipvg_py_dict_int(config, "text_len", 1, 1 << 16, &c.text_len) ||
        !ipvg_py_dict_int(config, "text_dim", 1, 1 << 20, &c.text_dim) ||
        !ipvg_py_dict_float(config, "eps", 1e-30, 1.0, &c.eps) ||
        !ipvg_py_dict_ints(config, "vace_layers", 0, IPVG_DIT_MAX_LAYERS - 1, c.vace_layers, IPVG_DIT_MAX_LAYERS,
                           &c.n_vace) ||
        (c.n_vace && !ipvg_py_dict_int(config, "vace_in_dim", 1, 1 << 12, &c.vace_in_dim)))
        return NULL;
    ipvg_py_dit *self = (ipvg_py_dit *)type->tp_alloc(type, 0);
    if (!self) return NULL;
    ipvg_context_init(&ctx, 1);
    ipvg_status status = ipvg_dit_new(&ctx, &self->dit, &c, w);
    if (status != IPVG_OK) {
        Py_DECREF(self);
        return ipvg_py_raise(&ctx, status);
    }
    self->device = (ipvg_py_device *)Py_NewRef(device);
    self->weights = Py_NewRef(weights);
    if (!ipvg_py_place(self->device, (ipvg_status(*)(ipvg_exec *, void *))ipvg_dit_place, self->dit)) Py_CLEAR(self);
    return (PyObject *)self;
}

static void dit_dealloc(PyObject *obj)
{
    ipvg_py_dit *self = (ipvg_py_dit *)obj;
    PyTypeObject *type = Py_TYPE(obj);

    ipvg_dit_free(&self->dit);
    Py_XDECREF(self->weights);
    Py_XDECREF(self->device);
    type->tp_free(obj);
    Py_DECREF(type);
}

static PyObject *dit_config(PyObject *obj, void *unused)
{
    (void)unused;
    const ipvg_dit_config *c = ipvg_dit_get_config(((ipvg_py_dit *)obj)->dit);
    PyObject *layers = PyList_New(c->n_vace);
    for (int n = 0; layers && n < c->n_vace; n++) {
        PyObject *layer = PyLong_FromLong(c->vace_layers[n]);
        if (!layer)
            Py_CLEAR(layers);
        else
            PyList_SET_ITEM(layers, n, layer);
    }
    if (!layers) return NULL;
    return Py_BuildValue("{sisisisisisisisisisisdsN}", "dim", c->dim, "num_heads", c->heads, "ffn_dim", c->ffn_dim,
                         "num_layers", c->layers, "in_dim", c->in_dim, "out_dim", c->out_dim, "vace_in_dim",
                         c->vace_in_dim, "freq_dim", c->freq_dim, "text_len", c->text_len, "text_dim", c->text_dim,
                         "eps", (double)c->eps, "vace_layers", layers);
}

static PyObject *dit_weights(PyObject *obj, void *unused)
{
    (void)unused;
    return Py_NewRef(((ipvg_py_dit *)obj)->weights);
}

static PyMethodDef dit_methods[] = {
    {"text", (PyCFunction)(void (*)(void))dit_text, METH_VARARGS | METH_KEYWORDS,
     "text(states, trace=None) -> DitText\n\n"
     "Prepares a prompt once for all steps: the text embedding and every block's cross-attention keys and values.\n"
     "states: (n, text_dim), 1 <= n <= text_len, umT5's states without padding (zero rows are added here).\n"
     "Raises TypeError, ValueError, ipvg.Cancelled, KeyboardInterrupt."},
    {"context", (PyCFunction)(void (*)(void))dit_context, METH_VARARGS | METH_KEYWORDS,
     "context(context, frames=None, trace=None) -> DitContext\n\n"
     "Prepares a VACE context once for all steps: its embedded tokens and the rotary table.\n"
     "context: (vace_in_dim, Fc, h, w): 16 inactive, 16 reactive, 64 mask channels. frames: of the latents it will be\n"
     "used with (default Fc). If Fc is less, the tokens get zero rows at the end: the released TPIGE code's dropped\n"
     "reference. A kept but absent reference is a slot of zeros in `context`. A model without VACE layers takes (0, "
     "F,\n"
     "h, w). Raises TypeError, ValueError."},
    {"forward", (PyCFunction)(void (*)(void))dit_forward, METH_VARARGS | METH_KEYWORDS,
     "forward(x, t, text, context, *, skip=(), keep_hint=False, scale=1.0, reference_scale=None, reference_frames=0,\n"
     "        identity=(), blur=None, nag=None, out=None, trace=None) -> velocity\n\n"
     "The velocity (out_dim, F, h, w) float32 of the latent x (in_dim, F, h, w) at timestep t in [0, 1000] (sigma "
     "times\n"
     "1000, not sigma). skip: main blocks that return their input; their VACE hint is dropped too, unless keep_hint.\n"
     "scale: what hints count for, a number or one for each VACE layer; reference_scale: the same for the tokens of\n"
     "the first reference_frames frames. identity: main blocks whose self-attention gives V (STG-A, PAG). blur:\n"
     "(blocks, sigma): queries blurred over each frame, sigma in tokens or inf (SEG). nag: (text, scale, tau, alpha):\n"
     "normalised attention guidance away from that text in every cross-attention. out: where to write (may be x).\n"
     "trace: a callable(name, array) that sees copies of the intermediates; it must not use this device.\n"
     "Source: VaceWanModel.forward of Wan2.1-VACE; skip: IPT2V (TPIGE). Raises TypeError, ValueError, MemoryError,\n"
     "ipvg.Cancelled, KeyboardInterrupt."},
    {"memory", (PyCFunction)(void (*)(void))dit_memory, METH_VARARGS | METH_KEYWORDS,
     "memory(frames, height, width, *, branches=1, hints=branches, nag=False, blur=False)\n"
     "    -> {'scratch': bytes, 'text': ..., 'context': ..., 'weights': ..., 'least': ..., 'block': ...}\n\n"
     "What a latent of that size needs besides the weights: working memory, and each DitText and DitContext. "
     "branches:\n"
     "predicted in one step, 1 to 16; hints: how many of them differ in text, context or NAG, the others share hints.\n"
     "nag, blur: for branches that ask for these. weights: on a GPU; least: of them under the smallest memory_limit, "
     "with\n"
     "every block streamed; block: what each that stays adds, up to weights. Planned with the code that runs; nothing "
     "is computed or allocated.\n"
     "Raises TypeError, ValueError."},
    {NULL, NULL, 0, NULL}};

static PyObject *dit_streamed(PyObject *obj, void *unused)
{
    (void)unused;
    return PyLong_FromLong(ipvg_dit_streamed(((ipvg_py_dit *)obj)->dit));
}

static PyGetSetDef dit_getset[] = {
    {"config", dit_config, NULL, "The sizes, as a new dict in the form of config.json.", NULL},
    {"weights", dit_weights, NULL, "The _core.Weights that it was made of.", NULL},
    {"streamed", dit_streamed, NULL, "Blocks that do not stay in the GPU's memory, under a memory_limit.", NULL},
    {NULL, NULL, NULL, NULL, NULL}};

static PyType_Slot dit_slots[] = {
    {Py_tp_doc,
     "Dit(device, config, weights)\n\n"
     "The Wan2.1-VACE diffusion transformer. config: a dict with dim, num_heads, ffn_dim, num_layers, in_dim,\n"
     "out_dim, freq_dim, text_len, text_dim, eps, vace_layers (may be empty) and vace_in_dim; weights: a\n"
     "_core.Weights with official tensor names, in any float dtype, used in place.\n"
     "Raises ipvg.FormatError for a missing, misshapen or unknown tensor, ValueError for a size."},
    {Py_tp_new, dit_new},
    {Py_tp_dealloc, dit_dealloc},
    {Py_tp_methods, dit_methods},
    {Py_tp_getset, dit_getset},
    {0, NULL}};

static PyType_Slot text_slots[] = {
    {Py_tp_doc, "A prompt that Dit.text() prepared, for that model alone."}, {Py_tp_dealloc, text_dealloc}, {0, NULL}};

static PyGetSetDef context_getset[] = {
    {"size", context_size, NULL, "(frames, height, width) of the latents it is for.", NULL},
    {NULL, NULL, NULL, NULL, NULL}};

static PyType_Slot context_slots[] = {{Py_tp_doc, "A VACE context that Dit.context() prepared, for that model alone."},
                                      {Py_tp_dealloc, context_dealloc},
                                      {Py_tp_getset, context_getset},
                                      {0, NULL}};

#define PREPARED (Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION) /* only a Dit makes them */
static PyType_Spec dit_spec = {"ipvg._core.Dit", sizeof(ipvg_py_dit), 0, Py_TPFLAGS_DEFAULT, dit_slots};
static PyType_Spec text_spec = {"ipvg._core.DitText", sizeof(ipvg_py_dit_text), 0, PREPARED, text_slots};
static PyType_Spec context_spec = {"ipvg._core.DitContext", sizeof(ipvg_py_dit_context), 0, PREPARED, context_slots};

int ipvg_py_add_dit(PyObject *module)
{
    ipvg_py_dit_type = (PyTypeObject *)PyType_FromSpec(&dit_spec);
    ipvg_py_dit_text_type = (PyTypeObject *)PyType_FromSpec(&text_spec);
    ipvg_py_dit_context_type = (PyTypeObject *)PyType_FromSpec(&context_spec);
    if (!ipvg_py_dit_type || !ipvg_py_dit_text_type || !ipvg_py_dit_context_type ||
        PyModule_AddObjectRef(module, "Dit", (PyObject *)ipvg_py_dit_type) ||
        PyModule_AddObjectRef(module, "DitText", (PyObject *)ipvg_py_dit_text_type) ||
        PyModule_AddObjectRef(module, "DitContext", (PyObject *)ipvg_py_dit_context_type))
        return -1;
    return 0;
}

/* _core.Vae and its stream of decoded frames. */
#include "tensor.h"
#include "weights.h"

#include "../model/vae.h"

typedef struct vae_object {
    PyObject_HEAD
    ipvg_py_device *dev;
    PyObject *weights; /* the model's tensors point into the files it maps */
    ipvg_vae *vae;
} vae_object;

/* ---- new, free ---- */

/* config[key]: a float for each latent channel, or Wan's if it is not there. */
static int statistics(PyObject *config, const char *key, const float *wan, int z_dim, float *out)
{
    PyObject *v = ipvg_py_dict_item(config, key);
    if (!v && PyErr_Occurred()) return 0;
    if (!v && z_dim == 16) {
        memcpy(out, wan, 16 * sizeof *out);
        return 1;
    }
    PyObject *fast = v ? PySequence_Fast(v, "") : NULL;
    if (v && !fast && PyErr_ExceptionMatches(PyExc_MemoryError)) return 0;
    if (!fast || PySequence_Fast_GET_SIZE(fast) != z_dim) {
        PyErr_Format(PyExc_ValueError, "config: '%s' must be a list of z_dim = %d numbers", key, z_dim);
        Py_XDECREF(fast);
        return 0;
    }
    for (int i = 0; i < z_dim; i++) out[i] = (float)PyFloat_AsDouble(PySequence_Fast_GET_ITEM(fast, i));
    Py_DECREF(fast);
    return !PyErr_Occurred();
}

static int read_config(PyObject *dict, ipvg_vae_config *c)
{
    int temporal[IPVG_VAE_MAX_LEVELS], count;
    PyObject *scales = ipvg_py_dict_item(dict, "attn_scales");
    if (!scales && PyErr_Occurred()) return 0;
    if (scales && PyObject_IsTrue(scales)) {
        PyErr_SetString(PyExc_ValueError,
                        "config: 'attn_scales' is not empty; only VAEs without such attention are known");
        return 0;
    }
    if (!ipvg_py_dict_int(dict, "dim", 1, 1 << 14, &c->dim) ||
        !ipvg_py_dict_int(dict, "z_dim", 1, IPVG_VAE_MAX_Z, &c->z_dim) ||
        !ipvg_py_dict_int(dict, "num_res_blocks", 1, IPVG_VAE_MAX_BLOCKS - 1, &c->res_blocks) ||
        !ipvg_py_dict_ints(dict, "dim_mult", 1, 64, c->dim_mult, IPVG_VAE_MAX_LEVELS, &c->levels) ||
        !ipvg_py_dict_ints(dict, "temperal_downsample", 0, 1, temporal, IPVG_VAE_MAX_LEVELS, &count) ||
        !statistics(dict, "mean", ipvg_vae_wan_mean, c->z_dim, c->mean) ||
        !statistics(dict, "std", ipvg_vae_wan_std, c->z_dim, c->std))
        return 0;
    if (count != c->levels - 1) {
        PyErr_Format(PyExc_ValueError,
                     "config: 'temperal_downsample' must have one entry less than 'dim_mult', got %d and %d", count,
                     c->levels);
        return 0;
    }
    for (int i = 0; i < count; i++) c->temporal[i] = temporal[i];
    return 1;
}

static PyObject *vae_new(PyTypeObject *type, PyObject *args, PyObject *kwds)
{
    static char *names[] = {"device", "config", "weights", NULL};
    PyObject *device, *config, *weights;
    ipvg_vae_config c = {0};
    ipvg_context ctx;

    if (!PyArg_ParseTupleAndKeywords(args, kwds, "O!O!O:Vae", names, ipvg_py_device_type, &device, &PyDict_Type,
                                     &config, &weights))
        return NULL;
    ipvg_weights *w = ipvg_py_weights(weights);
    if (!w || !read_config(config, &c)) return NULL;
    vae_object *self = (vae_object *)type->tp_alloc(type, 0);
    if (!self) return NULL;
    ipvg_context_init(&ctx, 1);
    ipvg_status status = ipvg_vae_new(&ctx, &self->vae, &c, w);
    if (status != IPVG_OK) {
        Py_DECREF(self);
        return ipvg_py_raise(&ctx, status);
    }
    self->dev = (ipvg_py_device *)Py_NewRef(device);
    self->weights = Py_NewRef(weights);
    if (!ipvg_py_place(self->dev, (ipvg_status(*)(ipvg_exec *, void *))ipvg_vae_place, self->vae)) Py_CLEAR(self);
    return (PyObject *)self;
}

static void vae_dealloc(PyObject *obj)
{
    vae_object *self = (vae_object *)obj;
    PyTypeObject *type = Py_TYPE(obj);

    ipvg_vae_free(&self->vae);
    Py_XDECREF(self->weights);
    Py_XDECREF(self->dev);
    type->tp_free(obj);
    Py_DECREF(type);
}

/* ---- progress(done, total) ---- */

typedef struct reporter {
    ipvg_py_run *run;
    PyObject *call;
} reporter;

static void report(void *user, int done, int total)
{
    reporter *r = user;
    PyEval_RestoreThread(r->run->thread);
    PyObject *result = PyErr_Occurred() ? NULL : PyObject_CallFunction(r->call, "ii", done, total);
    if (!result) atomic_store(&r->run->dev->ctx.cancel, 1); /* the exception is what the caller sees */
    Py_XDECREF(result);
    r->run->thread = PyEval_SaveThread();
}

static int callable_or_none(PyObject *call, const char *what)
{
    if (!call || call == Py_None || PyCallable_Check(call)) return 1;
    PyErr_Format(PyExc_TypeError, "%s: expected a callable(done, total) or None, got %.100s", what,
                 Py_TYPE(call)->tp_name);
    return 0;
}

/* ---- whole arrays ---- */

typedef ipvg_status whole(ipvg_exec *ex, ipvg_tensor *out, const ipvg_tensor *in, const ipvg_vae *vae);

/* Plans, takes the scratch, computes. */
static PyObject *run_whole(vae_object *self, whole *f, int64_t out_shape[4], const ipvg_tensor *x, PyObject *progress,
                           PyObject *trace)
{
    ipvg_py_trace tracing;
    ipvg_py_run run;
    PyArrayObject *out = ipvg_py_new(4, out_shape);
    if (!out || !ipvg_py_enter(self->dev, &run)) {
        Py_XDECREF(out);
        return NULL;
    }
    ipvg_exec *ex = &self->dev->ex;
    reporter r = {&run, progress};
    ipvg_tensor y = ipvg_py_view(out);
    ipvg_arena_plan(ex->arena);
    ipvg_status status = f(ex, &y, x, self->vae);
    if (status == IPVG_OK) status = ipvg_arena_reserve(ex->ctx, &ex->be->memory, ex->arena, ex->arena->peak);
    if (status == IPVG_OK) {
        ipvg_py_trace_set(&tracing, &run, trace);
        if (progress && progress != Py_None) {
            ex->ctx->progress = report;
            ex->ctx->progress_user = &r;
        }
        status = f(ex, &y, x, self->vae);
    }
    if (!ipvg_py_leave(&run, status)) Py_CLEAR(out);
    return (PyObject *)out;
}

/* Checks a video size against the model; raises. */
static int latent_size(const vae_object *self, const int64_t video[3], int64_t latent[3])
{
    ipvg_context ctx;
    ipvg_context_init(&ctx, 1);
    ipvg_status status =
        ipvg_vae_latent_size(&ctx, self->vae, video[0], video[1], video[2], latent, latent + 1, latent + 2);
    if (status != IPVG_OK) ipvg_py_raise(&ctx, status);
    return status == IPVG_OK;
}

static PyObject *vae_encode(PyObject *obj, PyObject *args, PyObject *kwds)
{
    static char *names[] = {"frames", "progress", "trace", NULL};
    static const int64_t shape[] = {3, -1, -1, -1};
    vae_object *self = (vae_object *)obj;
    PyObject *given, *progress = NULL, *trace = NULL, *out = NULL;
    int64_t latent[4] = {ipvg_vae_get_config(self->vae)->z_dim};

    if (!PyArg_ParseTupleAndKeywords(args, kwds, "O|OO:encode", names, &given, &progress, &trace) ||
        !callable_or_none(progress, "progress") || !ipvg_py_trace_check(trace))
        return NULL;
    ipvg_py_input frames;
    if (!ipvg_py_take(&frames, self->dev, given, "frames", 4, shape)) return NULL;
    if (latent_size(self, frames.tensor.shape + 1, latent + 1))
        out = run_whole(self, ipvg_vae_encode, latent, &frames.tensor, progress, trace);
    ipvg_py_drop(&frames);
    return out;
}

/* The latent, and the size of its video. */
static int take_latent(ipvg_py_input *latent, const vae_object *self, PyObject *given, int64_t video[4])
{
    const int64_t shape[] = {ipvg_vae_get_config(self->vae)->z_dim, -1, -1, -1};
    int64_t again[3], space = ipvg_vae_space_stride(self->vae);
    if (!ipvg_py_take(latent, self->dev, given, "latent", 4, shape)) return 0;
    const int64_t *size = latent->tensor.shape;
    video[0] = 3;
    video[1] = (size[1] - 1) * ipvg_vae_time_stride(self->vae) + 1;
    video[2] = size[2] * space;
    video[3] = size[3] * space;
    if (latent_size(self, video + 1, again)) return 1;
    ipvg_py_drop(latent);
    return 0;
}

static PyObject *vae_decode(PyObject *obj, PyObject *args, PyObject *kwds)
{
    static char *names[] = {"latent", "progress", "trace", NULL};
    vae_object *self = (vae_object *)obj;
    PyObject *given, *progress = NULL, *trace = NULL;
    int64_t video[4];

    if (!PyArg_ParseTupleAndKeywords(args, kwds, "O|OO:decode", names, &given, &progress, &trace) ||
        !callable_or_none(progress, "progress") || !ipvg_py_trace_check(trace))
        return NULL;
    ipvg_py_input latent;
    if (!take_latent(&latent, self, given, video)) return NULL;
    PyObject *out = run_whole(self, ipvg_vae_decode, video, &latent.tensor, progress, trace);
    ipvg_py_drop(&latent);
    return out;
}

static PyObject *vae_memory(PyObject *obj, PyObject *args)
{
    vae_object *self = (vae_object *)obj;
    PyObject *frames, *height, *width;
    int64_t t, h, w;
    ipvg_vae_bytes bytes = {0};
    ipvg_py_run run;
    if (!PyArg_ParseTuple(args, "OOO:memory", &frames, &height, &width) ||
        !ipvg_py_int(frames, "frames", 1, INT32_MAX, &t) || !ipvg_py_int(height, "height", 1, INT32_MAX, &h) ||
        !ipvg_py_int(width, "width", 1, INT32_MAX, &w) || !ipvg_py_enter(self->dev, &run))
        return NULL;
    ipvg_status status = ipvg_vae_memory(&self->dev->ctx, self->dev->be, &bytes, self->vae, t, h, w);
    if (!ipvg_py_leave(&run, status)) return NULL;
    return Py_BuildValue("{s:n,s:n,s:n}", "encode", (Py_ssize_t)bytes.encode, "decode", (Py_ssize_t)bytes.decode,
                         "weights", (Py_ssize_t)bytes.weights);
}

/* ---- the stream: its history lives in an arena of its own, so that the device may do other things in between ---- */

typedef struct stream_object {
    PyObject_HEAD
    vae_object *vae;
    ipvg_py_input latent;
    PyArrayObject *out; /* uint8 (T, H, W, 3), or NULL */
    ipvg_arena arena;
    ipvg_vae_decoder *decoder; /* NULL: not begun, or over */
    int64_t index, height, width;
    bool over;
} stream_object;

static PyTypeObject *stream_type;

/* Can bytes of that video (3, T, H, W) go there? */
static int check_out(PyObject *out, const int64_t video[4])
{
    const int64_t shape[] = {video[1], video[2], video[3], 3};
    PyArrayObject *a = (PyArrayObject *)out;
    int fits = PyArray_Check(out) && PyArray_NDIM(a) == 4 && PyArray_TYPE(a) == NPY_UINT8 && PyArray_ISCARRAY(a);
    for (int i = 0; fits && i < 4; i++) fits = PyArray_DIM(a, i) == shape[i];
    if (fits) return 1;
    char wanted[96];
    PyErr_Format(PyExc_ValueError, "out: expected a writable C-contiguous uint8 array of shape %s",
                 ipvg_shape_text(wanted, sizeof wanted, 4, shape));
    return 0;
}

static PyObject *vae_decode_stream(PyObject *obj, PyObject *args, PyObject *kwds)
{
    static char *names[] = {"latent", "out", NULL};
    PyObject *given, *out = Py_None;
    int64_t video[4];
    ipvg_py_input latent;
    if (!PyArg_ParseTupleAndKeywords(args, kwds, "O|O:decode_stream", names, &given, &out) ||
        !take_latent(&latent, (vae_object *)obj, given, video))
        return NULL;
    stream_object *s = NULL;
    if (out == Py_None || check_out(out, video)) s = (stream_object *)stream_type->tp_alloc(stream_type, 0);
    if (!s) {
        ipvg_py_drop(&latent);
        return NULL;
    }
    s->vae = (vae_object *)Py_NewRef(obj);
    s->latent = latent;
    if (out != Py_None) s->out = (PyArrayObject *)Py_NewRef(out);
    s->height = video[2];
    s->width = video[3];
    return (PyObject *)s;
}

static void stream_close(stream_object *s)
{
    s->over = true;
    ipvg_vae_decoder_end(s->vae->dev->be, &s->decoder);
    ipvg_arena_free(&s->arena);
}

static ipvg_status stream_begin(stream_object *s, ipvg_exec *ex, ipvg_tensor *frames, const ipvg_tensor *latent)
{
    int64_t h = latent->shape[2], w = latent->shape[3];
    ipvg_vae_decoder *plan = NULL;
    ipvg_status status;
    int count;
    ipvg_arena_plan(&s->arena);
    IPVG_TRY(ipvg_vae_decoder_begin(ex, &plan, s->vae->vae, h, w));
    for (int i = 0; i < 2 && i < latent->shape[1]; i++) /* the first and the others take different ways */
        IPVG_TRY(ipvg_vae_decoder_next(ex, plan, frames, 0, &count, latent, i));
    IPVG_TRY(ipvg_arena_reserve(ex->ctx, &ex->be->memory, &s->arena, s->arena.peak));
    IPVG_TRY(ipvg_vae_decoder_begin(ex, &s->decoder, s->vae->vae, h, w));
done:
    ipvg_vae_decoder_end(ex->be, &plan);
    return status;
}

static PyObject *stream_next(PyObject *obj)
{
    stream_object *s = (stream_object *)obj;
    vae_object *v = s->vae;
    ipvg_py_run run;
    if (s->over || s->index >= s->latent.tensor.shape[1]) {
        stream_close(s);
        return NULL; /* StopIteration */
    }
    int64_t stride = ipvg_vae_time_stride(v->vae), shape[] = {3, s->index ? stride : 1, s->height, s->width};
    int64_t at = s->out && s->index ? 1 + (s->index - 1) * stride : 0;
    PyArrayObject *frames =
        s->out ? (PyArrayObject *)PySequence_GetSlice((PyObject *)s->out, (Py_ssize_t)at, (Py_ssize_t)(at + shape[1]))
               : ipvg_py_new(4, shape);
    if (!frames || !ipvg_py_enter(v->dev, &run)) {
        Py_XDECREF(frames);
        return NULL;
    }
    ipvg_exec ex = {.ctx = &v->dev->ctx, .be = v->dev->be, .arena = &s->arena};
    ipvg_tensor y =
        s->out ? ipvg_tensor_of(PyArray_DATA(frames), IPVG_U8, shape[1], s->height, s->width, 3) : ipvg_py_view(frames);
    ipvg_status status = IPVG_OK;
    int count;
    if (!s->decoder) {
        ipvg_tensor room = s->out ? ipvg_tensor_of(NULL, IPVG_U8, stride, s->height, s->width, 3)
                                  : ipvg_tensor_of(NULL, IPVG_F32, 3, stride, s->height, s->width);
        status = stream_begin(s, &ex, &room, &s->latent.tensor);
    }
    if (status == IPVG_OK) status = ipvg_vae_decoder_next(&ex, s->decoder, &y, 0, &count, &s->latent.tensor, s->index);
    if (status == IPVG_OK) status = ipvg_vae_decoder_finish(&ex, s->decoder);
    s->index++;
    if (!ipvg_py_leave(&run, status)) {
        stream_close(s);
        Py_CLEAR(frames);
    }
    return (PyObject *)frames;
}

static PyObject *stream_length_hint(PyObject *obj, PyObject *unused)
{
    (void)unused;
    stream_object *s = (stream_object *)obj;
    return PyLong_FromLongLong(s->over ? 0 : s->latent.tensor.shape[1] - s->index);
}

static void stream_dealloc(PyObject *obj)
{
    stream_object *s = (stream_object *)obj;
    PyTypeObject *type = Py_TYPE(obj);

    if (s->vae) stream_close(s);
    ipvg_py_drop(&s->latent);
    Py_XDECREF(s->out);
    Py_XDECREF(s->vae);
    type->tp_free(obj);
    Py_DECREF(type);
}

static PyMethodDef stream_methods[] = {{"__length_hint__", stream_length_hint, METH_NOARGS, "Chunks still to come."},
                                       {NULL, NULL, 0, NULL}};

static PyType_Slot stream_slots[] = {
    {Py_tp_doc, "An iterator over decoded frames, from Vae.decode_stream: (3, 1, H, W), then (3, 4, H, W) each."},
    {Py_tp_dealloc, stream_dealloc},
    {Py_tp_iter, PyObject_SelfIter},
    {Py_tp_iternext, stream_next},
    {Py_tp_methods, stream_methods},
    {0, NULL}};

static PyType_Spec stream_spec = {"ipvg._core.VaeStream", sizeof(stream_object), 0,
                                  Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION, stream_slots};

/* ---- the type ---- */

static PyObject *vae_stride(PyObject *obj, void *unused)
{
    (void)unused;
    const ipvg_vae *v = ((vae_object *)obj)->vae;
    return Py_BuildValue("(ii)", ipvg_vae_time_stride(v), ipvg_vae_space_stride(v));
}

static PyMethodDef vae_methods[] = {
    {"encode", (PyCFunction)(void (*)(void))vae_encode, METH_VARARGS | METH_KEYWORDS,
     "encode(frames, progress=None, trace=None) -> (z, t, h, w) float32\n\n"
     "The normalised latent (mu - mean) / std of frames (3, T, H, W) float32 in [-1, 1]; T = 4n+1, H and W multiples "
     "of 8,\n"
     "t = n + 1, h = H/8, w = W/8. progress: a callable(frames done, of how many). trace: a callable(name, array) that "
     "sees\n"
     "a copy of every block's output, frame by frame, as (H, W, C); neither may use this device.\n"
     "Raises TypeError, ValueError, MemoryError, ipvg.Cancelled, KeyboardInterrupt."},
    {"decode", (PyCFunction)(void (*)(void))vae_decode, METH_VARARGS | METH_KEYWORDS,
     "decode(latent, progress=None, trace=None) -> (3, T, H, W) float32\n\n"
     "The frames of a latent (z, t, h, w), about in [-1, 1] and not clamped; T = 4 (t - 1) + 1, H = 8h, W = 8w.\n"
     "progress, trace and errors as for encode."},
    {"decode_stream", (PyCFunction)(void (*)(void))vae_decode_stream, METH_VARARGS | METH_KEYWORDS,
     "decode_stream(latent, out=None) -> iterator of (3, n, H, W) float32\n\n"
     "The same frames, as they become ready: n = 1 for the first latent frame, 4 for each of the others. Its memory "
     "does not\n"
     "grow with the video's length, and is the stream's own: the device may run other things in between.\n"
     "out: a uint8 array (T, H, W, 3) of the whole video. Frames then go there, rint((clip(x, -1, 1) + 1) * 127.5), "
     "and "
     "what\n"
     "comes are its parts (n, H, W, 3); ValueError for NaN or infinity."},
    {"memory", vae_memory, METH_VARARGS,
     "memory(frames, height, width) -> {'encode': int, 'decode': int, 'weights': int}\n\n"
     "Bytes that a video of that size takes besides the weights' files and the two arrays: weights in the form that "
     "the\n"
     "device computes with, history and scratch. Nothing is computed. ValueError for a size that cannot work."},
    {NULL, NULL, 0, NULL}};

static PyGetSetDef vae_getset[] = {
    {"stride", vae_stride, NULL, "(frames, pixels) per step of the latent: (4, 8).", NULL},
    {NULL, NULL, NULL, NULL, NULL}};

static PyType_Slot vae_slots[] = {
    {Py_tp_doc,
     "Vae(device, config, weights)\n\n"
     "Wan's causal video VAE. config: a dict with dim, z_dim, dim_mult, num_res_blocks, temperal_downsample and, "
     "unless they\n"
     "are Wan2.1's, mean and std of the latent's channels; weights: a _core.Weights with official tensor names\n"
     "(encoder.conv1.weight, ...). Raises ipvg.FormatError for a missing, misshapen or unknown tensor.\n"
     "Source: wan/modules/vae.py of Wan2.1."},
    {Py_tp_new, vae_new},
    {Py_tp_dealloc, vae_dealloc},
    {Py_tp_methods, vae_methods},
    {Py_tp_getset, vae_getset},
    {0, NULL}};

static PyType_Spec vae_spec = {"ipvg._core.Vae", sizeof(vae_object), 0, Py_TPFLAGS_DEFAULT, vae_slots};

int ipvg_py_add_vae(PyObject *module)
{
    stream_type = (PyTypeObject *)PyType_FromSpec(&stream_spec);
    if (!stream_type || PyModule_AddObjectRef(module, "VaeStream", (PyObject *)stream_type)) return -1;
    PyObject *type = PyType_FromSpec(&vae_spec);
    if (!type) return -1;
    int failed = PyModule_AddObjectRef(module, "Vae", type);
    Py_DECREF(type);
    return failed;
}

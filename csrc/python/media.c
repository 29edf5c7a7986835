/* The _media module: pictures and video through FFmpeg. A thin layer: ipvg/video.py is what users see.
 *
 *     rgb, height, width = _media.read_image(b"alice.png", None, 0)     # path, or None and the bytes; 1 = alpha on white
 *     _media.write_png(b"sheet.png", rgb, height, width)
 *     reader = _media.Reader(b"clip.mp4", None, 0); while reader.next(buffer): ...
 *     writer = _media.Writer(b"clip.mp4", height, width, 16, 1, 10, "medium"); writer.write(buffer); writer.finish()
 *
 * It needs no NumPy: pixels go in and out by the buffer protocol. The GIL is released around every call of csrc/io. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "../io/ffmpeg.h"
#include "../io/image.h"
#include "../io/jpeg.h"
#include "../io/video.h"
#include "../io/writer.h"

typedef struct module_state {
    PyObject *format_error, *cancelled, *unsupported_error, *backend_error; /* of ipvg._core */
} module_state;

/* Raises what `status` stands for; the same table as in module.c, which _media cannot link. Always returns NULL. */
static PyObject *raise(const module_state *state, const ipvg_context *ctx, ipvg_status status)
{
    if (status == IPVG_E_IO) {
        PyObject *args = Py_BuildValue("(is)", ctx->sys_errno, ctx->error); /* OSError picks its subclass by errno */
        if (args) PyErr_SetObject(PyExc_OSError, args);
        Py_XDECREF(args);
        return NULL;
    }
    PyObject *type = status == IPVG_E_ARGUMENT      ? PyExc_ValueError
                     : status == IPVG_E_TYPE        ? PyExc_TypeError
                     : status == IPVG_E_MEMORY      ? PyExc_MemoryError
                     : status == IPVG_E_FORMAT      ? state->format_error
                     : status == IPVG_E_CANCELLED   ? state->cancelled
                     : status == IPVG_E_UNSUPPORTED ? state->unsupported_error
                                                    : state->backend_error;
    PyErr_SetString(type, ctx->error);
    return NULL;
}

/* "z#" takes bytes or None, but lets a zero byte pass. */
static int check_path(const char *path, Py_ssize_t length)
{
    if (!path || strlen(path) == (size_t)length) return 1;
    PyErr_SetString(PyExc_ValueError, "a file name holds a zero byte");
    return 0;
}

/* Pixels must fill height * width * 3 bytes exactly. */
static int check_pixels(const Py_buffer *view, int height, int width)
{
    if (view->len == (Py_ssize_t)height * width * 3) return 1;
    PyErr_Format(PyExc_ValueError, "pixels: expected %d x %d x 3 = %zd bytes, got %zd", height, width,
                 (Py_ssize_t)height * width * 3, view->len);
    return 0;
}

static PyObject *read_image(PyObject *module, PyObject *args)
{
    const char *path;
    Py_ssize_t length;
    Py_buffer data = {0};
    int white;
    if (!PyArg_ParseTuple(args, "z#z*p", &path, &length, &data, &white)) return NULL;
    if (!check_path(path, length)) {
        PyBuffer_Release(&data);
        return NULL;
    }
    ipvg_context ctx;
    ipvg_image image;
    ipvg_status status;
    PyObject *result = NULL;
    ipvg_context_init(&ctx, 1);
    Py_BEGIN_ALLOW_THREADS status =
        ipvg_image_read(&ctx, &image, path, data.buf, (size_t)data.len, white ? IPVG_ALPHA_WHITE : IPVG_ALPHA_DROP);
    Py_END_ALLOW_THREADS PyBuffer_Release(&data);
    if (status != IPVG_OK) return raise(PyModule_GetState(module), &ctx, status);
    PyObject *rgb = PyByteArray_FromStringAndSize((const char *)image.rgb, (Py_ssize_t)image.height * image.width * 3);
    if (rgb) result = Py_BuildValue("(Nii)", rgb, image.height, image.width);
    ipvg_image_free(&image);
    return result;
}

static PyObject *write_png(PyObject *module, PyObject *args)
{
    const char *path;
    Py_buffer rgb;
    int height, width;
    if (!PyArg_ParseTuple(args, "yy*ii", &path, &rgb, &height, &width)) return NULL;
    ipvg_context ctx;
    ipvg_status status;
    PyObject *result = NULL;
    ipvg_context_init(&ctx, 1);
    if (check_pixels(&rgb, height, width)) {
        Py_BEGIN_ALLOW_THREADS status = ipvg_image_write_png(&ctx, path, rgb.buf, height, width);
        Py_END_ALLOW_THREADS result =
            status == IPVG_OK ? Py_NewRef(Py_None) : raise(PyModule_GetState(module), &ctx, status);
    }
    PyBuffer_Release(&rgb);
    return result;
}

static PyObject *encode_jpeg(PyObject *module, PyObject *args)
{
    Py_buffer rgb;
    int height, width, max_side, quality;
    if (!PyArg_ParseTuple(args, "y*iiii", &rgb, &height, &width, &max_side, &quality)) return NULL;
    ipvg_context ctx;
    ipvg_status status;
    uint8_t *jpeg = NULL;
    size_t size;
    PyObject *result = NULL;
    ipvg_context_init(&ctx, 1);
    if (check_pixels(&rgb, height, width)) {
        Py_BEGIN_ALLOW_THREADS status = ipvg_jpeg_encode(&ctx, &jpeg, &size, max_side, quality, rgb.buf, height, width);
        Py_END_ALLOW_THREADS result = status == IPVG_OK
                                          ? PyBytes_FromStringAndSize((const char *)jpeg, (Py_ssize_t)size)
                                          : raise(PyModule_GetState(module), &ctx, status);
    }
    free(jpeg);
    PyBuffer_Release(&rgb);
    return result;
}

static PyObject *version(PyObject *module, PyObject *unused)
{
    (void)module, (void)unused;
    return PyUnicode_FromString(ipvg_ff_version());
}

/* ---- Reader and Writer: one call at a time each, as the C objects behind them demand ---- */

typedef struct stream {
    PyObject_HEAD
    ipvg_context ctx;
    ipvg_video_reader *reader; /* of a Reader */
    ipvg_writer *writer;       /* of a Writer */
    int height, width;
    Py_buffer data; /* the bytes a Reader reads, if not a file */
    int busy;       /* a call runs without the GIL; guarded by the GIL */
} stream;

/* The stream's right to run a call; 0 with an exception when it is closed or another thread is inside. */
static int enter(stream *s)
{
    if (s->busy)
        PyErr_SetString(PyExc_RuntimeError, "another thread is using this video");
    else if (!s->reader && !s->writer)
        PyErr_SetString(PyExc_ValueError, "this video is closed");
    else
        return s->busy = 1;
    return 0;
}

static void shut(stream *s)
{
    Py_BEGIN_ALLOW_THREADS ipvg_video_close(&s->reader);
    ipvg_writer_close(&s->writer);
    Py_END_ALLOW_THREADS if (s->data.obj) PyBuffer_Release(&s->data);
}

static PyObject *finish(stream *s, ipvg_status status)
{
    s->busy = 0;
    if (status == IPVG_OK) Py_RETURN_NONE;
    shut(s); /* nothing else can be done with it; a Writer removes its temporary file here */
    return raise(PyType_GetModuleState(Py_TYPE(s)), &s->ctx, status);
}

static PyObject *stream_close(PyObject *self, PyObject *unused)
{
    (void)unused;
    stream *s = (stream *)self;
    if (s->busy) return PyErr_Format(PyExc_RuntimeError, "another thread is using this video");
    s->busy = 1;
    shut(s);
    s->busy = 0;
    Py_RETURN_NONE;
}

static void stream_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    shut((stream *)self);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyObject *reader_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    const char *path;
    Py_ssize_t length;
    Py_buffer data = {0};
    int white;
    static char *names[] = {"path", "data", "white", NULL};
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "z#z*p", names, &path, &length, &data, &white)) return NULL;
    stream *s = check_path(path, length) ? (stream *)type->tp_alloc(type, 0) : NULL;
    if (!s) {
        PyBuffer_Release(&data);
        return NULL;
    }
    s->data = data;
    ipvg_context_init(&s->ctx, 1);
    ipvg_status status;
    Py_BEGIN_ALLOW_THREADS status = ipvg_video_open(&s->ctx, &s->reader, path, data.buf, (size_t)data.len,
                                                    white ? IPVG_ALPHA_WHITE : IPVG_ALPHA_DROP);
    Py_END_ALLOW_THREADS if (status != IPVG_OK)
    {
        raise(PyType_GetModuleState(type), &s->ctx, status);
        Py_DECREF(s);
        return NULL;
    }
    s->height = ipvg_video_about(s->reader)->height;
    s->width = ipvg_video_about(s->reader)->width;
    return (PyObject *)s;
}

static PyObject *reader_next(PyObject *self, PyObject *target)
{
    stream *s = (stream *)self;
    Py_buffer rgb = {0};
    if (target != Py_None) {
        if (PyObject_GetBuffer(target, &rgb, PyBUF_WRITABLE | PyBUF_C_CONTIGUOUS) != 0) return NULL;
        if (!check_pixels(&rgb, s->height, s->width)) {
            PyBuffer_Release(&rgb);
            return NULL;
        }
    }
    PyObject *result = NULL;
    if (enter(s)) {
        ipvg_status status;
        bool more = false;
        Py_BEGIN_ALLOW_THREADS status = ipvg_video_next(&s->ctx, s->reader, rgb.buf, &more);
        Py_END_ALLOW_THREADS result = finish(s, status);
        if (result) Py_SETREF(result, PyBool_FromLong(more));
    }
    if (rgb.obj) PyBuffer_Release(&rgb);
    return result;
}

static PyObject *reader_info(PyObject *self, void *unused)
{
    (void)unused;
    stream *s = (stream *)self;
    if (!s->reader) return PyErr_Format(PyExc_ValueError, "this video is closed");
    const ipvg_video_info *i = ipvg_video_about(s->reader);
    return Py_BuildValue("(iiiiiiL)", i->height, i->width, i->fps_num, i->fps_den, i->grid_num, i->grid_den,
                         (long long)i->frames);
}

static PyObject *reader_time(PyObject *self, void *unused)
{
    (void)unused;
    stream *s = (stream *)self;
    if (!s->reader) return PyErr_Format(PyExc_ValueError, "this video is closed");
    return PyFloat_FromDouble(ipvg_video_time(s->reader));
}

static PyMethodDef reader_methods[] = {{"next", reader_next, METH_O,
                                        "next(buffer) -> bool\n\nThe next frame into a writable buffer of height * "
                                        "width * 3 bytes (None: skip it); False at\n"
                                        "the end."},
                                       {"close", stream_close, METH_NOARGS, "close()"},
                                       {NULL, NULL, 0, NULL}};

static PyGetSetDef reader_getset[] = {
    {"info", reader_info, NULL,
     "(height, width, average fps: numerator, denominator, fps that all times fit: numerator, denominator, frames "
     "announced "
     "or 0)",
     NULL},
    {"time", reader_time, NULL, "Seconds at which the last frame is shown; NaN when the file does not say.", NULL},
    {NULL, NULL, NULL, NULL, NULL}};

static PyType_Slot reader_slots[] = {
    {Py_tp_doc,
     "Reader(path, data, white)\n\nA video, from a file or (path None) from bytes. white: as in read_image."},
    {Py_tp_new, reader_new},
    {Py_tp_dealloc, stream_dealloc},
    {Py_tp_methods, reader_methods},
    {Py_tp_getset, reader_getset},
    {0, NULL}};
static PyType_Spec reader_spec = {"ipvg._media.Reader", sizeof(stream), 0, Py_TPFLAGS_DEFAULT, reader_slots};

static PyObject *writer_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    const char *path;
    ipvg_writer_config c;
    static char *names[] = {"path", "height", "width", "fps_num", "fps_den", "crf", "preset", NULL};
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "yiiiiis", names, &path, &c.height, &c.width, &c.fps_num, &c.fps_den,
                                     &c.crf, &c.preset))
        return NULL;
    stream *s = (stream *)type->tp_alloc(type, 0);
    if (!s) return NULL;
    ipvg_context_init(&s->ctx, 1);
    s->height = c.height;
    s->width = c.width;
    ipvg_status status;
    Py_BEGIN_ALLOW_THREADS status = ipvg_writer_open(&s->ctx, &s->writer, path, &c);
    Py_END_ALLOW_THREADS if (status == IPVG_OK) return (PyObject *)s;
    raise(PyType_GetModuleState(type), &s->ctx, status);
    Py_DECREF(s);
    return NULL;
}

static PyObject *writer_write(PyObject *self, PyObject *source)
{
    stream *s = (stream *)self;
    Py_buffer rgb;
    if (PyObject_GetBuffer(source, &rgb, PyBUF_C_CONTIGUOUS) != 0) return NULL;
    PyObject *result = NULL;
    if (check_pixels(&rgb, s->height, s->width) && enter(s)) {
        ipvg_status status;
        Py_BEGIN_ALLOW_THREADS status = ipvg_writer_write(&s->ctx, s->writer, rgb.buf);
        Py_END_ALLOW_THREADS result = finish(s, status);
    }
    PyBuffer_Release(&rgb);
    return result;
}

static PyObject *writer_finish(PyObject *self, PyObject *unused)
{
    (void)unused;
    stream *s = (stream *)self;
    if (!enter(s)) return NULL;
    ipvg_status status;
    Py_BEGIN_ALLOW_THREADS status = ipvg_writer_finish(&s->ctx, s->writer);
    Py_END_ALLOW_THREADS PyObject *result = finish(s, status);
    if (result) shut(s);
    return result;
}

static PyMethodDef writer_methods[] = {
    {"write", writer_write, METH_O, "write(frame)\n\nOne frame: height * width * 3 bytes of RGB."},
    {"finish", writer_finish, METH_NOARGS, "finish()\n\nCompletes the file; only now does it appear under its name."},
    {"close", stream_close, METH_NOARGS, "close()\n\nWithout a finish(): nothing is left behind."},
    {NULL, NULL, 0, NULL}};

static PyType_Slot writer_slots[] = {{Py_tp_doc,
                                      "Writer(path, height, width, fps_num, fps_den, crf, preset)\n\nA video being "
                                      "written: the ending of its name chooses how."},
                                     {Py_tp_new, writer_new},
                                     {Py_tp_dealloc, stream_dealloc},
                                     {Py_tp_methods, writer_methods},
                                     {0, NULL}};
static PyType_Spec writer_spec = {"ipvg._media.Writer", sizeof(stream), 0, Py_TPFLAGS_DEFAULT, writer_slots};

/* ---- module ---- */

static int add_type(PyObject *module, PyType_Spec *spec)
{
    PyObject *type = PyType_FromModuleAndSpec(module, spec, NULL);
    if (!type) return -1;
    int err = PyModule_AddType(module, (PyTypeObject *)type);
    Py_DECREF(type);
    return err;
}

static int module_exec(PyObject *module)
{
    module_state *state = PyModule_GetState(module);
    PyObject *core = PyImport_ImportModule("ipvg._core");
    if (!core) return -1;
    state->format_error = PyObject_GetAttrString(core, "FormatError");
    state->cancelled = PyObject_GetAttrString(core, "Cancelled");
    state->unsupported_error = PyObject_GetAttrString(core, "UnsupportedError");
    state->backend_error = PyObject_GetAttrString(core, "BackendError");
    Py_DECREF(core);
    if (!state->format_error || !state->cancelled || !state->unsupported_error || !state->backend_error) return -1;
    return add_type(module, &reader_spec) || add_type(module, &writer_spec) ? -1 : 0;
}

static int module_traverse(PyObject *module, visitproc visit, void *arg)
{
    module_state *state = PyModule_GetState(module);
    Py_VISIT(state->format_error);
    Py_VISIT(state->cancelled);
    Py_VISIT(state->unsupported_error);
    Py_VISIT(state->backend_error);
    return 0;
}

static int module_clear(PyObject *module)
{
    module_state *state = PyModule_GetState(module);
    Py_CLEAR(state->format_error);
    Py_CLEAR(state->cancelled);
    Py_CLEAR(state->unsupported_error);
    Py_CLEAR(state->backend_error);
    return 0;
}

static PyMethodDef functions[] = {
    {"read_image", read_image, METH_VARARGS,
     "read_image(path, data, white) -> (rgb, height, width)\n\nA picture, from a file or "
     "(path None) from bytes. white: "
     "blend\ntransparency onto white instead of dropping it."},
    {"write_png", write_png, METH_VARARGS, "write_png(path, rgb, height, width)"},
    {"encode_jpeg", encode_jpeg, METH_VARARGS, "encode_jpeg(rgb, height, width, max_side, quality) -> bytes"},
    {"version", version, METH_NOARGS, "version() -> str\n\nFFmpeg's."},
    {NULL, NULL, 0, NULL}};

static PyModuleDef_Slot module_slots[] = {{Py_mod_exec, module_exec}, {0, NULL}};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,          .m_name = "ipvg._media", .m_doc = "Pictures and video through FFmpeg's libraries.",
    .m_size = sizeof(module_state), .m_methods = functions,  .m_slots = module_slots,
    .m_traverse = module_traverse,  .m_clear = module_clear};

PyMODINIT_FUNC PyInit__media(void) { return PyModuleDef_Init(&definition); }

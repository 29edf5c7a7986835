/* _core's preparation of pixels: functions, not types. ipvg/prepare.py checks types and gives the errors their names. */
#include "../model/prepare.h"

#include "common.h"

/* A C-contiguous uint8 array of `ndim` dimensions that ends in 3 channels; borrowed. */
static PyArrayObject *pixels(PyObject *obj, const char *what, int ndim)
{
    PyArrayObject *a = (PyArrayObject *)obj;
    if (!PyArray_Check(obj) || PyArray_TYPE(a) != NPY_UINT8 || !PyArray_IS_C_CONTIGUOUS(a)) {
        PyErr_Format(PyExc_TypeError, "%s: expected a C-contiguous uint8 array", what);
        return NULL;
    }
    int fits = PyArray_NDIM(a) == ndim && PyArray_DIM(a, ndim - 1) == 3;
    for (int i = 0; fits && i < ndim; i++) fits = PyArray_DIM(a, i) >= 1 && PyArray_DIM(a, i) <= (1 << 16);
    if (fits) return a;
    PyErr_Format(PyExc_ValueError, "%s: expected %d dimensions, the last of 3, each of at most 65536", what, ndim);
    return NULL;
}

static int check_size(int height, int width)
{
    if (height >= 1 && width >= 1 && height <= (1 << 16) && width <= (1 << 16)) return 1;
    PyErr_Format(PyExc_ValueError, "size: expected 1 to 65536, got height %d and width %d", height, width);
    return 0;
}

static int poll_signals(void *user)
{
    (void)user;
    PyGILState_STATE gil = PyGILState_Ensure();
    int raised = PyErr_CheckSignals() != 0;
    PyGILState_Release(gil);
    return raised;
}

static PyObject *fit_reference(PyObject *module, PyObject *args)
{
    (void)module;
    PyObject *obj;
    int height, width, antialias;
    if (!PyArg_ParseTuple(args, "Oiip:fit_reference", &obj, &height, &width, &antialias)) return NULL;
    PyArrayObject *image = pixels(obj, "image", 3);
    if (!image || !check_size(height, width)) return NULL;
    PyArrayObject *canvas = ipvg_py_new(3, (int64_t[]){3, height, width});
    if (!canvas) return NULL;
    ipvg_context ctx;
    ipvg_status status;
    ipvg_context_init(&ctx, 0);
    Py_BEGIN_ALLOW_THREADS status =
        ipvg_fit_reference(&ctx, PyArray_DATA(canvas), PyArray_DATA(image), antialias, height, width,
                           (int)PyArray_DIM(image, 0), (int)PyArray_DIM(image, 1));
    Py_END_ALLOW_THREADS if (status == IPVG_OK) return (PyObject *)canvas;
    Py_DECREF(canvas);
    return ipvg_py_raise(&ctx, status);
}

static PyObject *fit_size(PyObject *module, PyObject *args)
{
    (void)module;
    int height, width, image_height, image_width;
    if (!PyArg_ParseTuple(args, "iiii:fit_size", &height, &width, &image_height, &image_width)) return NULL;
    if (!check_size(height, width) || !check_size(image_height, image_width)) return NULL;
    ipvg_fit fit = ipvg_fit_size(height, width, image_height, image_width);
    return Py_BuildValue("(iiii)", fit.height, fit.width, fit.top, fit.left);
}

static PyObject *cover_frames(PyObject *module, PyObject *args)
{
    (void)module;
    PyObject *obj;
    int height, width;
    if (!PyArg_ParseTuple(args, "Oii:cover_frames", &obj, &height, &width)) return NULL;
    PyArrayObject *frames = pixels(obj, "frames", 4);
    if (!frames || !check_size(height, width)) return NULL;
    npy_intp dims[4] = {PyArray_DIM(frames, 0), height, width, 3};
    PyArrayObject *out = (PyArrayObject *)PyArray_SimpleNew(4, dims, NPY_UINT8);
    if (!out) return NULL;
    ipvg_context ctx;
    ipvg_status status;
    ipvg_context_init(&ctx, 0);
    ctx.poll = poll_signals;
    Py_BEGIN_ALLOW_THREADS status = ipvg_cover_frames(&ctx, PyArray_DATA(out), PyArray_DATA(frames), dims[0], height,
                                                      width, (int)PyArray_DIM(frames, 1), (int)PyArray_DIM(frames, 2));
    Py_END_ALLOW_THREADS if (status == IPVG_OK) return (PyObject *)out;
    Py_DECREF(out);
    return ipvg_py_raise(&ctx, status);
}

static PyMethodDef functions[] = {
    {"fit_reference", fit_reference, METH_VARARGS,
     "fit_reference(image, height, width, antialias) -> float32 (3, height, width)\n\nuint8 (h, w, 3) on a white "
     "canvas."},
    {"fit_size", fit_size, METH_VARARGS,
     "fit_size(height, width, image_height, image_width) -> (height, width, top, left) of the fitted picture"},
    {"cover_frames", cover_frames, METH_VARARGS,
     "cover_frames(frames, height, width) -> uint8 (F, height, width, 3)\n\nScaled to cover, the middle kept."},
    {NULL, NULL, 0, NULL}};

int ipvg_py_add_prepare(PyObject *module) { return PyModule_AddFunctions(module, functions); }

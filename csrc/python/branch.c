#include "branch.h"

#include <math.h>

static int given(PyObject *o) { return o && o != Py_None; }

/* Sets out[block] = value for each block of the sequence. */
static int read_blocks(unsigned char *out, PyObject *blocks, int value, const ipvg_dit_config *c, const char *what)
{
    PyObject *fast = PySequence_Fast(blocks, "");
    if (!fast) {
        if (PyErr_ExceptionMatches(PyExc_TypeError))
            PyErr_Format(PyExc_TypeError, "%s: expected a sequence of block numbers", what);
        return 0;
    }
    for (Py_ssize_t i = 0; fast && i < PySequence_Fast_GET_SIZE(fast); i++) {
        long block = PyLong_AsLong(PySequence_Fast_GET_ITEM(fast, i));
        if (block == -1 && PyErr_Occurred()) {
            PyErr_Format(PyExc_TypeError, "%s: expected block numbers, got %R", what,
                         PySequence_Fast_GET_ITEM(fast, i));
            Py_CLEAR(fast);
        } else if (block < 0 || block >= c->layers) {
            PyErr_Format(PyExc_ValueError, "%s: block %ld of a model whose blocks are 0 to %d", what, block,
                         c->layers - 1);
            Py_CLEAR(fast);
        } else {
            out[block] = (unsigned char)value;
        }
    }
    Py_XDECREF(fast);
    return fast != NULL;
}

int ipvg_py_scale_read(float *out, PyObject *scale, const ipvg_dit_config *c)
{
    PyObject *fast = NULL;
    int ok = 0;

    if (scale && PySequence_Check(scale) && !(PyArray_Check(scale) && PyArray_NDIM((PyArrayObject *)scale) == 0)) {
        fast = PySequence_Fast(scale, "scale: expected a number, or a sequence of one for each VACE layer");
        if (!fast) return 0;
        if (PySequence_Fast_GET_SIZE(fast) != c->n_vace) {
            PyErr_Format(PyExc_ValueError, "scale: %zd numbers for %d VACE layers", PySequence_Fast_GET_SIZE(fast),
                         c->n_vace);
            goto done;
        }
    }
    for (int n = 0; n < c->n_vace; n++) {
        double x = 1.0;
        PyObject *one = fast ? PySequence_Fast_GET_ITEM(fast, n) : scale;
        if (one && !ipvg_py_number(one, "scale", -1e6, 1e6, &x)) goto done;
        out[n] = (float)x;
    }
    ok = 1;
done:
    Py_XDECREF(fast);
    return ok;
}

static int read_nag(ipvg_dit_nag *nag, PyObject *tuple, ipvg_py_dit *model)
{
    PyObject *text;
    if (!PyTuple_Check(tuple)) return PyErr_SetString(PyExc_TypeError, "nag: expected (text, scale, tau, alpha)"), 0;
    if (!PyArg_ParseTuple(tuple, "O!fff:nag", ipvg_py_dit_text_type, &text, &nag->scale, &nag->tau, &nag->alpha))
        return 0;
    if (!isfinite(nag->scale) || !isfinite(nag->alpha) || !(nag->tau > 0))
        return PyErr_SetString(PyExc_ValueError, "nag: expected a finite scale and alpha, and a tau above 0"), 0;
    if (((ipvg_py_dit_text *)text)->model != model)
        return PyErr_SetString(PyExc_ValueError, "nag: its text was made for another model"), 0;
    nag->text = ((ipvg_py_dit_text *)text)->text;
    return 1;
}

int ipvg_py_branch_read(ipvg_py_branch *out, const ipvg_py_branch_options *o, ipvg_py_dit *model)
{
    const ipvg_dit_config *c = ipvg_dit_get_config(model->dit);
    int skip = o->keep_hint ? IPVG_DIT_SKIP_KEEP_HINT : IPVG_DIT_SKIP;
    PyObject *blocks;

    memset(out, 0, sizeof *out);
    out->how = (ipvg_dit_branch){.run = out->run, .perturb = out->perturb, .scale = out->scale};
    if (given(o->skip) && !read_blocks(out->run, o->skip, skip, c, "skip")) return 0;
    if (given(o->identity) && !read_blocks(out->perturb, o->identity, IPVG_DIT_IDENTITY, c, "identity")) return 0;
    if (given(o->blur)) {
        if (!PyTuple_Check(o->blur)) return PyErr_SetString(PyExc_TypeError, "blur: expected (blocks, sigma)"), 0;
        if (!PyArg_ParseTuple(o->blur, "Of:blur", &blocks, &out->how.blur) ||
            !read_blocks(out->perturb, blocks, IPVG_DIT_BLUR, c, "blur"))
            return 0;
        if (!(out->how.blur > 0)) return PyErr_SetString(PyExc_ValueError, "blur: sigma must be above 0"), 0;
    }
    if (!ipvg_py_scale_read(out->scale, o->scale, c)) return 0;
    if (given(o->reference_scale)) {
        if (!ipvg_py_scale_read(out->reference_scale, o->reference_scale, c)) return 0;
        out->how.reference_scale = out->reference_scale;
        out->how.reference_frames = o->reference_frames;
    }
    return !given(o->nag) || read_nag(&out->how.nag, o->nag, model);
}

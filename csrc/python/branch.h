/* What Python says of a branch, as ipvg_dit_branch: shared by Dit.forward and Sampler. */
#ifndef IPVG_PYTHON_BRANCH_H
#define IPVG_PYTHON_BRANCH_H

#include "dit.h"

/* The keywords as they come; NULL or None: not given. Borrowed. */
typedef struct ipvg_py_branch_options {
    PyObject *skip; /* block numbers */
    int keep_hint;
    PyObject *scale, *reference_scale; /* a number, or one a VACE layer */
    int reference_frames;
    PyObject *identity; /* block numbers */
    PyObject *blur;     /* (block numbers, sigma) */
    PyObject *nag;      /* (DitText, scale, tau, alpha) */
} ipvg_py_branch_options;
#define IPVG_PY_BRANCH_NAMES \
    "skip", "keep_hint", "scale", "reference_scale", "reference_frames", "identity", "blur", "nag"
#define IPVG_PY_BRANCH_FORMAT "OpOOiOOO"
#define IPVG_PY_BRANCH_ADDRESSES(o)                                                                          \
    &(o)->skip, &(o)->keep_hint, &(o)->scale, &(o)->reference_scale, &(o)->reference_frames, &(o)->identity, \
        &(o)->blur, &(o)->nag

typedef struct ipvg_py_branch {
    ipvg_dit_branch how; /* points at the arrays below: do not copy */
    unsigned char run[IPVG_DIT_MAX_LAYERS], perturb[IPVG_DIT_MAX_LAYERS];
    float scale[IPVG_DIT_MAX_LAYERS], reference_scale[IPVG_DIT_MAX_LAYERS];
} ipvg_py_branch;

/* 0 and an exception set: a block that the model has not, a wrong type or range. */
int ipvg_py_branch_read(ipvg_py_branch *out, const ipvg_py_branch_options *options, ipvg_py_dit *model);
/* scale: a number, or a sequence of one a VACE layer, to out[n_vace]; NULL or None: 1. */
int ipvg_py_scale_read(float *out, PyObject *scale, const ipvg_dit_config *config);

#endif

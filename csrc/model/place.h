/* Weights in a backend's own memory. A GPU does not read mapped files, so a model's tensors are copied there once, in the
 * dtypes that its operations want, by a function of the model that names each of them:
 *
 *     static ipvg_status place(ipvg_placing *p, void *model) { ... ipvg_place(p, &m->norm, IPVG_F32) ... }
 *     IPVG_TRY(ipvg_place_model(ex, &m->home, place, m, hollow));
 *
 * They set out many at once, so that those who copy do not wait for each other at every tensor's end.
 *
 * On a backend whose memory is the host's (be->host) none of this happens: tensors stay where they are mapped. */
#ifndef IPVG_MODEL_PLACE_H
#define IPVG_MODEL_PLACE_H

#include "../ops/ops.h"
#include "weights.h"

typedef struct ipvg_placing {
    ipvg_exec *ex;
    ipvg_arena *home;
    const ipvg_weights *weights; /* which the tensors were taken from; set by the model */
    bool hollow;                 /* there are no data: only dtypes are set, as planning wants them */
    ipvg_upload upload[IPVG_UPLOADS];
    int waiting; /* uploads that have not set out */
} ipvg_placing;

/* t becomes a copy of itself in that dtype; its bytes are there after ipvg_place_end. */
ipvg_status ipvg_place(ipvg_placing *p, ipvg_tensor *t, ipvg_dtype dtype);
/* n tensors of one shape become rows of one: *joined holds them all, one after the other, and each is a part of it. */
ipvg_status ipvg_place_joined(ipvg_placing *p, ipvg_tensor *joined, ipvg_tensor *const *t, int n, ipvg_dtype dtype);
/* After the last one, also while planning. */
ipvg_status ipvg_place_end(ipvg_placing *p);

/* Calls `place` to count the bytes, takes them for `home`, and calls it again to copy. ex->arena must be free. */
ipvg_status ipvg_place_model(ipvg_exec *ex, ipvg_arena *home, ipvg_status (*place)(ipvg_placing *p, void *model),
                             void *model, bool hollow);

#endif

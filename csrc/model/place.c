#include "place.h"

ipvg_status ipvg_place_end(ipvg_placing *p)
{
    const int n = p->waiting;
    p->waiting = 0;
    return n ? p->ex->be->upload(p->ex, p->upload, n) : IPVG_OK;
}

/* Into `to`, which lies in the backend's memory. */
static ipvg_status fill(ipvg_placing *p, const ipvg_tensor *to, const ipvg_tensor *from)
{
    ipvg_upload *u;
    ipvg_status status = IPVG_OK;

    if (p->waiting == IPVG_UPLOADS) IPVG_TRY(ipvg_place_end(p));
    u = &p->upload[p->waiting++];
    *u = (ipvg_upload){.to = *to, .dtype = from->dtype, .data = from->data};
    u->file = ipvg_weights_file(p->weights, from->data, &u->offset);
done:
    return status;
}

ipvg_status ipvg_place_joined(ipvg_placing *p, ipvg_tensor *joined, ipvg_tensor *const *t, int n, ipvg_dtype dtype)
{
    const ipvg_tensor *first = t[0];
    int64_t shape[IPVG_MAX_DIMS] = {n * first->shape[0]};
    ipvg_tensor all;
    ipvg_status status;

    for (int i = 1; i < first->ndim; i++) shape[i] = first->shape[i];
    IPVG_TRY(ipvg_arena_tensor(p->ex->ctx, p->home, &all, dtype, first->ndim, shape));
    if (p->hollow) all.data = NULL, all.scale = NULL;
    for (int i = 0; i < n; i++) {
        ipvg_tensor part = ipvg_tensor_slice(&all, i * t[i]->shape[0], t[i]->shape[0]);
        if (part.ndim == 1) part.ld = part.shape[0];
        if (!p->hollow) IPVG_TRY(fill(p, &part, t[i]));
        if (!p->home->planning || p->hollow) *t[i] = part;
    }
    if (joined) *joined = all;
done:
    return status;
}

ipvg_status ipvg_place(ipvg_placing *p, ipvg_tensor *t, ipvg_dtype dtype)
{
    return ipvg_place_joined(p, NULL, &t, 1, dtype);
}

ipvg_status ipvg_place_model(ipvg_exec *ex, ipvg_arena *home, ipvg_status (*place)(ipvg_placing *p, void *model),
                             void *model, bool hollow)
{
    ipvg_placing p = {.ex = ex, .home = home, .hollow = hollow};
    ipvg_status status = IPVG_OK;

    if (ex->be->host) return IPVG_OK;
    ipvg_arena_plan(ex->arena);
    ipvg_arena_plan(home);
    IPVG_TRY(place(&p, model));
    IPVG_TRY(ipvg_place_end(&p));
    if (hollow) goto done;
    IPVG_TRY(ipvg_arena_reserve(ex->ctx, &ex->be->memory, ex->arena, ex->arena->peak));
    IPVG_TRY(ipvg_arena_reserve(ex->ctx, &ex->be->memory, home, home->peak));
    IPVG_TRY(place(&p, model));
    IPVG_TRY(ipvg_place_end(&p));
done:
    ex->arena->planning = false;
    return status;
}

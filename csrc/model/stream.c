#include "stream.h"

#include <stdlib.h>

struct ipvg_stream {
    const ipvg_backend *be;
    ipvg_backend *lane;
    ipvg_stream_place place;
    void *model;
    int count;
    size_t bytes; /* of a block */
    ipvg_arena scratch, slot[2];
    int held[2]; /* the block that is in a slot, or on its way; -1: none */
    int now;     /* the slot entered last */
    int staying;
    ipvg_spare spare;
    int *order;
    ipvg_arena home[]; /* of those that stay */
};

bool ipvg_stream_stays(const ipvg_stream *s, int i) { return s->home[i].base != NULL; }
int ipvg_stream_staying(const ipvg_stream *s) { return s->staying; }

/* ==== which blocks stay ==== */

/* Of `staying` blocks spread evenly, is the k-th in order one? */
static bool is_chosen(const ipvg_stream *s, int k, int staying)
{
    return (int64_t)(k + 1) * staying / s->count > (int64_t)k * staying / s->count;
}

static void let_go(ipvg_stream *s, int i)
{
    ipvg_arena_free(&s->home[i]);
    s->staying--;
}

/* One that should not stay if there were one less: there is always such a one. */
static bool give(void *user)
{
    ipvg_stream *s = user;
    for (int k = 0; k < s->count; k++) {
        const int i = s->order[k];
        if (!ipvg_stream_stays(s, i) || is_chosen(s, k, s->staying - 1)) continue;
        let_go(s, i);
        return true;
    }
    return false;
}

static ipvg_exec lane_of(const ipvg_exec *ex, ipvg_stream *s)
{
    return (ipvg_exec){.ctx = ex->ctx, .be = s->lane, .arena = &s->scratch};
}

static ipvg_status send(ipvg_exec *ex, ipvg_stream *s, int i, ipvg_arena *to, int where)
{
    ipvg_exec lane = lane_of(ex, s);
    ipvg_placing p = {.ex = &lane, .home = to};
    ipvg_status status;
    ipvg_arena_reset(to, 0);
    IPVG_TRY(s->place(&p, s->model, i, where));
    IPVG_TRY(ipvg_place_end(&p));
done:
    return status;
}

static ipvg_status stay(ipvg_exec *ex, ipvg_stream *s, int i)
{
    ipvg_status status;
    IPVG_TRY(ipvg_arena_reserve(ex->ctx, &ex->be->memory, &s->home[i], s->bytes));
    s->staying++;
    IPVG_TRY(send(ex, s, i, &s->home[i], i));
    IPVG_TRY(ex->be->after(ex, s->lane));
done:
    if (status != IPVG_OK && ipvg_stream_stays(s, i)) let_go(s, i);
    return status;
}

ipvg_status ipvg_stream_settle(ipvg_exec *ex, ipvg_stream *s)
{
    const ipvg_meter *m = ex->be->meter;
    const size_t room = m->limit > m->used ? m->limit - m->used : 0;
    const int more = s->count - 2 - s->staying,
              fit = (int)(room / ipvg_meter_pages(s->bytes)); /* two are in the slots */
    const int staying = s->staying + (more < fit ? more : fit);
    ipvg_status status = IPVG_OK;

    if (staying <= s->staying) goto done;
    for (int k = 0; k < s->count; k++)
        if (ipvg_stream_stays(s, s->order[k]) && !is_chosen(s, k, staying)) let_go(s, s->order[k]);
    for (int k = 0; k < s->count; k++)
        if (!ipvg_stream_stays(s, s->order[k]) && is_chosen(s, k, staying)) IPVG_TRY(stay(ex, s, s->order[k]));
done:
    return status;
}

/* ==== new, free ==== */

ipvg_status ipvg_stream_measure(ipvg_exec *ex, ipvg_stream_bytes *out, ipvg_stream_place place, void *model, int count)
{
    ipvg_arena home = {0}, scratch = {0};
    ipvg_exec lane = {.ctx = ex->ctx, .be = ex->be, .arena = &scratch};
    ipvg_placing p = {.ex = &lane, .home = &home};
    size_t most = 0;
    ipvg_status status = IPVG_OK;

    *out = (ipvg_stream_bytes){0};
    for (int i = 0; i < count; i++) {
        ipvg_arena_plan(&home);
        ipvg_arena_plan(&scratch);
        IPVG_TRY(place(&p, model, i, count));
        IPVG_TRY(ipvg_place_end(&p));
        if (home.peak > out->block) out->block = home.peak;
        if (scratch.peak > most) most = scratch.peak;
    }
    out->staging = 2 * out->block + most;
done:
    return status;
}

ipvg_status ipvg_stream_new(ipvg_exec *ex, ipvg_stream **out, ipvg_stream_place place, void *model, const int *order,
                            int count)
{
    ipvg_stream_bytes bytes;
    ipvg_stream *s = NULL;
    ipvg_status status;

    *out = NULL;
    IPVG_TRY(ipvg_stream_measure(ex, &bytes, place, model, count));
    s = calloc(1, sizeof *s + (size_t)count * sizeof s->home[0]);
    if (s) s->order = malloc((size_t)count * sizeof *order);
    if (!s || !s->order) {
        status = ipvg_fail(ex->ctx, IPVG_E_MEMORY, "no memory for a table of %d blocks", count);
        goto done;
    }
    s->be = ex->be;
    s->place = place;
    s->model = model;
    s->count = count;
    s->bytes = bytes.block;
    for (int k = 0; k < count; k++) s->order[k] = order[k];
    s->held[0] = s->held[1] = -1;
    s->spare = (ipvg_spare){give, s, NULL};
    ipvg_meter_enlist(ex->be->meter, &s->spare);
    IPVG_TRY(ex->be->lane(ex->be, ex->ctx, &s->lane));
    IPVG_TRY(ipvg_arena_reserve(ex->ctx, &ex->be->memory, &s->scratch, bytes.staging - 2 * bytes.block));
    for (int i = 0; i < 2; i++) {
        IPVG_TRY(ipvg_arena_reserve(ex->ctx, &ex->be->memory, &s->slot[i], s->bytes));
        IPVG_TRY(send(ex, s, order[i % count], &s->slot[i], count + i));
        s->held[i] = order[i % count];
    }
    *out = s;
    s = NULL;
done:
    ipvg_stream_free(&s);
    return status;
}

void ipvg_stream_free(ipvg_stream **stream)
{
    ipvg_stream *s = *stream;
    if (!s) return;
    if (s->be) ipvg_meter_dismiss(s->be->meter, &s->spare);
    for (int i = 0; i < s->count; i++) ipvg_arena_free(&s->home[i]);
    for (int i = 0; i < 2; i++) ipvg_arena_free(&s->slot[i]);
    ipvg_arena_free(&s->scratch);
    ipvg_backend_free(&s->lane); /* after what its copies write to: freeing that waits for them */
    free(s->order);
    free(s);
    *stream = NULL;
}

/* ==== in turn ==== */

ipvg_status ipvg_stream_enter(ipvg_exec *ex, ipvg_stream *s, int i, int *where)
{
    ipvg_exec lane = lane_of(ex, s);
    int slot = s->held[0] == i ? 0 : s->held[1] == i ? 1 : -1;
    ipvg_status status = IPVG_OK;

    *where = ipvg_stream_stays(s, i) ? i : s->count + (slot < 0 ? 0 : slot);
    if (ipvg_planning(ex) || ipvg_stream_stays(s, i)) goto done;
    IPVG_TRY(s->lane->after(&lane, ex->be)); /* what comes to the other slot waits for the blocks before this one */
    if (slot < 0) {
        slot = !s->now;
        s->held[slot] = -1; /* if this fails */
        IPVG_TRY(send(ex, s, i, &s->slot[slot], s->count + slot));
        s->held[slot] = i;
        *where = s->count + slot;
    }
    IPVG_TRY(ex->be->after(ex, s->lane));
    s->now = slot;
done:
    return status;
}

ipvg_status ipvg_stream_leave(ipvg_exec *ex, ipvg_stream *s, int next)
{
    const int slot = !s->now;
    ipvg_status status = IPVG_OK;

    if (ipvg_planning(ex) || next < 0 || ipvg_stream_stays(s, next) || s->held[0] == next || s->held[1] == next)
        goto done;
    s->held[slot] = -1;
    IPVG_TRY(send(ex, s, next, &s->slot[slot], s->count + slot));
    s->held[slot] = next;
done:
    return status;
}

/* Where the DiT's weights lie: all in the backend's memory, or, under a memory limit, some of the blocks while the others
 * are streamed. What comes before and after a VACE block always lies there: it is used beside another block. */
#include <stdlib.h>

#include "dit_internal.h"

static int count_of(const ipvg_dit *m) { return m->config.layers + m->config.n_vace; }

static ipvg_status place_rest(ipvg_placing *p, void *model)
{
    ipvg_dit *m = model;
    const ipvg_dtype half = p->ex->be->activation;
    ipvg_status status;

    p->weights = m->weights;
    if (ipvg_dit_large(p->ex->be) == IPVG_E4M3 && (m->config.dim % 16 || m->config.ffn_dim % 16))
        return ipvg_fail(p->ex->ctx, IPVG_E_UNSUPPORTED,
                         "DiT: fp8 takes widths that are multiples of 16, not %d and %d; try dtype='bfloat16'",
                         m->config.dim, m->config.ffn_dim);
    IPVG_TRY(ipvg_dit_linear_place(p, &m->patch, half));
    if (m->config.n_vace) IPVG_TRY(ipvg_dit_linear_place(p, &m->vace_patch, half));
    for (int i = 0; i < 2; i++) IPVG_TRY(ipvg_dit_linear_place(p, &m->text[i], half));
    for (int i = 0; i < 2; i++) IPVG_TRY(ipvg_dit_linear_place(p, &m->time[i], IPVG_F32));
    IPVG_TRY(ipvg_dit_linear_place(p, &m->time_projection, IPVG_F32));
    IPVG_TRY(ipvg_dit_linear_place(p, &m->head, IPVG_F32));
    IPVG_TRY(ipvg_place(p, &m->head_modulation, IPVG_F32));
    for (int i = 0; i < count_of(m); i++) {
        ipvg_dit_block *b = &m->blocks[i];
        if (b->before.w.ndim) IPVG_TRY(ipvg_dit_linear_place(p, &b->before, half));
        if (b->after.w.ndim) IPVG_TRY(ipvg_dit_linear_place(p, &b->after, half));
    }
done:
    return status;
}

static ipvg_status place_all(ipvg_placing *p, void *model)
{
    ipvg_dit *m = model;
    ipvg_status status;

    IPVG_TRY(place_rest(p, model));
    for (int i = 0; i < count_of(m); i++) IPVG_TRY(ipvg_dit_block_place(p, &m->blocks[i]));
done:
    return status;
}

static ipvg_status place_block(ipvg_placing *p, void *model, int i, int where)
{
    ipvg_dit *m = model;
    m->placed[where] = m->blocks[i];
    p->weights = m->weights;
    return ipvg_dit_block_place(p, &m->placed[where]);
}

int ipvg_dit_order(int order[2 * IPVG_DIT_MAX_LAYERS], const ipvg_dit_config *c)
{
    int count = 0;
    for (int i = 0, n = 0; i < c->layers; i++) {
        if (n < c->n_vace && c->vace_layers[n] == i) order[count++] = c->layers + n++;
        order[count++] = i;
    }
    return count;
}

static ipvg_status measure(ipvg_exec *ex, ipvg_dit *m)
{
    ipvg_arena home = {0}, scratch = {0};
    ipvg_exec planned = {.ctx = ex->ctx, .be = ex->be, .arena = &scratch};
    ipvg_placing p = {.ex = &planned, .home = &home};
    ipvg_status status;

    ipvg_arena_plan(&scratch);
    ipvg_arena_plan(&home);
    IPVG_TRY(place_rest(&p, m));
    IPVG_TRY(ipvg_place_end(&p));
    m->rest = home.peak;
    m->placing = scratch.peak;
    ipvg_arena_plan(&home);
    IPVG_TRY(place_all(&p, m));
    m->all = home.peak;
    IPVG_TRY(ipvg_stream_measure(ex, &m->streaming, place_block, m, count_of(m)));
done:
    return status;
}

ipvg_status ipvg_dit_place(ipvg_exec *ex, ipvg_dit *m)
{
    int order[2 * IPVG_DIT_MAX_LAYERS];
    ipvg_status status;

    if (ex->be->host) return IPVG_OK;
    m->placed = calloc((size_t)count_of(m) + 2, sizeof *m->placed);
    if (!m->placed) return ipvg_fail(ex->ctx, IPVG_E_MEMORY, "DiT: no memory for the tables of %d blocks", count_of(m));
    IPVG_TRY(measure(ex, m));
    if (m->hollow || !ex->be->meter->limit) return ipvg_place_model(ex, &m->home, place_all, m, m->hollow);
    IPVG_TRY(ipvg_place_model(ex, &m->home, place_rest, m, false));
    IPVG_TRY(ipvg_stream_new(ex, &m->stream, place_block, m, order, ipvg_dit_order(order, &m->config)));
done:
    return status;
}

ipvg_status ipvg_dit_settle(ipvg_exec *ex, const ipvg_dit *dit)
{
    return dit->stream ? ipvg_stream_settle(ex, dit->stream) : IPVG_OK;
}

int ipvg_dit_streamed(const ipvg_dit *dit)
{
    return dit->stream ? count_of(dit) - ipvg_stream_staying(dit->stream) : 0;
}

ipvg_status ipvg_dit_block_enter(ipvg_exec *ex, const ipvg_dit_block **out, const ipvg_dit *dit, int i)
{
    int where = i;
    ipvg_status status = IPVG_OK;

    if (dit->stream) IPVG_TRY(ipvg_stream_enter(ex, dit->stream, i, &where));
    *out = dit->stream ? &dit->placed[where] : &dit->blocks[i];
done:
    return status;
}

ipvg_status ipvg_dit_block_leave(ipvg_exec *ex, const ipvg_dit *dit, int next)
{
    return dit->stream ? ipvg_stream_leave(ex, dit->stream, next) : IPVG_OK;
}

int ipvg_dit_block_next(const ipvg_dit *dit, int i, bool (*runs)(const void *user, int block), const void *user)
{
    const int count = count_of(dit);
    int order[2 * IPVG_DIT_MAX_LAYERS], at = 0;

    if (!dit->stream) return -1;
    ipvg_dit_order(order, &dit->config);
    while (order[at] != i) at++;
    for (int k = 1; k < count; k++) {
        const int next = order[(at + k) % count];
        if (!ipvg_stream_stays(dit->stream, next) && runs(user, next)) return next;
    }
    return -1;
}

#include "dit.h"

#include <stdio.h>
#include <stdlib.h>

#include "dit_internal.h"

/* ==== new, free ==== */

static ipvg_status check_config(ipvg_context *ctx, const ipvg_dit_config *c)
{
    if (c->dim < 1 || c->heads < 1 || c->dim % (2 * c->heads) || c->ffn_dim < 1 || c->in_dim < 1 || c->out_dim < 1 ||
        c->text_len < 1 || c->text_dim < 1)
        return ipvg_fail(ctx, IPVG_E_ARGUMENT,
                         "DiT: sizes must be positive, and heads (%d) divide dim (%d) into even parts", c->heads,
                         c->dim);
    if (c->freq_dim < 2 || c->freq_dim % 2 || c->freq_dim > IPVG_DIT_MAX_FREQ)
        return ipvg_fail(ctx, IPVG_E_ARGUMENT, "DiT: freq_dim is %d, expected an even number up to %d", c->freq_dim,
                         IPVG_DIT_MAX_FREQ);
    if (c->layers < 1 || c->layers > IPVG_DIT_MAX_LAYERS)
        return ipvg_fail(ctx, IPVG_E_ARGUMENT, "DiT: 1 to %d layers, got %d", IPVG_DIT_MAX_LAYERS, c->layers);
    if (!(c->eps > 0)) return ipvg_fail(ctx, IPVG_E_ARGUMENT, "DiT: eps must be positive");
    if (c->n_vace < 0 || c->n_vace > c->layers || (c->n_vace && c->vace_in_dim < 1))
        return ipvg_fail(ctx, IPVG_E_ARGUMENT, "DiT: %d VACE layers of %d input channels beside %d layers", c->n_vace,
                         c->vace_in_dim, c->layers);
    for (int n = 0; n < c->n_vace; n++) {
        int least = n ? c->vace_layers[n - 1] + 1 : 0;
        if (c->vace_layers[n] < least || c->vace_layers[n] >= c->layers || (n == 0 && c->vace_layers[0] != 0))
            return ipvg_fail(ctx, IPVG_E_ARGUMENT, "DiT: vace_layers must ascend from 0 and stay below %d", c->layers);
    }
    return IPVG_OK;
}

/* The tensors outside the blocks. */
static ipvg_status take_rest(ipvg_context *ctx, ipvg_dit *m, ipvg_weights *w)
{
    const ipvg_dit_config *c = &m->config;
    const int64_t dim = c->dim, patch[] = {dim, c->in_dim, 1, 2, 2}, vace[] = {dim, c->vace_in_dim, 1, 2, 2};
    const int64_t square[] = {dim, dim}, text[] = {dim, c->text_dim}, freq[] = {dim, c->freq_dim};
    const int64_t six[] = {6 * dim, dim}, head[] = {4 * c->out_dim, dim}, two[] = {1, 2, dim};
    ipvg_status status;

    IPVG_TRY(ipvg_dit_linear_take(ctx, &m->patch, w, patch, 5, "patch_embedding"));
    if (c->n_vace) IPVG_TRY(ipvg_dit_linear_take(ctx, &m->vace_patch, w, vace, 5, "vace_patch_embedding"));
    IPVG_TRY(ipvg_dit_linear_take(ctx, &m->text[0], w, text, 2, "text_embedding.0"));
    IPVG_TRY(ipvg_dit_linear_take(ctx, &m->text[1], w, square, 2, "text_embedding.2"));
    IPVG_TRY(ipvg_dit_linear_take(ctx, &m->time[0], w, freq, 2, "time_embedding.0"));
    IPVG_TRY(ipvg_dit_linear_take(ctx, &m->time[1], w, square, 2, "time_embedding.2"));
    IPVG_TRY(ipvg_dit_linear_take(ctx, &m->time_projection, w, six, 2, "time_projection.1"));
    IPVG_TRY(ipvg_dit_linear_take(ctx, &m->head, w, head, 2, "head.head"));
    IPVG_TRY(ipvg_weights_take(ctx, w, &m->head_modulation, two, 3, "head.modulation"));
    m->head_modulation = ipvg_tensor_of(m->head_modulation.data, m->head_modulation.dtype, 2, dim);
    m->hollow = !m->patch.w.data;
done:
    return status;
}

ipvg_status ipvg_dit_new(ipvg_context *ctx, ipvg_dit **out, const ipvg_dit_config *config, ipvg_weights *weights)
{
    const ipvg_dit_config *c = config;
    const int64_t square[] = {c->dim, c->dim};
    ipvg_dit *m = NULL;
    char prefix[48];
    ipvg_status status;

    IPVG_TRY(check_config(ctx, c));
    m = calloc(1, sizeof *m + (size_t)(c->layers + c->n_vace) * sizeof(ipvg_dit_block));
    if (!m) {
        status = ipvg_fail(ctx, IPVG_E_MEMORY, "DiT: no memory for the tables of %d layers", c->layers);
        goto done;
    }
    m->config = *c;
    m->weights = weights;
    IPVG_TRY(take_rest(ctx, m, weights));
    for (int i = 0; i < c->layers; i++) {
        m->blocks[i].kind = "block";
        m->blocks[i].index = i;
        snprintf(prefix, sizeof prefix, "blocks.%d", i);
        IPVG_TRY(ipvg_dit_block_take(ctx, &m->blocks[i], weights, c, prefix));
    }
    for (int n = 0; n < c->n_vace; n++) {
        ipvg_dit_block *b = &m->blocks[c->layers + n];
        b->kind = "vace";
        b->index = n;
        snprintf(prefix, sizeof prefix, "vace_blocks.%d", n);
        IPVG_TRY(ipvg_dit_block_take(ctx, b, weights, c, prefix));
        if (n == 0) IPVG_TRY(ipvg_dit_linear_take(ctx, &b->before, weights, square, 2, "vace_blocks.0.before_proj"));
        snprintf(prefix, sizeof prefix, "vace_blocks.%d.after_proj", n);
        IPVG_TRY(ipvg_dit_linear_take(ctx, &b->after, weights, square, 2, prefix));
    }
    IPVG_TRY(ipvg_weights_all_taken(ctx, weights));
    *out = m;
    m = NULL;
done:
    ipvg_dit_free(&m);
    return status;
}

void ipvg_dit_free(ipvg_dit **dit)
{
    if (!*dit) return;
    ipvg_stream_free(&(*dit)->stream);
    ipvg_arena_free(&(*dit)->home);
    free((*dit)->placed);
    free(*dit);
    *dit = NULL;
}

const ipvg_dit_config *ipvg_dit_get_config(const ipvg_dit *dit) { return &dit->config; }

/* ==== forward ==== */

static ipvg_status check_branch(ipvg_exec *ex, const ipvg_dit_branch *branch, const ipvg_dit *dit)
{
    if (branch->text->dit != dit || branch->context->dit != dit)
        return ipvg_fail(ex->ctx, IPVG_E_ARGUMENT, "forward: the text or the context was prepared for another model");
    if (branch->nag.text && branch->nag.text->dit != dit)
        return ipvg_fail(ex->ctx, IPVG_E_ARGUMENT, "forward: the text of NAG was prepared for another model");
    if (branch->reference_frames < 0 || branch->reference_frames > branch->context->frames)
        return ipvg_fail(ex->ctx, IPVG_E_ARGUMENT, "forward: %d reference frames in a latent of %d",
                         branch->reference_frames, branch->context->frames);
    return IPVG_OK;
}

static ipvg_status check_shapes(ipvg_exec *ex, const ipvg_tensor *velocity, const ipvg_tensor *x,
                                const ipvg_dit_config *c, const ipvg_dit_context *context)
{
    const int64_t shape[] = {c->in_dim, context->frames, context->height, context->width};
    const ipvg_tensor *both[] = {x, velocity};

    for (int i = 0; i < 2; i++) {
        bool fits =
            both[i]->ndim == 4 && both[i]->dtype == IPVG_F32 && both[i]->shape[0] == (i ? c->out_dim : c->in_dim);
        for (int k = 1; fits && k < 4; k++) fits = both[i]->shape[k] == shape[k];
        if (fits) continue;
        char found[96], wanted[96];
        return ipvg_fail(ex->ctx, IPVG_E_ARGUMENT, "forward: %s has shape %s; the context was prepared for latents %s",
                         i ? "velocity" : "x", ipvg_shape_text(found, sizeof found, both[i]->ndim, both[i]->shape),
                         ipvg_shape_text(wanted, sizeof wanted, 4, shape));
    }
    return IPVG_OK;
}

static ipvg_status check_forward(ipvg_exec *ex, ipvg_tensor *const *velocity, const ipvg_tensor *x, double t,
                                 const ipvg_dit *dit, const ipvg_dit_branch *const *branch, int count)
{
    ipvg_status status = IPVG_OK;

    if (dit->hollow && !ipvg_planning(ex))
        return ipvg_fail(ex->ctx, IPVG_E_ARGUMENT, "forward: the model has shapes but no weights");
    if (count < 1 || count > IPVG_DIT_BRANCHES)
        return ipvg_fail(ex->ctx, IPVG_E_ARGUMENT, "forward: 1 to %d branches, got %d", IPVG_DIT_BRANCHES, count);
    if (!(t >= 0 && t <= 1000)) return ipvg_fail(ex->ctx, IPVG_E_ARGUMENT, "forward: t is %g, expected 0 to 1000", t);
    for (int b = 0; b < count; b++) {
        IPVG_TRY(check_branch(ex, branch[b], dit));
        IPVG_TRY(check_shapes(ex, velocity[b], x, &dit->config, branch[b]->context));
    }
done:
    return status;
}

/* x (L, D) = the embedded patches of a latent. */
static ipvg_status embed(ipvg_exec *ex, ipvg_tensor *x, const ipvg_tensor *latent, const ipvg_dit *dit)
{
    const int64_t shape[] = {x->shape[0], latent->shape[0] * 4};
    size_t mark = ipvg_arena_mark(ex->arena);
    ipvg_tensor patches;
    ipvg_status status;

    IPVG_TRY(ipvg_arena_tensor(ex->ctx, ex->arena, &patches, ex->be->activation, 2, shape));
    IPVG_TRY(ipvg_patchify(ex, &patches, latent));
    IPVG_TRY(ipvg_dit_linear_run(ex, x, &patches, &dit->patch, IPVG_ACT_NONE));
    IPVG_TRY(ipvg_see(ex, x, "x_tokens"));
done:
    ipvg_arena_reset(ex->arena, mark);
    return status;
}

/* c = before_proj(context) + x, with the x that no block has touched: once for each context. */
static ipvg_status begin_vace(ipvg_exec *ex, ipvg_dit_pass *p)
{
    ipvg_status status = IPVG_OK;

    for (int b = 0; b < p->count; b++) {
        ipvg_tensor *c = &p->c.state[b];
        if (p->c.lead[b] != b) continue;
        IPVG_TRY(ipvg_dit_linear_run(ex, c, &p->branch[b]->context->tokens,
                                     &p->dit->blocks[p->dit->config.layers].before, IPVG_ACT_NONE));
        IPVG_TRY(ipvg_gate_residual(ex, c, &p->x.state[0], NULL));
    }
done:
    return status;
}

/* x += scale * hint, in the rows of references with a scale of their own. */
static ipvg_status add_hint(ipvg_exec *ex, ipvg_dit_pass *p, int b, int n, const ipvg_tensor *hint)
{
    const ipvg_dit_context *context = p->branch[b]->context;
    const int64_t references = p->branch[b]->reference_frames * (context->height / 2) * (context->width / 2);
    const int64_t first[] = {references, 0}, count[] = {hint->shape[0] - references, references};
    ipvg_status status = IPVG_OK;

    for (int i = 0; i < 2; i++) {
        ipvg_tensor x = ipvg_tensor_slice(&p->x.state[b], first[i], count[i]);
        ipvg_tensor from = ipvg_tensor_slice(hint, first[i], count[i]);
        const float scale[] = {1.f, ipvg_dit_hint_scale(p, b, n, i)};
        if (count[i]) IPVG_TRY(ipvg_combine(ex, &x, 2, (const ipvg_tensor *[]){&x, &from}, scale));
    }
done:
    return status;
}

/* Hint n = after_proj(c), added to every x that it counts for. */
static ipvg_status add_hints(ipvg_exec *ex, ipvg_dit_pass *p, int n)
{
    const ipvg_dit_block *vace = &p->dit->blocks[p->dit->config.layers + n];
    size_t mark = ipvg_arena_mark(ex->arena);
    ipvg_tensor hint;
    ipvg_status status;

    IPVG_TRY(ipvg_dit_pass_hint(ex, p, n));
    IPVG_TRY(ipvg_arena_tensor(ex->ctx, ex->arena, &hint, ex->be->activation, 2, p->x.state[0].shape));
    for (int a = 0; a < p->count; a++) {
        bool made = false;
        for (int b = a; b < p->count; b++) {
            const bool counts = p->x.lead[b] == b && ipvg_dit_hint_counts(p, b, n);
            if (p->c.lead[b] != a || !(counts || ex->trace)) continue;
            if (!made) {
                IPVG_TRY(ipvg_dit_linear_run(ex, &hint, &p->c.state[a], &vace->after, IPVG_ACT_NONE));
                IPVG_TRY(ipvg_see(ex, &hint, "vace%d_hint", n));
            }
            made = true;
            if (counts) IPVG_TRY(add_hint(ex, p, b, n, &hint));
        }
    }
done:
    ipvg_arena_reset(ex->arena, mark);
    return status;
}

/* velocity = unpatchify(head(x)); modulated by e itself, not by its projection e0. */
static ipvg_status head(ipvg_exec *ex, ipvg_tensor *velocity, const ipvg_tensor *x, const ipvg_tensor *e,
                        const ipvg_dit *dit)
{
    const int64_t dim = dit->config.dim, shape[] = {x->shape[0], 4 * dit->config.out_dim};
    size_t mark = ipvg_arena_mark(ex->arena);
    ipvg_tensor mod, h, out;
    ipvg_status status;

    IPVG_TRY(ipvg_see(ex, x, "head_in"));
    IPVG_TRY(ipvg_dit_modulation(ex, &mod, &dit->head_modulation, e));
    IPVG_TRY(ipvg_arena_tensor(ex->ctx, ex->arena, &h, IPVG_F32, 2, x->shape));
    IPVG_TRY(ipvg_arena_tensor(ex->ctx, ex->arena, &out, IPVG_F32, 2, shape));
    ipvg_tensor shift = ipvg_tensor_of(ipvg_tensor_slice(&mod, 0, 1).data, IPVG_F32, dim);
    ipvg_tensor scale = ipvg_tensor_of(ipvg_tensor_slice(&mod, 1, 1).data, IPVG_F32, dim);
    IPVG_TRY(ipvg_norm_modulate(ex, &h, x, &shift, &scale, dit->config.eps));
    IPVG_TRY(ipvg_dit_linear_exact(ex, &out, &h, &dit->head, IPVG_ACT_NONE));
    IPVG_TRY(ipvg_see(ex, &out, "head"));
    IPVG_TRY(ipvg_unpatchify(ex, velocity, &out));
done:
    ipvg_arena_reset(ex->arena, mark);
    return status;
}

static ipvg_status see_states(ipvg_exec *ex, const ipvg_dit_pass *p, const ipvg_dit_states *s, const char *kind, int i,
                              const char *what)
{
    ipvg_status status = IPVG_OK;
    for (int b = 0; b < p->count; b++)
        if (s->lead[b] == b) IPVG_TRY(ipvg_see(ex, &s->state[b], "%s%d%s", kind, i, what));
done:
    return status;
}

typedef struct passage {
    ipvg_tensor *const *velocity;
    const ipvg_tensor *x;
    const ipvg_dit *dit;
    const ipvg_dit_branch *const *branch;
    int count;
    ipvg_tensor e, e0; /* of the timestep */
} passage;

/* All of a forward but the timestep, which comes from the host. */
static ipvg_status pass(ipvg_exec *ex, const void *user)
{
    const passage *f = user;
    const ipvg_dit_config *cfg = &f->dit->config;
    size_t mark = ipvg_arena_mark(ex->arena);
    ipvg_dit_given given = {.config = cfg, .context = f->branch[0]->context, .e0 = f->e0};
    ipvg_dit_pass p;
    ipvg_status status;

    IPVG_TRY(ipvg_dit_pass_begin(ex, &p, f->dit, f->branch, f->count));
    IPVG_TRY(embed(ex, &p.x.state[0], f->x, f->dit));
    IPVG_TRY(begin_vace(ex, &p));
    for (int i = 0, n = 0; i < cfg->layers; i++) {
        const bool hinted = n < cfg->n_vace && cfg->vace_layers[n] == i;
        if (hinted) { /* also where the main block is skipped: it feeds the later ones */
            IPVG_TRY(ipvg_dit_pass_block(ex, &p, &p.c, &given, cfg->layers + n));
            IPVG_TRY(see_states(ex, &p, &p.c, "vace", n, "_c"));
        }
        IPVG_TRY(ipvg_dit_pass_block(ex, &p, &p.x, &given, i));
        if (hinted) IPVG_TRY(add_hints(ex, &p, n++));
        IPVG_TRY(see_states(ex, &p, &p.x, "block", i, ""));
    }
    for (int b = 0; b < f->count; b++) {
        if (p.x.lead[b] == b)
            IPVG_TRY(head(ex, f->velocity[b], &p.x.state[b], &f->e, f->dit));
        else
            IPVG_TRY(ipvg_dit_copy(ex, f->velocity[b], f->velocity[p.x.lead[b]]));
    }
done:
    ipvg_arena_reset(ex->arena, mark);
    return status;
}

ipvg_status ipvg_dit_forward(ipvg_exec *ex, ipvg_tensor *const *velocity, const ipvg_tensor *x_t, double t,
                             const ipvg_dit *dit, const ipvg_dit_branch *const *branch, int count, ipvg_replay *again)
{
    size_t mark = ipvg_arena_mark(ex->arena);
    passage f = {.velocity = velocity, .x = x_t, .dit = dit, .branch = branch, .count = count};
    ipvg_status status;

    IPVG_TRY(check_forward(ex, velocity, x_t, t, dit, branch, count));
    IPVG_TRY(ipvg_dit_time(ex, &f.e, &f.e0, t, dit));
    if (again && !dit->stream && branch[0]->context->rope.shape[0] * dit->config.dim <= ex->be->small)
        IPVG_TRY(ipvg_replay_run(ex, again, pass, &f));
    else
        IPVG_TRY(pass(ex, &f));
done:
    ipvg_arena_reset(ex->arena, mark);
    return status;
}

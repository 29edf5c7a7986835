/* A forward of several branches, which computes what they have in common once.
 *
 * A branch has two states: x of the main blocks and c of the VACE blocks. Branches whose states came about in the same way
 * share one, kept by the first of them, their leader. They part where they are given something else: a new leader starts
 * from a copy. All that matters is what each part of the model is given:
 *
 *                        x, of a main block               c, of a VACE block
 *     at the start       the latent: equal for all        the latent, the context
 *     self-attention     run or skipped, perturbation     (equal for all)
 *     the block's rest   text, NAG                        text, NAG
 *     the hint           c, the hint's scales
 *
 * States live in the arena for one call, so that none can outlast the x and t that it was made of. */
#include <string.h>

#include "dit_internal.h"

/* ==== what a branch asks for ==== */

static ipvg_dit_run run_of(const ipvg_dit_branch *branch, int layer)
{
    return branch->run ? (ipvg_dit_run)branch->run[layer] : IPVG_DIT_RUN;
}

static bool runs(const ipvg_dit_branch *branch, int layer) { return run_of(branch, layer) == IPVG_DIT_RUN; }

static ipvg_dit_perturb perturb_of(const ipvg_dit_branch *branch, int layer)
{
    return branch->perturb ? (ipvg_dit_perturb)branch->perturb[layer] : IPVG_DIT_ATTEND;
}

float ipvg_dit_hint_scale(const ipvg_dit_pass *p, int b, int n, bool reference)
{
    const ipvg_dit_branch *branch = p->branch[b];
    if (run_of(branch, p->dit->config.vace_layers[n]) == IPVG_DIT_SKIP) return 0.f;
    if (reference && branch->reference_frames && branch->reference_scale) return branch->reference_scale[n];
    return branch->scale ? branch->scale[n] : 1.f;
}

bool ipvg_dit_hint_counts(const ipvg_dit_pass *p, int b, int n)
{
    return ipvg_dit_hint_scale(p, b, n, false) != 0.f || ipvg_dit_hint_scale(p, b, n, true) != 0.f;
}

/* The keys and values that block i reads. */
static ipvg_dit_words words_of(const ipvg_dit_branch *branch, int i)
{
    ipvg_dit_words words = {.k = ipvg_dit_text_part(branch->text, i, 0),
                            .v = ipvg_dit_text_part(branch->text, i, 1),
                            .repeat = branch->text->repeat};
    if (!branch->nag.text) return words;
    words.nag = &branch->nag;
    words.nag_k = ipvg_dit_text_part(branch->nag.text, i, 0);
    words.nag_v = ipvg_dit_text_part(branch->nag.text, i, 1);
    words.nag_repeat = branch->nag.text->repeat;
    return words;
}

/* ==== are two branches given the same? i: a block, counted over main and then VACE ones, or a hint ==== */

typedef bool (*same)(const ipvg_dit_pass *p, int a, int b, int i);

static bool same_context(const ipvg_dit_pass *p, int a, int b, int i)
{
    (void)i;
    return p->branch[a]->context == p->branch[b]->context;
}

static bool same_attention(const ipvg_dit_pass *p, int a, int b, int i)
{
    const ipvg_dit_branch *one = p->branch[a], *two = p->branch[b];
    if (i >= p->dit->config.layers) return true;
    if (!runs(one, i) || !runs(two, i)) return runs(one, i) == runs(two, i);
    if (perturb_of(one, i) != perturb_of(two, i)) return false;
    return perturb_of(one, i) != IPVG_DIT_BLUR || one->blur == two->blur;
}

static bool same_words(const ipvg_dit_pass *p, int a, int b, int i)
{
    const ipvg_dit_branch *one = p->branch[a], *two = p->branch[b];
    const ipvg_dit_nag *m = &one->nag, *n = &two->nag;
    if (i < p->dit->config.layers && !runs(one, i)) return true;
    if (one->text != two->text || m->text != n->text) return false;
    return !m->text || (m->scale == n->scale && m->tau == n->tau && m->alpha == n->alpha);
}

static bool same_hint(const ipvg_dit_pass *p, int a, int b, int n)
{
    if (!ipvg_dit_hint_counts(p, a, n) && !ipvg_dit_hint_counts(p, b, n)) return true;
    return p->c.lead[a] == p->c.lead[b] && p->branch[a]->reference_frames == p->branch[b]->reference_frames &&
           ipvg_dit_hint_scale(p, a, n, false) == ipvg_dit_hint_scale(p, b, n, false) &&
           ipvg_dit_hint_scale(p, a, n, true) == ipvg_dit_hint_scale(p, b, n, true);
}

/* ==== states ==== */

/* lead[b] = the first branch that shared a state with b until here, and is given the same. */
static void part(int *lead, const ipvg_dit_pass *p, const ipvg_dit_states *s, same given, int i)
{
    for (int b = 0; b < p->count; b++) {
        int a = s->lead[b];
        while (a >= 0 && a < b && (s->lead[a] != s->lead[b] || !given(p, a, b, i))) a++;
        lead[b] = a;
    }
}

/* The same, and each new leader gets its copy. */
static ipvg_status split(ipvg_exec *ex, const ipvg_dit_pass *p, ipvg_dit_states *s, same given, int i)
{
    int lead[IPVG_DIT_BRANCHES];
    ipvg_status status = IPVG_OK;

    part(lead, p, s, given, i);
    for (int b = 0; b < p->count; b++)
        if (lead[b] == b && s->lead[b] != b) IPVG_TRY(ipvg_dit_copy(ex, &s->state[b], &s->state[s->lead[b]]));
    memcpy(s->lead, lead, sizeof lead);
done:
    return status;
}

ipvg_status ipvg_dit_pass_begin(ipvg_exec *ex, ipvg_dit_pass *p, const ipvg_dit *dit,
                                const ipvg_dit_branch *const *branch, int count)
{
    const ipvg_dit_config *c = &dit->config;
    const int64_t shape[] = {branch[0]->context->rope.shape[0], c->dim};
    int first = -1, last[IPVG_DIT_BRANCHES];
    ipvg_status status = IPVG_OK;

    *p = (ipvg_dit_pass){.dit = dit, .count = count, .branch = branch};
    for (int b = 0; b < count; b++) {
        p->needed[b] = c->n_vace;
        while (!ex->trace && p->needed[b] && !ipvg_dit_hint_counts(p, b, p->needed[b] - 1)) p->needed[b]--;
        if (first < 0 && p->needed[b]) first = b;
        p->c.lead[b] = p->needed[b] ? first : -1;
        IPVG_TRY(ipvg_arena_tensor(ex->ctx, ex->arena, &p->x.state[b], ex->be->activation, 2, shape));
    }
    part(last, p, &p->c, same_context, 0); /* last: where c will lead to */
    memcpy(p->c.lead, last, sizeof last);
    part(last, p, &p->c, same_words, c->layers);
    for (int b = 0; b < count; b++)
        if (last[b] == b) IPVG_TRY(ipvg_arena_tensor(ex->ctx, ex->arena, &p->c.state[b], ex->be->activation, 2, shape));
done:
    return status;
}

/* Is block i computed in this pass, whatever its state? */
static bool pass_runs(const void *pass, int i)
{
    const ipvg_dit_pass *p = pass;
    const int vace = i - p->dit->config.layers;
    bool run = false;
    for (int b = 0; b < p->count; b++) run |= vace < 0 ? runs(p->branch[b], i) : p->needed[b] > vace;
    return run;
}

ipvg_status ipvg_dit_pass_block(ipvg_exec *ex, ipvg_dit_pass *p, ipvg_dit_states *s, ipvg_dit_given *given, int i)
{
    const int vace = i - p->dit->config.layers; /* of which block; below 0: it is a main one */
    ipvg_dit_words words[IPVG_DIT_BRANCHES];
    ipvg_tensor *state[IPVG_DIT_BRANCHES];
    const ipvg_dit_block *block = NULL;
    int lead[IPVG_DIT_BRANCHES];
    ipvg_status status;

    IPVG_TRY(split(ex, p, s, same_attention, i));
    part(lead, p, s, same_words, i); /* here the block itself makes the copies, after self-attention */
    for (int a = 0; a < p->count; a++) {
        bool run = false;
        int n = 0;
        for (int b = a; b < p->count && s->lead[a] == a; b++) {
            if (s->lead[b] != a) continue;
            run |= vace < 0 ? runs(p->branch[b], i) : p->needed[b] > vace;
            if (lead[b] != b) continue;
            words[n] = words_of(p->branch[b], i);
            state[n++] = &s->state[b];
        }
        if (!run) continue;
        given->perturb = vace < 0 ? perturb_of(p->branch[a], i) : IPVG_DIT_ATTEND;
        given->blur = p->branch[a]->blur;
        if (!block) IPVG_TRY(ipvg_dit_block_enter(ex, &block, p->dit, i));
        IPVG_TRY(ipvg_dit_block_forward(ex, state, block, given, words, n));
    }
    if (block) IPVG_TRY(ipvg_dit_block_leave(ex, p->dit, ipvg_dit_block_next(p->dit, i, pass_runs, p)));
    memcpy(s->lead, lead, sizeof lead);
done:
    return status;
}

ipvg_status ipvg_dit_pass_hint(ipvg_exec *ex, ipvg_dit_pass *p, int n) { return split(ex, p, &p->x, same_hint, n); }

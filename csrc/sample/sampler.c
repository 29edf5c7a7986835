#include "sampler.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ==== settings ==== */

/* A copy of n items; NULL stays NULL. False: no memory. */
static bool copy(void *to, const void *from, int n, size_t size)
{
    void *p = NULL;
    if (from && n) {
        p = malloc((size_t)n * size);
        if (!p) return false;
        memcpy(p, from, (size_t)n * size);
    }
    memcpy(to, &p, sizeof p);
    return true;
}

static bool copy_branch(ipvg_sampler_branch *to, const ipvg_sampler_branch *from, const ipvg_dit_config *config)
{
    ipvg_dit_branch *how = &to->how;
    *to = *from;
    how->run = how->perturb = NULL; /* until they are our own */
    how->scale = how->reference_scale = NULL;
    return copy(&how->run, from->how.run, config->layers, 1) &&
           copy(&how->perturb, from->how.perturb, config->layers, 1) &&
           copy(&how->scale, from->how.scale, config->n_vace, sizeof(float)) &&
           copy(&how->reference_scale, from->how.reference_scale, config->n_vace, sizeof(float));
}

static void free_branch(ipvg_sampler_branch *b)
{
    const void *const arrays[] = {b->how.run, b->how.perturb, b->how.scale, b->how.reference_scale};
    for (int i = 0; i < 4; i++) free((void *)(uintptr_t)arrays[i]);
}

static ipvg_status check_operations(ipvg_context *ctx, int count, int operations, const ipvg_guidance_operation *op)
{
    if (operations < 0 || operations > IPVG_GUIDANCE_OPERATIONS)
        return ipvg_fail(ctx, IPVG_E_ARGUMENT, "operations: expected 0 to %d, got %d", IPVG_GUIDANCE_OPERATIONS,
                         operations);
    for (int i = 0; i < operations; i++)
        if (op[i].cond < 0 || op[i].cond >= count || (op[i].kind != IPVG_RESCALE && op[i].uncond < 0) ||
            op[i].uncond >= count || (op[i].kind != IPVG_RESCALE && op[i].cond == op[i].uncond))
            return ipvg_fail(ctx, IPVG_E_ARGUMENT, "operation %d: needs two of %d branches", i, count);
    return IPVG_OK;
}

static ipvg_status copy_settings(ipvg_context *ctx, ipvg_sampler *s, int count, const ipvg_sampler_branch *branches,
                                 const float *weight, int operations, const ipvg_guidance_operation *operation)
{
    const size_t n = (size_t)count, ops = (size_t)operations + 1, weights = (size_t)s->schedule->steps * n;
    ipvg_status status;

    IPVG_TRY(check_operations(ctx, count, operations, operation));
    for (size_t i = 0; i < weights; i++)
        if (!isfinite(weight[i]))
            return ipvg_fail(ctx, IPVG_E_ARGUMENT, "weight of branch %zu at step %zu: not a finite float32", i % n,
                             i / n);
    s->branch = calloc(n, sizeof *s->branch);
    s->velocity = calloc(3 * n, sizeof *s->velocity);
    s->running = calloc(ops, sizeof *s->running);
    s->now = calloc(2 * ops, sizeof *s->now);
    s->operation = calloc(ops, sizeof *s->operation);
    if (!s->branch || !s->velocity || !s->running || !s->now || !s->operation ||
        !copy(&s->weight, weight, (int)weights, sizeof *weight))
        return ipvg_fail(ctx, IPVG_E_MEMORY, "no memory for %d branches of %d steps", count, s->schedule->steps);
    s->changed = s->velocity + n;
    s->field = s->changed + n;
    s->moved = s->now + ops;
    s->operations = operations;
    for (int i = 0; i < operations; i++) s->operation[i] = operation[i];
    for (int b = 0; b < count; b++)
        if (branches[b].twin < 0 || branches[b].twin > b)
            return ipvg_fail(ctx, IPVG_E_ARGUMENT, "branch %d: its twin must be an earlier branch", b);
    while (s->count < count) { /* counted before: the one that fails may own an array */
        int b = s->count++;
        if (!copy_branch(&s->branch[b], &branches[b], ipvg_dit_get_config(s->dit)))
            return ipvg_fail(ctx, IPVG_E_MEMORY, "no memory for a branch");
    }
done:
    return status;
}

/* ==== memory ==== */

static bool is_changed(const ipvg_sampler *s, int b)
{
    bool changed = s->branch[b].field;
    for (int i = 0; i < s->operations; i++)
        changed = changed || (s->operation[i].kind != IPVG_RESCALE && s->operation[i].uncond == b);
    return changed;
}

/* Every tensor of a run, in the order of its memory, after the solver's state; NULL past the last. */
static ipvg_tensor *tensor_at(ipvg_sampler *s, int i)
{
    for (int k = 0; k < s->operations; k++)
        if (s->operation[k].kind == IPVG_APG && (i -= 2) < 0) return &s->running[k][i + 2];
    if (i-- == 0) return &s->combined;
    for (int b = 0; b < s->count; b++)
        if (!s->branch[b].twin && i-- == 0) return &s->velocity[b];
    for (int b = 0; b < s->count; b++)
        if (is_changed(s, b) && i-- == 0) return &s->changed[b];
    for (int b = 0; b < s->count; b++)
        if (s->branch[b].field && i-- == 0) return &s->field[b];
    return NULL;
}

static ipvg_status zero(ipvg_exec *ex, ipvg_tensor *t)
{
    return ipvg_combine(ex, t, 1, (const ipvg_tensor *[]){t}, (const float[]){0.f}); /* its only term is dropped */
}

/* One block of the backend's memory for all tensors; what a run starts from is zero. */
static ipvg_status take_memory(ipvg_exec *ex, ipvg_sampler *s)
{
    int64_t shape[4] = {ipvg_dit_get_config(s->dit)->in_dim};
    ipvg_status status;

    for (int b = 0; b < s->count; b++) {
        int f, h, w;
        ipvg_dit_context_size(s->branch[b].how.context, &f, &h, &w);
        if (b && (f != shape[1] || h != shape[2] || w != shape[3]))
            return ipvg_fail(ex->ctx, IPVG_E_ARGUMENT,
                             "branch %d: its context is for latents (%d, %d, %d), not (%lld, %lld, %lld)", b, f, h, w,
                             (long long)shape[1], (long long)shape[2], (long long)shape[3]);
        shape[1] = f, shape[2] = h, shape[3] = w;
    }
    ipvg_tensor latent = ipvg_tensor_make(NULL, IPVG_F32, 4, shape);
    size_t state = ipvg_schedule_state_bytes(ipvg_tensor_count(&latent)), slot = state / IPVG_SCHEDULE_SLOTS;
    int count = 0;
    while (tensor_at(s, count)) count++;
    s->bytes = state + slot * (size_t)count;
    IPVG_TRY(ex->be->memory.alloc(&ex->be->memory, ex->ctx, &s->memory, s->bytes));
    s->state = ipvg_schedule_state_at(s->memory, 4, shape);
    s->state.step = s->schedule->config.start;
    for (int i = 0; i < count; i++) {
        ipvg_tensor *t = tensor_at(s, i);
        *t = latent;
        t->data = (char *)s->memory + state + (size_t)i * slot;
    }
    for (int b = 0; b < s->count; b++)
        if (s->branch[b].twin) s->velocity[b] = s->velocity[s->branch[b].twin - 1];
    for (int i = 0; ipvg_sampler_state(s, i); i++) IPVG_TRY(zero(ex, ipvg_sampler_state(s, i)));
    for (int b = 0; b < s->count; b++)
        if (s->branch[b].field) IPVG_TRY(zero(ex, &s->field[b]));
done:
    return status;
}

ipvg_tensor *ipvg_sampler_state(ipvg_sampler *s, int i)
{
    ipvg_tensor *const solver[IPVG_SCHEDULE_SLOTS] = {&s->state.x, &s->state.anchor, &s->state.x0[0], &s->state.x0[1],
                                                      &s->state.x0[2]};
    if (i < IPVG_SCHEDULE_SLOTS) return solver[i];
    i -= IPVG_SCHEDULE_SLOTS;
    for (int k = 0; k < s->operations; k++)
        if (s->operation[k].kind == IPVG_APG && i-- == 0) return &s->running[k][s->now[k]];
    return NULL;
}

/* ==== new, free ==== */

/* What is kept of the forwards of these branches; NULL: too many others are. */
static ipvg_replay *replay_of(ipvg_sampler *s, int branches)
{
    for (int i = 0; i < IPVG_SAMPLER_REPLAYS; i++) {
        if (!s->again[i].branches) s->again[i].branches = branches;
        if (s->again[i].branches == branches) return &s->again[i].forward;
    }
    return NULL;
}

static void forget(const ipvg_backend *be, ipvg_sampler *s)
{
    for (int i = 0; i < IPVG_SAMPLER_REPLAYS; i++) ipvg_replay_free(be, &s->again[i].forward);
}

/* The velocities of the needed branches at step k; NULL: the most that any step needs, for planning. */
static ipvg_status forward(ipvg_exec *ex, ipvg_sampler *s, int k, const bool *needed)
{
    ipvg_tensor *velocity[IPVG_SAMPLER_BRANCHES];
    ipvg_dit_branch branch[IPVG_SAMPLER_BRANCHES];
    const ipvg_dit_branch *given[IPVG_SAMPLER_BRANCHES];
    ipvg_status status = IPVG_OK;
    int n = 0, set = 0;

    for (int b = 0; b < s->count; b++) {
        if (s->branch[b].twin || (needed && !needed[b])) continue;
        branch[n] = s->branch[b].how;
        if (!needed) branch[n].scale = NULL; /* scales can change, so that every hint counts */
        velocity[n] = &s->velocity[b];
        given[n] = &branch[n];
        n++;
        set |= 1 << b;
    }
    if (n)
        IPVG_TRY(ipvg_dit_forward(ex, velocity, &s->state.x, (double)s->schedule->step[k].timestep, s->dit, given, n,
                                  needed ? replay_of(s, set) : NULL));
    s->forwards += n;
done:
    return status;
}

static ipvg_status plan(ipvg_exec *ex, ipvg_sampler *s)
{
    const ipvg_tensor *all[] = {&s->combined, &s->combined, &s->combined};
    double gram[9];
    ipvg_status status;

    ipvg_arena_plan(ex->arena);
    IPVG_TRY(forward(ex, s, 0, NULL));
    s->forwards = 0;
    s->scratch = ex->arena->peak;
    ipvg_arena_plan(ex->arena);
    if (s->operations) IPVG_TRY(ipvg_gram(ex, gram, NULL, 3, all));
    if (ex->arena->peak > s->scratch) s->scratch = ex->arena->peak;
    IPVG_TRY(ipvg_arena_reserve(ex->ctx, &ex->be->memory, ex->arena, s->scratch));
done:
    return status;
}

ipvg_status ipvg_sampler_new(ipvg_exec *ex, ipvg_sampler **out, const ipvg_dit *dit, const ipvg_schedule *schedule,
                             int count, const ipvg_sampler_branch *branches, const float *weight, int operations,
                             const ipvg_guidance_operation *operation)
{
    ipvg_status status;
    *out = NULL;
    if (count < 1 || count > IPVG_SAMPLER_BRANCHES)
        return ipvg_fail(ex->ctx, IPVG_E_ARGUMENT, "branches: expected 1 to %d, got %d", IPVG_SAMPLER_BRANCHES, count);
    ipvg_sampler *s = calloc(1, sizeof *s);
    if (!s) return ipvg_fail(ex->ctx, IPVG_E_MEMORY, "no memory for a sampler");
    s->dit = dit;
    s->schedule = schedule;
    s->seen = -1;
    IPVG_TRY(copy_settings(ex->ctx, s, count, branches, weight, operations, operation));
    IPVG_TRY(take_memory(ex, s));
    IPVG_TRY(plan(ex, s));
    IPVG_TRY(ipvg_dit_settle(ex, dit));
    *out = s;
    s = NULL;
done:
    ipvg_arena_unplan(ex->arena);
    ipvg_sampler_free(ex->be, &s);
    return status;
}

void ipvg_sampler_free(const ipvg_backend *be, ipvg_sampler **sampler)
{
    ipvg_sampler *s = *sampler;
    if (!s) return;
    forget(be, s);
    for (int b = 0; b < s->count; b++) free_branch(&s->branch[b]);
    if (s->memory) be->memory.free(&be->memory, s->memory);
    free(s->branch);
    free(s->velocity);
    free(s->running);
    free(s->now);
    free(s->operation);
    free(s->weight);
    free(s);
    *sampler = NULL;
}

/* ==== changes between steps ==== */

ipvg_status ipvg_sampler_set(ipvg_exec *ex, ipvg_sampler *s, const float *x)
{
    return ex->be->copy_in(ex, &s->state.x, x);
}

ipvg_status ipvg_sampler_set_field(ipvg_exec *ex, ipvg_sampler *s, int b, const float *field)
{
    if (!s->branch[b].field) return ipvg_fail(ex->ctx, IPVG_E_ARGUMENT, "branch %d has no field of weights", b);
    return ex->be->copy_in(ex, &s->field[b], field);
}

/* True if it was something else. */
static bool change(const float *to, const float *from, size_t bytes)
{
    if (!to || !from || !memcmp(to, from, bytes)) return false;
    memcpy((float *)(uintptr_t)to, from, bytes);
    return true;
}

void ipvg_sampler_set_scale(const ipvg_backend *be, ipvg_sampler *s, int b, const float *scale, const float *reference)
{
    const size_t bytes = (size_t)ipvg_dit_get_config(s->dit)->n_vace * sizeof *scale;
    const ipvg_dit_branch *how = &s->branch[b].how;
    const bool one = change(how->scale, scale, bytes), two = change(how->reference_scale, reference, bytes);
    if (one || two) forget(be, s);
}

/* ==== a step ==== */

/* needed[b] and on[i]: which branches and operations count at step k. An operation counts where its result is used. */
static void needs(const ipvg_sampler *s, int k, bool *needed, bool *on)
{
    bool any = false;
    for (int b = 0; b < s->count; b++) any |= needed[b] = s->weight[(size_t)k * (size_t)s->count + (size_t)b] != 0;
    for (int i = s->operations - 1; i >= 0; i--)
        if (s->operation[i].kind == IPVG_RESCALE && (on[i] = any)) needed[s->operation[i].cond] = true;
    for (int i = s->operations - 1; i >= 0; i--)
        if (s->operation[i].kind != IPVG_RESCALE && (on[i] = needed[s->operation[i].uncond]))
            needed[s->operation[i].cond] = true;
    for (int b = s->count - 1; b >= 0; b--)
        if (needed[b] && s->branch[b].twin) needed[s->branch[b].twin - 1] = true;
}

bool ipvg_sampler_needs(const ipvg_sampler *s, int k, int b)
{
    bool needed[IPVG_SAMPLER_BRANCHES], on[IPVG_GUIDANCE_OPERATIONS];
    needs(s, k, needed, on);
    return needed[b];
}

ipvg_status ipvg_sampler_predict(ipvg_exec *ex, ipvg_sampler *s)
{
    bool needed[IPVG_SAMPLER_BRANCHES], on[IPVG_GUIDANCE_OPERATIONS];
    const int k = s->state.step;
    ipvg_status status;

    if (k >= s->schedule->steps)
        return ipvg_fail(ex->ctx, IPVG_E_ARGUMENT, "the run is finished: all %d steps are done", s->schedule->steps);
    s->seen = -1;
    needs(s, k, needed, on);
    /* No allocation, unless another model on this device, or Device.release(), has given the scratch away meanwhile. */
    IPVG_TRY(ipvg_arena_reserve(ex->ctx, &ex->be->memory, ex->arena, s->scratch));
    IPVG_TRY(forward(ex, s, k, needed));
    s->seen = k;
done:
    return status;
}

/* The running differences of this step count from now on. */
static void move(ipvg_sampler *s)
{
    for (int i = 0; i < s->operations; i++) s->now[i] = s->now[i] != s->moved[i];
}

/* The weighted sum of the branches, after what operations and fields make of them; with `advance` the solver's update too, in
 * one pass if nothing comes between. */
static ipvg_status guide(ipvg_exec *ex, ipvg_sampler *s, bool advance)
{
    bool needed[IPVG_SAMPLER_BRANCHES], on[IPVG_GUIDANCE_OPERATIONS], rescaled = false;
    const ipvg_tensor *term[IPVG_SAMPLER_BRANCHES];
    ipvg_sum sum[1 + IPVG_SCHEDULE_SUMS];
    const int k = s->state.step;
    ipvg_schedule_update update;
    ipvg_guidance_step step;
    ipvg_status status;

    if (s->seen != k) return ipvg_fail(ex->ctx, IPVG_E_ARGUMENT, "step %d has not been predicted", k);
    step = (ipvg_guidance_step){.x = &s->state.x, .sigma = (double)s->schedule->step[k].sigma};
    needs(s, k, needed, on);
    IPVG_TRY(ipvg_arena_reserve(ex->ctx, &ex->be->memory, ex->arena, s->scratch));
    for (int b = 0; b < s->count; b++) term[b] = &s->velocity[b];
    for (int i = 0; i < s->operations; i++) {
        const ipvg_guidance_operation *op = &s->operation[i];
        const int now = s->now[i], apg = op->kind == IPVG_APG;
        s->moved[i] = 0;
        if (op->kind == IPVG_RESCALE || !on[i]) continue;
        step.cond = term[op->cond], step.uncond = term[op->uncond];
        IPVG_TRY(ipvg_guidance_replace(ex, &s->changed[op->uncond], op, &step, apg ? &s->running[i][now] : NULL,
                                       apg ? &s->running[i][!now] : NULL));
        s->moved[i] = (unsigned char)apg;
        term[op->uncond] = &s->changed[op->uncond];
    }
    for (int b = 0; b < s->count; b++) {
        if (!s->branch[b].field || !needed[b]) continue;
        IPVG_TRY(ipvg_multiply(ex, &s->changed[b], term[b], &s->field[b]));
        term[b] = &s->changed[b];
    }
    for (int i = 0; i < s->operations; i++) rescaled |= s->operation[i].kind == IPVG_RESCALE && on[i];
    sum[0] = (ipvg_sum){&s->combined, s->count, term, s->weight + (size_t)k * (size_t)s->count};
    if (advance && !rescaled) {
        IPVG_TRY(ipvg_schedule_sums(ex->ctx, &update, s->schedule, &s->state, &s->combined));
        memcpy(sum + 1, update.sum, sizeof update.sum);
        IPVG_TRY(ipvg_sums(ex, sum, 1 + IPVG_SCHEDULE_SUMS));
        s->state.step++;
        move(s);
        goto done;
    }
    IPVG_TRY(ipvg_sums(ex, sum, 1));
    for (int i = 0; i < s->operations; i++) {
        if (s->operation[i].kind != IPVG_RESCALE || !on[i]) continue;
        step.cond = &s->velocity[s->operation[i].cond];
        IPVG_TRY(ipvg_guidance_rescale(ex, &s->combined, &s->operation[i], &step));
    }
    if (advance) IPVG_TRY(ipvg_sampler_advance(ex, s));
done:
    return status;
}

ipvg_status ipvg_sampler_combine(ipvg_exec *ex, ipvg_sampler *s) { return guide(ex, s, false); }

ipvg_status ipvg_sampler_advance(ipvg_exec *ex, ipvg_sampler *s)
{
    ipvg_status status;

    if (s->seen != s->state.step)
        return ipvg_fail(ex->ctx, IPVG_E_ARGUMENT, "step %d has not been predicted", s->state.step);
    IPVG_TRY(ipvg_schedule_advance(ex, s->schedule, &s->state, &s->combined));
    move(s);
done:
    return status;
}

ipvg_status ipvg_sampler_step(ipvg_exec *ex, ipvg_sampler *s)
{
    ipvg_status status;

    IPVG_TRY(ipvg_sampler_predict(ex, s));
    IPVG_TRY(guide(ex, s, true));
done:
    return status;
}

#include "sampler.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static ipvg_status copy_branch(ipvg_context *ctx, ipvg_sampler_branch *to, const ipvg_sampler_branch *from,
                               const ipvg_dit_config *config)
{
    unsigned char *run = NULL;
    float *scale = NULL;
    *to = *from;
    to->how.run = NULL; /* until they are our own */
    to->how.scale = NULL;
    if (from->how.run) {
        to->how.run = run = malloc((size_t)config->layers);
        if (!run) goto none;
        memcpy(run, from->how.run, (size_t)config->layers);
    }
    if (from->how.scale && config->n_vace) {
        to->how.scale = scale = malloc((size_t)config->n_vace * sizeof *scale);
        if (!scale) goto none;
        memcpy(scale, from->how.scale, (size_t)config->n_vace * sizeof *scale);
    }
    return IPVG_OK;
none:
    return ipvg_fail(ctx, IPVG_E_MEMORY, "no memory for a branch");
}

static ipvg_status copy_settings(ipvg_context *ctx, ipvg_sampler *s, int count, const ipvg_sampler_branch *branches,
                                 const float *weight)
{
    size_t weights = (size_t)s->schedule->steps * (size_t)count;
    ipvg_status status = IPVG_OK;
    for (size_t i = 0; i < weights; i++)
        if (!isfinite(weight[i]))
            return ipvg_fail(ctx, IPVG_E_ARGUMENT, "weight of branch %zu at step %zu: not a finite float32",
                             i % (size_t)count, i / (size_t)count);
    s->branch = calloc((size_t)count, sizeof *s->branch);
    s->velocity = calloc((size_t)count, sizeof *s->velocity);
    s->weight = malloc(weights * sizeof *s->weight);
    if (!s->branch || !s->velocity || !s->weight)
        return ipvg_fail(ctx, IPVG_E_MEMORY, "no memory for %d branches of %d steps", count, s->schedule->steps);
    memcpy(s->weight, weight, weights * sizeof *s->weight);
    for (s->count = 0; s->count < count; s->count++)
        IPVG_TRY(copy_branch(ctx, &s->branch[s->count], &branches[s->count], ipvg_dit_get_config(s->dit)));
done:
    if (status != IPVG_OK) s->count++; /* the branch that failed may own an array */
    return status;
}

/* One block of the backend's memory: the solver's state, every branch's velocity, the combined velocity. */
static ipvg_status take_memory(ipvg_exec *ex, ipvg_sampler *s)
{
    ipvg_status status;
    int64_t shape[4] = {ipvg_dit_get_config(s->dit)->in_dim};
    for (int b = 0; b < s->count; b++) {
        int f, h, w;
        ipvg_dit_context_size(s->branch[b].context, &f, &h, &w);
        if (b && (f != shape[1] || h != shape[2] || w != shape[3]))
            return ipvg_fail(ex->ctx, IPVG_E_ARGUMENT,
                             "branch %d: its context is for latents (%d, %d, %d), not (%lld, %lld, %lld)", b, f, h, w,
                             (long long)shape[1], (long long)shape[2], (long long)shape[3]);
        shape[1] = f, shape[2] = h, shape[3] = w;
    }
    ipvg_tensor latent = ipvg_tensor_make(NULL, IPVG_F32, 4, shape);
    size_t state = ipvg_schedule_state_bytes(ipvg_tensor_count(&latent)), slot = state / IPVG_SCHEDULE_SLOTS;
    s->bytes = state + slot * (size_t)(s->count + 1);
    IPVG_TRY(ex->be->memory.alloc(&ex->be->memory, ex->ctx, &s->memory, s->bytes));
    s->state = ipvg_schedule_state_at(s->memory, 4, shape);
    for (int b = 0; b <= s->count; b++) {
        ipvg_tensor *t = b < s->count ? &s->velocity[b] : &s->combined;
        *t = latent;
        t->data = (char *)s->memory + state + (size_t)b * slot;
    }
done:
    return status;
}

static ipvg_status forward(ipvg_exec *ex, ipvg_sampler *s, int b, int64_t timestep)
{
    const ipvg_sampler_branch *branch = &s->branch[b];
    return ipvg_dit_forward(ex, &s->velocity[b], &s->state.x, (double)timestep, s->dit, branch->text, branch->context,
                            &branch->how);
}

ipvg_status ipvg_sampler_new(ipvg_exec *ex, ipvg_sampler **out, const ipvg_dit *dit, const ipvg_schedule *schedule,
                             int count, const ipvg_sampler_branch *branches, const float *weight)
{
    ipvg_status status;
    *out = NULL;
    if (count < 1 || count > IPVG_SAMPLER_BRANCHES)
        return ipvg_fail(ex->ctx, IPVG_E_ARGUMENT, "branches: expected 1 to %d, got %d", IPVG_SAMPLER_BRANCHES, count);
    ipvg_sampler *s = calloc(1, sizeof *s);
    if (!s) return ipvg_fail(ex->ctx, IPVG_E_MEMORY, "no memory for a sampler");
    s->dit = dit;
    s->schedule = schedule;
    IPVG_TRY(copy_settings(ex->ctx, s, count, branches, weight));
    IPVG_TRY(take_memory(ex, s));
    for (int b = 0; b < count; b++) {
        ipvg_arena_plan(ex->arena);
        IPVG_TRY(forward(ex, s, b, 0));
        if (ex->arena->peak > s->scratch) s->scratch = ex->arena->peak;
    }
    IPVG_TRY(ipvg_arena_reserve(ex->ctx, &ex->be->memory, ex->arena, s->scratch));
    *out = s;
    s = NULL;
done:
    ex->arena->planning = false;
    ipvg_sampler_free(ex->be, &s);
    return status;
}

void ipvg_sampler_free(const ipvg_backend *be, ipvg_sampler **sampler)
{
    ipvg_sampler *s = *sampler;
    if (!s) return;
    for (int b = 0; b < s->count; b++) {
        free((void *)(uintptr_t)s->branch[b].how.run);
        free((void *)(uintptr_t)s->branch[b].how.scale);
    }
    if (s->memory) be->memory.free(&be->memory, s->memory);
    free(s->branch);
    free(s->velocity);
    free(s->weight);
    free(s);
    *sampler = NULL;
}

ipvg_status ipvg_sampler_set(ipvg_exec *ex, ipvg_sampler *s, const float *x)
{
    return ex->be->copy_in(ex, &s->state.x, x);
}

ipvg_status ipvg_sampler_step(ipvg_exec *ex, ipvg_sampler *s)
{
    ipvg_status status;
    int k = s->state.step;
    if (k >= s->schedule->steps)
        return ipvg_fail(ex->ctx, IPVG_E_ARGUMENT, "the run is finished: all %d steps are done", s->schedule->steps);
    const float *weight = s->weight + (size_t)k * (size_t)s->count;
    const ipvg_tensor *velocity[IPVG_SAMPLER_BRANCHES];

    /* No allocation, unless another model on this device, or Device.release(), has given the scratch away meanwhile. */
    IPVG_TRY(ipvg_arena_reserve(ex->ctx, &ex->be->memory, ex->arena, s->scratch));
    for (int b = 0; b < s->count; b++) {
        velocity[b] = &s->velocity[b];
        if (weight[b] == 0) continue;
        IPVG_TRY(forward(ex, s, b, s->schedule->step[k].timestep));
        s->forwards++;
    }
    IPVG_TRY(ipvg_combine(ex, &s->combined, s->count, velocity, weight));
    IPVG_TRY(ipvg_schedule_advance(ex, s->schedule, &s->state, &s->combined));
done:
    return status;
}

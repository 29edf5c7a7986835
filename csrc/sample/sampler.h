/* The denoising loop: at each step one model forward for each branch that counts, their weighted sum, one solver step.
 *
 *     ipvg_sampler *s = NULL;
 *     IPVG_TRY(ipvg_sampler_new(ex, &s, dit, schedule, 3, branches, weights));
 *     IPVG_TRY(ipvg_sampler_set(ex, s, noise));
 *     while (s->state.step < schedule->steps) {
 *         IPVG_TRY(ipvg_sampler_step(ex, s));
 *         // s->velocity[b], s->combined, *ipvg_schedule_x0(&s->state), s->state.x hold this step's tensors
 *     }
 *     ipvg_sampler_free(ex->be, &s);
 *
 * All that a run needs is taken in ipvg_sampler_new: a step allocates nothing. */
#ifndef IPVG_SAMPLE_SAMPLER_H
#define IPVG_SAMPLE_SAMPLER_H

#include "../model/dit.h"
#include "schedule.h"

#define IPVG_SAMPLER_BRANCHES 16 /* what one ipvg_combine takes */

typedef struct ipvg_sampler_branch {
    const ipvg_dit_text *text;       /* borrowed, as are the model and the schedule: they must outlive the sampler */
    const ipvg_dit_context *context; /* all branches: of one latent size */
    ipvg_dit_branch how;             /* its arrays are copied */
} ipvg_sampler_branch;

typedef struct ipvg_sampler {
    const ipvg_dit *dit;
    const ipvg_schedule *schedule;
    int count; /* branches */
    ipvg_sampler_branch *branch;
    float *weight;    /* (steps, count): velocity of step k = sum over b of weight[k][b] velocity[b] */
    int64_t forwards; /* model forwards done so far */

    /* The run. `state` is all that the next step depends on; the rest is this step's results. */
    ipvg_schedule_state state;
    ipvg_tensor *velocity; /* (count), each (C, F, h, w): of the last step, stale where its weight was 0 */
    ipvg_tensor combined;  /* (C, F, h, w) */

    void *memory; /* the backend's, holds the tensors above */
    size_t bytes;
    size_t scratch; /* of the arena, in a step */
} ipvg_sampler;

/* weight: (steps of the schedule, count), finite. Plans every branch's forward and grows ex->arena to fit. */
ipvg_status ipvg_sampler_new(ipvg_exec *ex, ipvg_sampler **out, const ipvg_dit *dit, const ipvg_schedule *schedule,
                             int count, const ipvg_sampler_branch *branches, const float *weight);
void ipvg_sampler_free(const ipvg_backend *be, ipvg_sampler **sampler);

/* Puts host float32 `x` (C, F, h, w) where the model will see it next: the noise at first; later it replaces the sample
 * and leaves the solver's history as it is. */
ipvg_status ipvg_sampler_set(ipvg_exec *ex, ipvg_sampler *sampler, const float *x);

/* A branch whose weight is 0 at this step is not computed. On failure, IPVG_E_CANCELLED included, `state` is that of the
 * last completed step and the call can be made again; only the velocities have been written to. */
ipvg_status ipvg_sampler_step(ipvg_exec *ex, ipvg_sampler *sampler);

#endif

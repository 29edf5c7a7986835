/* The denoising loop: at each step a prediction of each branch that counts, their combination, one solver step.
 *
 *     ipvg_sampler *s = NULL;
 *     IPVG_TRY(ipvg_sampler_new(ex, &s, dit, schedule, 3, branches, weights, 0, NULL));
 *     IPVG_TRY(ipvg_sampler_set(ex, s, noise));
 *     while (s->state.step < schedule->steps) {
 *         IPVG_TRY(ipvg_sampler_step(ex, s));          // or its three parts, with a look or a change between them
 *         // s->velocity[b], s->combined, *ipvg_schedule_x0(&s->state), s->state.x hold this step's tensors
 *     }
 *     ipvg_sampler_free(ex->be, &s);
 *
 * All that a run needs is taken in ipvg_sampler_new: a step allocates nothing (but the second of a small model on a GPU, which
 * is where the driver keeps its kernels as a graph). */
#ifndef IPVG_SAMPLE_SAMPLER_H
#define IPVG_SAMPLE_SAMPLER_H

#include "../model/dit.h"
#include "guidance.h"
#include "schedule.h"

#define IPVG_SAMPLER_BRANCHES IPVG_DIT_BRANCHES /* also what one ipvg_combine takes */

#define IPVG_SAMPLER_REPLAYS 4

typedef struct ipvg_sampler_branch {
    ipvg_dit_branch
        how;    /* its arrays are copied; scales can be changed later, ipvg_sampler_set_scale. Texts and contexts,
                          * all of one latent size, are borrowed, as are the model and the schedule: they must outlive it */
    bool field; /* its weight is one number an element: ipvg_sampler_set_field */
    int twin;   /* 1 + an earlier branch that is given the same: predicted once; 0: none */
} ipvg_sampler_branch;

typedef struct ipvg_sampler {
    const ipvg_dit *dit;
    const ipvg_schedule *schedule;
    int count; /* branches */
    ipvg_sampler_branch *branch;
    float *weight; /* (steps, count): velocity of step k = sum over b of weight[k][b] field[b] velocity[b] */
    int operations;
    ipvg_guidance_operation *operation; /* in order; those that replace run before the sum, rescaling after it */
    int64_t forwards;                   /* predictions made so far */

    /* The run: `state` and `running` are all that the next step depends on; the rest is this step's results. */
    ipvg_schedule_state state;
    ipvg_tensor (*running)[2]; /* (operations): of APG, the running difference; which one is now, says `now` */
    unsigned char *now;        /* (operations) */
    unsigned char *moved;      /* (operations): running[!now] has been made in this step */
    int seen;                  /* the step whose results these are, or -1 */
    ipvg_tensor *velocity;     /* (count), each (C, F, h, w): as predicted; stale where not needed */
    ipvg_tensor *changed;      /* (count): what an operation or a field made of it; no data where neither does */
    ipvg_tensor *field;        /* (count): no data where the branch has none */
    ipvg_tensor combined;      /* (C, F, h, w) */

    struct {
        int branches; /* predicted together, as bits */
        ipvg_replay forward;
    } again[IPVG_SAMPLER_REPLAYS]; /* as many sets of branches as a rule has in its steps, or the first of them */

    void *memory; /* the backend's, holds the tensors above */
    size_t bytes;
    size_t scratch; /* of the arena, in a step */
} ipvg_sampler;

/* weight: (steps of the schedule, count), finite. Plans a forward of all branches and grows ex->arena to fit. */
ipvg_status ipvg_sampler_new(ipvg_exec *ex, ipvg_sampler **out, const ipvg_dit *dit, const ipvg_schedule *schedule,
                             int count, const ipvg_sampler_branch *branches, const float *weight, int operations,
                             const ipvg_guidance_operation *operation);
void ipvg_sampler_free(const ipvg_backend *be, ipvg_sampler **sampler);

/* Is branch b predicted at step k? Where its weight is not 0, or an operation that counts there reads it. */
bool ipvg_sampler_needs(const ipvg_sampler *sampler, int k, int b);

/* Puts float32 `x` (C, F, h, w), of the host's memory or the backend's, where the model will see it next: the noise at first;
 * later it replaces the sample and leaves the solver's history as it is. */
ipvg_status ipvg_sampler_set(ipvg_exec *ex, ipvg_sampler *sampler, const float *x);
/* The weights of a branch's elements, float32 (C, F, h, w) as for set, from the next step on. They are 0 at first. */
ipvg_status ipvg_sampler_set_field(ipvg_exec *ex, ipvg_sampler *sampler, int b, const float *field);
/* The context scales of a branch, (n_vace) each, from the next step on. reference may be NULL: as before. */
void ipvg_sampler_set_scale(const ipvg_backend *be, ipvg_sampler *sampler, int b, const float *scale,
                            const float *reference);

/* A branch that is not needed at this step is not computed. On failure, IPVG_E_CANCELLED included, `state` is that of the
 * last completed step and the call can be made again; only the velocities have been written to. */
ipvg_status ipvg_sampler_step(ipvg_exec *ex, ipvg_sampler *sampler);
/* Its parts: the branches' predictions, made together; their combination; the solver. Each may be repeated until the last is done; in
 * between, velocity[b] or `combined` may be written to. */
ipvg_status ipvg_sampler_predict(ipvg_exec *ex, ipvg_sampler *sampler);
ipvg_status ipvg_sampler_combine(ipvg_exec *ex, ipvg_sampler *sampler);
ipvg_status ipvg_sampler_advance(ipvg_exec *ex, ipvg_sampler *sampler);

/* The tensors that a run goes on from, for snapshots and forks: tensor i, NULL past the last. With state.step, `forwards`
 * and these copied into a sampler of the same settings, that one continues to the same bytes. */
ipvg_tensor *ipvg_sampler_state(ipvg_sampler *sampler, int i);

#endif

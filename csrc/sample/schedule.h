/* The noise schedule and its solver: which sigmas a run visits, and how a velocity moves the sample from one to the next.
 *
 *     ipvg_schedule *s = NULL;
 *     IPVG_TRY(ipvg_schedule_new(ctx, &s, &(ipvg_schedule_config){.solver = IPVG_UNIPC, .steps = 50, .shift = 16}));
 *     void *memory;                                   // ipvg_schedule_state_bytes(count) bytes of the backend's memory
 *     ipvg_schedule_state state = ipvg_schedule_state_at(memory, 4, shape);
 *     IPVG_TRY(be->copy_in(ex, &state.x, noise));
 *     while (state.step < s->steps) {
 *         ... velocity = model(state.x, s->step[state.step].timestep) ...
 *         IPVG_TRY(ipvg_schedule_advance(ex, s, &state, &velocity));
 *     }                                               // state.x is the clean latent
 *     ipvg_schedule_free(&s);
 *
 * Rectified flow: x = (1 - sigma) clean + sigma noise, velocity = noise - clean, so x0 = x - sigma velocity.
 * Everything is indexed by step, never by timestep: two steps may have the same integer timestep (68 steps at shift 16).
 *
 * A solver is data too. All of them make one step out of the same three sums, whose weights are worked out once, in
 * double, when the schedule is made (schedule.c):
 *
 *     x0     = x - sigma velocity                                                        kept for two more steps
 *     anchor = correct . (previous anchor, x0, x0 of the last step, x0 of the one before)     UniPC; else anchor = x
 *     x      = predict . (anchor, velocity, x0, x0 of the last step) */
#ifndef IPVG_SAMPLE_SCHEDULE_H
#define IPVG_SAMPLE_SCHEDULE_H

#include "../ops/ops.h"

typedef enum ipvg_solver {
    IPVG_UNIPC, /* order 2, B(h) = expm1(-h), x0 prediction, with corrector */
    IPVG_DPMPP, /* DPM-Solver++ 2M, midpoint */
    IPVG_EULER,
} ipvg_solver;

typedef enum ipvg_sigma_convention {
    IPVG_SIGMAS_OFFICIAL,  /* from float32(0.999) down (UniPC, Euler), from 1 down (DPM++) */
    IPVG_SIGMAS_DIFFUSERS, /* from 1 - 1e-6 towards 0.001 */
} ipvg_sigma_convention;

#define IPVG_MAX_STEPS 100000
#define IPVG_SCHEDULE_SLOTS 5 /* sample-sized tensors of a state */

typedef struct ipvg_schedule_config {
    ipvg_solver solver;
    ipvg_sigma_convention convention;
    int steps;    /* 1 .. IPVG_MAX_STEPS */
    double shift; /* > 0, finite; 1 leaves the sigmas evenly spaced */
    int start;    /* the step that a run begins with: it has no history there. 0 .. steps - 1 */
} ipvg_schedule_config;

typedef struct ipvg_schedule_step {
    float sigma, sigma_next;
    int64_t timestep; /* what the model is told: trunc(1000 sigma) of the unrounded sigma */
    int order;        /* of the predictor: 1 or 2 */
    bool corrects;    /* false: the anchor is x itself */
    float correct[4]; /* of the previous anchor, x0, the last x0, the one before */
    float predict[4]; /* of the anchor, velocity, x0, the last x0 */
} ipvg_schedule_step;

typedef struct ipvg_schedule {
    ipvg_schedule_config config;
    int steps;
    double *sigmas_f64;       /* (steps + 1), the last one 0: before rounding */
    float *sigmas;            /* (steps + 1): what the solver computes with */
    ipvg_schedule_step *step; /* (steps) */
} ipvg_schedule;

ipvg_status ipvg_schedule_new(ipvg_context *ctx, ipvg_schedule **out, const ipvg_schedule_config *config);
void ipvg_schedule_free(ipvg_schedule **schedule);

/* Where a run stands: plain data. A copy of the memory and of `step` is a fork or a snapshot. */
typedef struct ipvg_schedule_state {
    int step;           /* steps done, and the index of the next one */
    ipvg_tensor x;      /* float32, the sample that the model sees next */
    ipvg_tensor anchor; /* the corrected sample that the last step started from; undefined before the first */
    ipvg_tensor x0[3];  /* the x0 of step k lies in x0[k % 3] */
} ipvg_schedule_state;

/* Bytes of memory for samples of `count` elements, and a state at step 0 laid out in it; x is still to be filled. */
size_t ipvg_schedule_state_bytes(int64_t count);
ipvg_schedule_state ipvg_schedule_state_at(void *memory, int ndim, const int64_t *shape);
/* The x0 that the last step predicted; step >= 1. */
static inline const ipvg_tensor *ipvg_schedule_x0(const ipvg_schedule_state *state)
{
    return &state->x0[(state->step - 1) % 3];
}

/* A step as sums, in this order: x0, the anchor, the next x. When they have been computed (ipvg_sums), state->step is one more.
 * It points into itself. */
#define IPVG_SCHEDULE_SUMS 3
typedef struct ipvg_schedule_update {
    const ipvg_tensor *term[IPVG_SCHEDULE_SUMS][4];
    float of_x0[2], of_x[1];
    ipvg_sum sum[IPVG_SCHEDULE_SUMS];
} ipvg_schedule_update;
ipvg_status ipvg_schedule_sums(ipvg_context *ctx, ipvg_schedule_update *out, const ipvg_schedule *schedule,
                               ipvg_schedule_state *state, const ipvg_tensor *velocity);

/* One step. velocity: float32, the shape of x. On failure the state is as before the call, save its scratch slots. */
ipvg_status ipvg_schedule_advance(ipvg_exec *ex, const ipvg_schedule *schedule, ipvg_schedule_state *state,
                                  const ipvg_tensor *velocity);

#endif

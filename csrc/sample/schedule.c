#include "schedule.h"

#include <math.h>
#include <stdlib.h>

/* ==== Sigmas ==== */

#define TRAIN_STEPS 1000

/* numpy.linspace(first, last, steps + 1)[i], with numpy's roundings: integer timesteps hang on the last bit. */
static double linspace(double first, double last, int steps, int i)
{
    double step = (last - first) / steps;
    return i * step + first;
}

static double shifted(double shift, double sigma) { return shift * sigma / (1 + (shift - 1) * sigma); }

static void fill_sigmas(ipvg_schedule *s)
{
    const ipvg_schedule_config *c = &s->config;
    /* The official UniPC rounds its training sigmas to float32: not 0.999 but 0.9990000128746033. */
    double first = c->solver == IPVG_DPMPP ? 1.0 : (double)0.999f, last = 0;
    if (c->convention == IPVG_SIGMAS_DIFFUSERS) first = 1, last = 1.0 / TRAIN_STEPS;
    for (int k = 0; k < s->steps; k++) s->sigmas_f64[k] = shifted(c->shift, linspace(first, last, s->steps, k));
    if (c->convention == IPVG_SIGMAS_DIFFUSERS && fabs(s->sigmas_f64[0] - 1) < 1e-6) s->sigmas_f64[0] -= 1e-6;
    /* At a huge shift that cut falls below the next sigmas: they must not rise again. */
    for (int k = 1; k < s->steps; k++) s->sigmas_f64[k] = fmin(s->sigmas_f64[k], s->sigmas_f64[k - 1]);
    s->sigmas_f64[s->steps] = 0;
    for (int k = 0; k <= s->steps; k++) s->sigmas[k] = (float)s->sigmas_f64[k];
}

/* ==== Solvers ==== */

/* lambda(to) - lambda(from), half the gain in log signal-to-noise: lambda = log((1 - sigma) / sigma), so -inf at sigma 1
 * and +inf at sigma 0. Equal sigmas (they can round to the same float at an extreme shift) give 0, also at the ends,
 * where the difference of the infinities would be NaN. */
static double lambda_step(double from, double to)
{
    if (from == to) return 0;
    return (log1p(-to) - log(to)) - (log1p(-from) - log(from));
}

/* One exponential-integrator step from sample a at sigma `from` to sigma `to`:
 *     to/from a - (1 - to) expm1(-h) (x0 + rest)
 * The caller spreads `rest`, the higher-order part. At h = inf, expm1(-h) = -1 and nothing is NaN. */
typedef struct integrator {
    double h;
    double keep; /* of the sample */
    double gain; /* of x0 + rest: -(1 - to) expm1(-h), >= 0 */
} integrator;

static integrator integrate(double from, double to)
{
    integrator i = {.h = lambda_step(from, to), .keep = 1, .gain = 0};
    if (from == to) return i; /* nothing to do: the sample stays */
    i.keep = to / from;
    i.gain = -(1 - to) * expm1(-i.h);
    return i;
}

/* r: how far back the last x0 lies, in units of this step (negative). 0 if it gives no slope. */
static double lookback(const float *sigma, int k, double h)
{
    double back = lambda_step(sigma[k], sigma[k - 1]);
    return h == 0 || isinf(h) ? 0 : back / h;
}

/* x[k+1] = keep anchor + gain (x0 + 1/2 (last x0 - x0) / r). UniPC's predictor and DPM++ 2M are this same formula; they
 * differ in the anchor (corrected or not) and in the sigmas. */
static void predictor(ipvg_schedule *s, int k)
{
    ipvg_schedule_step *step = &s->step[k];
    integrator i = integrate(s->sigmas[k], s->sigmas[k + 1]);
    /* First order at both ends: no history yet, and at sigma 0 the sample is exactly the last x0. */
    double r = k > s->config.start && k < s->steps - 1 ? lookback(s->sigmas, k, i.h) : 0;
    double slope = r != 0 ? 0.5 / r : 0; /* r = -inf after sigma 1: slope 0, in effect first order */
    step->order = k > s->config.start && k < s->steps - 1 ? 2 : 1;
    step->predict[0] = (float)i.keep;
    step->predict[2] = (float)(i.gain * (1 - slope));
    step->predict[3] = (float)(i.gain * slope);
}

/* Redoes the step that led to x[k], now that its x0 is known:
 *     keep (previous anchor) + gain (p + rho1 (q - p) / r + rho2 (x0 - p)),   p, q: the last x0 and the one before
 * of the order of the predictor that it corrects. Order 1: rho2 = 1/2. Order 2: rho1 + rho2 = b1, r rho1 + rho2 = b2. */
static void corrector(ipvg_schedule *s, int k)
{
    ipvg_schedule_step *step = &s->step[k];
    integrator i = integrate(s->sigmas[k - 1], s->sigmas[k]);
    double rho1 = 0, rho2 = 0.5;
    double r = s->step[k - 1].order == 2 ? lookback(s->sigmas, k - 1, i.h) : 0;
    if (r != 0) {
        double hh = -i.h, b = expm1(hh);
        double phi1 = b / hh - 1, phi2 = phi1 / hh - 0.5;
        double b1 = phi1 / b, b2 = 2 * phi2 / b;
        rho1 = (b2 - b1) / (r - 1);
        rho2 = b1 - rho1;
    }
    double slope = r != 0 ? rho1 / r : 0;
    step->corrects = true;
    step->correct[0] = (float)i.keep;
    step->correct[1] = (float)(i.gain * rho2);
    step->correct[2] = (float)(i.gain * (1 - slope - rho2));
    step->correct[3] = (float)(i.gain * slope);
}

static void fill_step(ipvg_schedule *s, int k)
{
    ipvg_schedule_step *step = &s->step[k];
    step->sigma = s->sigmas[k];
    step->sigma_next = s->sigmas[k + 1];
    step->timestep = (int64_t)(s->sigmas_f64[k] * TRAIN_STEPS);
    if (s->config.solver == IPVG_EULER) {
        step->order = 1;
        step->predict[0] = 1;
        step->predict[1] = step->sigma_next - step->sigma;
        return;
    }
    predictor(s, k);
    if (s->config.solver == IPVG_UNIPC && k > s->config.start) corrector(s, k);
}

ipvg_status ipvg_schedule_new(ipvg_context *ctx, ipvg_schedule **out, const ipvg_schedule_config *config)
{
    ipvg_status status = IPVG_OK;
    ipvg_schedule *s = NULL;
    *out = NULL;
    if (config->steps < 1 || config->steps > IPVG_MAX_STEPS)
        return ipvg_fail(ctx, IPVG_E_ARGUMENT, "steps: expected 1 to %d, got %d", IPVG_MAX_STEPS, config->steps);
    if (!(config->shift > 0) || isinf(config->shift))
        return ipvg_fail(ctx, IPVG_E_ARGUMENT, "shift: expected a number above 0, got %g", config->shift);

    if (config->start < 0 || config->start >= config->steps)
        return ipvg_fail(ctx, IPVG_E_ARGUMENT, "start: expected a step from 0 to %d, got %d", config->steps - 1,
                         config->start);

    size_t n = (size_t)config->steps;
    s = calloc(1, sizeof *s);
    if (s) {
        *s = (ipvg_schedule){.config = *config, .steps = config->steps};
        s->sigmas_f64 = calloc(n + 1, sizeof *s->sigmas_f64);
        s->sigmas = calloc(n + 1, sizeof *s->sigmas);
        s->step = calloc(n, sizeof *s->step);
    }
    if (!s || !s->sigmas_f64 || !s->sigmas || !s->step) {
        status = ipvg_fail(ctx, IPVG_E_MEMORY, "no memory for a schedule of %d steps", config->steps);
        goto done;
    }
    fill_sigmas(s);
    for (int k = 0; k < s->steps; k++) fill_step(s, k);
    *out = s;
    s = NULL;
done:
    ipvg_schedule_free(&s);
    return status;
}

void ipvg_schedule_free(ipvg_schedule **schedule)
{
    ipvg_schedule *s = *schedule;
    if (!s) return;
    free(s->sigmas_f64);
    free(s->sigmas);
    free(s->step);
    free(s);
    *schedule = NULL;
}

/* ==== State ==== */

static size_t slot_bytes(int64_t count)
{
    return ((size_t)count * sizeof(float) + IPVG_ALIGN - 1) / IPVG_ALIGN * IPVG_ALIGN;
}

size_t ipvg_schedule_state_bytes(int64_t count) { return IPVG_SCHEDULE_SLOTS * slot_bytes(count); }

ipvg_schedule_state ipvg_schedule_state_at(void *memory, int ndim, const int64_t *shape)
{
    ipvg_schedule_state state = {0};
    ipvg_tensor *slot[IPVG_SCHEDULE_SLOTS] = {&state.x, &state.anchor, &state.x0[0], &state.x0[1], &state.x0[2]};
    ipvg_tensor t = ipvg_tensor_make(memory, IPVG_F32, ndim, shape);
    size_t bytes = slot_bytes(ipvg_tensor_count(&t));
    for (int i = 0; i < IPVG_SCHEDULE_SLOTS; i++) {
        *slot[i] = t;
        if (memory) slot[i]->data = (char *)memory + (size_t)i * bytes;
    }
    return state;
}

ipvg_status ipvg_schedule_sums(ipvg_context *ctx, ipvg_schedule_update *out, const ipvg_schedule *schedule,
                               ipvg_schedule_state *state, const ipvg_tensor *velocity)
{
    int k = state->step;
    if (k >= schedule->steps)
        return ipvg_fail(ctx, IPVG_E_ARGUMENT, "the schedule is finished: all %d steps are done", schedule->steps);
    const ipvg_schedule_step *step = &schedule->step[k];
    ipvg_tensor *x = &state->x, *anchor = &state->anchor;
    ipvg_tensor *x0 = &state->x0[k % 3], *last = &state->x0[(k + 2) % 3], *before = &state->x0[(k + 1) % 3];

    /* x0 comes from the sample that the model saw, not from the corrected one. */
    *out = (ipvg_schedule_update){
        .term = {{x, velocity}, {anchor, x0, last, before}, {anchor, velocity, x0, last}},
        .of_x0 = {1, -step->sigma},
        .of_x = {1},
    };
    out->sum[0] = (ipvg_sum){x0, 2, out->term[0], out->of_x0};
    out->sum[1] = (ipvg_sum){anchor, 4, out->term[1], step->correct};
    if (!step->corrects) out->sum[1] = (ipvg_sum){anchor, 1, out->term[0], out->of_x}; /* x itself */
    out->sum[2] = (ipvg_sum){x, 4, out->term[2], step->predict};
    return IPVG_OK;
}

ipvg_status ipvg_schedule_advance(ipvg_exec *ex, const ipvg_schedule *schedule, ipvg_schedule_state *state,
                                  const ipvg_tensor *velocity)
{
    ipvg_schedule_update update;
    ipvg_status status;
    IPVG_TRY(ipvg_schedule_sums(ex->ctx, &update, schedule, state, velocity));
    IPVG_TRY(ipvg_sums(ex, update.sum, IPVG_SCHEDULE_SUMS));
    state->step++;
done:
    return status;
}

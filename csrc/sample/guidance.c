#include "guidance.h"

#include <math.h>

/* Inner products of the predictions c and u, in the operation's space. */
typedef struct products {
    double cc, cu, uu;
} products;

static ipvg_status predictions(ipvg_exec *ex, products *out, const ipvg_guidance_operation *op,
                               const ipvg_guidance_step *step)
{
    const ipvg_tensor *const all[] = {step->cond, step->uncond, step->x};
    const double s = step->sigma;
    const int n = op->x0 ? 3 : 2;
    double g[9];
    ipvg_status status;

    IPVG_TRY(ipvg_gram(ex, g, NULL, n, all));
    *out = (products){g[0], g[1], g[n + 1]};
    if (op->x0) { /* <x - s c, x - s u> */
        out->cc = g[8] - 2 * s * g[2] + s * s * g[0];
        out->cu = g[8] - s * (g[2] + g[5]) + s * s * g[1];
        out->uu = g[8] - 2 * s * g[5] + s * s * g[4];
    }
done:
    return status;
}

/* out = the velocity whose prediction in the operation's space is a cond + b uncond. */
static ipvg_status mix(ipvg_exec *ex, ipvg_tensor *out, const ipvg_guidance_operation *op,
                       const ipvg_guidance_step *step, double a, double b)
{
    const ipvg_tensor *const terms[] = {step->cond, step->uncond, step->x};
    const float weight[] = {(float)a, (float)b, op->x0 ? (float)((1 - a - b) / step->sigma) : 0.f};
    return ipvg_combine(ex, out, 3, terms, weight);
}

/* u <v1, u> for the unit vector v1 = (p c + q u) / sqrt(lambda), with (p, q) the first eigenvector of [cc cu; cu uu]:
 * <v1, u> = sqrt(lambda) q, so the projection is q (p c + q u). */
static void first_singular_vector(double *p, double *q, const products *g)
{
    const double half = (g->cc - g->uu) / 2, lambda = (g->cc + g->uu) / 2 + hypot(half, g->cu);
    *p = half >= 0 ? lambda - g->uu : g->cu; /* of the two forms, the one that does not cancel */
    *q = half >= 0 ? g->cu : lambda - g->cc;
    const double norm = hypot(*p, *q);
    if (norm > 0) *p /= norm, *q /= norm;
}

static ipvg_status apg(ipvg_exec *ex, ipvg_tensor *out, const ipvg_guidance_operation *op,
                       const ipvg_guidance_step *step, const ipvg_tensor *last, ipvg_tensor *next)
{
    const double s = step->sigma, sign = op->x0 ? -s : 1; /* x0 of cond less x0 of uncond = -s (cond - uncond) */
    const ipvg_tensor *const difference[] = {step->cond, step->uncond, last};
    const ipvg_tensor *const terms[] = {step->cond, next, step->x};
    double g[9], cc, cd;
    ipvg_status status;

    IPVG_TRY(ipvg_combine(ex, next, 3, difference, (const float[]){(float)sign, (float)-sign, (float)op->momentum}));
    IPVG_TRY(ipvg_gram(ex, g, NULL, 3, terms));
    cc = op->x0 ? g[8] - 2 * s * g[2] + s * s * g[0] : g[0];
    cd = op->x0 ? g[5] - s * g[1] : g[1];
    const double length = sqrt(g[4]), clip = op->norm > 0 && length > op->norm ? op->norm / length : 1;
    const double along = cc > 0 ? clip * (1 - op->eta) * cd / cc : 0; /* what is taken off along cond */
    /* uncond' = cond - d', d' = clip d - along cond, both as velocities. */
    const double of_d = op->x0 ? clip / s : -clip, of_x = op->x0 ? -along / s : 0;
    IPVG_TRY(ipvg_combine(ex, out, 3, terms, (const float[]){(float)(1 + along), (float)of_d, (float)of_x}));
done:
    return status;
}

ipvg_status ipvg_guidance_replace(ipvg_exec *ex, ipvg_tensor *out, const ipvg_guidance_operation *op,
                                  const ipvg_guidance_step *step, const ipvg_tensor *last, ipvg_tensor *next)
{
    products g = {0};
    double p, q;
    ipvg_status status;

    if (op->kind == IPVG_APG) return apg(ex, out, op, step, last, next);
    IPVG_TRY(predictions(ex, &g, op, step));
    if (op->kind == IPVG_OPTIMAL_SCALE) {
        IPVG_TRY(mix(ex, out, op, step, 0, g.uu > 0 ? g.cu / g.uu : 0));
    } else {
        first_singular_vector(&p, &q, &g);
        IPVG_TRY(mix(ex, out, op, step, q * p, q * q));
    }
done:
    return status;
}

ipvg_status ipvg_guidance_rescale(ipvg_exec *ex, ipvg_tensor *combined, const ipvg_guidance_operation *op,
                                  const ipvg_guidance_step *step)
{
    const ipvg_tensor *const all[] = {step->cond, combined, step->x};
    const double s = step->sigma, count = (double)ipvg_tensor_count(combined);
    const int n = op->x0 ? 3 : 2;
    double g[9] = {0}, sum[3] = {0}, variance[2];
    ipvg_status status;

    IPVG_TRY(ipvg_gram(ex, g, sum, n, all));
    for (int i = 0; i < 2; i++) {
        double square = g[i * n + i], total = sum[i];
        if (op->x0) square = g[8] - 2 * s * g[3 * i + 2] + s * s * square, total = sum[2] - s * total;
        variance[i] = square - total * total / count;
    }
    const double ratio = variance[1] > 0 && variance[0] > 0 ? sqrt(variance[0] / variance[1]) : 1;
    const double factor = op->phi * ratio + 1 - op->phi;
    const float weight[] = {(float)factor, op->x0 ? (float)((1 - factor) / s) : 0.f};
    IPVG_TRY(ipvg_combine(ex, combined, 2, (const ipvg_tensor *[]){combined, step->x}, weight));
done:
    return status;
}

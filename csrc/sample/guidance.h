/* Guidance beyond a weighted sum: operations on velocities that need inner products over the whole latent.
 *
 * Each of them comes down to a few inner products (added in double, in one order for any number of threads) and one
 * weighted sum of x, cond, uncond and, for APG, a running mean. So none needs more memory than its result.
 *
 * Space: an operation acts on velocities v, or on the clean latents x0 = x - sigma v that they imply. */
#ifndef IPVG_SAMPLE_GUIDANCE_H
#define IPVG_SAMPLE_GUIDANCE_H

#include "../ops/ops.h"

#define IPVG_GUIDANCE_OPERATIONS 16

typedef enum ipvg_guidance_kind {
    IPVG_OPTIMAL_SCALE, /* CFG-Zero*: uncond becomes a uncond, a = <cond, uncond> / |uncond|^2 */
    IPVG_APG,     /* d = cond - uncond + momentum d of the last step; at most |d| = norm; its part along cond times
                           eta; uncond becomes cond - d, so that uncond + w (cond - uncond) is cond + (w - 1) d */
    IPVG_TCFG,    /* uncond projected on the first right singular vector of the matrix [cond; uncond] */
    IPVG_RESCALE, /* after the sum: g becomes (phi std(cond) / std(g) + 1 - phi) g */
} ipvg_guidance_kind;

typedef struct ipvg_guidance_operation {
    ipvg_guidance_kind kind;
    int cond, uncond;           /* branches; IPVG_RESCALE has no uncond */
    bool x0;                    /* the space */
    double momentum, norm, eta; /* of IPVG_APG; norm 0: no limit */
    double phi;                 /* of IPVG_RESCALE */
} ipvg_guidance_operation;

/* What an operation sees of a step. All float32 of one shape. */
typedef struct ipvg_guidance_step {
    const ipvg_tensor *x; /* the sample that the model saw */
    double sigma;         /* > 0 */
    const ipvg_tensor *cond, *uncond;
} ipvg_guidance_step;

/* out becomes what stands for uncond from now on; it may be step->uncond. last, next: of IPVG_APG, its running
 * difference before and after (distinct tensors); NULL for the others. Takes scratch for the inner products. */
ipvg_status ipvg_guidance_replace(ipvg_exec *ex, ipvg_tensor *out, const ipvg_guidance_operation *op,
                                  const ipvg_guidance_step *step, const ipvg_tensor *last, ipvg_tensor *next);
/* IPVG_RESCALE of the weighted sum g, in place. */
ipvg_status ipvg_guidance_rescale(ipvg_exec *ex, ipvg_tensor *g, const ipvg_guidance_operation *op,
                                  const ipvg_guidance_step *step);

#endif

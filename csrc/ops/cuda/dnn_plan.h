/* Plans of cuDNN's graph interface: a shape becomes an operation graph, the library's heuristics name engines for it, and the
 * first of those that build and compute as asked become plans. Needs no GPU where the device is described instead: so
 * tests check on any machine that every shape of the real models has a plan. */
#ifndef IPVG_OPS_CUDA_DNN_PLAN_H
#define IPVG_OPS_CUDA_DNN_PLAN_H

#include <cudnn.h>

#include "dnn.h"

/* What a plan is for: the handle of a live GPU, or the description of one (ipvg_plan_device). */
typedef struct ipvg_plan_target {
    cudnnHandle_t handle;
    cudnnBackendDescriptor_t device;
} ipvg_plan_target;

typedef struct ipvg_plan {
    cudnnBackendDescriptor_t plan; /* NULL for a described GPU whose engine wants to load its code: attention's */
    int64_t offers;                /* configurations of engines that take the shape; 0 too without libcuda */
    int64_t rank;                  /* its place among these */
    int64_t engine;                /* the library's number of it */
    int64_t workspace;             /* bytes */
    bool tensor_cores;
    bool compiled; /* at run time, rather than shipped */
} ipvg_plan;

/* Up to `most` plans, the library's favourite first, and `count` of how many; with rank >= 0 only the one of that rank.
 * IPVG_E_UNSUPPORTED if there is none. For a described GPU count may be 0, then plan[0] says what is known. */
typedef struct ipvg_plan_wish {
    int most;
    int64_t rank;
} ipvg_plan_wish;
ipvg_status ipvg_plan_sdpa(ipvg_context *ctx, ipvg_plan *plan, int *count, ipvg_plan_wish wish, ipvg_plan_target target,
                           const ipvg_sdpa *s);
ipvg_status ipvg_plan_conv(ipvg_context *ctx, ipvg_plan *plan, int *count, ipvg_plan_wish wish, ipvg_plan_target target,
                           const ipvg_dnn_conv *c);
void ipvg_plan_free(ipvg_plan *plan);

/* What a run works on: device memory by name; attention's scale is read from the host when a run begins. */
typedef struct ipvg_plan_arguments {
    int count;
    int64_t name[5];
    void *data[5], *workspace;
} ipvg_plan_arguments;
ipvg_plan_arguments ipvg_plan_sdpa_arguments(void *o, const void *q, const void *k, const void *v, float *scale,
                                             void *workspace);
ipvg_plan_arguments ipvg_plan_conv_arguments(const ipvg_dnn_conv *c, void *y, const void *x, const void *w,
                                             const void *bias, void *workspace);
/* Queued on the handle's stream. */
ipvg_status ipvg_plan_run(ipvg_context *ctx, const ipvg_plan *plan, cudnnHandle_t handle, const ipvg_plan_arguments *a);

/* A device from cuDNN's own JSON description of it. */
ipvg_status ipvg_plan_device(ipvg_context *ctx, cudnnBackendDescriptor_t *out, const char *json);

#endif

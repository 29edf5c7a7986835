/* Plans of cuDNN's graph interface: a shape becomes an operation graph, the library's heuristics name engines for it, and the
 * first of those that builds and computes as asked becomes the plan. Needs no GPU where the device is described instead: so
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
    int64_t engine;                /* the library's number of it */
    int64_t workspace;             /* bytes */
    bool tensor_cores;
    bool compiled; /* at run time, rather than shipped */
} ipvg_plan;

/* Names of the tensors in a variant pack. */
enum {
    IPVG_UID_X = 1,
    IPVG_UID_W,
    IPVG_UID_BIAS,
    IPVG_UID_Y,
    IPVG_UID_Q,
    IPVG_UID_K,
    IPVG_UID_V,
    IPVG_UID_O,
    IPVG_UID_SCALE
};

/* IPVG_E_UNSUPPORTED if no engine takes the shape. */
ipvg_status ipvg_plan_sdpa(ipvg_context *ctx, ipvg_plan *out, ipvg_plan_target target, const ipvg_sdpa *s);
ipvg_status ipvg_plan_conv(ipvg_context *ctx, ipvg_plan *out, ipvg_plan_target target, const ipvg_dnn_conv *c);
void ipvg_plan_free(ipvg_plan *plan);

/* A device from cuDNN's own JSON description of it. */
ipvg_status ipvg_plan_device(ipvg_context *ctx, cudnnBackendDescriptor_t *out, const char *json);

#endif

/* Which of several plans for a shape is the fastest on the GPU that is here. */
#ifndef IPVG_OPS_CUDA_DNN_TUNE_H
#define IPVG_OPS_CUDA_DNN_TUNE_H

#include "../../base/meter.h"
#include "dnn_plan.h"

/* Its number; 0 without memory for a run, or none within the meter's limit. One of s and c says what the plans are for. Waits
 * for the stream. */
int ipvg_plan_fastest(ipvg_context *ctx, cudnnHandle_t handle, void *stream, ipvg_meter *meter, const ipvg_plan *plan,
                      int count, const ipvg_sdpa *s, const ipvg_dnn_conv *c);

#endif

/* What tests of the backend as a whole share: where it runs, how a call is planned and made, random numbers. */
#ifndef IPVG_TESTS_CUDA_ENGINE_H
#define IPVG_TESTS_CUDA_ENGINE_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../../csrc/ops/cuda/device.h"
#include "../../csrc/ops/ops.h"

static ipvg_context ctx;
static ipvg_arena gpu_arena;
static ipvg_exec gpu;
static int failures;
static uint64_t seed = 1;

#define FAIL(...) (failures++, printf("FAIL " __VA_ARGS__), printf("\n"))

/* Plans, takes that much scratch and no more, runs. */
#define RUN(ex, call)                                                                                    \
    do {                                                                                                 \
        ipvg_arena_plan((ex).arena);                                                                     \
        ipvg_status status_ = (call);                                                                    \
        const size_t peak_ = (ex).arena->peak;                                                           \
        ipvg_arena_free((ex).arena);                                                                     \
        if (status_ == IPVG_OK) status_ = ipvg_arena_reserve(&ctx, &(ex).be->memory, (ex).arena, peak_); \
        if (status_ == IPVG_OK) status_ = (call);                                                        \
        if (status_ != IPVG_OK) FAIL("%s on the %s backend: %s", #call, (ex).be->name, ctx.error);       \
    } while (0)

static double uniform(void)
{
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return (double)(seed >> 40) / 8388608.0 - 1.0;
}
static int pick(int low, int high) { return low + (int)((uniform() * 0.5 + 0.5) * (high - low + 1)); }

/* Opens the backend as `gpu`; false, and why is said, where the device does not compute in that dtype. */
static bool open_gpu(ipvg_dtype dtype)
{
    ipvg_backend *be;
    const ipvg_status opened = ipvg_backend_cuda(&ctx, &be, 0, dtype);
    if (opened == IPVG_E_UNSUPPORTED && dtype == IPVG_E4M3) {
        printf("%s\n", ctx.error);
        return false;
    }
    if (opened != IPVG_OK) FAIL("%s", ctx.error), exit(1);
    be->begin(be);
    gpu = (ipvg_exec){.ctx = &ctx, .be = be, .arena = &gpu_arena};
    return true;
}

#endif

/* plans <device.json> | gpu: does cuDNN have a plan for every shape of the real models? Uses the engine's own graphs
 * (csrc/ops/cuda/dnn_plan.c) and a description of the GPU in place of one, or with "gpu" the one that is here. A line a shape; exit 1 if one has no plan, or if a
 * 16-bit one would run without tensor cores. Plans of convolutions are built. Attention's engines need the driver's library
 * (libcuda.so.1; the toolkit's stub will do) to say what they take: without it the graph is checked and no more, and the last
 * line says of how many. */
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../../csrc/ops/cuda/dnn_plan.h"

static ipvg_context ctx;
static ipvg_plan_target target;
static const ipvg_plan_wish first = {.most = 1, .rank = -1};
static int shapes, failures, unseen;
static bool driver;

static void report(const char *name, ipvg_status status, ipvg_plan *plan, bool wants_tensor_cores)
{
    bool ok = status == IPVG_OK || !driver;
    if (plan->plan) ok = plan->tensor_cores >= wants_tensor_cores;
    shapes++;
    failures += !ok;
    if (!plan->plan && ok && plan->offers == 0) {
        printf("graph %-70s the graph alone: no driver to ask\n", name);
        unseen++;
    } else if (!plan->plan && ok)
        printf("ok    %-70s engine %lld takes it; its code is not loaded here\n", name, (long long)plan->engine);
    else if (plan->plan)
        printf("%-5s %-70s engine %-3lld workspace %7.1f MiB%s%s\n", ok ? "ok" : "FAIL", name, (long long)plan->engine,
               (double)plan->workspace / 1048576.0, plan->tensor_cores ? "" : ", no tensor cores",
               plan->compiled ? ", compiled at run time" : "");
    else
        printf("FAIL  %-70s %s\n", name, ctx.error);
    ipvg_plan_free(plan);
}

static void sdpa(int64_t batch, int64_t heads, int64_t lq, int64_t lk, int64_t d, int64_t ldq, int64_t ldk,
                 ipvg_dtype dtype)
{
    const ipvg_sdpa s = {.batch = batch,
                         .heads = heads,
                         .lq = lq,
                         .lk = lk,
                         .d = d,
                         .ldq = ldq,
                         .ldk = ldk,
                         .ldv = ldk,
                         .ldo = heads * d,
                         .dtype = dtype};
    ipvg_plan plan = {0};
    int count;
    char name[128];
    snprintf(name, sizeof name, "attention %lld x %lld heads of %lld, %lld x %lld, rows %lld %lld %s", (long long)batch,
             (long long)heads, (long long)d, (long long)lq, (long long)lk, (long long)ldq, (long long)ldk,
             ipvg_dtype_name(dtype));
    ipvg_status status = ipvg_plan_sdpa(&ctx, &plan, &count, first, target, &s);
    report(name, status, &plan, false); /* the fused engines do not say what they use */
}

static void conv(int64_t cin, int64_t cout, int64_t h, int64_t w, int kt, int kh, int stride, ipvg_dtype dtype,
                 bool bias)
{
    const int64_t around = kh == 3;
    const ipvg_dnn_conv c = {.cin = cin,
                             .cout = cout,
                             .h = h,
                             .w = w,
                             .kt = kt,
                             .kh = kh,
                             .kw = kh,
                             .stride = stride,
                             .top = stride == 1 ? around : 0,
                             .left = stride == 1 ? around : 0,
                             .bottom = around,
                             .right = around,
                             .dtype = dtype,
                             .bias = bias};
    ipvg_plan plan = {0};
    int count;
    char name[128];
    snprintf(name, sizeof name, "conv %lldx%dx%d %lld -> %lld of %lldx%lld, stride %d %s%s", (long long)kt, kh, kh,
             (long long)cin, (long long)cout, (long long)w, (long long)h, stride, ipvg_dtype_name(dtype),
             bias ? ", bias" : "");
    ipvg_status status = ipvg_plan_conv(&ctx, &plan, &count, first, target, &c);
    report(name, status, &plan, dtype != IPVG_F32);
    if (kt * h * w * (cin > cout ? cin : cout) >= (int64_t)1 << 31) {
        printf("FAIL  a tensor of 2^31 elements or more: cuDNN has no tensor-core engine for it\n");
        failures++;
    }
}

/* All convolutions of the VAE for a video of that size, 3 and 16 channels padded as conv.c does. */
static void vae(int64_t h, int64_t w, ipvg_dtype dtype)
{
    const int64_t in = dtype == IPVG_F32 ? 3 : 8;
    const struct {
        int64_t cin, cout;
        int down, kt, k, stride;
    } all[] = {
        /* decoder */
        {16, 16, 8, 1, 1, 1},
        {16, 384, 8, 3, 3, 1},
        {384, 384, 8, 3, 3, 1},
        {384, 384, 8, 3, 1, 1},
        {384, 192, 4, 1, 3, 1},
        {192, 384, 4, 3, 3, 1},
        {192, 384, 4, 1, 1, 1},
        {384, 384, 4, 3, 3, 1},
        {384, 384, 4, 3, 1, 1},
        {384, 192, 2, 1, 3, 1},
        {192, 192, 2, 3, 3, 1},
        {192, 96, 1, 1, 3, 1},
        {96, 96, 1, 3, 3, 1},
        {96, in, 1, 3, 3, 1},
        /* encoder */
        {in, 96, 1, 3, 3, 1},
        {96, 96, 1, 1, 3, 2},
        {96, 192, 2, 3, 3, 1},
        {96, 192, 2, 1, 1, 1},
        {192, 192, 2, 1, 3, 2},
        {192, 192, 4, 3, 1, 1},
        {384, 384, 4, 1, 3, 2},
        {384, 32, 8, 3, 3, 1},
        {32, 32, 8, 1, 1, 1},
    };
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        for (int bias = 0; bias < 2; bias++)
            conv(all[i].cin, all[i].cout, h / all[i].down, w / all[i].down, all[i].kt, all[i].k, all[i].stride, dtype,
                 bias);
}

int main(int argc, char **argv)
{
    char json[8192] = "";
    const bool live = argc > 1 && strcmp(argv[1], "gpu") == 0;
    FILE *f = argc > 1 && !live ? fopen(argv[1], "r") : NULL;
    if (!live && (!f || fread(json, 1, sizeof json - 1, f) == 0)) {
        fprintf(stderr, "usage: plans device.json | gpu\n");
        return 2;
    }
    if (f) fclose(f);
    ipvg_context_init(&ctx, 1);
    if (live) {
        cudnnStatus_t s = cudnnCreate(&target.handle);
        if (s != CUDNN_STATUS_SUCCESS) {
            fprintf(stderr, "cuDNN does not start: %s\n", cudnnGetErrorString(s));
            return 2;
        }
    } else if (ipvg_plan_device(&ctx, &target.device, json) != IPVG_OK) {
        fprintf(stderr, "%s\n", ctx.error);
        return 2;
    }
    driver = dlopen("libcuda.so.1", RTLD_NOW) != NULL;
    printf("cuDNN %zu\n", cudnnGetVersion());
    for (int big = 0; big < 2; big++) {
        const int64_t heads = big ? 40 : 12, dim = heads * 128, lengths[] = {34320, 79200};
        for (int i = 0; i < 2; i++) {
            const int64_t l = lengths[i];
            sdpa(1, heads, l, l, 128, dim, dim, IPVG_BF16);
            sdpa(1, heads, l, l, 128, 3 * dim, 3 * dim, IPVG_BF16); /* q, k, v are columns of one GEMM's result */
            sdpa(3, heads, l, l, 128, 3 * dim, 3 * dim, IPVG_BF16);
            sdpa(1, heads, l, 512, 128, dim, dim, IPVG_BF16); /* the text */
        }
    }
    sdpa(1, 1, 60 * 104, 60 * 104, 384, 3 * 384, 3 * 384, IPVG_F16); /* the VAE's, within a frame */
    sdpa(1, 1, 90 * 160, 90 * 160, 384, 3 * 384, 3 * 384, IPVG_F16);
    vae(480, 832, IPVG_F16);
    vae(720, 1280, IPVG_F16);
    vae(480, 832, IPVG_F32);
    printf("%d shapes, %d without a plan, %d unseen for want of a driver\n", shapes, failures, unseen);
    const ipvg_sdpa odd = {1, 12, 512, 512, 7, 84, 84, 84, 84, IPVG_BF16};
    ipvg_plan plan = {0};
    int count;
    if (driver && ipvg_plan_sdpa(&ctx, &plan, &count, first, target, &odd) == IPVG_OK) {
        printf("FAIL  attention with heads of 7 columns was taken: this check would take anything\n");
        failures++;
    }
    if (target.device) cudnnBackendDestroyDescriptor(target.device);
    if (target.handle) cudnnDestroy(target.handle);
    return failures != 0;
}

#include "dnn_plan.h"

#include <string.h>

typedef cudnnBackendDescriptor_t descriptor;

#define CONFIGS 48                     /* engine configurations that are tried, best first */
#define WORKSPACE ((int64_t)512 << 20) /* bytes; a plan that wants more is passed over */

/* Names of tensors. */
enum { X = 1, W, BIAS, Y, Q, K, V, O, SCALE };

static ipvg_status check(ipvg_context *ctx, cudnnStatus_t s, const char *what)
{
    char why[512] = "";
    if (s == CUDNN_STATUS_SUCCESS) return IPVG_OK;
    cudnnGetLastErrorString(why, sizeof why);
    /* 3xxx: a valid wish that this library or this GPU does not fulfil */
    return ipvg_fail(ctx, s >= CUDNN_STATUS_NOT_SUPPORTED && s < 4000 ? IPVG_E_UNSUPPORTED : IPVG_E_BACKEND,
                     "cuDNN: %s: %s: %s", what, cudnnGetErrorString(s), why);
}

#define SET(d, attribute, type, count, values)                                                                       \
    IPVG_TRY(check(ctx, cudnnBackendSetAttribute((d), CUDNN_ATTR_##attribute, CUDNN_TYPE_##type, (count), (values)), \
                   #attribute))
#define CREATE(out, kind) IPVG_TRY(check(ctx, cudnnBackendCreateDescriptor(CUDNN_BACKEND_##kind, &(out)), #kind))
#define FINISH(d, what) IPVG_TRY(check(ctx, cudnnBackendFinalize(d), what))

static void destroy(descriptor *d)
{
    if (*d) cudnnBackendDestroyDescriptor(*d);
    *d = NULL;
}

/* ==== operations ==== */

static cudnnDataType_t type_of(int64_t dtype)
{
    return dtype == IPVG_BF16 ? CUDNN_DATA_BFLOAT16 : dtype == IPVG_F16 ? CUDNN_DATA_HALF : CUDNN_DATA_FLOAT;
}

typedef enum tensor_kind { MEMORY, VIRTUAL, BY_VALUE } tensor_kind;

static ipvg_status tensor(ipvg_context *ctx, descriptor *out, int64_t uid, cudnnDataType_t type, int ndim,
                          const int64_t *shape, const int64_t *strides, tensor_kind kind)
{
    const int64_t aligned = kind == BY_VALUE ? 4 : 16;
    const bool yes = true;
    ipvg_status status;
    CREATE(*out, TENSOR_DESCRIPTOR);
    SET(*out, TENSOR_UNIQUE_ID, INT64, 1, &uid);
    SET(*out, TENSOR_DATA_TYPE, DATA_TYPE, 1, &type);
    SET(*out, TENSOR_DIMENSIONS, INT64, ndim, shape);
    SET(*out, TENSOR_STRIDES, INT64, ndim, strides);
    SET(*out, TENSOR_BYTE_ALIGNMENT, INT64, 1, &aligned);
    if (kind == VIRTUAL) SET(*out, TENSOR_IS_VIRTUAL, BOOLEAN, 1, &yes);
    if (kind == BY_VALUE) SET(*out, TENSOR_IS_BY_VALUE, BOOLEAN, 1, &yes);
    FINISH(*out, "a tensor");
done:
    return status;
}

/* (N, C, D, H, W) in cuDNN's order of axes, channels last in memory. */
static void channels_last(int64_t strides[5], const int64_t shape[5])
{
    strides[1] = 1;
    strides[4] = shape[1];
    strides[3] = shape[4] * strides[4];
    strides[2] = shape[3] * strides[3];
    strides[0] = shape[2] * strides[2];
}

static ipvg_status video(ipvg_context *ctx, descriptor *out, int64_t uid, cudnnDataType_t type, const int64_t shape[5],
                         tensor_kind kind)
{
    int64_t strides[5];
    channels_last(strides, shape);
    return tensor(ctx, out, uid, type, 5, shape, strides, kind);
}

static ipvg_status convolution(ipvg_context *ctx, descriptor *out, const ipvg_dnn_conv *c)
{
    const int64_t axes = 3, before[] = {0, c->top, c->left}, after[] = {0, c->bottom, c->right};
    const int64_t steps[] = {1, c->stride, c->stride}, ones[] = {1, 1, 1};
    const cudnnDataType_t sums = CUDNN_DATA_FLOAT;
    const cudnnConvolutionMode_t mode = CUDNN_CROSS_CORRELATION;
    ipvg_status status;
    CREATE(*out, CONVOLUTION_DESCRIPTOR);
    SET(*out, CONVOLUTION_SPATIAL_DIMS, INT64, 1, &axes);
    SET(*out, CONVOLUTION_COMP_TYPE, DATA_TYPE, 1, &sums);
    SET(*out, CONVOLUTION_CONV_MODE, CONVOLUTION_MODE, 1, &mode);
    SET(*out, CONVOLUTION_PRE_PADDINGS, INT64, 3, before);
    SET(*out, CONVOLUTION_POST_PADDINGS, INT64, 3, after);
    SET(*out, CONVOLUTION_DILATIONS, INT64, 3, ones);
    SET(*out, CONVOLUTION_FILTER_STRIDES, INT64, 3, steps);
    FINISH(*out, "a convolution");
done:
    return status;
}

static ipvg_status addition(ipvg_context *ctx, descriptor *mode, descriptor *out, descriptor x, descriptor b,
                            descriptor y)
{
    const cudnnPointwiseMode_t add = CUDNN_POINTWISE_ADD;
    const cudnnDataType_t type = CUDNN_DATA_FLOAT;
    ipvg_status status;
    CREATE(*mode, POINTWISE_DESCRIPTOR);
    SET(*mode, POINTWISE_MODE, POINTWISE_MODE, 1, &add);
    SET(*mode, POINTWISE_MATH_PREC, DATA_TYPE, 1, &type);
    FINISH(*mode, "an addition");
    CREATE(*out, OPERATION_POINTWISE_DESCRIPTOR);
    SET(*out, OPERATION_POINTWISE_PW_DESCRIPTOR, BACKEND_DESCRIPTOR, 1, mode);
    SET(*out, OPERATION_POINTWISE_XDESC, BACKEND_DESCRIPTOR, 1, &x);
    SET(*out, OPERATION_POINTWISE_BDESC, BACKEND_DESCRIPTOR, 1, &b);
    SET(*out, OPERATION_POINTWISE_YDESC, BACKEND_DESCRIPTOR, 1, &y);
    FINISH(*out, "an addition");
done:
    return status;
}

/* ==== from a graph to a plan ==== */

static ipvg_status graph_of(ipvg_context *ctx, descriptor *out, ipvg_plan_target target, descriptor *operations,
                            int count)
{
    ipvg_status status;
    CREATE(*out, OPERATIONGRAPH_DESCRIPTOR);
    SET(*out, OPERATIONGRAPH_OPS, BACKEND_DESCRIPTOR, count, operations);
    if (target.handle) SET(*out, OPERATIONGRAPH_HANDLE, HANDLE, 1, &target.handle);
    FINISH(*out, "a graph");
done:
    return status;
}

/* Does the engine compute as asked? What it is, goes to the plan. */
static ipvg_status look_at(ipvg_context *ctx, ipvg_plan *plan, bool *fits, descriptor config, bool exact)
{
    cudnnBackendNumericalNote_t notes[CUDNN_NUMERICAL_NOTE_TYPE_COUNT];
    cudnnBackendBehaviorNote_t behaviour[CUDNN_BEHAVIOR_NOTE_TYPE_COUNT];
    int64_t count = 0, got = 0;
    descriptor engine = NULL;
    ipvg_status status;

    *fits = true;
    CREATE(engine, ENGINE_DESCRIPTOR);
    IPVG_TRY(check(
        ctx,
        cudnnBackendGetAttribute(config, CUDNN_ATTR_ENGINECFG_ENGINE, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &got, &engine),
        "an engine"));
    IPVG_TRY(check(
        ctx, cudnnBackendGetAttribute(engine, CUDNN_ATTR_ENGINE_GLOBAL_INDEX, CUDNN_TYPE_INT64, 1, &got, &plan->engine),
        "an engine's number"));
    IPVG_TRY(check(ctx,
                   cudnnBackendGetAttribute(engine, CUDNN_ATTR_ENGINE_NUMERICAL_NOTE, CUDNN_TYPE_NUMERICAL_NOTE,
                                            CUDNN_NUMERICAL_NOTE_TYPE_COUNT, &count, notes),
                   "an engine's notes"));
    plan->tensor_cores = plan->compiled = false;
    for (int64_t i = 0; i < count; i++) {
        plan->tensor_cores |= notes[i] == CUDNN_NUMERICAL_NOTE_TENSOR_CORE;
        if (notes[i] == CUDNN_NUMERICAL_NOTE_NONDETERMINISTIC || notes[i] == CUDNN_NUMERICAL_NOTE_FFT ||
            notes[i] == CUDNN_NUMERICAL_NOTE_WINOGRAD || notes[i] == CUDNN_NUMERICAL_NOTE_REDUCED_PRECISION_REDUCTION)
            *fits = false;
        /* float32 on tensor cores is TF32 */
        if (exact &&
            (notes[i] == CUDNN_NUMERICAL_NOTE_TENSOR_CORE || notes[i] == CUDNN_NUMERICAL_NOTE_DOWN_CONVERT_INPUTS))
            *fits = false;
    }
    IPVG_TRY(check(ctx,
                   cudnnBackendGetAttribute(engine, CUDNN_ATTR_ENGINE_BEHAVIOR_NOTE, CUDNN_TYPE_BEHAVIOR_NOTE,
                                            CUDNN_BEHAVIOR_NOTE_TYPE_COUNT, &count, behaviour),
                   "an engine's notes"));
    for (int64_t i = 0; i < count; i++) plan->compiled |= behaviour[i] == CUDNN_BEHAVIOR_NOTE_RUNTIME_COMPILATION;
done:
    destroy(&engine);
    return status;
}

/* IPVG_E_UNSUPPORTED, the usual answer of one configuration of many, is no reason to stop. */
static ipvg_status try_config(ipvg_context *ctx, ipvg_plan *plan, ipvg_plan_target target, descriptor config)
{
    int64_t got = 0;
    ipvg_status status;
    CREATE(plan->plan, EXECUTION_PLAN_DESCRIPTOR);
    SET(plan->plan, EXECUTION_PLAN_ENGINE_CONFIG, BACKEND_DESCRIPTOR, 1, &config);
    if (target.handle)
        SET(plan->plan, EXECUTION_PLAN_HANDLE, HANDLE, 1, &target.handle);
    else
        SET(plan->plan, EXECUTION_PLAN_DEVICEPROP, BACKEND_DESCRIPTOR, 1, &target.device);
    FINISH(plan->plan, "a plan");
    IPVG_TRY(check(ctx,
                   cudnnBackendGetAttribute(plan->plan, CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE, CUDNN_TYPE_INT64, 1,
                                            &got, &plan->workspace),
                   "a plan's workspace"));
    if (plan->workspace > WORKSPACE)
        status = ipvg_fail(ctx, IPVG_E_UNSUPPORTED, "cuDNN: a plan wants %lld bytes of workspace",
                           (long long)plan->workspace);
done:
    if (status != IPVG_OK) destroy(&plan->plan);
    return status;
}

static ipvg_status plan_of(ipvg_context *ctx, ipvg_plan *plan, int *found, ipvg_plan_wish wish, ipvg_plan_target target,
                           descriptor graph, bool exact)
{
    static const cudnnBackendHeurMode_t modes[] = {CUDNN_HEUR_MODE_A, CUDNN_HEUR_MODE_FALLBACK};
    descriptor heuristics = NULL, config[CONFIGS] = {0};
    int64_t offers = 0;
    ipvg_status status = IPVG_OK;

    *found = 0;
    plan[0] = (ipvg_plan){0};
    for (int m = 0; m < 2 && !*found; m++) {
        int64_t count = 0;
        for (int i = 0; i < CONFIGS; i++) destroy(&config[i]);
        destroy(&heuristics);
        CREATE(heuristics, ENGINEHEUR_DESCRIPTOR);
        SET(heuristics, ENGINEHEUR_OPERATION_GRAPH, BACKEND_DESCRIPTOR, 1, &graph);
        SET(heuristics, ENGINEHEUR_MODE, HEUR_MODE, 1, &modes[m]);
        if (target.device) SET(heuristics, ENGINEHEUR_DEVICEPROP, BACKEND_DESCRIPTOR, 1, &target.device);
        if (cudnnBackendFinalize(heuristics) != CUDNN_STATUS_SUCCESS) continue;
        for (int i = 0; i < CONFIGS; i++) CREATE(config[i], ENGINECFG_DESCRIPTOR);
        IPVG_TRY(check(ctx,
                       cudnnBackendGetAttribute(heuristics, CUDNN_ATTR_ENGINEHEUR_RESULTS,
                                                CUDNN_TYPE_BACKEND_DESCRIPTOR, CONFIGS, &count, config),
                       "the heuristics"));
        for (int64_t i = 0; i < count && i < CONFIGS && *found < wish.most; i++) {
            ipvg_plan *p = &plan[*found];
            bool fits = false;
            if (wish.rank >= 0 && wish.rank != offers + i) continue;
            *p = (ipvg_plan){.rank = offers + i};
            if (look_at(ctx, p, &fits, config[i], exact) != IPVG_OK || !fits) continue;
            *found += try_config(ctx, p, target, config[i]) == IPVG_OK;
        }
        offers += count;
    }
    plan[0].offers = offers;
    if (!*found && !(target.device && offers > 0))
        status = ipvg_fail(ctx, IPVG_E_UNSUPPORTED, "cuDNN %zu offers no plan", cudnnGetVersion());
done:
    for (int i = 0; i < CONFIGS; i++) destroy(&config[i]);
    destroy(&heuristics);
    if (status == IPVG_OK) ctx->error[0] = 0;
    return status;
}

void ipvg_plan_free(ipvg_plan *plan) { destroy(&plan->plan); }

/* ==== the two kinds ==== */

ipvg_status ipvg_plan_sdpa(ipvg_context *ctx, ipvg_plan *plan, int *count, ipvg_plan_wish wish, ipvg_plan_target target,
                           const ipvg_sdpa *s)
{
    const int64_t ones[] = {1, 1, 1, 1}, query[] = {s->batch, s->heads, s->lq, s->d},
                  key[] = {s->batch, s->heads, s->lk, s->d};
    const int64_t *const shape[] = {query, key, key, query};
    const int64_t ld[] = {s->ldq, s->ldk, s->ldv, s->ldo};
    descriptor t[5] = {0}, operation = NULL, graph = NULL;
    ipvg_status status;

    *count = 0;
    for (int i = 0; i < 4; i++) {
        const int64_t strides[] = {shape[i][2] * ld[i], s->d, ld[i], 1};
        IPVG_TRY(tensor(ctx, &t[i], Q + i, type_of(s->dtype), 4, shape[i], strides, MEMORY));
    }
    IPVG_TRY(tensor(ctx, &t[4], SCALE, CUDNN_DATA_FLOAT, 4, ones, ones, BY_VALUE));
    CREATE(operation, OPERATION_SDPA_FWD_DESCRIPTOR);
    SET(operation, OPERATION_SDPA_FWD_QDESC, BACKEND_DESCRIPTOR, 1, &t[0]);
    SET(operation, OPERATION_SDPA_FWD_KDESC, BACKEND_DESCRIPTOR, 1, &t[1]);
    SET(operation, OPERATION_SDPA_FWD_VDESC, BACKEND_DESCRIPTOR, 1, &t[2]);
    SET(operation, OPERATION_SDPA_FWD_ODESC, BACKEND_DESCRIPTOR, 1, &t[3]);
    SET(operation, OPERATION_SDPA_FWD_SCALEDESC, BACKEND_DESCRIPTOR, 1, &t[4]);
    FINISH(operation, "attention");
    IPVG_TRY(graph_of(ctx, &graph, target, &operation, 1));
    IPVG_TRY(plan_of(ctx, plan, count, wish, target, graph, false));
done:
    destroy(&graph);
    destroy(&operation);
    for (int i = 0; i < 5; i++) destroy(&t[i]);
    return status;
}

ipvg_status ipvg_plan_conv(ipvg_context *ctx, ipvg_plan *plan, int *count, ipvg_plan_wish wish, ipvg_plan_target target,
                           const ipvg_dnn_conv *c)
{
    const int64_t oh = (c->top + c->h + c->bottom - c->kh) / c->stride + 1,
                  ow = (c->left + c->w + c->right - c->kw) / c->stride + 1;
    const int64_t x_shape[] = {1, c->cin, c->kt, c->h, c->w}, w_shape[] = {c->cout, c->cin, c->kt, c->kh, c->kw};
    const int64_t y_shape[] = {1, c->cout, 1, oh, ow}, b_shape[] = {1, c->cout, 1, 1, 1};
    const cudnnDataType_t type = type_of(c->dtype), sums = CUDNN_DATA_FLOAT;
    const float one = 1, zero = 0; /* cuDNN also takes doubles here, and then multiplies by half of their bits */
    descriptor x = NULL, w = NULL, sum = NULL, b = NULL, y = NULL, what = NULL, mode = NULL, graph = NULL;
    descriptor operation[2] = {0};
    ipvg_status status;

    *count = 0;
    IPVG_TRY(video(ctx, &x, X, type, x_shape, MEMORY));
    IPVG_TRY(video(ctx, &w, W, type, w_shape, MEMORY));
    IPVG_TRY(video(ctx, &y, Y, type, y_shape, MEMORY));
    if (c->bias) {
        IPVG_TRY(video(ctx, &sum, 100, sums, y_shape, VIRTUAL));
        IPVG_TRY(video(ctx, &b, BIAS, type, b_shape, MEMORY));
    }
    IPVG_TRY(convolution(ctx, &what, c));
    CREATE(operation[0], OPERATION_CONVOLUTION_FORWARD_DESCRIPTOR);
    SET(operation[0], OPERATION_CONVOLUTION_FORWARD_X, BACKEND_DESCRIPTOR, 1, &x);
    SET(operation[0], OPERATION_CONVOLUTION_FORWARD_W, BACKEND_DESCRIPTOR, 1, &w);
    SET(operation[0], OPERATION_CONVOLUTION_FORWARD_Y, BACKEND_DESCRIPTOR, 1, c->bias ? &sum : &y);
    SET(operation[0], OPERATION_CONVOLUTION_FORWARD_CONV_DESC, BACKEND_DESCRIPTOR, 1, &what);
    SET(operation[0], OPERATION_CONVOLUTION_FORWARD_ALPHA, FLOAT, 1, &one);
    SET(operation[0], OPERATION_CONVOLUTION_FORWARD_BETA, FLOAT, 1, &zero);
    FINISH(operation[0], "a convolution");
    if (c->bias) IPVG_TRY(addition(ctx, &mode, &operation[1], sum, b, y));
    IPVG_TRY(graph_of(ctx, &graph, target, operation, c->bias ? 2 : 1));
    IPVG_TRY(plan_of(ctx, plan, count, wish, target, graph, c->dtype == IPVG_F32));
done:
    destroy(&graph);
    destroy(&operation[0]);
    destroy(&operation[1]);
    destroy(&mode);
    destroy(&what);
    destroy(&x);
    destroy(&w);
    destroy(&sum);
    destroy(&b);
    destroy(&y);
    return status;
}

/* ==== a run ==== */

#define DATA(p) ((void *)(uintptr_t)(p))

ipvg_plan_arguments ipvg_plan_sdpa_arguments(void *o, const void *q, const void *k, const void *v, float *scale,
                                             void *workspace)
{
    return (ipvg_plan_arguments){5, {Q, K, V, O, SCALE}, {DATA(q), DATA(k), DATA(v), o, scale}, workspace};
}

ipvg_plan_arguments ipvg_plan_conv_arguments(const ipvg_dnn_conv *c, void *y, const void *x, const void *w,
                                             const void *bias, void *workspace)
{
    return (ipvg_plan_arguments){c->bias ? 4 : 3, {X, W, Y, BIAS}, {DATA(x), DATA(w), y, DATA(bias)}, workspace};
}

ipvg_status ipvg_plan_run(ipvg_context *ctx, const ipvg_plan *plan, cudnnHandle_t handle, const ipvg_plan_arguments *a)
{
    descriptor pack = NULL;
    ipvg_status status;
    CREATE(pack, VARIANT_PACK_DESCRIPTOR);
    SET(pack, VARIANT_PACK_UNIQUE_IDS, INT64, a->count, a->name);
    SET(pack, VARIANT_PACK_DATA_POINTERS, VOID_PTR, a->count, a->data);
    SET(pack, VARIANT_PACK_WORKSPACE, VOID_PTR, 1, &a->workspace);
    FINISH(pack, "arguments");
    IPVG_TRY(check(ctx, cudnnBackendExecute(handle, plan->plan, pack), "a run"));
done:
    destroy(&pack);
    return status;
}

ipvg_status ipvg_plan_device(ipvg_context *ctx, cudnnBackendDescriptor_t *out, const char *json)
{
    ipvg_status status;
    CREATE(*out, DEVICEPROP_DESCRIPTOR);
    SET(*out, DEVICEPROP_JSON_REPRESENTATION, CHAR, (int64_t)strlen(json), json);
    FINISH(*out, "a device");
done:
    if (status != IPVG_OK) destroy(out);
    return status;
}

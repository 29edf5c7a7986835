#include "dnn.h"

#include <cuda_runtime_api.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "choices.h"
#include "dnn_plan.h"
#include "dnn_tune.h"

#define TRIED 10 /* plans of a shape that are timed, the first time; of a float32 one less: these take long */
#define EXACT 3
#define NUMBERS(type) ((int)(sizeof(type) / sizeof(int64_t)))

/* Plans by shape, in the order they were first wanted; some dozens, so a list. A shape that has none is remembered too. */
typedef struct entry {
    bool is_conv, offered;
    union {
        ipvg_sdpa sdpa;
        ipvg_dnn_conv conv;
    } key;
    ipvg_plan plan;
} entry;

struct ipvg_dnn {
    cudnnHandle_t handle;
    int device;
    pthread_mutex_t lock; /* memory() plans without the device's lock, also while a forward runs in another thread */
    entry **entries;
    int count;
    void *stream;
    ipvg_meter *meter;
    ipvg_choices sdpa, conv; /* by shape: a plan's rank and engine */
    bool tune;
};

static ipvg_status check(ipvg_context *ctx, cudnnStatus_t s, const char *what)
{
    char why[512] = "";
    if (s == CUDNN_STATUS_SUCCESS) return IPVG_OK;
    cudnnGetLastErrorString(why, sizeof why);
    return ipvg_fail(ctx, IPVG_E_BACKEND, "cuDNN: %s: %s: %s", what, cudnnGetErrorString(s), why);
}

ipvg_status ipvg_dnn_new(ipvg_context *ctx, ipvg_dnn **out, ipvg_cuda *cuda)
{
    ipvg_dnn *d = calloc(1, sizeof *d);
    ipvg_status status;

    *out = NULL;
    if (!d) return ipvg_fail(ctx, IPVG_E_MEMORY, "no memory for cuDNN");
    d->device = cuda->device;
    d->stream = cuda->stream;
    d->meter = &cuda->meter;
    d->tune = ipvg_choices_wanted();
    ipvg_choices_open(&d->sdpa, "attention", NUMBERS(ipvg_sdpa), 2, cuda->device, cudnnGetVersion(), d->tune);
    ipvg_choices_open(&d->conv, "convolution", NUMBERS(ipvg_dnn_conv), 2, cuda->device, cudnnGetVersion(), d->tune);
    pthread_mutex_init(&d->lock, NULL);
    IPVG_TRY(check(ctx, cudnnCreate(&d->handle), "its start"));
    IPVG_TRY(check(ctx, cudnnSetStream(d->handle, cuda->stream), "its stream"));
    *out = d;
    d = NULL;
done:
    ipvg_dnn_free(&d);
    return status;
}

void ipvg_dnn_free(ipvg_dnn **dnn)
{
    ipvg_dnn *d = *dnn;
    if (!d) return;
    for (int i = 0; i < d->count; i++) {
        ipvg_plan_free(&d->entries[i]->plan);
        free(d->entries[i]);
    }
    free(d->entries);
    if (d->handle) cudnnDestroy(d->handle);
    ipvg_choices_close(&d->sdpa);
    ipvg_choices_close(&d->conv);
    pthread_mutex_destroy(&d->lock);
    free(d);
    *dnn = NULL;
}

static entry *find(const ipvg_dnn *d, const ipvg_sdpa *sdpa, const ipvg_dnn_conv *conv)
{
    for (int i = 0; i < d->count; i++) {
        entry *e = d->entries[i];
        if (e->is_conv != (conv != NULL)) continue;
        if (conv ? !memcmp(&e->key.conv, conv, sizeof *conv) : !memcmp(&e->key.sdpa, sdpa, sizeof *sdpa)) return e;
    }
    return NULL;
}

static ipvg_status plans(ipvg_context *ctx, const ipvg_dnn *d, ipvg_plan *plan, int *count, ipvg_plan_wish wish,
                         const ipvg_sdpa *sdpa, const ipvg_dnn_conv *conv)
{
    const ipvg_plan_target target = {.handle = d->handle};
    return sdpa ? ipvg_plan_sdpa(ctx, plan, count, wish, target, sdpa)
                : ipvg_plan_conv(ctx, plan, count, wish, target, conv);
}

/* The plan that was chosen before, or the fastest of those that the library likes best. */
static ipvg_status choose(ipvg_context *ctx, ipvg_dnn *d, ipvg_plan *out, const ipvg_sdpa *sdpa,
                          const ipvg_dnn_conv *conv)
{
    ipvg_choices *choices = sdpa ? &d->sdpa : &d->conv;
    const void *key = sdpa ? (const void *)sdpa : (const void *)conv;
    const int64_t *known = ipvg_choices_get(choices, key);
    const int tried = !d->tune ? 1 : conv && conv->dtype == IPVG_F32 ? EXACT : TRIED;
    ipvg_plan plan[TRIED];
    int count = 0, best = 0;
    ipvg_status status;

    if (known && plans(ctx, d, out, &count, (ipvg_plan_wish){1, known[0]}, sdpa, conv) == IPVG_OK) {
        if (out->engine == known[1]) return IPVG_OK;
        ipvg_plan_free(out); /* the file is of another library */
    }
    IPVG_TRY(plans(ctx, d, plan, &count, (ipvg_plan_wish){tried, -1}, sdpa, conv));
    if (count > 1) best = ipvg_plan_fastest(ctx, d->handle, d->stream, d->meter, plan, count, sdpa, conv);
    for (int i = 0; i < count; i++)
        if (i != best) ipvg_plan_free(&plan[i]);
    *out = plan[best];
    ipvg_choices_put(choices, key, (const int64_t[]){out->rank, out->engine});
done:
    return status;
}

static ipvg_status make(ipvg_context *ctx, ipvg_dnn *d, const entry **out, const ipvg_sdpa *sdpa,
                        const ipvg_dnn_conv *conv)
{
    entry **entries = realloc(d->entries, (size_t)(d->count + 1) * sizeof *entries);
    entry *e = calloc(1, sizeof *e);
    ipvg_status status;

    if (entries) d->entries = entries;
    if (!entries || !e) {
        free(e);
        return ipvg_fail(ctx, IPVG_E_MEMORY, "no memory for a plan");
    }
    e->is_conv = conv != NULL;
    if (conv) e->key.conv = *conv;
    if (sdpa) e->key.sdpa = *sdpa;
    cudaSetDevice(d->device);
    status = choose(ctx, d, &e->plan, sdpa, conv);
    e->offered = status == IPVG_OK;
    if (status != IPVG_OK && status != IPVG_E_UNSUPPORTED) {
        free(e);
        return status;
    }
    d->entries[d->count++] = e;
    *out = e;
    return IPVG_OK;
}

/* The entry of a shape, made at its first use; it stays where it is. */
static ipvg_status plan_for(ipvg_exec *ex, const entry **out, const ipvg_sdpa *sdpa, const ipvg_dnn_conv *conv)
{
    ipvg_dnn *d = ipvg_cuda_of(ex)->dnn;
    ipvg_status status = IPVG_OK;
    pthread_mutex_lock(&d->lock);
    *out = find(d, sdpa, conv);
    if (!*out) status = make(ex->ctx, d, out, sdpa, conv);
    pthread_mutex_unlock(&d->lock);
    return status;
}

static ipvg_status workspace(ipvg_exec *ex, size_t *bytes, const ipvg_sdpa *sdpa, const ipvg_dnn_conv *conv)
{
    const entry *e = NULL;
    ipvg_status status;
    *bytes = 0;
    IPVG_TRY(plan_for(ex, &e, sdpa, conv));
    if (!e->offered)
        return ipvg_fail(ex->ctx, IPVG_E_UNSUPPORTED, "cuDNN %zu has no plan for this %s", cudnnGetVersion(),
                         conv ? "convolution" : "attention");
    *bytes = (size_t)e->plan.workspace;
done:
    return status;
}

ipvg_status ipvg_dnn_sdpa_workspace(ipvg_exec *ex, size_t *bytes, const ipvg_sdpa *s)
{
    return workspace(ex, bytes, s, NULL);
}

ipvg_status ipvg_dnn_conv_workspace(ipvg_exec *ex, size_t *bytes, const ipvg_dnn_conv *c)
{
    return workspace(ex, bytes, NULL, c);
}

ipvg_status ipvg_dnn_sdpa(ipvg_exec *ex, const ipvg_sdpa *s, float scale, void *o, const void *q, const void *k,
                          const void *v, void *space)
{
    const ipvg_plan_arguments a = ipvg_plan_sdpa_arguments(o, q, k, v, &scale, space);
    const entry *e = NULL;
    ipvg_status status;
    IPVG_TRY(plan_for(ex, &e, s, NULL));
    IPVG_TRY(ipvg_plan_run(ex->ctx, &e->plan, ipvg_cuda_of(ex)->dnn->handle, &a));
done:
    return status;
}

ipvg_status ipvg_dnn_conv_run(ipvg_exec *ex, const ipvg_dnn_conv *c, void *y, const void *x, const void *w,
                              const void *bias, void *space)
{
    const ipvg_plan_arguments a = ipvg_plan_conv_arguments(c, y, x, w, bias, space);
    const entry *e = NULL;
    ipvg_status status;
    IPVG_TRY(plan_for(ex, &e, NULL, c));
    IPVG_TRY(ipvg_plan_run(ex->ctx, &e->plan, ipvg_cuda_of(ex)->dnn->handle, &a));
done:
    return status;
}

#include "dnn.h"

#include <cuda_runtime_api.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "dnn_plan.h"

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
};

static ipvg_status check(ipvg_context *ctx, cudnnStatus_t s, const char *what)
{
    char why[512] = "";
    if (s == CUDNN_STATUS_SUCCESS) return IPVG_OK;
    cudnnGetLastErrorString(why, sizeof why);
    return ipvg_fail(ctx, IPVG_E_BACKEND, "cuDNN: %s: %s: %s", what, cudnnGetErrorString(s), why);
}

ipvg_status ipvg_dnn_new(ipvg_context *ctx, ipvg_dnn **out, const ipvg_cuda *cuda)
{
    ipvg_dnn *d = calloc(1, sizeof *d);
    ipvg_status status;

    *out = NULL;
    if (!d) return ipvg_fail(ctx, IPVG_E_MEMORY, "no memory for cuDNN");
    d->device = cuda->device;
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

static ipvg_status make(ipvg_context *ctx, ipvg_dnn *d, const entry **out, const ipvg_sdpa *sdpa,
                        const ipvg_dnn_conv *conv)
{
    const ipvg_plan_target target = {.handle = d->handle};
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
    status = conv ? ipvg_plan_conv(ctx, &e->plan, target, conv) : ipvg_plan_sdpa(ctx, &e->plan, target, sdpa);
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

static ipvg_status run(ipvg_exec *ex, const ipvg_plan *plan, int count, const int64_t *uids, void **pointers,
                       void *space)
{
    ipvg_dnn *d = ipvg_cuda_of(ex)->dnn;
    ipvg_context *ctx = ex->ctx;
    cudnnBackendDescriptor_t pack = NULL;
    ipvg_status status;

#define SET(attribute, type, n, values)                                                                             \
    IPVG_TRY(check(                                                                                                 \
        ctx, cudnnBackendSetAttribute(pack, CUDNN_ATTR_VARIANT_PACK_##attribute, CUDNN_TYPE_##type, (n), (values)), \
        #attribute))
    IPVG_TRY(check(ctx, cudnnBackendCreateDescriptor(CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR, &pack), "arguments"));
    SET(UNIQUE_IDS, INT64, count, uids);
    SET(DATA_POINTERS, VOID_PTR, count, pointers);
    SET(WORKSPACE, VOID_PTR, 1, &space);
#undef SET
    IPVG_TRY(check(ctx, cudnnBackendFinalize(pack), "arguments"));
    IPVG_TRY(check(ctx, cudnnBackendExecute(d->handle, plan->plan, pack), "a run"));
done:
    if (pack) cudnnBackendDestroyDescriptor(pack);
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
    static const int64_t uids[] = {IPVG_UID_Q, IPVG_UID_K, IPVG_UID_V, IPVG_UID_O, IPVG_UID_SCALE};
    void *pointers[] = {(void *)(uintptr_t)q, (void *)(uintptr_t)k, (void *)(uintptr_t)v, o, &scale};
    const entry *e = NULL;
    ipvg_status status;
    IPVG_TRY(plan_for(ex, &e, s, NULL));
    IPVG_TRY(run(ex, &e->plan, 5, uids, pointers, space));
done:
    return status;
}

ipvg_status ipvg_dnn_conv_run(ipvg_exec *ex, const ipvg_dnn_conv *c, void *y, const void *x, const void *w,
                              const void *bias, void *space)
{
    static const int64_t uids[] = {IPVG_UID_X, IPVG_UID_W, IPVG_UID_Y, IPVG_UID_BIAS};
    void *pointers[] = {(void *)(uintptr_t)x, (void *)(uintptr_t)w, y, (void *)(uintptr_t)bias};
    const entry *e = NULL;
    ipvg_status status;
    IPVG_TRY(plan_for(ex, &e, NULL, c));
    IPVG_TRY(run(ex, &e->plan, c->bias ? 4 : 3, uids, pointers, space));
done:
    return status;
}

#include "arena.h"

#include <stdlib.h>
#include <string.h>

static ipvg_status host_alloc(const ipvg_memory *m, ipvg_context *ctx, void **out, size_t bytes)
{
    (void)m;
    size_t rounded = (bytes + IPVG_ALIGN - 1) / IPVG_ALIGN * IPVG_ALIGN;
    *out = rounded >= bytes ? aligned_alloc(IPVG_ALIGN, rounded ? rounded : IPVG_ALIGN) : NULL;
    if (!*out)
        return ipvg_fail(ctx, IPVG_E_MEMORY, "no memory for a buffer of %.1f MiB; try a smaller size or fewer frames",
                         (double)bytes / 1048576.0);
    return IPVG_OK;
}

static void host_free(const ipvg_memory *m, void *p)
{
    (void)m;
    free(p);
}

const ipvg_memory ipvg_host_memory = {host_alloc, host_free, NULL};

ipvg_status ipvg_arena_reserve(ipvg_context *ctx, const ipvg_memory *memory, ipvg_arena *a, size_t bytes)
{
    a->planning = false;
    a->used = 0;
    if (a->base && a->size >= bytes) return IPVG_OK;
    ipvg_arena_free(a);
    ipvg_status status = memory->alloc(memory, ctx, (void **)&a->base, bytes);
    if (status != IPVG_OK) return status;
    a->memory = memory;
    a->size = bytes;
    return IPVG_OK;
}

void ipvg_arena_plan(ipvg_arena *a)
{
    a->planning = true;
    a->used = a->peak = 0;
}

void ipvg_arena_free(ipvg_arena *a)
{
    if (a->base) a->memory->free(a->memory, a->base);
    memset(a, 0, sizeof *a);
}

ipvg_status ipvg_arena_alloc(ipvg_context *ctx, ipvg_arena *a, void **out, size_t bytes)
{
    size_t rounded = (bytes + IPVG_ALIGN - 1) / IPVG_ALIGN * IPVG_ALIGN;
    if (rounded < bytes || a->used + rounded < a->used)
        return ipvg_fail(ctx, IPVG_E_MEMORY, "a buffer of %zu bytes is beyond the address space", bytes);
    if (!a->planning && a->used + rounded > a->size)
        return ipvg_fail(ctx, IPVG_E_MEMORY, "scratch of %zu bytes planned, %zu needed: please report this", a->size,
                         a->used + rounded);
    /* Planning hands out a fake, aligned, non-null address: the code that only passes it on must not see a NULL. */
    *out = a->planning ? (void *)(uintptr_t)(IPVG_ALIGN + a->used) : a->base + a->used;
    a->used += rounded;
    if (a->used > a->peak) a->peak = a->used;
    return IPVG_OK;
}

ipvg_status ipvg_arena_tensor(ipvg_context *ctx, ipvg_arena *a, ipvg_tensor *out, ipvg_dtype dtype, int ndim,
                              const int64_t *shape)
{
    void *scale = NULL;
    ipvg_status status;

    *out = ipvg_tensor_make(NULL, dtype, ndim, shape);
    IPVG_TRY(ipvg_arena_alloc(ctx, a, &out->data, ipvg_tensor_bytes(out)));
    if (dtype != IPVG_E4M3) goto done;
    IPVG_TRY(ipvg_arena_alloc(ctx, a, &scale, (size_t)ipvg_tensor_rows(out) * sizeof *out->scale));
    out->scale = scale;
done:
    return status;
}

/* Scratch memory: a stack of blocks in one buffer that is sized once, before the work begins.
 *
 * How large? The same forward code answers: run with `planning` set it takes its blocks, computes nothing, and leaves
 * the high-water mark in `peak`. So the estimate cannot drift from the code, and nothing is allocated in a loop.
 *
 *     ipvg_arena a = {0};
 *     ipvg_arena_plan(&a);            forward(...);                 // a.peak is now known
 *     ipvg_arena_reserve(ctx, be, &a, a.peak);  forward(...);       // computes */
#ifndef IPVG_BASE_ARENA_H
#define IPVG_BASE_ARENA_H

#include <stdbool.h>

#include "context.h"
#include "tensor.h"

#define IPVG_ALIGN 256 /* of every block: a cache line on the CPU, a TMA / vector load on a GPU */

/* Where buffers come from: malloc on the CPU, the device allocator on a GPU. Part of a backend (ops/backend.h). */
typedef struct ipvg_memory {
    ipvg_status (*alloc)(const struct ipvg_memory *m, ipvg_context *ctx, void **out,
                         size_t bytes); /* IPVG_ALIGN-aligned */
    void (*free)(const struct ipvg_memory *m, void *p);
    void *state;
} ipvg_memory;

extern const ipvg_memory ipvg_host_memory;

typedef struct ipvg_arena {
    const ipvg_memory *memory;
    char *base;
    size_t size, used, peak; /* bytes */
    bool planning;
} ipvg_arena;

/* Grows the buffer to `bytes` if it is smaller (contents are lost), leaves planning mode and empties the stack. */
ipvg_status ipvg_arena_reserve(ipvg_context *ctx, const ipvg_memory *memory, ipvg_arena *a, size_t bytes);
/* Empties the stack and enters planning mode; the buffer stays. ipvg_arena_reserve leaves that mode, and so must whoever
 * fails before it: in planning mode a copy, say, would quietly not be made. */
void ipvg_arena_plan(ipvg_arena *a);
static inline void ipvg_arena_unplan(ipvg_arena *a) { a->planning = false; }
void ipvg_arena_free(ipvg_arena *a);

/* A block of `bytes`; it lives until the stack is reset to a mark taken before it. In planning mode the pointer must
 * not be read or written. IPVG_E_MEMORY when a reserved arena is too small: a planning error, not the user's. */
ipvg_status ipvg_arena_alloc(ipvg_context *ctx, ipvg_arena *a, void **out, size_t bytes);
/* A contiguous tensor in the arena; an E4M3 one (rows, columns) with its scales. */
ipvg_status ipvg_arena_tensor(ipvg_context *ctx, ipvg_arena *a, ipvg_tensor *out, ipvg_dtype dtype, int ndim,
                              const int64_t *shape);
static inline size_t ipvg_arena_mark(const ipvg_arena *a) { return a->used; }
static inline void ipvg_arena_reset(ipvg_arena *a, size_t mark) { a->used = mark; }

#endif

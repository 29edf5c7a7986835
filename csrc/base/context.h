/* The context carries what a call needs besides its data: the error text, the cancel flag, the thread count.
 *
 *     ipvg_context ctx;
 *     ipvg_context_init(&ctx, 0);
 *     if (ipvg_vae_decode(...) != IPVG_OK) puts(ctx.error);
 *
 * One context serves one call at a time; only `cancel` may be touched from another thread. */
#ifndef IPVG_BASE_CONTEXT_H
#define IPVG_BASE_CONTEXT_H

#include <stdatomic.h>

#include "status.h"

typedef struct ipvg_context {
    char error[1024];        /* why the last call failed: names the thing and, where it can, the fix */
    int sys_errno;           /* errno of the last IPVG_E_IO, 0 if none */
    int threads;             /* OpenMP threads of this context's calls, >= 1 */
    atomic_int cancel;       /* non-zero: the running call returns IPVG_E_CANCELLED within one block */
    int (*poll)(void *user); /* called about once a block when set; non-zero cancels (Python looks for signals here) */
    void *poll_user;
    void (*progress)(void *user, int done, int total); /* optional, from the calling thread */
    void *progress_user;
} ipvg_context;

/* threads 0: as many as OpenMP would use. */
void ipvg_context_init(ipvg_context *ctx, int threads);

/* Writes the error text and returns `status`, so that a failure is one statement:
 *     return ipvg_fail(ctx, IPVG_E_ARGUMENT, "frames: expected 4n+1, got %d", frames); */
__attribute__((format(printf, 3, 4))) ipvg_status ipvg_fail(ipvg_context *ctx, ipvg_status status, const char *fmt,
                                                            ...);

/* The same for a failed system call: adds strerror(errno). IPVG_E_IO, but IPVG_E_MEMORY for ENOMEM. */
__attribute__((format(printf, 2, 3))) ipvg_status ipvg_fail_errno(ipvg_context *ctx, const char *fmt, ...);

/* Called between blocks: IPVG_OK, or IPVG_E_CANCELLED with the text set. Clears the flag it obeyed. */
ipvg_status ipvg_check_cancel(ipvg_context *ctx);

#define IPVG_TRY(call)                               \
    do {                                             \
        if ((status = (call)) != IPVG_OK) goto done; \
    } while (0)

#endif

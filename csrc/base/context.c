#include "context.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#ifdef _OPENMP
#include <omp.h>
#endif

void ipvg_context_init(ipvg_context *ctx, int threads)
{
    memset(ctx, 0, sizeof *ctx);
#ifdef _OPENMP
    ctx->threads = threads > 0 ? threads : omp_get_max_threads();
#else
    (void)threads;
    ctx->threads = 1;
#endif
    atomic_init(&ctx->cancel, 0);
}

ipvg_status ipvg_fail(ipvg_context *ctx, ipvg_status status, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(ctx->error, sizeof ctx->error, fmt, ap);
    va_end(ap);
    ctx->sys_errno = 0;
    return status;
}

ipvg_status ipvg_fail_errno(ipvg_context *ctx, const char *fmt, ...)
{
    int err = errno;
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(ctx->error, sizeof ctx->error, fmt, ap);
    va_end(ap);
    size_t n = strlen(ctx->error);
    snprintf(ctx->error + n, sizeof ctx->error - n, ": %s", strerror(err));
    ctx->sys_errno = err == ENOMEM ? 0 : err;
    return err == ENOMEM ? IPVG_E_MEMORY : IPVG_E_IO;
}

ipvg_status ipvg_check_cancel(ipvg_context *ctx)
{
    if (!atomic_exchange(&ctx->cancel, 0) && !(ctx->poll && ctx->poll(ctx->poll_user))) return IPVG_OK;
    return ipvg_fail(ctx, IPVG_E_CANCELLED, "cancelled");
}

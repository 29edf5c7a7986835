#include "ffmpeg.h"

#include <errno.h>
#include <libavutil/avutil.h>
#include <libavutil/error.h>
#include <libavutil/log.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

typedef struct listener {
    char *line;
    int level;    /* of the line kept: a warning does not replace an error */
    bool partial; /* the line has not ended yet: FFmpeg writes some in pieces */
} listener;

static _Thread_local listener ear;

static void on_log(void *object, int level, const char *fmt, va_list args)
{
    if (!ear.line) {
        av_log_default_callback(object, level, fmt, args);
        return;
    }
    level &= 0xff; /* the upper bits hold a colour */
    if (level > AV_LOG_WARNING || level > ear.level) return;
    size_t used = ear.partial ? strlen(ear.line) : 0;
    if (!ear.partial && object) {
        const AVClass *class = *(const AVClass *const *)object;
        const char *name = class ? class->item_name(object) : NULL;
        if (name && strcmp(name, "NULL") != 0) used = (size_t)snprintf(ear.line, IPVG_FF_LINE, "%s: ", name);
    }
    if (used >= IPVG_FF_LINE) used = IPVG_FF_LINE - 1;
    vsnprintf(ear.line + used, IPVG_FF_LINE - used, fmt, args);
    size_t n = strlen(ear.line);
    ear.partial = !(n && ear.line[n - 1] == '\n');
    while (n && (ear.line[n - 1] == '\n' || ear.line[n - 1] == ' ' || ear.line[n - 1] == '.')) ear.line[--n] = 0;
    ear.level = level;
}

static void install(void) { av_log_set_callback(on_log); }

void ipvg_ff_listen(char *line)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, install);
    if (line) line[0] = 0;
    ear = (listener){.line = line, .level = AV_LOG_WARNING};
}

static ipvg_status status_of(int averror)
{
    switch (averror) {
    case AVERROR(ENOMEM): return IPVG_E_MEMORY;
    case AVERROR_INVALIDDATA:
    case AVERROR_EOF: return IPVG_E_FORMAT;
    case AVERROR_DECODER_NOT_FOUND:
    case AVERROR_ENCODER_NOT_FOUND:
    case AVERROR_PATCHWELCOME:
    case AVERROR(ENOSYS): return IPVG_E_UNSUPPORTED;
    case AVERROR_EXTERNAL:
    case AVERROR_UNKNOWN:
    case AVERROR_BUG:
    case AVERROR_BUG2:
    case AVERROR(EINVAL): return IPVG_E_BACKEND;
    default: return averror > -4096 ? IPVG_E_IO : IPVG_E_FORMAT; /* a small number is an errno */
    }
}

ipvg_status ipvg_ff_fail(ipvg_context *ctx, int averror, const char *fmt, ...)
{
    char meaning[AV_ERROR_MAX_STRING_SIZE];
    av_strerror(averror, meaning, sizeof meaning);
    va_list args;
    va_start(args, fmt);
    vsnprintf(ctx->error, sizeof ctx->error, fmt, args);
    va_end(args);
    size_t n = strlen(ctx->error);
    bool heard = ear.line && ear.line[0];
    snprintf(ctx->error + n, sizeof ctx->error - n, ": %s%s%s%s", meaning, heard ? " (" : "", heard ? ear.line : "",
             heard ? ")" : "");
    ipvg_status status = status_of(averror);
    ctx->sys_errno = status == IPVG_E_IO ? -averror : 0;
    return status;
}

const char *ipvg_ff_version(void) { return av_version_info(); }

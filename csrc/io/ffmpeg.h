/* One way to fail for everything here that calls FFmpeg.
 *
 *     char line[IPVG_FF_LINE];
 *     ipvg_ff_listen(line);
 *     int err = avformat_open_input(...);
 *     if (err < 0) status = ipvg_ff_fail(ctx, err, "%s: cannot be opened", name);
 *     ipvg_ff_listen(NULL);
 *
 * FFmpeg returns a bare number; why it failed is in its log. av_log has one callback for the whole process and hands
 * it no pointer of ours, so a thread-local pointer to the caller's buffer is the one piece of state kept outside a
 * context. The callback is installed once and never swapped: lines of threads that do not listen go on to FFmpeg's
 * own callback, so another user of the same libraries in this process sees no difference. Codecs are opened with one
 * thread here (x264 with a fixed number), hence all their lines come on the calling thread, and the bytes they write do not
 * depend on the machine's cores. */
#ifndef IPVG_IO_FFMPEG_H
#define IPVG_IO_FFMPEG_H

#include "../base/context.h"

#define IPVG_FF_LINE 256

/* Collects this thread's last FFmpeg error (or, without one, warning) in line (IPVG_FF_LINE chars); NULL stops. */
void ipvg_ff_listen(char *line);

/* Error text = the message, what the FFmpeg error number means, and the last log line when this thread listens. */
__attribute__((format(printf, 3, 4))) ipvg_status ipvg_ff_fail(ipvg_context *ctx, int averror, const char *fmt, ...);

/* FFmpeg's own version, such as "5.1.6". */
const char *ipvg_ff_version(void);

#endif

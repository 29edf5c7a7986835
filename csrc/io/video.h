/* Reading a video, frame by frame.
 *
 *     ipvg_video_reader *r = NULL;
 *     IPVG_TRY(ipvg_video_open(ctx, &r, "clip.mp4", NULL, 0, IPVG_ALPHA_DROP));
 *     const ipvg_video_info *info = ipvg_video_about(r);
 *     for (bool more = true;;) {
 *         IPVG_TRY(ipvg_video_next(ctx, r, rgb, &more));      // rgb: info->height * info->width * 3 bytes
 *         if (!more) break;
 *     }
 * done:
 *     ipvg_video_close(&r); */
#ifndef IPVG_IO_VIDEO_H
#define IPVG_IO_VIDEO_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "pixels.h"

typedef struct ipvg_video_info {
    int height, width;      /* upright: a phone's rotation is applied */
    int fps_num, fps_den;   /* average; 0 / 1 when the file does not say */
    int grid_num, grid_den; /* the rate whose times all frames fit, FFmpeg's guess from the first ones; 0 / 1: none */
    int64_t frames;         /* what the file announces, 0 when it does not: a hint */
} ipvg_video_info;

typedef struct ipvg_video_reader ipvg_video_reader;

/* From a file, or from `size` bytes at `data` when path is NULL (they must outlive the reader). */
ipvg_status ipvg_video_open(ipvg_context *ctx, ipvg_video_reader **out, const char *path, const void *data, size_t size,
                            ipvg_alpha alpha);
const ipvg_video_info *ipvg_video_about(const ipvg_video_reader *reader);
/* rgb (height, width, 3) <- the next frame in the order of display, *more = true; or *more = false at the end. NULL skips the frame. */
ipvg_status ipvg_video_next(ipvg_context *ctx, ipvg_video_reader *reader, uint8_t *rgb, bool *more);
/* When the last frame that came is to be shown, in seconds; NAN when the file does not say. */
double ipvg_video_time(const ipvg_video_reader *reader);
void ipvg_video_close(ipvg_video_reader **reader);

#endif

/* Writing a video, frame by frame. The name's ending chooses:
 *
 *     .mp4 and any other   H.264 (libx264), yuv420p, tagged bt709 limited range, index at the front
 *     .webm                VP9 (libvpx), yuv420p, the same tags; preset is not used, crf is VP9's own (63 is the worst)
 *     .mkv                 FFV1, RGB as it is: lossless; crf and preset are not used
 *     .gif                 255 colours chosen for the whole video, dithered; crf and preset are not used. A frame's time
 *                          is rounded to 1/100 s. All frames wait in memory until the end (palette.h)
 *
 *     ipvg_writer *m = NULL;
 *     IPVG_TRY(ipvg_writer_open(ctx, &m, "clip.mp4", &(ipvg_writer_config){480, 832, 16, 1, 10, "medium"}));
 *     for (int i = 0; i < frames; i++) IPVG_TRY(ipvg_writer_write(ctx, m, rgb + i * 480 * 832 * 3));
 *     IPVG_TRY(ipvg_writer_finish(ctx, m));       // only now does clip.mp4 appear
 * done:
 *     ipvg_writer_close(&m);                      // without a finish: nothing is left behind */
#ifndef IPVG_IO_WRITER_H
#define IPVG_IO_WRITER_H

#include <stdint.h>

#include "../base/context.h"

typedef struct ipvg_writer_config {
    int height, width;    /* even in mp4 and webm: yuv420p has one colour sample for 2 x 2 pixels */
    int fps_num, fps_den; /* e.g. 16 / 1, 30000 / 1001 */
    int crf;              /* x264's quality: 1 (best) to 51 */
    const char *preset;   /* x264's speed: "ultrafast" to "placebo" */
} ipvg_writer_config;

typedef struct ipvg_writer ipvg_writer;

ipvg_status ipvg_writer_open(ipvg_context *ctx, ipvg_writer **out, const char *path, const ipvg_writer_config *config);
/* rgb: (height, width, 3). Obeys cancel. After any failure only close is left to do. */
ipvg_status ipvg_writer_write(ipvg_context *ctx, ipvg_writer *m, const uint8_t *rgb);
ipvg_status ipvg_writer_finish(ipvg_context *ctx, ipvg_writer *m);
void ipvg_writer_close(ipvg_writer **m);

#endif

/* Writing a video, frame by frame. The name's ending chooses:
 *
 *     .mp4 and any other   H.264 (libx264), yuv420p, tagged bt709 limited range, index at the front
 *     .webm                VP9 (libvpx), yuv420p, the same tags; preset is not used, crf is VP9's own (63 is the worst)
 *     .mkv                 FFV1, RGB as it is: lossless; crf and preset are not used
 *
 *     ipvg_mp4 *m = NULL;
 *     IPVG_TRY(ipvg_mp4_open(ctx, &m, "clip.mp4", &(ipvg_mp4_config){480, 832, 16, 1, 10, "medium"}));
 *     for (int i = 0; i < frames; i++) IPVG_TRY(ipvg_mp4_write(ctx, m, rgb + i * 480 * 832 * 3));
 *     IPVG_TRY(ipvg_mp4_finish(ctx, m));       // only now does clip.mp4 appear
 * done:
 *     ipvg_mp4_close(&m);                      // without a finish: nothing is left behind */
#ifndef IPVG_IO_MP4_H
#define IPVG_IO_MP4_H

#include <stdint.h>

#include "../base/context.h"

typedef struct ipvg_mp4_config {
    int height, width;    /* even: yuv420p has one colour sample for 2 x 2 pixels */
    int fps_num, fps_den; /* e.g. 16 / 1, 30000 / 1001 */
    int crf;              /* x264's quality: 1 (best) to 51 */
    const char *preset;   /* x264's speed: "ultrafast" to "placebo" */
} ipvg_mp4_config;

typedef struct ipvg_mp4 ipvg_mp4;

ipvg_status ipvg_mp4_open(ipvg_context *ctx, ipvg_mp4 **out, const char *path, const ipvg_mp4_config *config);
/* rgb: (height, width, 3). Obeys cancel. After any failure only close is left to do. */
ipvg_status ipvg_mp4_write(ipvg_context *ctx, ipvg_mp4 *m, const uint8_t *rgb);
ipvg_status ipvg_mp4_finish(ipvg_context *ctx, ipvg_mp4 *m);
void ipvg_mp4_close(ipvg_mp4 **m);

#endif

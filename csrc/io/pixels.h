/* Decoded frames of any pixel format <-> rows of RGB bytes.
 *
 * Through swscale with every accuracy switch on: its defaults take the nearest chroma sample and round down. */
#ifndef IPVG_IO_PIXELS_H
#define IPVG_IO_PIXELS_H

#include <libavutil/frame.h>
#include <libswscale/swscale.h>
#include <stdbool.h>

#include "../base/context.h"

/* What becomes of transparency: `drop` keeps the stored colour, as PIL's convert("RGB") does and with it the reference
 * implementation; `white` blends onto white. */
typedef enum ipvg_alpha { IPVG_ALPHA_DROP, IPVG_ALPHA_WHITE } ipvg_alpha;

typedef struct ipvg_to_rgb {
    struct SwsContext *sws; /* NULL: RGB or grey of more than 8 bits, converted here */
    AVFrame *rgb;           /* RGB24, or RGBA when the source has alpha */
    AVFrame *whole;         /* NULL, or the frame on whole cells of its chroma */
    int width, height, format, colorspace, range, chroma;
} ipvg_to_rgb;

/* Size of the frame once upright. orientation: EXIF's number, 1..8. */
void ipvg_upright_size(const AVFrame *frame, int orientation, int *height, int *width);

/* out: (height, width, 3), upright. A zeroed converter is ready; it is set up at the first frame and whenever the
 * format changes. picture: unspecified chroma lies centred (JPEG, WebP), not left as in video. */
ipvg_status ipvg_to_rgb_convert(ipvg_context *ctx, ipvg_to_rgb *c, uint8_t *out, const AVFrame *frame, int orientation,
                                ipvg_alpha alpha, bool picture);
void ipvg_to_rgb_free(ipvg_to_rgb *c);

/* A converter from RGB24 to limited-range bt709 yuv420p with left-sited chroma. */
ipvg_status ipvg_sws_bt709(ipvg_context *ctx, struct SwsContext **out, int height, int width);

#endif

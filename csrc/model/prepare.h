/* From pixels to what the VAE encodes: the reference picture on its canvas, the source video cut to size.
 *
 * Two different resizes, because the reference implementation has two (METHOD: "VACE context"):
 *
 *   reference  scaled to fit, bilinear on float without antialias even when it shrinks, centred on white
 *   source     scaled to cover, bicubic with antialias on bytes in fixed point, centre crop */
#ifndef IPVG_MODEL_PREPARE_H
#define IPVG_MODEL_PREPARE_H

#include <stdbool.h>
#include <stdint.h>

#include "../base/context.h"

/* Where the fitted picture lies on its canvas. */
typedef struct ipvg_fit {
    int height, width, top, left;
} ipvg_fit;

/* The size is truncated, not rounded: for some heights (11, 13, 22, ... at 480) int(h * (H / h)) is H - 1 and a white
 * line of one pixel stays. */
ipvg_fit ipvg_fit_size(int canvas_height, int canvas_width, int image_height, int image_width);

/* canvas (3, H, W) in [-1, 1], 1 = white; image (h, w, 3). antialias: weigh every pixel that a shrunken one covers,
 * which the reference implementation does not. */
ipvg_status ipvg_fit_reference(ipvg_context *ctx, float *canvas, const uint8_t *image, bool antialias,
                               int canvas_height, int canvas_width, int image_height, int image_width);

/* out (F, H, W, 3), frames (F, h, w, 3): covers H x W, the middle is kept. Obeys cancel between frames. */
ipvg_status ipvg_cover_frames(ipvg_context *ctx, uint8_t *out, const uint8_t *frames, int64_t count, int out_height,
                              int out_width, int height, int width);

#endif

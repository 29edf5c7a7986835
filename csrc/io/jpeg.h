/* RGB bytes -> a JPEG file in memory: small, and with nothing in it but the pixels (no EXIF, no comment).
 *
 *     IPVG_TRY(ipvg_jpeg_encode(ctx, &jpeg, &size, 1024, 90, rgb, height, width));     // free(jpeg) */
#ifndef IPVG_IO_JPEG_H
#define IPVG_IO_JPEG_H

#include <stddef.h>
#include <stdint.h>

#include "../base/context.h"

/* max_side: a picture with a longer side is scaled down to it, keeping its shape. quality: 1 to 100, about libjpeg's
 * scale. rgb: (height, width, 3). The bytes depend on FFmpeg's version. */
ipvg_status ipvg_jpeg_encode(ipvg_context *ctx, uint8_t **jpeg, size_t *size, int max_side, int quality,
                             const uint8_t *rgb, int height, int width);

#endif

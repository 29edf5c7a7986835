/* Pictures: PNG, JPEG, WebP and others (source.c) -> RGB bytes; RGB bytes -> PNG.
 *
 *     ipvg_image face = {0};
 *     if (ipvg_image_read(&ctx, &face, "alice.png", NULL, 0, IPVG_ALPHA_DROP) != IPVG_OK) puts(ctx.error);
 *     ... face.rgb[(y * face.width + x) * 3] ...
 *     ipvg_image_free(&face); */
#ifndef IPVG_IO_IMAGE_H
#define IPVG_IO_IMAGE_H

#include <stddef.h>
#include <stdint.h>

#include "pixels.h"

typedef struct ipvg_image {
    uint8_t *rgb; /* (height, width, 3), rows without gaps; free with ipvg_image_free */
    int height, width;
} ipvg_image;

/* From a file, or from `size` bytes at `data` when path is NULL. EXIF orientation is obeyed. A video is refused. */
ipvg_status ipvg_image_read(ipvg_context *ctx, ipvg_image *out, const char *path, const void *data, size_t size,
                            ipvg_alpha alpha);
void ipvg_image_free(ipvg_image *image);

/* The file appears whole or not at all. rgb: (height, width, 3) */
ipvg_status ipvg_image_write_png(ipvg_context *ctx, const char *path, const uint8_t *rgb, int height, int width);

#endif

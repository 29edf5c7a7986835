/* What a picture's file says about itself, before a decoder is let near it. */
#ifndef IPVG_REMOTE_PICTURE_H
#define IPVG_REMOTE_PICTURE_H

#include <stddef.h>
#include <stdint.h>

/* "image/png", "image/jpeg" or "image/webp" by the first bytes, with the size that the header announces; NULL for
 * anything else, and for a header that is cut short or announces nothing. */
const char *ipvg_picture_look(const void *data, size_t size, int64_t *height, int64_t *width);

#endif

#include "picture.h"

#include <stdbool.h>
#include <string.h>

static int64_t big(const unsigned char *p, int bytes)
{
    int64_t value = 0;
    for (int i = 0; i < bytes; i++) value = value << 8 | p[i];
    return value;
}

static int64_t little(const unsigned char *p, int bytes)
{
    int64_t value = 0;
    for (int i = bytes; i-- > 0;) value = value << 8 | p[i];
    return value;
}

/* The start of frame: the first marker 0xc0 to 0xcf that is no table (c4, c8, cc). */
static bool jpeg_size(const unsigned char *p, size_t size, int64_t *height, int64_t *width)
{
    for (size_t i = 2; i + 4 <= size;) {
        if (p[i] != 0xff) return false;
        int marker = p[i + 1];
        if (marker == 0xff) { /* fill */
            i++;
            continue;
        }
        if (marker >= 0xc0 && marker <= 0xcf && marker != 0xc4 && marker != 0xc8 && marker != 0xcc) {
            if (i + 9 > size) return false;
            *height = big(p + i + 5, 2);
            *width = big(p + i + 7, 2);
            return true;
        }
        if (marker < 0xc0 || marker == 0xd8 || marker == 0xd9) return false;
        i += 2 + (size_t)big(p + i + 2, 2);
    }
    return false;
}

static bool webp_size(const unsigned char *p, size_t size, int64_t *height, int64_t *width)
{
    if (size < 30) return false;
    if (memcmp(p + 12, "VP8X", 4) == 0) {
        *width = little(p + 24, 3) + 1;
        *height = little(p + 27, 3) + 1;
    } else if (memcmp(p + 12, "VP8L", 4) == 0 && p[20] == 0x2f) {
        *width = (little(p + 21, 4) & 0x3fff) + 1;
        *height = (little(p + 21, 4) >> 14 & 0x3fff) + 1;
    } else if (memcmp(p + 12, "VP8 ", 4) == 0) {
        *width = little(p + 26, 2) & 0x3fff;
        *height = little(p + 28, 2) & 0x3fff;
    } else {
        return false;
    }
    return true;
}

const char *ipvg_picture_look(const void *data, size_t size, int64_t *height, int64_t *width)
{
    const unsigned char *p = data;
    const char *type = NULL;
    *height = *width = 0;
    if (size >= 24 && memcmp(p, "\x89PNG\r\n\x1a\n", 8) == 0 && memcmp(p + 12, "IHDR", 4) == 0) {
        *width = big(p + 16, 4);
        *height = big(p + 20, 4);
        type = "image/png";
    } else if (size >= 4 && memcmp(p, "\xff\xd8\xff", 3) == 0) {
        type = jpeg_size(p, size, height, width) ? "image/jpeg" : NULL;
    } else if (size >= 16 && memcmp(p, "RIFF", 4) == 0 && memcmp(p + 8, "WEBP", 4) == 0) {
        type = webp_size(p, size, height, width) ? "image/webp" : NULL;
    }
    return *height > 0 && *width > 0 ? type : NULL;
}

#include "whole.h"

#include <libavutil/avstring.h>
#include <libavutil/intreadwrite.h>
#include <string.h>
#include <unistd.h>

/* Up to n bytes at `at`; leaves FFmpeg's own place alone. Returns how many there are. */
static size_t peek(const ipvg_source *s, int64_t at, uint8_t *out, size_t n)
{
    if (at >= s->size) return 0;
    if ((int64_t)n > s->size - at) n = (size_t)(s->size - at);
    if (s->fd >= 0) {
        ssize_t got = pread(s->fd, out, n, (off_t)at);
        return got < 0 ? 0 : (size_t)got;
    }
    memcpy(out, s->data + at, n);
    return n;
}

/* Where the body of the EBML element `id` at `at` starts and ends; false when it is another one or says no size. */
static bool ebml_element(const ipvg_source *s, int64_t at, uint32_t id, int64_t *start, int64_t *end)
{
    uint8_t b[12];
    if (peek(s, at, b, sizeof b) < sizeof b || AV_RB32(b) != id || b[4] == 0) return false;
    int length = 1; /* of the size: as many bytes as the first has leading zeros, and one */
    while (!(b[4] & 0x80 >> (length - 1))) length++;
    int64_t size = b[4] & (0xff >> length);
    for (int i = 1; i < length; i++) size = size << 8 | b[4 + i];
    *start = at + 4 + length;
    *end = *start + size;
    return size != ((int64_t)1 << 7 * length) - 1; /* all ones: unknown, as in a live recording */
}

static bool matroska_is_whole(const ipvg_source *s)
{
    int64_t start, end;
    if (!ebml_element(s, 0, 0x1A45DFA3, &start, &end)) return true;   /* EBML's header */
    if (!ebml_element(s, end, 0x18538067, &start, &end)) return true; /* the segment: everything else */
    return end <= s->size;
}

/* Bytes of a colour table whose size lies in the low bits of flags. */
static int64_t gif_table(uint8_t flags) { return flags & 0x80 ? 6 << (flags & 7) : 0; }

static bool gif_is_whole(const ipvg_source *s)
{
    uint8_t b[10];
    if (peek(s, 10, b, 1) < 1) return false;
    for (int64_t at = 13 + gif_table(b[0]);;) {
        if (peek(s, at, b, 1) < 1) return false;
        if (b[0] == 0x21) { /* extension and its label */
            at += 2;
        } else if (b[0] == 0x2C) { /* image, its colours, its code size */
            if (peek(s, at, b, 10) < 10) return false;
            at += 10 + gif_table(b[9]) + 1;
        } else {
            return true; /* 0x3B, the end; or what FFmpeg has to judge */
        }
        do { /* blocks of up to 255 bytes, then an empty one */
            if (peek(s, at, b, 1) < 1) return false;
            at += 1 + b[0];
        } while (b[0]);
    }
}

bool ipvg_source_is_whole(const ipvg_source *s)
{
    const char *demuxer = s->format->iformat->name;
    if (av_match_name("matroska", demuxer)) return matroska_is_whole(s);
    return strcmp(demuxer, "gif") != 0 || gif_is_whole(s);
}

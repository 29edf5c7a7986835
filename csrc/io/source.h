/* A picture or video, opened: its decoded frames one after another, as FFmpeg gives them.
 *
 * Only the bytes decide what a file is, never its name: no protocol prefix ("http:", "concat:"), no "%03d" pattern and
 * no playlist can make it read anything else. Damaged data is an error, not a guess: FFmpeg would conceal it. */
#ifndef IPVG_IO_SOURCE_H
#define IPVG_IO_SOURCE_H

#include <libavcodec/avcodec.h>
#include <libavformat/avformat.h>
#include <stdbool.h>

#include "../base/context.h"

typedef struct ipvg_source {
    char *name; /* for error texts */
    int fd;     /* -1: bytes in memory */
    const uint8_t *data;
    int64_t size, position;
    int read_error; /* AVERROR of the system's last failure */
    AVIOContext *io;
    AVFormatContext *format;
    AVCodecContext *codec;
    AVStream *stream; /* the format's */
    AVPacket *packet;
    AVFrame *frame;
    int64_t decoded; /* frames so far */
    bool flushing;
} ipvg_source;

/* Opens a file, or `size` bytes at `data` when path is NULL (they must outlive the source). `source` needs no
 * initialisation; close it whatever this returns. The source stays where it is: FFmpeg keeps its address. Whoever calls
 * these functions listens to FFmpeg's log (ffmpeg.h). */
ipvg_status ipvg_source_open(ipvg_context *ctx, ipvg_source *source, const char *path, const void *data, size_t size);
/* The next frame, the source's own until the next call; NULL at the end. */
ipvg_status ipvg_source_next(ipvg_context *ctx, ipvg_source *source, const AVFrame **frame);
/* EXIF's number: 1 upright, 2..8 mirrored and / or turned; from the frame or its container. */
int ipvg_source_orientation(const ipvg_source *source, const AVFrame *frame);
void ipvg_source_close(ipvg_source *source);

#endif

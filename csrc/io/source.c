#include "source.h"

#include <errno.h>
#include <fcntl.h>
#include <libavutil/avstring.h>
#include <libavutil/display.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "ffmpeg.h"
#include "whole.h"

#ifndef IPVG_MAX_PIXELS           /* fuzzing wants less */
#define IPVG_MAX_PIXELS (1 << 28) /* of one picture: 16384 x 16384 */
#endif
#define IO_BUFFER (64 * 1024)

/* What is read, by FFmpeg's names; each has a test. What else a build of FFmpeg reads (SVG, for one, or playlists, which
 * name other files) depends on its release and its options: a list of refusals would have holes. */
static const char demuxers[] =
    "png_pipe,apng,jpeg_pipe,webp_pipe,gif,bmp_pipe,tiff_pipe,"
    "mov,matroska,avi,mpegts,mpeg,flv,mjpeg,yuv4mpegpipe";
static const char decoders[] =
    "png,apng,mjpeg,webp,gif,bmp,tiff,libdav1d,libaom-av1,av1,h264,hevc,vp8,vp9,mpeg1video,"
    "mpeg2video,mpeg4,h263,flv,prores,dnxhd,qtrle,ffv1,ffvhuff,huffyuv,rawvideo";
static const char kinds[] =
    "pictures: PNG, JPEG, WebP, GIF, BMP, TIFF, AVIF; "
    "videos: mp4, mov, mkv, webm, avi, MPEG-TS and -PS, flv, y4m, GIF, APNG";

static int read_some(void *user, uint8_t *buf, int want)
{
    ipvg_source *s = user;
    if (s->fd >= 0) {
        ssize_t n;
        do n = read(s->fd, buf, (size_t)want);
        while (n < 0 && errno == EINTR);
        if (n < 0) s->read_error = AVERROR(errno);
        return n < 0 ? s->read_error : n == 0 ? AVERROR_EOF : (int)n;
    }
    int64_t n = s->size - s->position < want ? s->size - s->position : want;
    if (n <= 0) return AVERROR_EOF;
    memcpy(buf, s->data + s->position, (size_t)n);
    s->position += n;
    return (int)n;
}

static int64_t seek_to(void *user, int64_t offset, int whence)
{
    ipvg_source *s = user;
    whence &= ~AVSEEK_FORCE;
    if (whence == AVSEEK_SIZE) return s->size;
    if (s->fd >= 0) {
        off_t at = lseek(s->fd, (off_t)offset, whence);
        return at < 0 ? AVERROR(errno) : (int64_t)at;
    }
    int64_t at = whence == SEEK_SET ? offset : whence == SEEK_CUR ? s->position + offset : s->size + offset;
    if (at < 0) return AVERROR(EINVAL);
    s->position = at;
    return at;
}

/* FFmpeg also says EIO of a file that is damaged; only read_some knows. */
static int cause(const ipvg_source *s, int err)
{
    return s->read_error ? s->read_error : err == AVERROR(EIO) ? AVERROR_INVALIDDATA : err;
}

static int refuse_open(AVFormatContext *format, AVIOContext **pb, const char *url, int flags, AVDictionary **options)
{
    (void)format, (void)pb, (void)flags, (void)options;
    av_log(NULL, AV_LOG_ERROR, "it refers to another file, '%s', which is not followed\n", url);
    return AVERROR(EPERM);
}

/* Phones save these in tiles: FFmpeg before 7.1 finds nothing in one, later ones give each tile as a stream of its own. */
static bool is_heif(AVIOContext *io)
{
    uint8_t b[12];
    bool enough = avio_read(io, b, sizeof b) == sizeof b;
    avio_seek(io, 0, SEEK_SET);
    return enough && (!memcmp(b + 4, "ftyphe", 6) || !memcmp(b + 4, "ftypmif1", 8));
}

static ipvg_status open_bytes(ipvg_context *ctx, ipvg_source *s, const char *path)
{
    if (path) {
        struct stat st;
        s->fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* a FIFO would wait for its writer */
        if (s->fd < 0 || fstat(s->fd, &st) != 0) return ipvg_fail_errno(ctx, "%s: cannot be opened", path);
        if (S_ISDIR(st.st_mode)) return ipvg_fail(ctx, IPVG_E_ARGUMENT, "%s is a folder: name a file in it", path);
        if (!S_ISREG(st.st_mode)) return ipvg_fail(ctx, IPVG_E_ARGUMENT, "%s is not a regular file", path);
        s->size = st.st_size;
    }
    if (s->size == 0) return ipvg_fail(ctx, IPVG_E_FORMAT, "%s: empty (0 bytes)", s->name);
    uint8_t *buffer = av_malloc(IO_BUFFER);
    if (buffer) s->io = avio_alloc_context(buffer, IO_BUFFER, 0, s, read_some, NULL, seek_to);
    if (s->io) return IPVG_OK;
    av_free(buffer);
    return ipvg_fail(ctx, IPVG_E_MEMORY, "%s: no memory to read it", s->name);
}

/* The lists go along for what a file holds: AVI, for one, opens demuxers of subtitles. Frees the format when it fails. */
static int open_format(ipvg_source *s, const AVInputFormat *demuxer)
{
    AVDictionary *options = NULL;
    int err = av_dict_set(&options, "format_whitelist", demuxers, 0);
    if (err >= 0) err = av_dict_set(&options, "codec_whitelist", decoders, 0);
    if (err >= 0) err = avformat_open_input(&s->format, NULL, demuxer, &options);
    av_dict_free(&options);
    return err;
}

/* FFmpeg decodes some frames here, by decoders of its own: they get the limit too. */
static int find_stream_info(AVFormatContext *format)
{
    unsigned count = format->nb_streams;
    AVDictionary **options = av_calloc(count + 1, sizeof *options);
    int err = options ? 0 : AVERROR(ENOMEM);
    for (unsigned i = 0; err >= 0 && i < count; i++)
        err = av_dict_set_int(&options[i], "max_pixels", IPVG_MAX_PIXELS, 0);
    if (err >= 0) err = avformat_find_stream_info(format, count ? options : NULL);
    for (unsigned i = 0; options && i < count; i++) av_dict_free(&options[i]);
    av_free(options);
    return err;
}

static ipvg_status open_decoder(ipvg_context *ctx, ipvg_source *s)
{
    int index = av_find_best_stream(s->format, AVMEDIA_TYPE_VIDEO, -1, -1, NULL, 0);
    if (index < 0 || (s->format->streams[index]->disposition & AV_DISPOSITION_ATTACHED_PIC))
        return ipvg_fail(ctx, IPVG_E_FORMAT, "%s: a file of type %s without pictures%s", s->name,
                         s->format->iformat->name, s->format->nb_streams ? ", only sound or data" : "");
    s->stream = s->format->streams[index];
    const char *name = avcodec_get_name(s->stream->codecpar->codec_id);
    const AVCodec *decoder = avcodec_find_decoder(s->stream->codecpar->codec_id);
    if (!decoder) return ipvg_fail(ctx, IPVG_E_UNSUPPORTED, "%s: FFmpeg here has no decoder for '%s'", s->name, name);
    if (!av_match_list(decoder->name, decoders, ','))
        return ipvg_fail(ctx, IPVG_E_UNSUPPORTED, "%s: the codec '%s' is not read: convert it first, as to H.264",
                         s->name, name);
    s->codec = avcodec_alloc_context3(decoder);
    s->packet = av_packet_alloc();
    s->frame = av_frame_alloc();
    if (!s->codec || !s->packet || !s->frame) return ipvg_fail(ctx, IPVG_E_MEMORY, "%s: no memory to read it", s->name);
    int err = avcodec_parameters_to_context(s->codec, s->stream->codecpar);
    if (err >= 0) {
        s->codec->thread_count = 1; /* ffmpeg.h says why */
        s->codec->max_pixels = IPVG_MAX_PIXELS;
        /* Strict where that means damage; FFmpeg's TIFF decoder would also refuse a tag that it does not know. */
        if (decoder->id != AV_CODEC_ID_TIFF) s->codec->err_recognition = AV_EF_EXPLODE | AV_EF_CRCCHECK;
        s->codec->pkt_timebase = s->stream->time_base;
        err = avcodec_open2(s->codec, decoder, NULL);
    }
    if (err < 0) return ipvg_ff_fail(ctx, err, "%s: its decoder cannot be opened", s->name);
    return IPVG_OK;
}

ipvg_status ipvg_source_open(ipvg_context *ctx, ipvg_source *s, const char *path, const void *data, size_t size)
{
    *s = (ipvg_source){.fd = -1, .data = data, .size = (int64_t)size, .name = strdup(path ? path : "the bytes given")};
    if (!s->name) return ipvg_fail(ctx, IPVG_E_MEMORY, "no memory to open a file");
    ipvg_status status = open_bytes(ctx, s, path);
    if (status != IPVG_OK) return status;
    s->format = avformat_alloc_context();
    if (!s->format) return ipvg_fail(ctx, IPVG_E_MEMORY, "%s: no memory to read it", s->name);
    s->format->pb = s->io;
    s->format->flags |= AVFMT_FLAG_CUSTOM_IO;
    s->format->io_open = refuse_open;
    if (is_heif(s->io))
        return ipvg_fail(ctx, IPVG_E_FORMAT, "%s: not a picture or video that is read (HEIF, as from a phone); %s",
                         s->name, kinds);
    const AVInputFormat *demuxer = NULL;
    int err = av_probe_input_buffer2(s->io, &demuxer, NULL, NULL, 0, 0);
    if (err >= 0 && !av_match_list(demuxer->name, demuxers, ','))
        return ipvg_fail(ctx, IPVG_E_FORMAT, "%s: not a picture or video that is read (FFmpeg calls it '%s'); %s",
                         s->name, demuxer->name, kinds);
    if (err >= 0) err = open_format(s, demuxer);
    if (err < 0)
        return ipvg_ff_fail(ctx, cause(s, err), "%s: not a picture or video that FFmpeg can read, or damaged", s->name);
    err = find_stream_info(s->format);
    if (err < 0) return ipvg_ff_fail(ctx, cause(s, err), "%s: cannot be read", s->name);
    if (!ipvg_source_is_whole(s))
        return ipvg_fail(ctx, IPVG_E_FORMAT, "%s: cut short: the end of a file of type %s is missing", s->name,
                         s->format->iformat->name);
    return open_decoder(ctx, s);
}

/* Hands the decoder the next packet of the stream, or the end. */
static ipvg_status feed(ipvg_context *ctx, ipvg_source *s)
{
    int err;
    for (;;) {
        err = av_read_frame(s->format, s->packet);
        if (err < 0 || s->packet->stream_index == s->stream->index) break;
        av_packet_unref(s->packet);
    }
    if (err == AVERROR_EOF) {
        s->flushing = true;
        err = avcodec_send_packet(s->codec, NULL);
    } else if (err >= 0) {
        err = s->packet->flags & AV_PKT_FLAG_CORRUPT ? AVERROR_INVALIDDATA : avcodec_send_packet(s->codec, s->packet);
        av_packet_unref(s->packet);
    }
    if (err < 0)
        return ipvg_ff_fail(ctx, cause(s, err), "%s: damaged or cut short after frame %lld", s->name,
                            (long long)s->decoded);
    return IPVG_OK;
}

ipvg_status ipvg_source_next(ipvg_context *ctx, ipvg_source *s, const AVFrame **frame)
{
    *frame = NULL;
    for (;;) {
        int err = avcodec_receive_frame(s->codec, s->frame);
        if (err == AVERROR_EOF) return IPVG_OK;
        if (err >= 0 && ((s->frame->flags & AV_FRAME_FLAG_CORRUPT) || s->frame->decode_error_flags))
            err = AVERROR_INVALIDDATA;
        if (err >= 0) break;
        if (err != AVERROR(EAGAIN) || s->flushing)
            return ipvg_ff_fail(ctx, err, "%s: damaged or cut short after frame %lld", s->name, (long long)s->decoded);
        ipvg_status status = feed(ctx, s);
        if (status != IPVG_OK) return status;
    }
    s->decoded++;
    *frame = s->frame;
    return IPVG_OK;
}

static const int32_t *stream_matrix(const AVStream *stream)
{
#if LIBAVCODEC_VERSION_INT >= AV_VERSION_INT(60, 30, 100) /* FFmpeg 6.1 moved it */
    const AVCodecParameters *par = stream->codecpar;
    const AVPacketSideData *sd =
        av_packet_side_data_get(par->coded_side_data, par->nb_coded_side_data, AV_PKT_DATA_DISPLAYMATRIX);
    return sd && sd->size >= 9 * sizeof(int32_t) ? (const int32_t *)sd->data : NULL;
#else
    size_t size = 0;
    const uint8_t *data = av_stream_get_side_data(stream, AV_PKT_DATA_DISPLAYMATRIX, &size);
    return data && size >= 9 * sizeof(int32_t) ? (const int32_t *)data : NULL;
#endif
}

int ipvg_source_orientation(const ipvg_source *s, const AVFrame *frame)
{
    const AVDictionaryEntry *exif = av_dict_get(frame->metadata, "Orientation", NULL, 0);
    if (exif) {
        long n = strtol(exif->value, NULL, 10);
        return n >= 1 && n <= 8 ? (int)n : 1;
    }
    const AVFrameSideData *sd = av_frame_get_side_data(frame, AV_FRAME_DATA_DISPLAYMATRIX);
    const int32_t *m = sd ? (const int32_t *)sd->data : stream_matrix(s->stream);
    if (!m) return 1;
    /* Upright (x, y) = (m0 x + m3 y, m1 x + m4 y): only quarter turns and mirrors are followed. */
    bool straight = !m[1] && !m[3] && m[0] && m[4], swapped = !m[0] && !m[4] && m[1] && m[3];
    if (straight) return m[0] > 0 ? (m[4] > 0 ? 1 : 4) : (m[4] > 0 ? 2 : 3);
    if (swapped) return m[3] > 0 ? (m[1] > 0 ? 5 : 8) : (m[1] > 0 ? 6 : 7);
    return 1;
}

void ipvg_source_close(ipvg_source *s)
{
    av_frame_free(&s->frame);
    av_packet_free(&s->packet);
    avcodec_free_context(&s->codec);
    avformat_close_input(&s->format);
    if (s->io) av_freep(&s->io->buffer);
    avio_context_free(&s->io);
    if (s->fd >= 0) close(s->fd);
    free(s->name);
    *s = (ipvg_source){.fd = -1};
}

#include "writer.h"

#include <libavcodec/avcodec.h>
#include <libavformat/avformat.h>
#include <libavutil/avstring.h>
#include <stdlib.h>
#include <string.h>

#include "ffmpeg.h"
#include "output.h"
#include "palette.h"
#include "pixels.h"

/* x264's, on any machine: the bytes depend on their number, not on when they run. They log nothing. */
#define H264_THREADS 8

struct ipvg_writer {
    ipvg_output out;
    AVFormatContext *format;
    AVCodecContext *codec;
    AVStream *stream; /* the format's */
    AVFrame *frame;
    AVPacket *packet;
    struct SwsContext *sws; /* NULL: frames are BGRA */
    ipvg_palette *palette;  /* of a GIF */
    int64_t frames;
};

/* Checked here because x264 prints to stderr when it does not know one. */
static bool known_preset(const char *preset)
{
    static const char *const presets[] = {"ultrafast", "superfast", "veryfast", "faster",   "fast",
                                          "medium",    "slow",      "slower",   "veryslow", "placebo"};
    for (size_t i = 0; i < sizeof presets / sizeof *presets; i++)
        if (strcmp(preset, presets[i]) == 0) return true;
    return false;
}

/* What a name's ending asks for. */
typedef struct container {
    const char *ending, *muxer, *encoder, *package, *codec;
    enum AVPixelFormat pixels; /* BGR0: stored as they are, nothing lost. PAL8: by way of palette.h */
    int least;                 /* pixels of a side */
    int most_fps;
} container;

static const container containers[] = {
    {".webm", "webm", "libvpx-vp9", "libvpx", "VP9", AV_PIX_FMT_YUV420P, 16, 1000},
    {".mkv", "matroska", "ffv1", "FFV1", "FFV1", AV_PIX_FMT_BGR0, 1, 1000},
    {".gif", "gif", "gif", "GIF", "GIF", AV_PIX_FMT_PAL8, 1, 50}, /* players slow down what is below 0.02 s a frame */
    {".mp4", "mp4", "libx264", "libx264, which writes H.264", "H.264", AV_PIX_FMT_YUV420P, 16, 1000}};

/* Any other name is an mp4: what a name may be is the caller's to say. */
static const container *container_of_name(const char *path)
{
    const size_t last = sizeof containers / sizeof *containers - 1;
    size_t i = 0, n = strlen(path);
    for (; i < last; i++) {
        size_t m = strlen(containers[i].ending);
        if (n >= m && av_strcasecmp(path + n - m, containers[i].ending) == 0) break;
    }
    return &containers[i];
}

static ipvg_status check(ipvg_context *ctx, const char *path, const ipvg_writer_config *c, const container *kind)
{
    if (c->height < kind->least || c->width < kind->least || c->height > 16384 || c->width > 16384)
        return ipvg_fail(ctx, IPVG_E_ARGUMENT, "%s: frames are %d x %d: %s takes %d x %d to 16384 x 16384", path,
                         c->width, c->height, kind->codec, kind->least, kind->least);
    if (kind->pixels == AV_PIX_FMT_YUV420P && (c->height % 2 || c->width % 2))
        return ipvg_fail(ctx, IPVG_E_ARGUMENT,
                         "%s: frames are %d x %d: %s in yuv420p needs an even width and height: crop or pad them to "
                         "%d x %d, or save as .mkv or .gif",
                         path, c->width, c->height, kind->codec, c->width & ~1, c->height & ~1);
    if (c->fps_num <= 0 || c->fps_den <= 0 || c->fps_num > (int64_t)c->fps_den * kind->most_fps)
        return ipvg_fail(ctx, IPVG_E_ARGUMENT, "%s: %d/%d frames a second cannot be written: %s takes up to %d", path,
                         c->fps_num, c->fps_den, kind->codec, kind->most_fps);
    if (c->crf < 1 || c->crf > 51)
        return ipvg_fail(ctx, IPVG_E_ARGUMENT, "%s: crf is %d, expected 1 (best) to 51", path, c->crf);
    if (!known_preset(c->preset))
        return ipvg_fail(ctx, IPVG_E_ARGUMENT, "%s: preset '%s' is not one of x264's: ultrafast ... medium ... placebo",
                         path, c->preset);
    return IPVG_OK;
}

static int open_encoder(ipvg_writer *m, const ipvg_writer_config *c, const AVCodec *encoder, enum AVPixelFormat pixels)
{
    bool rgb = pixels != AV_PIX_FMT_YUV420P;
    m->codec = avcodec_alloc_context3(encoder);
    if (!m->codec) return AVERROR(ENOMEM);
    m->codec->width = c->width;
    m->codec->height = c->height;
    m->codec->pix_fmt = pixels;
    m->codec->time_base = (AVRational){c->fps_den, c->fps_num};
    m->codec->framerate = (AVRational){c->fps_num, c->fps_den};
    m->codec->sample_aspect_ratio = (AVRational){1, 1};
    m->codec->color_primaries = AVCOL_PRI_BT709;
    m->codec->color_trc = AVCOL_TRC_BT709;
    m->codec->colorspace = rgb ? AVCOL_SPC_RGB : AVCOL_SPC_BT709;
    m->codec->color_range = rgb ? AVCOL_RANGE_JPEG : AVCOL_RANGE_MPEG;
    m->codec->chroma_sample_location = rgb ? AVCHROMA_LOC_UNSPECIFIED : AVCHROMA_LOC_LEFT;
    m->codec->thread_count = encoder->id == AV_CODEC_ID_H264 ? H264_THREADS : 1; /* ffmpeg.h says why */
    if (m->format->oformat->flags & AVFMT_GLOBALHEADER) m->codec->flags |= AV_CODEC_FLAG_GLOBAL_HEADER;
    AVDictionary *options = NULL;
    switch (encoder->id) {
    case AV_CODEC_ID_H264:
        av_dict_set(&options, "preset", c->preset, 0);
        av_dict_set(&options, "mbtree", "0", 0); /* it reads memory that was never set: other bytes each time */
        break;
    case AV_CODEC_ID_VP9: av_dict_set(&options, "b", "0", 0); break;      /* crf alone decides */
    case AV_CODEC_ID_FFV1: av_dict_set(&options, "level", "3", 0); break; /* each slice has a checksum */
    default: break;
    }
    if (!rgb) av_dict_set_int(&options, "crf", c->crf, 0);
    int err = avcodec_open2(m->codec, encoder, &options);
    av_dict_free(&options);
    if (err >= 0) err = avcodec_parameters_from_context(m->stream->codecpar, m->codec);
    return err;
}

static int open_muxer(ipvg_writer *m)
{
    int err = avio_open(&m->format->pb, m->format->url, AVIO_FLAG_WRITE);
    if (err < 0) return err;
    AVDictionary *options = NULL;
    /* Else FFmpeg writes a random id into the file, and its own name: the same frames shall give the same bytes. */
    m->format->flags |= AVFMT_FLAG_BITEXACT;
    if (strcmp(m->format->oformat->name, "mp4") == 0) av_dict_set(&options, "movflags", "+faststart", 0);
    err = avformat_write_header(m->format, &options);
    av_dict_free(&options);
    return err;
}

static int alloc_frame(ipvg_writer *m)
{
    m->packet = av_packet_alloc();
    m->frame = av_frame_alloc();
    if (!m->packet || !m->frame) return AVERROR(ENOMEM);
    m->frame->format = m->palette ? AV_PIX_FMT_BGRA : m->codec->pix_fmt;
    m->frame->width = m->codec->width;
    m->frame->height = m->codec->height;
    m->frame->color_primaries = m->codec->color_primaries;
    m->frame->color_trc = m->codec->color_trc;
    m->frame->colorspace = m->codec->colorspace;
    m->frame->color_range = m->codec->color_range;
    m->frame->chroma_location = m->codec->chroma_sample_location;
    return av_frame_get_buffer(m->frame, 0);
}

ipvg_status ipvg_writer_open(ipvg_context *ctx, ipvg_writer **out, const char *path, const ipvg_writer_config *config)
{
    ipvg_status status;
    char line[IPVG_FF_LINE], *url = NULL;
    int err = AVERROR(ENOMEM);
    ipvg_ff_listen(line);
    ipvg_writer *m = *out = calloc(1, sizeof *m);
    if (!m) {
        status = ipvg_fail(ctx, IPVG_E_MEMORY, "no memory to write a video");
        goto done;
    }
    const container *kind = container_of_name(path);
    IPVG_TRY(check(ctx, path, config, kind));
    const AVCodec *encoder = avcodec_find_encoder_by_name(kind->encoder);
    if (!encoder) {
        status = ipvg_fail(ctx, IPVG_E_UNSUPPORTED,
                           "%s: FFmpeg here was built without %s: install one that has it (Debian and Ubuntu's own "
                           "libavcodec does)",
                           path, kind->package);
        goto done;
    }
    IPVG_TRY(ipvg_output_begin(ctx, &m->out, path));
    url = av_asprintf("file:%s", m->out.temporary); /* the prefix: a name may contain a colon */
    if (url) err = avformat_alloc_output_context2(&m->format, NULL, kind->muxer, url);
    if (err >= 0) err = (m->stream = avformat_new_stream(m->format, NULL)) ? 0 : AVERROR(ENOMEM);
    if (err >= 0) err = open_encoder(m, config, encoder, kind->pixels);
    if (err >= 0) {
        m->stream->time_base = m->codec->time_base;
        m->stream->avg_frame_rate = m->codec->framerate;
        err = open_muxer(m);
    }
    if (err >= 0 && kind->pixels == AV_PIX_FMT_PAL8)
        err = ipvg_palette_open(&m->palette, config->height, config->width);
    if (err >= 0) err = alloc_frame(m);
    if (err < 0) {
        status = ipvg_ff_fail(ctx, err, "%s: cannot be written", path);
        goto done;
    }
    if (kind->pixels == AV_PIX_FMT_YUV420P) IPVG_TRY(ipvg_sws_bt709(ctx, &m->sws, config->height, config->width));
done:
    av_free(url);
    if (status != IPVG_OK) ipvg_writer_close(out);
    ipvg_ff_listen(NULL);
    return status;
}

/* Sends one frame (NULL: the end) and writes what comes out. */
static int encode(ipvg_writer *m, const AVFrame *frame)
{
    int err = avcodec_send_frame(m->codec, frame);
    while (err >= 0) {
        err = avcodec_receive_packet(m->codec, m->packet);
        if (err == AVERROR(EAGAIN) || err == AVERROR_EOF) return 0;
        if (err < 0) break;
        m->packet->duration = 1; /* the last frame's too, which a muxer would have to guess */
        m->packet->stream_index = m->stream->index;
        av_packet_rescale_ts(m->packet, m->codec->time_base, m->stream->time_base);
        err = av_interleaved_write_frame(m->format, m->packet);
        if (err >= 0) err = m->format->pb->error; /* a full disk shows here first */
    }
    return err;
}

/* m->frame <- rgb, in what the encoder or the palette takes. */
static int fill(ipvg_writer *m, const uint8_t *rgb)
{
    int width = m->codec->width, height = m->codec->height, stride = width * 3;
    int err = av_frame_make_writable(m->frame); /* x264 may still hold the last one */
    if (err < 0) return err;
    if (m->sws) return sws_scale(m->sws, &rgb, &stride, 0, height, m->frame->data, m->frame->linesize);
    for (int y = 0; y < height; y++) {
        uint8_t *bgra = m->frame->data[0] + (ptrdiff_t)y * m->frame->linesize[0];
        for (int x = 0; x < width; x++, rgb += 3, bgra += 4) {
            bgra[0] = rgb[2], bgra[1] = rgb[1], bgra[2] = rgb[0], bgra[3] = 255;
        }
    }
    return 0;
}

ipvg_status ipvg_writer_write(ipvg_context *ctx, ipvg_writer *m, const uint8_t *rgb)
{
    ipvg_status status = ipvg_check_cancel(ctx);
    if (status != IPVG_OK) return status;
    char line[IPVG_FF_LINE];
    ipvg_ff_listen(line);
    int err = fill(m, rgb);
    if (err >= 0) {
        m->frame->pts = m->frames++;
        err = m->palette ? ipvg_palette_push(m->palette, m->frame) : encode(m, m->frame);
    }
    if (err < 0)
        status = ipvg_ff_fail(ctx, err, "%s: frame %lld cannot be written", m->out.path, (long long)m->frames - 1);
    ipvg_ff_listen(NULL);
    return status;
}

/* A GIF's frames, all of which the palette had to see first. */
static ipvg_status encode_waiting(ipvg_context *ctx, ipvg_writer *m)
{
    ipvg_status status = IPVG_OK;
    int err = ipvg_palette_push(m->palette, NULL);
    for (int64_t i = 0; err >= 0 && (status = ipvg_check_cancel(ctx)) == IPVG_OK; i++) {
        av_frame_unref(m->frame);
        if ((err = ipvg_palette_pull(m->palette, m->frame)) < 0) break;
        m->frame->pts = i;
        err = encode(m, m->frame);
    }
    if (status != IPVG_OK || err == AVERROR_EOF) return status;
    return ipvg_ff_fail(ctx, err, "%s: cannot be written", m->out.path);
}

ipvg_status ipvg_writer_finish(ipvg_context *ctx, ipvg_writer *m)
{
    ipvg_status status;
    char line[IPVG_FF_LINE];
    ipvg_ff_listen(line);
    if (m->frames == 0) {
        status = ipvg_fail(ctx, IPVG_E_ARGUMENT, "%s: no frames to write", m->out.path);
        goto done;
    }
    if (m->palette) IPVG_TRY(encode_waiting(ctx, m));
    int err = encode(m, NULL);
    if (err >= 0) err = av_write_trailer(m->format);
    int closed = avio_closep(&m->format->pb);
    if (err >= 0) err = closed;
    if (err < 0) {
        status = ipvg_ff_fail(ctx, err, "%s: cannot be written", m->out.path);
        goto done;
    }
    IPVG_TRY(ipvg_output_commit(ctx, &m->out));
done:
    ipvg_ff_listen(NULL);
    return status;
}

void ipvg_writer_close(ipvg_writer **writer)
{
    ipvg_writer *m = *writer;
    if (!m) return;
    char line[IPVG_FF_LINE];
    ipvg_ff_listen(line); /* x264 prints statistics when it ends */
    sws_freeContext(m->sws);
    ipvg_palette_close(&m->palette);
    av_packet_free(&m->packet);
    av_frame_free(&m->frame);
    avcodec_free_context(&m->codec);
    if (m->format) avio_closep(&m->format->pb);
    avformat_free_context(m->format);
    ipvg_output_abandon(&m->out);
    free(m);
    *writer = NULL;
    ipvg_ff_listen(NULL);
}

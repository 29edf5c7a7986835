#include "mp4.h"

#include <libavcodec/avcodec.h>
#include <libavformat/avformat.h>
#include <libavutil/avstring.h>
#include <stdlib.h>
#include <string.h>

#include "ffmpeg.h"
#include "output.h"
#include "pixels.h"

struct ipvg_mp4 {
    ipvg_output out;
    AVFormatContext *format;
    AVCodecContext *codec;
    AVStream *stream; /* the format's */
    AVFrame *frame;
    AVPacket *packet;
    struct SwsContext *sws;
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
    const char *ending, *muxer, *encoder, *package;
    enum AVPixelFormat pixels; /* BGR0: stored as they are, nothing lost */
} container;

static const container containers[] = {{".webm", "webm", "libvpx-vp9", "libvpx", AV_PIX_FMT_YUV420P},
                                       {".mkv", "matroska", "ffv1", "FFV1", AV_PIX_FMT_BGR0},
                                       {".mp4", "mp4", "libx264", "libx264, which writes H.264", AV_PIX_FMT_YUV420P}};

/* Any other name is an mp4: what a name may be is the caller's to say. */
static const container *container_of_name(const char *path)
{
    size_t n = strlen(path);
    for (int i = 0; i < 2; i++) {
        size_t m = strlen(containers[i].ending);
        if (n >= m && av_strcasecmp(path + n - m, containers[i].ending) == 0) return &containers[i];
    }
    return &containers[2];
}

static ipvg_status check(ipvg_context *ctx, const char *path, const ipvg_mp4_config *c, bool subsampled)
{
    if (c->height < 16 || c->width < 16 || c->height > 16384 || c->width > 16384)
        return ipvg_fail(ctx, IPVG_E_ARGUMENT, "%s: frames are %d x %d: H.264 takes 16 x 16 to 16384 x 16384", path,
                         c->width, c->height);
    if (subsampled && (c->height % 2 || c->width % 2))
        return ipvg_fail(ctx, IPVG_E_ARGUMENT,
                         "%s: frames are %d x %d: H.264 in yuv420p needs an even width and height: crop or pad them to "
                         "%d x %d",
                         path, c->width, c->height, c->width & ~1, c->height & ~1);
    if (c->fps_num <= 0 || c->fps_den <= 0 || c->fps_num / c->fps_den > 1000)
        return ipvg_fail(ctx, IPVG_E_ARGUMENT, "%s: %d/%d frames a second cannot be written", path, c->fps_num,
                         c->fps_den);
    if (c->crf < 1 || c->crf > 51)
        return ipvg_fail(ctx, IPVG_E_ARGUMENT, "%s: crf is %d, expected 1 (best) to 51", path, c->crf);
    if (!known_preset(c->preset))
        return ipvg_fail(ctx, IPVG_E_ARGUMENT, "%s: preset '%s' is not one of x264's: ultrafast ... medium ... placebo",
                         path, c->preset);
    return IPVG_OK;
}

static int open_encoder(ipvg_mp4 *m, const ipvg_mp4_config *c, const AVCodec *encoder, enum AVPixelFormat pixels)
{
    bool lossless = pixels == AV_PIX_FMT_BGR0, vp9 = encoder->id == AV_CODEC_ID_VP9;
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
    m->codec->colorspace = lossless ? AVCOL_SPC_RGB : AVCOL_SPC_BT709;
    m->codec->color_range = lossless ? AVCOL_RANGE_JPEG : AVCOL_RANGE_MPEG;
    m->codec->chroma_sample_location = lossless ? AVCHROMA_LOC_UNSPECIFIED : AVCHROMA_LOC_LEFT;
    m->codec->thread_count = 1; /* ffmpeg.h says why */
    if (m->format->oformat->flags & AVFMT_GLOBALHEADER) m->codec->flags |= AV_CODEC_FLAG_GLOBAL_HEADER;
    AVDictionary *options = NULL;
    if (!lossless) av_dict_set_int(&options, "crf", c->crf, 0);
    if (!lossless && !vp9) av_dict_set(&options, "preset", c->preset, 0);
    if (lossless) av_dict_set(&options, "level", "3", 0); /* each slice has a checksum */
    if (vp9) av_dict_set(&options, "b", "0", 0);          /* crf alone decides */
    int err = avcodec_open2(m->codec, encoder, &options);
    av_dict_free(&options);
    if (err >= 0) err = avcodec_parameters_from_context(m->stream->codecpar, m->codec);
    return err;
}

static int open_muxer(ipvg_mp4 *m)
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

static int alloc_frame(ipvg_mp4 *m)
{
    m->packet = av_packet_alloc();
    m->frame = av_frame_alloc();
    if (!m->packet || !m->frame) return AVERROR(ENOMEM);
    m->frame->format = m->codec->pix_fmt;
    m->frame->width = m->codec->width;
    m->frame->height = m->codec->height;
    m->frame->color_primaries = m->codec->color_primaries;
    m->frame->color_trc = m->codec->color_trc;
    m->frame->colorspace = m->codec->colorspace;
    m->frame->color_range = m->codec->color_range;
    m->frame->chroma_location = m->codec->chroma_sample_location;
    return av_frame_get_buffer(m->frame, 0);
}

ipvg_status ipvg_mp4_open(ipvg_context *ctx, ipvg_mp4 **out, const char *path, const ipvg_mp4_config *config)
{
    ipvg_status status;
    char line[IPVG_FF_LINE], *url = NULL;
    int err = AVERROR(ENOMEM);
    ipvg_ff_listen(line);
    ipvg_mp4 *m = *out = calloc(1, sizeof *m);
    if (!m) {
        status = ipvg_fail(ctx, IPVG_E_MEMORY, "no memory to write a video");
        goto done;
    }
    const container *kind = container_of_name(path);
    IPVG_TRY(check(ctx, path, config, kind->pixels == AV_PIX_FMT_YUV420P));
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
    if (err >= 0) err = alloc_frame(m);
    if (err < 0) {
        status = ipvg_ff_fail(ctx, err, "%s: cannot be written", path);
        goto done;
    }
    if (kind->pixels == AV_PIX_FMT_YUV420P) IPVG_TRY(ipvg_sws_bt709(ctx, &m->sws, config->height, config->width));
done:
    av_free(url);
    if (status != IPVG_OK) ipvg_mp4_close(out);
    ipvg_ff_listen(NULL);
    return status;
}

/* Sends one frame (NULL: the end) and writes what comes out. */
static int encode(ipvg_mp4 *m, const AVFrame *frame)
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

ipvg_status ipvg_mp4_write(ipvg_context *ctx, ipvg_mp4 *m, const uint8_t *rgb)
{
    ipvg_status status = ipvg_check_cancel(ctx);
    if (status != IPVG_OK) return status;
    char line[IPVG_FF_LINE];
    ipvg_ff_listen(line);
    int err = av_frame_make_writable(m->frame); /* x264 may still hold the last one */
    if (err >= 0 && !m->sws) {
        for (int y = 0; y < m->codec->height; y++)
            for (int x = 0; x < m->codec->width; x++) {
                uint8_t *bgr0 = m->frame->data[0] + (ptrdiff_t)y * m->frame->linesize[0] + 4 * x;
                const uint8_t *p = rgb + 3 * ((ptrdiff_t)y * m->codec->width + x);
                bgr0[0] = p[2], bgr0[1] = p[1], bgr0[2] = p[0], bgr0[3] = 0;
            }
    } else if (err >= 0) {
        int stride = m->codec->width * 3;
        err = sws_scale(m->sws, &rgb, &stride, 0, m->codec->height, m->frame->data, m->frame->linesize);
    }
    if (err >= 0) {
        m->frame->pts = m->frames++;
        err = encode(m, m->frame);
    }
    if (err < 0)
        status = ipvg_ff_fail(ctx, err, "%s: frame %lld cannot be written", m->out.path, (long long)m->frames - 1);
    ipvg_ff_listen(NULL);
    return status;
}

ipvg_status ipvg_mp4_finish(ipvg_context *ctx, ipvg_mp4 *m)
{
    if (m->frames == 0) return ipvg_fail(ctx, IPVG_E_ARGUMENT, "%s: no frames to write", m->out.path);
    char line[IPVG_FF_LINE];
    ipvg_ff_listen(line);
    int err = encode(m, NULL);
    if (err >= 0) err = av_write_trailer(m->format);
    int closed = avio_closep(&m->format->pb);
    if (err >= 0) err = closed;
    ipvg_status status =
        err < 0 ? ipvg_ff_fail(ctx, err, "%s: cannot be written", m->out.path) : ipvg_output_commit(ctx, &m->out);
    ipvg_ff_listen(NULL);
    return status;
}

void ipvg_mp4_close(ipvg_mp4 **mp4)
{
    ipvg_mp4 *m = *mp4;
    if (!m) return;
    char line[IPVG_FF_LINE];
    ipvg_ff_listen(line); /* x264 prints statistics when it ends */
    sws_freeContext(m->sws);
    av_packet_free(&m->packet);
    av_frame_free(&m->frame);
    avcodec_free_context(&m->codec);
    if (m->format) avio_closep(&m->format->pb);
    avformat_free_context(m->format);
    ipvg_output_abandon(&m->out);
    free(m);
    *mp4 = NULL;
    ipvg_ff_listen(NULL);
}

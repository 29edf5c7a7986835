#include "pixels.h"

#include <libavutil/imgutils.h>
#include <libavutil/mem.h>
#include <libavutil/opt.h>
#include <libavutil/pixdesc.h>
#include <string.h>

#include "ffmpeg.h"

#define ACCURATE (SWS_BICUBIC | SWS_ACCURATE_RND | SWS_FULL_CHR_H_INT | SWS_FULL_CHR_H_INP)

/* A converter between two formats of one size. chroma: where the subsampled side has its samples. */
static int open_sws(struct SwsContext **out, int height, int width, int from, int to, int from_space, int from_full,
                    int to_space, int to_full, const char *side, enum AVChromaLocation chroma)
{
    const AVPixFmtDescriptor *desc = av_pix_fmt_desc_get(side[0] == 's' ? from : to);
    struct SwsContext *sws = sws_alloc_context();
    if (!sws || !desc) {
        sws_freeContext(sws);
        return AVERROR(ENOMEM);
    }
    av_opt_set_int(sws, "srcw", width, 0);
    av_opt_set_int(sws, "srch", height, 0);
    av_opt_set_int(sws, "dstw", width, 0);
    av_opt_set_int(sws, "dsth", height, 0);
    av_opt_set_int(sws, "src_format", from, 0);
    av_opt_set_int(sws, "dst_format", to, 0);
    av_opt_set_int(sws, "sws_flags", ACCURATE, 0);
    /* In 1/256 of a luma pixel. swscale's own default is centred, which shifts the colour of video by a quarter pixel. */
    bool left = chroma == AVCHROMA_LOC_LEFT || chroma == AVCHROMA_LOC_TOPLEFT || chroma == AVCHROMA_LOC_BOTTOMLEFT;
    bool top = chroma == AVCHROMA_LOC_TOPLEFT || chroma == AVCHROMA_LOC_TOP;
    bool bottom = chroma == AVCHROMA_LOC_BOTTOMLEFT || chroma == AVCHROMA_LOC_BOTTOM;
    if (desc->log2_chroma_w == 1)
        av_opt_set_int(sws, side[0] == 's' ? "src_h_chr_pos" : "dst_h_chr_pos", left ? 0 : 128, 0);
    if (desc->log2_chroma_h == 1)
        av_opt_set_int(sws, side[0] == 's' ? "src_v_chr_pos" : "dst_v_chr_pos", top ? 0 : bottom ? 256 : 128, 0);
    /* Does nothing and says so for RGB to RGB: there is no matrix then. */
    sws_setColorspaceDetails(sws, sws_getCoefficients(from_space), from_full, sws_getCoefficients(to_space), to_full, 0,
                             1 << 16, 1 << 16);
    int err = sws_init_context(sws, NULL, NULL);
    if (err < 0) {
        sws_freeContext(sws);
        return err;
    }
    *out = sws;
    return 0;
}

/* The "J" formats say full range in the format's name; the modern pair is format + range. */
static int modern_format(int format, int *full)
{
    switch (format) {
    case AV_PIX_FMT_YUVJ420P: *full = 1; return AV_PIX_FMT_YUV420P;
    case AV_PIX_FMT_YUVJ422P: *full = 1; return AV_PIX_FMT_YUV422P;
    case AV_PIX_FMT_YUVJ444P: *full = 1; return AV_PIX_FMT_YUV444P;
    case AV_PIX_FMT_YUVJ440P: *full = 1; return AV_PIX_FMT_YUV440P;
    case AV_PIX_FMT_YUVJ411P: *full = 1; return AV_PIX_FMT_YUV411P;
    default: return format;
    }
}

static bool has_alpha(int format)
{
    const AVPixFmtDescriptor *desc = av_pix_fmt_desc_get(format);
    return desc && ((desc->flags & AV_PIX_FMT_FLAG_ALPHA) || format == AV_PIX_FMT_PAL8);
}

/* RGB or grey of more than 8 bits: there swscale goes by way of YUV and, in FFmpeg 6.1, is off by up to 36 levels. */
static bool is_deep(const AVFrame *frame)
{
    const AVPixFmtDescriptor *desc = av_pix_fmt_desc_get(frame->format);
    const uint64_t strange =
        AV_PIX_FMT_FLAG_PAL | AV_PIX_FMT_FLAG_FLOAT | AV_PIX_FMT_FLAG_BAYER | AV_PIX_FMT_FLAG_HWACCEL;
    bool full_grey = desc && desc->nb_components <= 2 && frame->color_range != AVCOL_RANGE_MPEG;
    return desc && !(desc->flags & strange) && desc->comp[0].depth > 8 &&
           ((desc->flags & AV_PIX_FMT_FLAG_RGB) || full_grey);
}

/* rgb <- frame, each component scaled to 8 bits. line: (width) */
static void read_deep(AVFrame *rgb, const AVFrame *frame, uint16_t *line)
{
    const AVPixFmtDescriptor *desc = av_pix_fmt_desc_get(frame->format);
    int bytes = rgb->format == AV_PIX_FMT_RGBA ? 4 : 3, colours = desc->nb_components <= 2 ? 1 : 3;
    for (int y = 0; y < frame->height; y++)
        for (int k = 0; k < bytes; k++) {
            int c = k == 3 ? colours : k < colours ? k : 0; /* grey fills all three */
            uint32_t max = (1u << desc->comp[c].depth) - 1;
            uint8_t *out = rgb->data[0] + y * (ptrdiff_t)rgb->linesize[0] + k;
            av_read_image_line2(line, (const uint8_t **)frame->data, frame->linesize, desc, 0, y, c, frame->width, 0,
                                2);
            for (int x = 0; x < frame->width; x++) out[x * bytes] = (uint8_t)((line[x] * 255u + max / 2) / max);
        }
}

/* Both sides up to whole cells of chroma. swscale takes 18 samples for 35 pixels as 35 / 18 pixels each, not two: colour
 * would lie a pixel off at the far side. */
static void whole_size(const AVFrame *frame, int *height, int *width)
{
    const AVPixFmtDescriptor *desc = av_pix_fmt_desc_get(frame->format);
    *height = desc ? FFALIGN(frame->height, 1 << desc->log2_chroma_h) : frame->height;
    *width = desc ? FFALIGN(frame->width, 1 << desc->log2_chroma_w) : frame->width;
}

static int new_frame(AVFrame **out, int format, int height, int width)
{
    AVFrame *frame = *out = av_frame_alloc();
    if (!frame) return AVERROR(ENOMEM);
    frame->format = format;
    frame->width = width;
    frame->height = height;
    return av_frame_get_buffer(frame, 0); /* padded rows: swscale's vector code writes past their end */
}

static ipvg_status set_up(ipvg_context *ctx, ipvg_to_rgb *c, const AVFrame *frame, bool picture)
{
    int chroma = frame->chroma_location;
    if (chroma == AVCHROMA_LOC_UNSPECIFIED) chroma = picture ? AVCHROMA_LOC_CENTER : AVCHROMA_LOC_LEFT;
    if (c->rgb && c->width == frame->width && c->height == frame->height && c->format == frame->format &&
        c->colorspace == (int)frame->colorspace && c->range == (int)frame->color_range && c->chroma == chroma)
        return IPVG_OK;
    ipvg_to_rgb_free(c);
    *c = (ipvg_to_rgb){.width = frame->width,
                       .height = frame->height,
                       .format = frame->format,
                       .colorspace = frame->colorspace,
                       .range = frame->color_range,
                       .chroma = chroma};
    int full = frame->color_range == AVCOL_RANGE_JPEG;
    int from = modern_format(frame->format, &full);
    int to = has_alpha(from) ? AV_PIX_FMT_RGBA : AV_PIX_FMT_RGB24;
    /* Unspecified colours are taken as bt601 whatever the size: so do swscale and the readers built on it, and so were
     * the untagged videos of the reference implementation written. */
    int err = 0, height, width;
    whole_size(frame, &height, &width);
    if (!is_deep(frame))
        err = open_sws(&c->sws, height, width, from, to, frame->colorspace, full, SWS_CS_DEFAULT, 1, "src", chroma);
    if (err >= 0) err = new_frame(&c->rgb, to, height, width);
    if (err >= 0 && (height > frame->height || width > frame->width)) {
        err = new_frame(&c->whole, frame->format, height, width);
        for (int i = 0; err >= 0 && c->whole->buf[i]; i++) memset(c->whole->buf[i]->data, 0, c->whole->buf[i]->size);
    }
    if (err >= 0) return IPVG_OK;
    ipvg_to_rgb_free(c);
    return ipvg_ff_fail(ctx, err, "pixel format '%s' cannot be turned into RGB", av_get_pix_fmt_name(frame->format));
}

void ipvg_upright_size(const AVFrame *frame, int orientation, int *height, int *width)
{
    *height = orientation >= 5 ? frame->width : frame->height;
    *width = orientation >= 5 ? frame->height : frame->width;
}

ipvg_status ipvg_to_rgb_convert(ipvg_context *ctx, ipvg_to_rgb *c, uint8_t *out, const AVFrame *frame, int orientation,
                                ipvg_alpha alpha, bool picture)
{
    ipvg_status status = set_up(ctx, c, frame, picture);
    if (status != IPVG_OK) return status;
    int err = 0;
    if (c->sws) {
        const AVFrame *from = c->whole ? c->whole : frame;
        if (c->whole)
            av_image_copy(c->whole->data, c->whole->linesize, (const uint8_t **)frame->data, frame->linesize,
                          frame->format, frame->width, frame->height);
        err = sws_scale(c->sws, (const uint8_t *const *)from->data, from->linesize, 0, from->height, c->rgb->data,
                        c->rgb->linesize);
    } else {
        uint16_t *line = av_malloc_array((size_t)frame->width, sizeof *line);
        if (line)
            read_deep(c->rgb, frame, line);
        else
            err = AVERROR(ENOMEM);
        av_free(line);
    }
    if (err < 0) return ipvg_ff_fail(ctx, err, "a frame cannot be turned into RGB");

    /* The upright pixel (y, x) is the stored one at origin + y * down + x * right. */
    int bytes = c->rgb->format == AV_PIX_FMT_RGBA ? 4 : 3;
    ptrdiff_t row = c->rgb->linesize[0], column = bytes;
    bool swap = orientation >= 5;
    bool flip_x = orientation == 2 || orientation == 3 || orientation == 7 || orientation == 8;
    bool flip_y = orientation == 3 || orientation == 4 || orientation == 6 || orientation == 7;
    const uint8_t *origin =
        c->rgb->data[0] + (flip_x ? (frame->width - 1) * column : 0) + (flip_y ? (frame->height - 1) * row : 0);
    if (flip_x) column = -column;
    if (flip_y) row = -row;
    ptrdiff_t down = swap ? column : row, right = swap ? row : column;
    int height, width;
    ipvg_upright_size(frame, orientation, &height, &width);
    for (int y = 0; y < height; y++) {
        const uint8_t *p = origin + y * down;
        if (right == 3) { /* upright and without alpha: nearly everything */
            memcpy(out, p, (size_t)width * 3);
            out += (size_t)width * 3;
            continue;
        }
        for (int x = 0; x < width; x++, p += right, out += 3) {
            int a = bytes == 4 && alpha == IPVG_ALPHA_WHITE ? p[3] : 255;
            for (int k = 0; k < 3; k++) out[k] = a == 255 ? p[k] : (uint8_t)((p[k] * a + 255 * (255 - a) + 127) / 255);
        }
    }
    return IPVG_OK;
}

void ipvg_to_rgb_free(ipvg_to_rgb *c)
{
    sws_freeContext(c->sws);
    av_frame_free(&c->rgb);
    av_frame_free(&c->whole);
    memset(c, 0, sizeof *c);
}

ipvg_status ipvg_sws_bt709(ipvg_context *ctx, struct SwsContext **out, int height, int width)
{
    int err = open_sws(out, height, width, AV_PIX_FMT_RGB24, AV_PIX_FMT_YUV420P, SWS_CS_ITU709, 1, SWS_CS_ITU709, 0,
                       "dst", AVCHROMA_LOC_LEFT);
    if (err < 0) return ipvg_ff_fail(ctx, err, "no converter from RGB to yuv420p for %d x %d", width, height);
    return IPVG_OK;
}

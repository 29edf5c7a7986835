#include "jpeg.h"

#include <libavcodec/avcodec.h>
#include <libavutil/frame.h>
#include <libswscale/swscale.h>
#include <stdlib.h>
#include <string.h>

#include "ffmpeg.h"

/* frame <- rgb: full-range bt601 yuv420p of the frame's size, as JFIF has it. */
static int fill(AVFrame *frame, const uint8_t *rgb, int height, int width)
{
    const int *bt601 = sws_getCoefficients(SWS_CS_ITU601);
    struct SwsContext *sws = sws_getContext(width, height, AV_PIX_FMT_RGB24, frame->width, frame->height,
                                            AV_PIX_FMT_YUV420P, SWS_AREA | SWS_ACCURATE_RND, NULL, NULL, NULL);
    if (!sws) return AVERROR(EINVAL);
    sws_setColorspaceDetails(sws, bt601, 1, bt601, 1, 0, 1 << 16, 1 << 16);
    const uint8_t *planes[4] = {rgb};
    int strides[4] = {width * 3};
    int err = sws_scale(sws, planes, strides, 0, height, frame->data, frame->linesize);
    sws_freeContext(sws);
    return err < 0 ? err : 0;
}

static int encode(AVPacket *packet, int to_height, int to_width, int quality, const uint8_t *rgb, int height, int width)
{
    const AVCodec *jpeg = avcodec_find_encoder(AV_CODEC_ID_MJPEG);
    AVCodecContext *codec = jpeg ? avcodec_alloc_context3(jpeg) : NULL;
    AVFrame *frame = av_frame_alloc();
    int err = jpeg ? AVERROR(ENOMEM) : AVERROR_ENCODER_NOT_FOUND;
    if (!codec || !frame) goto done;
    /* FFmpeg's quantiser scale q multiplies a base table by about q / 8; libjpeg's percentage is 200 - 2 quality. */
    int q = quality >= 50 ? (200 - 2 * quality) * 8 / 100 : 400 / quality;
    q = q < 2 ? 2 : q > 31 ? 31 : q;
    codec->width = frame->width = to_width;
    codec->height = frame->height = to_height;
    codec->pix_fmt = frame->format = AV_PIX_FMT_YUV420P;
    codec->color_range = frame->color_range = AVCOL_RANGE_JPEG;
    codec->strict_std_compliance =
        FF_COMPLIANCE_UNOFFICIAL; /* full range in a format without J is not its usual input */
    codec->time_base = (AVRational){1, 1};
    codec->thread_count = 1;
    codec->flags |= AV_CODEC_FLAG_QSCALE | AV_CODEC_FLAG_BITEXACT; /* bit-exact also leaves the encoder's name out */
    codec->global_quality = frame->quality = q * FF_QP2LAMBDA;
    if ((err = avcodec_open2(codec, jpeg, NULL)) < 0) goto done;
    if ((err = av_frame_get_buffer(frame, 0)) < 0) goto done;
    if ((err = fill(frame, rgb, height, width)) < 0) goto done;
    if ((err = avcodec_send_frame(codec, frame)) < 0) goto done;
    err = avcodec_receive_packet(codec, packet);
done:
    av_frame_free(&frame);
    avcodec_free_context(&codec);
    return err;
}

/* side * max / longest, rounded, at least 1. */
static int scaled(int side, int longest, int max_side)
{
    int64_t s = ((int64_t)side * max_side + longest / 2) / longest;
    return s < 1 ? 1 : (int)s;
}

ipvg_status ipvg_jpeg_encode(ipvg_context *ctx, uint8_t **jpeg, size_t *size, int max_side, int quality,
                             const uint8_t *rgb, int height, int width)
{
    ipvg_status status = IPVG_OK;
    char line[IPVG_FF_LINE];
    *jpeg = NULL;
    *size = 0;
    if (max_side < 16 || max_side > 16384) return ipvg_fail(ctx, IPVG_E_ARGUMENT, "max_side: expected 16 to 16384");
    if (quality < 1 || quality > 100) return ipvg_fail(ctx, IPVG_E_ARGUMENT, "quality: expected 1 to 100");
    if (height < 1 || width < 1) return ipvg_fail(ctx, IPVG_E_ARGUMENT, "a picture without pixels");
    int longest = height > width ? height : width;
    int to_height = longest > max_side ? scaled(height, longest, max_side) : height;
    int to_width = longest > max_side ? scaled(width, longest, max_side) : width;
    ipvg_ff_listen(line);
    AVPacket *packet = av_packet_alloc();
    int err = packet ? encode(packet, to_height, to_width, quality, rgb, height, width) : AVERROR(ENOMEM);
    if (err >= 0 && !(*jpeg = malloc((size_t)packet->size))) err = AVERROR(ENOMEM);
    if (err < 0) {
        status = ipvg_ff_fail(ctx, err, "%d x %d pixels cannot be encoded as JPEG", width, height);
    } else {
        memcpy(*jpeg, packet->data, (size_t)packet->size);
        *size = (size_t)packet->size;
    }
    av_packet_free(&packet);
    ipvg_ff_listen(NULL);
    return status;
}

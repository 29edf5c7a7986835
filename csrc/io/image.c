#include "image.h"

#include <libavutil/imgutils.h>
#include <libavutil/opt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ffmpeg.h"
#include "output.h"
#include "source.h"

/* FFmpeg's picture demuxers are named png_pipe, jpeg_pipe, ...; a few others hold pictures too. */
static bool holds_a_picture(const AVFormatContext *format)
{
    const char *name = format->iformat->name;
    size_t n = strlen(name);
    if (n > 5 && strcmp(name + n - 5, "_pipe") == 0) return true;
    if (!strcmp(name, "gif") || !strcmp(name, "apng")) return true;
    const AVDictionaryEntry *brand = av_dict_get(format->metadata, "major_brand", NULL, 0);
    return brand && !strcmp(brand->value, "avif");
}

ipvg_status ipvg_image_read(ipvg_context *ctx, ipvg_image *out, const char *path, const void *data, size_t size,
                            ipvg_alpha alpha)
{
    ipvg_status status;
    ipvg_source source;
    ipvg_to_rgb convert = {0};
    const AVFrame *frame;
    char line[IPVG_FF_LINE];
    memset(out, 0, sizeof *out);
    ipvg_ff_listen(line);
    IPVG_TRY(ipvg_source_open(ctx, &source, path, data, size));
    if (!holds_a_picture(source.format)) {
        status = ipvg_fail(ctx, IPVG_E_FORMAT, "%s: a video (%s), not a picture: read it with read_video", source.name,
                           source.format->iformat->name);
        goto done;
    }
    IPVG_TRY(ipvg_source_next(ctx, &source, &frame));
    if (!frame) {
        status = ipvg_fail(ctx, IPVG_E_FORMAT, "%s: no complete picture in it: damaged or cut short", source.name);
        goto done;
    }
    int orientation = ipvg_source_orientation(&source, frame);
    ipvg_upright_size(frame, orientation, &out->height, &out->width);
    out->rgb = malloc((size_t)out->height * (size_t)out->width * 3);
    if (!out->rgb) {
        status =
            ipvg_fail(ctx, IPVG_E_MEMORY, "%s: no memory for %d x %d pixels", source.name, out->width, out->height);
        goto done;
    }
    IPVG_TRY(ipvg_to_rgb_convert(ctx, &convert, out->rgb, frame, orientation, alpha, true));
done:
    if (status != IPVG_OK) ipvg_image_free(out);
    ipvg_to_rgb_free(&convert);
    ipvg_source_close(&source);
    ipvg_ff_listen(NULL);
    return status;
}

void ipvg_image_free(ipvg_image *image)
{
    free(image->rgb);
    memset(image, 0, sizeof *image);
}

/* One packet holds the whole PNG file. */
static int encode_png(AVPacket *packet, const uint8_t *rgb, int height, int width)
{
    const AVCodec *png = avcodec_find_encoder(AV_CODEC_ID_PNG);
    AVCodecContext *codec = png ? avcodec_alloc_context3(png) : NULL;
    AVFrame *frame = av_frame_alloc();
    int err = png ? AVERROR(ENOMEM) : AVERROR_ENCODER_NOT_FOUND;
    if (!codec || !frame) goto done;
    codec->width = frame->width = width;
    codec->height = frame->height = height;
    codec->pix_fmt = frame->format = AV_PIX_FMT_RGB24;
    codec->time_base = (AVRational){1, 1};
    codec->thread_count = 1;
    if ((err = av_opt_set(codec->priv_data, "pred", "mixed", 0)) < 0) goto done; /* a third smaller than without */
    if ((err = avcodec_open2(codec, png, NULL)) < 0) goto done;
    if ((err = av_frame_get_buffer(frame, 0)) < 0) goto done;
    av_image_copy_plane(frame->data[0], frame->linesize[0], rgb, width * 3, width * 3, height);
    if ((err = avcodec_send_frame(codec, frame)) < 0) goto done;
    err = avcodec_receive_packet(codec, packet);
done:
    av_frame_free(&frame);
    avcodec_free_context(&codec);
    return err;
}

ipvg_status ipvg_image_write_png(ipvg_context *ctx, const char *path, const uint8_t *rgb, int height, int width)
{
    ipvg_status status;
    ipvg_output out = {0};
    FILE *file = NULL;
    char line[IPVG_FF_LINE];
    ipvg_ff_listen(line);
    AVPacket *packet = av_packet_alloc();
    int err = packet ? encode_png(packet, rgb, height, width) : AVERROR(ENOMEM);
    if (err < 0) {
        status = ipvg_ff_fail(ctx, err, "%s: %d x %d pixels cannot be encoded as PNG", path, width, height);
        goto done;
    }
    IPVG_TRY(ipvg_output_begin(ctx, &out, path));
    file = fopen(out.temporary, "wb");
    bool written = file && fwrite(packet->data, 1, (size_t)packet->size, file) == (size_t)packet->size;
    if (file && fclose(file) != 0) written = false;
    if (!written) {
        status = ipvg_fail_errno(ctx, "%s: cannot be written", path);
        goto done;
    }
    IPVG_TRY(ipvg_output_commit(ctx, &out));
done:
    ipvg_output_abandon(&out);
    av_packet_free(&packet);
    ipvg_ff_listen(NULL);
    return status;
}

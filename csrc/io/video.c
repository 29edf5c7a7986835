#include "video.h"

#include <limits.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "ffmpeg.h"
#include "pixels.h"
#include "source.h"

struct ipvg_video_reader {
    ipvg_source source;
    ipvg_to_rgb convert;
    ipvg_video_info info;
    ipvg_alpha alpha;
    int orientation;
    double time;
    int stored_height, stored_width;
    const AVFrame *ahead; /* decoded when opening, to know the size; not yet handed out */
};

/* Frames a second on average; 0 / 1 when the file does not say. */
static AVRational frame_rate(const AVFormatContext *format, const AVStream *stream)
{
    AVRational average = stream->avg_frame_rate, guess = stream->r_frame_rate;
    bool guessed = guess.num > 0 && guess.den > 0;
    if (strcmp(format->iformat->name, "gif") == 0 && stream->nb_frames > 0 && stream->duration > 0) {
        /* It ticks in 1/100 s, and FFmpeg averages some delays only. The guess is right when it fits the whole. */
        if (guessed && av_rescale_q(stream->nb_frames, av_inv_q(guess), stream->time_base) == stream->duration)
            return guess;
        av_reduce(&average.num, &average.den, stream->nb_frames * stream->time_base.den,
                  stream->duration * stream->time_base.num, INT_MAX);
    }
    if (average.num > 0 && average.den > 0) return average;
    return guessed ? guess : (AVRational){0, 1};
}

static ipvg_status read_first(ipvg_context *ctx, ipvg_video_reader *r)
{
    const char *demuxer = r->source.format->iformat->name;
    size_t n = strlen(demuxer);
    if (n > 5 && strcmp(demuxer + n - 5, "_pipe") == 0) /* FFmpeg would make up a frame rate for it */
        return ipvg_fail(ctx, IPVG_E_FORMAT, "%s: a picture (%.*s), not a video: read it with read_image",
                         r->source.name, (int)n - 5, demuxer);
    ipvg_status status = ipvg_source_next(ctx, &r->source, &r->ahead);
    if (status != IPVG_OK) return status;
    if (!r->ahead) return ipvg_fail(ctx, IPVG_E_FORMAT, "%s: no frames in it", r->source.name);
    r->stored_height = r->ahead->height;
    r->stored_width = r->ahead->width;
    r->orientation = ipvg_source_orientation(&r->source, r->ahead);
    ipvg_upright_size(r->ahead, r->orientation, &r->info.height, &r->info.width);
    AVRational fps = frame_rate(r->source.format, r->source.stream);
    r->info.fps_num = fps.num;
    r->info.fps_den = fps.den;
    AVRational grid = r->source.stream->r_frame_rate;
    if (grid.num <= 0 || grid.den <= 0) grid = (AVRational){0, 1};
    r->info.grid_num = grid.num;
    r->info.grid_den = grid.den;
    r->info.frames = r->source.stream->nb_frames > 0 ? r->source.stream->nb_frames : 0;
    return IPVG_OK;
}

ipvg_status ipvg_video_open(ipvg_context *ctx, ipvg_video_reader **out, const char *path, const void *data, size_t size,
                            ipvg_alpha alpha)
{
    char line[IPVG_FF_LINE];
    *out = NULL;
    ipvg_video_reader *r = calloc(1, sizeof *r);
    if (!r) return ipvg_fail(ctx, IPVG_E_MEMORY, "no memory to open a video");
    r->alpha = alpha;
    r->time = NAN;
    ipvg_ff_listen(line);
    ipvg_status status = ipvg_source_open(ctx, &r->source, path, data, size);
    if (status == IPVG_OK) status = read_first(ctx, r);
    if (status != IPVG_OK) ipvg_video_close(&r);
    ipvg_ff_listen(NULL);
    *out = r;
    return status;
}

const ipvg_video_info *ipvg_video_about(const ipvg_video_reader *r) { return &r->info; }

double ipvg_video_time(const ipvg_video_reader *r) { return r->time; }

ipvg_status ipvg_video_next(ipvg_context *ctx, ipvg_video_reader *r, uint8_t *rgb, bool *more)
{
    char line[IPVG_FF_LINE];
    *more = false;
    ipvg_status status = ipvg_check_cancel(ctx);
    if (status != IPVG_OK) return status;
    const AVFrame *frame = r->ahead;
    r->ahead = NULL;
    ipvg_ff_listen(line);
    if (!frame) status = ipvg_source_next(ctx, &r->source, &frame);
    if (status != IPVG_OK || !frame) goto done;
    if (frame->height != r->stored_height || frame->width != r->stored_width) {
        status =
            ipvg_fail(ctx, IPVG_E_UNSUPPORTED, "%s: frame %lld is %d x %d, the first is %d x %d", r->source.name,
                      (long long)r->source.decoded - 1, frame->width, frame->height, r->stored_width, r->stored_height);
        goto done;
    }
    if (rgb) status = ipvg_to_rgb_convert(ctx, &r->convert, rgb, frame, r->orientation, r->alpha, false);
    int64_t ticks = frame->best_effort_timestamp;
    r->time = ticks == AV_NOPTS_VALUE ? NAN : (double)ticks * av_q2d(r->source.stream->time_base);
    *more = status == IPVG_OK;
done:
    ipvg_ff_listen(NULL);
    return status;
}

void ipvg_video_close(ipvg_video_reader **reader)
{
    ipvg_video_reader *r = *reader;
    if (!r) return;
    char line[IPVG_FF_LINE];
    ipvg_ff_listen(line);
    ipvg_to_rgb_free(&r->convert);
    ipvg_source_close(&r->source);
    free(r);
    *reader = NULL;
    ipvg_ff_listen(NULL);
}

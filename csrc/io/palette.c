#include "palette.h"

#include <libavfilter/avfilter.h>
#include <libavfilter/buffersink.h>
#include <libavfilter/buffersrc.h>
#include <stdio.h>
#include <stdlib.h>

struct ipvg_palette {
    AVFilterGraph *graph;
    AVFilterContext *in, *out; /* the graph's */
};

int ipvg_palette_open(ipvg_palette **out, int height, int width)
{
    /* stats_mode full: a colour counts as often as it is seen, so that a still background does not flicker. */
    char text[400];
    snprintf(text, sizeof text,
             "buffer=video_size=%dx%d:pix_fmt=bgra:time_base=1/1:pixel_aspect=1/1,split[seen][drawn];"
             "[seen]palettegen=stats_mode=full[palette];"
             "[drawn][palette]paletteuse=dither=sierra2_4a:diff_mode=rectangle,buffersink",
             width, height);
    ipvg_palette *p = *out = calloc(1, sizeof *p);
    if (!p || !(p->graph = avfilter_graph_alloc())) return AVERROR(ENOMEM);
    p->graph->nb_threads = 1; /* ffmpeg.h says why */
    AVFilterInOut *open_in = NULL, *open_out = NULL;
    int err = avfilter_graph_parse2(p->graph, text, &open_in, &open_out);
    avfilter_inout_free(&open_in);
    avfilter_inout_free(&open_out);
    if (err >= 0) err = avfilter_graph_config(p->graph, NULL);
    if (err < 0) return err;
    for (unsigned i = 0; i < p->graph->nb_filters; i++) {
        AVFilterContext *filter = p->graph->filters[i];
        if (filter->nb_inputs == 0) p->in = filter;
        if (filter->nb_outputs == 0) p->out = filter;
    }
    return 0;
}

int ipvg_palette_push(ipvg_palette *p, AVFrame *frame)
{
    return av_buffersrc_add_frame_flags(p->in, frame, AV_BUFFERSRC_FLAG_KEEP_REF);
}

int ipvg_palette_pull(ipvg_palette *p, AVFrame *frame) { return av_buffersink_get_frame(p->out, frame); }

void ipvg_palette_close(ipvg_palette **palette)
{
    if (*palette) avfilter_graph_free(&(*palette)->graph);
    free(*palette);
    *palette = NULL;
}

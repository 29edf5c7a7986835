/* A video's frames in 255 colours chosen for it, as a GIF needs them: libavfilter's palettegen and paletteuse.
 *
 * The colours are known when the last frame is, so all frames wait in memory, 4 bytes a pixel.
 *
 *     IPVG_TRY(ipvg_palette_open(ctx, &p, height, width));
 *     for each frame: err = ipvg_palette_push(p, frame);      // AV_PIX_FMT_BGRA
 *     err = ipvg_palette_push(p, NULL);                       // no more
 *     while ((err = ipvg_palette_pull(p, frame)) >= 0) ...    // AV_PIX_FMT_PAL8, in order; AVERROR_EOF at the end
 *     ipvg_palette_close(&p); */
#ifndef IPVG_IO_PALETTE_H
#define IPVG_IO_PALETTE_H

#include <libavutil/frame.h>

typedef struct ipvg_palette ipvg_palette;

/* These return FFmpeg's error numbers: the caller's error text names the file. */
int ipvg_palette_open(ipvg_palette **out, int height, int width);
/* The frame stays the caller's. pts counts frames. */
int ipvg_palette_push(ipvg_palette *p, AVFrame *frame);
int ipvg_palette_pull(ipvg_palette *p, AVFrame *frame);
void ipvg_palette_close(ipvg_palette **p);

#endif

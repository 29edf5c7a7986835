/* libFuzzer over csrc/io/video.c: any bytes are a video. Every frame that comes has the pixels that were announced. FFmpeg
 * itself is the system's, not compiled with the sanitizers: what is searched for is our use of it. */
#include <stdlib.h>
#include <string.h>

#include "../../csrc/io/video.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void require(int condition)
{
    if (!condition) abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    ipvg_context ctx;
    ipvg_video_reader *reader;
    uint8_t *rgb = NULL, *exact = malloc(size ? size : 1); /* so that a byte read beyond the input is seen */
    bool more = true;
    require(exact != NULL);
    memcpy(exact, data, size);
    ipvg_context_init(&ctx, 1);
    ipvg_status status =
        ipvg_video_open(&ctx, &reader, NULL, exact, size, size % 2 ? IPVG_ALPHA_WHITE : IPVG_ALPHA_DROP);
    require((status == IPVG_OK) == (reader != NULL));
    if (reader) {
        const ipvg_video_info *info = ipvg_video_about(reader);
        require(info->height > 0 && info->width > 0 && info->fps_num >= 0 && info->fps_den > 0 && info->frames >= 0);
        rgb = malloc((size_t)info->height * (size_t)info->width * 3);
        require(rgb != NULL);
    }
    for (int i = 0; status == IPVG_OK && more && i < 100; i++)
        status = ipvg_video_next(&ctx, reader, i % 4 == 1 ? NULL : rgb, &more);
    require(status == IPVG_OK || (ctx.error[0] && strlen(ctx.error) < sizeof ctx.error));
    ipvg_video_close(&reader);
    free(rgb);
    free(exact);
    return 0;
}

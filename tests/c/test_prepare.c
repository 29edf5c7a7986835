/* Reference fit and source resize at awkward sizes: nothing is read or written outside, and plain pictures stay plain. */
#include <math.h>
#include <string.h>

#include "../../csrc/model/prepare.h"
#include "check.h"

static const int sizes[] = {1, 2, 7, 48, 61};
#define SIZES (int)(sizeof sizes / sizeof *sizes)

/* Exactly sized buffers, so that AddressSanitizer sees an access beside them. */
static void a_plain_picture_stays_plain(bool antialias)
{
    ipvg_context ctx;
    ipvg_context_init(&ctx, 2);
    for (int i = 0; i < SIZES * SIZES * SIZES * SIZES; i++) {
        int h = sizes[i % SIZES], w = sizes[i / SIZES % SIZES];
        int height = sizes[i / (SIZES * SIZES) % SIZES], width = sizes[i / (SIZES * SIZES * SIZES)];
        uint8_t *image = malloc((size_t)h * w * 3);
        float *canvas = malloc((size_t)height * width * 3 * sizeof *canvas);
        memset(image, 51, (size_t)h * w * 3);
        ipvg_fit fit = ipvg_fit_size(height, width, h, w);
        ipvg_status status = ipvg_fit_reference(&ctx, canvas, image, antialias, height, width, h, w);
        if (fit.height < 1 || fit.width < 1) {
            CHECK(status == IPVG_E_ARGUMENT && strstr(ctx.error, "too long and thin"));
        } else {
            CHECK(status == IPVG_OK);
            CHECK(fit.height <= height && fit.width <= width && (fit.height >= height - 1 || fit.width >= width - 1));
            for (int y = 0; y < height; y++)
                for (int x = 0; x < width; x++) {
                    bool inside = y >= fit.top && y < fit.top + fit.height && x >= fit.left && x < fit.left + fit.width;
                    float expected = inside ? 51 / 127.5f - 1 : 1;
                    CHECK(fabsf(canvas[(size_t)y * width + x] - expected) < 1e-6f);
                }
        }
        free(image);
        free(canvas);
    }
}

static void plain_frames_stay_plain(void)
{
    ipvg_context ctx;
    ipvg_context_init(&ctx, 3);
    for (int i = 0; i < SIZES * SIZES * SIZES * SIZES; i++) {
        int h = sizes[i % SIZES], w = sizes[i / SIZES % SIZES];
        int height = sizes[i / (SIZES * SIZES) % SIZES], width = sizes[i / (SIZES * SIZES * SIZES)];
        double scale = fmax((double)height / h, (double)width / w);
        if (scale * h > 1000 || scale * w > 1000) continue;
        int count = 1 + i % 4;
        size_t in = (size_t)count * h * w * 3, out = (size_t)count * height * width * 3;
        uint8_t *frames = malloc(in), *covered = malloc(out);
        memset(frames, 200, in);
        memset(covered, 0, out);
        CHECK(ipvg_cover_frames(&ctx, covered, frames, count, height, width, h, w) == IPVG_OK);
        for (size_t k = 0; k < out; k++) CHECK(covered[k] == 200);
        free(frames);
        free(covered);
    }
}

static int poll_cancels(void *user)
{
    (void)user;
    return 1;
}

static void cancel_stops_between_frames(void)
{
    ipvg_context ctx;
    ipvg_context_init(&ctx, 1);
    static uint8_t frames[5 * 8 * 8 * 3], out[5 * 4 * 4 * 3];
    ctx.poll = poll_cancels;
    CHECK(ipvg_cover_frames(&ctx, out, frames, 5, 4, 4, 8, 8) == IPVG_E_CANCELLED);
    ctx.poll = NULL;
    CHECK(ipvg_cover_frames(&ctx, out, frames, 5, 4, 4, 8, 8) == IPVG_OK);
}

int main(void)
{
    a_plain_picture_stays_plain(false);
    a_plain_picture_stays_plain(true);
    plain_frames_stay_plain();
    cancel_stops_between_frames();
    return 0;
}

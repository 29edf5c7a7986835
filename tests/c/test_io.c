/* Pictures and video from C: round trips, and that every way to fail frees what it took (LeakSanitizer) and leaves no file.
 * Without FFmpeg's headers there is nothing to test. */
#include "check.h"

#if __has_include(<libavformat/avformat.h>)

#include <dirent.h>
#include <stdbool.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "../../csrc/io/image.h"
#include "../../csrc/io/video.h"
#include "../../csrc/io/writer.h"

enum { HEIGHT = 48, WIDTH = 64, FRAMES = 12, BYTES = HEIGHT * WIDTH * 3 };

static char folder[] = "/tmp/ipvg-test-io.XXXXXX", name[64];

static const char *in_folder(const char *file)
{
    snprintf(name, sizeof name, "%s/%s", folder, file);
    return name;
}

static int files(void)
{
    int n = 0;
    DIR *d = opendir(folder);
    for (struct dirent *e; (e = readdir(d));) n += strcmp(e->d_name, ".") && strcmp(e->d_name, "..");
    closedir(d);
    return n;
}

static void draw(uint8_t *rgb, int frame)
{
    for (int y = 0; y < HEIGHT; y++)
        for (int x = 0; x < WIDTH; x++) {
            uint8_t *p = rgb + (y * WIDTH + x) * 3;
            p[0] = (uint8_t)(4 * y), p[1] = (uint8_t)(3 * x + 5 * frame), p[2] = (uint8_t)(60 + x + y);
        }
}

static void *read_whole(const char *path, size_t *size)
{
    FILE *f = fopen(path, "rb");
    CHECK(f && fseek(f, 0, SEEK_END) == 0);
    *size = (size_t)ftell(f);
    rewind(f);
    void *data = malloc(*size);
    CHECK(fread(data, 1, *size, f) == *size);
    fclose(f);
    return data;
}

static void png_round_trip_and_every_truncation(void)
{
    ipvg_context ctx;
    ipvg_context_init(&ctx, 1);
    uint8_t rgb[BYTES];
    ipvg_image image;
    draw(rgb, 0);
    CHECK(ipvg_image_write_png(&ctx, in_folder("a.png"), rgb, HEIGHT, WIDTH) == IPVG_OK && files() == 1);
    CHECK(ipvg_image_read(&ctx, &image, name, NULL, 0, IPVG_ALPHA_DROP) == IPVG_OK);
    CHECK(image.height == HEIGHT && image.width == WIDTH && memcmp(image.rgb, rgb, BYTES) == 0);
    ipvg_image_free(&image);
    ipvg_image_free(&image);
    size_t size;
    uint8_t *data = read_whole(name, &size);
    for (size_t n = 0; n < size - 12; n += n < 100 ? 1 : 97) {
        uint8_t *part = malloc(n ? n : 1); /* exactly as large as what is there */
        memcpy(part, data, n);
        CHECK(ipvg_image_read(&ctx, &image, NULL, part, n, IPVG_ALPHA_WHITE) != IPVG_OK && ctx.error[0] && !image.rgb);
        free(part);
    }
    free(data);
    unlink(name);
}

static ipvg_writer_config config = {HEIGHT, WIDTH, 16, 1, 10, "ultrafast"};

static void write_clip(const char *file)
{
    ipvg_context ctx;
    ipvg_context_init(&ctx, 1);
    ipvg_writer *m;
    uint8_t rgb[BYTES];
    CHECK(ipvg_writer_open(&ctx, &m, in_folder(file), &config) == IPVG_OK);
    for (int i = 0; i < FRAMES; i++) {
        draw(rgb, i);
        CHECK(ipvg_writer_write(&ctx, m, rgb) == IPVG_OK);
    }
    CHECK(access(name, F_OK) != 0); /* not before it is whole */
    CHECK(ipvg_writer_finish(&ctx, m) == IPVG_OK && access(name, F_OK) == 0);
    ipvg_writer_close(&m);
    ipvg_writer_close(&m);
    CHECK(!m && files() == 1);
}

/* Frames read until the end or an error. */
static int frames_of(const char *path, const void *data, size_t size, ipvg_status *status)
{
    ipvg_context ctx;
    ipvg_context_init(&ctx, 1);
    ipvg_video_reader *r;
    uint8_t rgb[BYTES];
    int n = 0;
    bool more = true;
    *status = ipvg_video_open(&ctx, &r, path, data, size, IPVG_ALPHA_DROP);
    while (*status == IPVG_OK && more) {
        const ipvg_video_info *info = ipvg_video_about(r);
        CHECK(info->height == HEIGHT && info->width == WIDTH && info->fps_num >= 0 && info->fps_den > 0);
        CHECK(!path || !strstr(path, ".m") || (info->fps_num == 16 && info->fps_den == 1));
        *status = ipvg_video_next(&ctx, r, n % 3 == 2 ? NULL : rgb, &more);
        n += *status == IPVG_OK && more;
    }
    CHECK(*status == IPVG_OK || ctx.error[0]);
    ipvg_video_close(&r);
    return n;
}

static void round_trip_and_truncations(const char *file)
{
    ipvg_status status;
    write_clip(file);
    CHECK(frames_of(name, NULL, 0, &status) == FRAMES && status == IPVG_OK);
    size_t size;
    uint8_t *data = read_whole(name, &size);
    CHECK(frames_of(NULL, data, size, &status) == FRAMES && status == IPVG_OK);
    for (size_t n = 0; n < size; n += 1 + size / 60) {
        uint8_t *part = malloc(n ? n : 1);
        memcpy(part, data, n);
        int frames = frames_of(NULL, part, n, &status);
        CHECK(frames < FRAMES || status == IPVG_OK);
        CHECK(status != IPVG_OK || strstr(file, ".mp4") == NULL); /* an mp4 says how long it is */
        free(part);
    }
    free(data);
    unlink(name);
}

static void what_fails_leaves_nothing(void)
{
    ipvg_context ctx;
    ipvg_context_init(&ctx, 1);
    ipvg_writer *m;
    uint8_t rgb[BYTES];
    draw(rgb, 0);
    for (int written = 0; written < 80; written += 13) { /* given up after some frames */
        const char *file = written % 2 ? "b.mp4" : "b.gif";
        CHECK(ipvg_writer_open(&ctx, &m, in_folder(file), &config) == IPVG_OK && files() == 1);
        for (int i = 0; i < written; i++) CHECK(ipvg_writer_write(&ctx, m, rgb) == IPVG_OK);
        ipvg_writer_close(&m);
        CHECK(files() == 0);
    }
    CHECK(ipvg_writer_open(&ctx, &m, in_folder("b.mp4"), &config) == IPVG_OK);
    CHECK(ipvg_writer_finish(&ctx, m) == IPVG_E_ARGUMENT); /* no frames */
    atomic_store(&ctx.cancel, 1);
    CHECK(ipvg_writer_write(&ctx, m, rgb) == IPVG_E_CANCELLED);
    ipvg_writer_close(&m);
    const ipvg_writer_config wrong[] = {{47, 64, 16, 1, 10, "fast"}, {48, 64, 0, 1, 10, "fast"},
                                        {48, 64, 16, 1, 0, "fast"},  {48, 64, 16, 1, 10, "?"},
                                        {0, 64, 16, 1, 10, "fast"},  {48, 64, 16, 0, 10, "fast"}};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++)
        CHECK(ipvg_writer_open(&ctx, &m, in_folder("b.mp4"), &wrong[i]) == IPVG_E_ARGUMENT && !m && files() == 0);
    CHECK(ipvg_writer_open(&ctx, &m, "/dev/full", &config) == IPVG_E_ARGUMENT);
    CHECK(ipvg_writer_open(&ctx, &m, in_folder("none/b.mp4"), &config) == IPVG_E_IO && ctx.sys_errno);
    CHECK(ipvg_image_write_png(&ctx, in_folder("none/b.png"), rgb, HEIGHT, WIDTH) == IPVG_E_IO);
    CHECK(files() == 0);
}

int main(void)
{
    CHECK(mkdtemp(folder));
    png_round_trip_and_every_truncation();
    round_trip_and_truncations("a.mp4");
    round_trip_and_truncations("a.mkv");
    round_trip_and_truncations("a.gif");
    what_fails_leaves_nothing();
    CHECK(rmdir(folder) == 0);
    return 0;
}

#else

int main(void) { return 0; }

#endif

/* Every allocation of reading and writing pictures and video fails once: see failing.h. Those that FFmpeg makes inside its own
 * functions are its own; what it gives to us (frames, packets, contexts) fails here. Without FFmpeg's headers there is nothing
 * to test. */
#include "failing.h"

#if __has_include(<libavformat/avformat.h>)

#include <dirent.h>
#include <libavcodec/avcodec.h>
#include <libavfilter/avfilter.h>
#include <libavformat/avformat.h>
#include <libswscale/swscale.h>
#include <unistd.h>

#include "../../csrc/io/image.h"
#include "../../csrc/io/jpeg.h"
#include "../../csrc/io/video.h"
#include "../../csrc/io/writer.h"

typedef int (*reader)(void *, uint8_t *, int);
typedef int64_t (*seeker)(void *, int64_t, int);
#if LIBAVFORMAT_VERSION_MAJOR >= 61
typedef int (*sink)(void *, const uint8_t *, int);
#else
typedef int (*sink)(void *, uint8_t *, int);
#endif

FAILING(FILE *, NULL, fopen, (const char *path, const char *mode), (path, mode))
FAILING(void *, NULL, av_malloc, (size_t size), (size))
FAILING(void *, NULL, av_calloc, (size_t count, size_t size), (count, size))
FAILING(void *, NULL, av_malloc_array, (size_t count, size_t size), (count, size))
FAILING(AVFrame *, NULL, av_frame_alloc, (void), ())
FAILING(AVFilterGraph *, NULL, avfilter_graph_alloc, (void), ())
FAILING(AVPacket *, NULL, av_packet_alloc, (void), ())
FAILING(AVCodecContext *, NULL, avcodec_alloc_context3, (const AVCodec *codec), (codec))
FAILING(struct SwsContext *, NULL, sws_alloc_context, (void), ())
FAILING(AVFormatContext *, NULL, avformat_alloc_context, (void), ())
FAILING(AVStream *, NULL, avformat_new_stream, (AVFormatContext * format, const AVCodec *codec), (format, codec))
FAILING(AVIOContext *, NULL, avio_alloc_context,
        (unsigned char *buffer, int size, int write, void *user, reader read, sink out, seeker seek),
        (buffer, size, write, user, read, out, seek))

enum { HEIGHT = 32, WIDTH = 48, FRAMES = 3, BYTES = HEIGHT * WIDTH * 3 };

static ipvg_context ctx;
static char folder[] = "/tmp/ipvg-test-allocation-io.XXXXXX";
static uint8_t drawn[FRAMES][BYTES];
static const char *file; /* in the folder */

static int files(void)
{
    int n = 0;
    DIR *d = opendir(folder);
    for (struct dirent *e; (e = readdir(d));) n += e->d_name[0] != '.' || strlen(e->d_name) > 2;
    closedir(d);
    return n;
}

static ipvg_status writing_png(void *unused)
{
    (void)unused;
    unlink(file);
    ipvg_status status = ipvg_image_write_png(&ctx, file, drawn[0], HEIGHT, WIDTH);
    CHECK(files() == (status == IPVG_OK)); /* nor is a temporary file left */
    return status == IPVG_OK ? ipvg_image_write_png(&ctx, file, drawn[0], HEIGHT, WIDTH) : status; /* over the first */
}

static ipvg_status read_picture(void *rgb, const void *data, size_t size)
{
    ipvg_image image;
    memset(rgb, 0, BYTES);
    ipvg_status status = ipvg_image_read(&ctx, &image, data ? NULL : file, data, size, IPVG_ALPHA_WHITE);
    CHECK((status == IPVG_OK) == (image.rgb != NULL));
    if (status == IPVG_OK) memcpy(rgb, image.rgb, (size_t)image.height * (size_t)image.width * 3);
    ipvg_image_free(&image);
    return status;
}

static ipvg_status reading_png(void *rgb) { return read_picture(rgb, NULL, 0); }

static ipvg_status reading_deep_grey(void *rgb) /* which we convert ourselves */
{
#define TAG(low, value) #low "\1\3\0\1\0\0\0" #value "\0\0\0" /* 256 + low, one short */
    /* A TIFF of 2 x 2 pixels of 16 bits: width, height, bits, no compression, 0 is black, where, samples, rows, bytes. */
    static const char data[] = "II*\0\10\0\0\0\11\0" TAG(\0, \2) TAG(\1, \2) TAG(\2, \20) TAG(\3, \1) TAG(\6, \1)
        TAG(\21, \172) TAG(\25, \1) TAG(\26, \2) TAG(\27, \10) "\0\0\0\0\1\2\3\4\5\6\7\10";
    return read_picture(rgb, data, sizeof data - 1);
}

static ipvg_status encoding_jpeg(void *out)
{
    uint8_t *jpeg;
    size_t size;
    ipvg_status status = ipvg_jpeg_encode(&ctx, &jpeg, &size, 32, 90, drawn[0], HEIGHT, WIDTH);
    CHECK((status == IPVG_OK) == (jpeg != NULL) && size <= BYTES);
    memset(out, 0, BYTES);
    if (jpeg) memcpy(out, jpeg, size);
    free(jpeg);
    return status;
}

static ipvg_status writing_video(void *unused)
{
    const ipvg_writer_config config = {HEIGHT, WIDTH, 16, 1, 10, "ultrafast"};
    ipvg_writer *m;
    (void)unused;
    unlink(file);
    ipvg_status status = ipvg_writer_open(&ctx, &m, file, &config);
    CHECK((status == IPVG_OK) == (m != NULL));
    for (int i = 0; i < FRAMES && status == IPVG_OK; i++) status = ipvg_writer_write(&ctx, m, drawn[i]);
    if (status == IPVG_OK) status = ipvg_writer_finish(&ctx, m);
    ipvg_writer_close(&m);
    CHECK(files() == (status == IPVG_OK));
    return status;
}

static ipvg_status reading_video(void *rgb)
{
    ipvg_video_reader *r;
    bool more = true;
    memset(rgb, 0, BYTES);
    ipvg_status status = ipvg_video_open(&ctx, &r, file, NULL, 0, IPVG_ALPHA_DROP);
    CHECK((status == IPVG_OK) == (r != NULL));
    while (status == IPVG_OK && more) status = ipvg_video_next(&ctx, r, rgb, &more);
    ipvg_video_close(&r);
    return status;
}

static const char *in_folder(const char *name)
{
    static char path[64];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    return path;
}

int main(void)
{
    static uint8_t rgb[BYTES];
    static const char *const videos[] = {"a.mp4", "a.mkv", "a.webm", "a.gif"};
    char nothing[1] = {0};
    CHECK(mkdtemp(folder));
    ipvg_context_init(&ctx, 1);
    for (int i = 0; i < FRAMES * BYTES; i++) drawn[i / BYTES][i % BYTES] = (uint8_t)(i / 7 + i / 500);
    file = in_folder("a.png");
    EACH_FAILS(&ctx, writing_png, nothing, 10);
    EACH_FAILS(&ctx, reading_png, rgb, 10);
    CHECK(memcmp(rgb, drawn[0], BYTES) == 0);
    unlink(file);
    EACH_FAILS(&ctx, reading_deep_grey, rgb, 10);
    EACH_FAILS(&ctx, encoding_jpeg, rgb, 4);
    for (size_t i = 0; i < sizeof videos / sizeof *videos; i++) {
        file = in_folder(videos[i]);
        EACH_FAILS(&ctx, writing_video, nothing, 7);
        EACH_FAILS(&ctx, reading_video, rgb, 10);
        unlink(file);
    }
    CHECK(rmdir(folder) == 0);
    return 0;
}

#else

int main(void) { return 0; }

#endif

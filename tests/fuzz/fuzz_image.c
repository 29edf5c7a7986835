/* libFuzzer over csrc/io/image.c: any bytes are a picture. What is accepted has the pixels that it announces, and the same
 * ones from a file. FFmpeg itself is the system's, not compiled with the sanitizers: what is searched for is our use of it. */
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "../../csrc/io/image.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void require(int condition)
{
    if (!condition) abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    ipvg_context ctx;
    ipvg_image image, again;
    ipvg_alpha alpha = size % 2 ? IPVG_ALPHA_WHITE : IPVG_ALPHA_DROP;
    uint8_t *exact = malloc(size ? size : 1); /* so that a byte read beyond the input is seen */
    require(exact != NULL);
    memcpy(exact, data, size);
    ipvg_context_init(&ctx, 1);
    ipvg_status status = ipvg_image_read(&ctx, &image, NULL, exact, size, alpha);
    if (status != IPVG_OK) {
        require(!image.rgb && ctx.error[0] && strlen(ctx.error) < sizeof ctx.error);
    } else {
        unsigned sum = 0;
        require(image.height > 0 && image.width > 0);
        for (size_t i = 0; i < (size_t)image.height * (size_t)image.width * 3; i++) sum += image.rgb[i];
        require(sum <= 255u * 3 * (unsigned)image.height * (unsigned)image.width);
    }
    if (size % 8 == 0) {
        char path[32];
        int fd = memfd_create("picture", 0);
        require(fd >= 0 && write(fd, data, size) == (ssize_t)size);
        snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
        require(ipvg_image_read(&ctx, &again, path, NULL, 0, alpha) == status);
        if (status == IPVG_OK) {
            require(image.height == again.height && image.width == again.width);
            require(!memcmp(image.rgb, again.rgb, (size_t)image.height * (size_t)image.width * 3));
        }
        ipvg_image_free(&again);
        close(fd);
    }
    ipvg_image_free(&image);
    free(exact);
    return 0;
}

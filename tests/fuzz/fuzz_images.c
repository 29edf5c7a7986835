/* libFuzzer over csrc/remote: any bytes are the reply of an images endpoint, and, apart from that, a picture's file.
 * What is accepted must be a picture whose announced size has a bound, or an address and a text that a str can hold. */
#include <stdlib.h>
#include <string.h>

#include "../../csrc/remote/base64.h"
#include "../../csrc/remote/images.h"
#include "../../csrc/remote/picture.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void require(int condition)
{
    if (!condition) abort();
}

static void require_picture(const void *data, size_t size)
{
    int64_t height, width;
    const char *type = ipvg_picture_look(data, size, &height, &width);
    require(type && !strncmp(type, "image/", 6) && height > 0 && width > 0 && height * width <= IPVG_IMAGES_PIXELS);
}

/* What is read can be written, and is then read as the same. */
static void base64(const char *text, size_t size)
{
    size_t n, again;
    char *bytes = malloc(size / 4 * 3 + 2);
    require(bytes != NULL);
    if (ipvg_base64_read(bytes, &n, text, size)) {
        char *written = malloc(IPVG_BASE64_LENGTH(n) + 1);
        char *second = malloc(IPVG_BASE64_LENGTH(n) / 4 * 3 + 2);
        require(written && second);
        ipvg_base64_write(written, bytes, n);
        require(strlen(written) == IPVG_BASE64_LENGTH(n));
        require(ipvg_base64_read(second, &again, written, strlen(written)));
        require(again == n && memcmp(second, bytes, n) == 0);
        free(written);
        free(second);
    }
    free(bytes);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    ipvg_context ctx;
    ipvg_images_answer answer;
    char *text = malloc(size + 1); /* of exactly the size, so that a byte beyond it is seen */
    require(text != NULL);
    memcpy(text, data, size);
    text[size] = 0;
    ipvg_context_init(&ctx, 1);
    if (ipvg_images_read(&ctx, &answer, text, size) == IPVG_OK) {
        require(answer.count >= 1 && answer.count <= IPVG_IMAGES_COUNT);
        for (size_t i = 0; i < answer.count; i++) {
            const ipvg_images_item *item = &answer.items[i];
            require((item->data != NULL) != (item->url != NULL));
            if (item->data) require_picture(item->data, item->size);
        }
        require(answer.input_tokens >= -1 && answer.output_tokens >= -1);
    } else {
        require(!answer.items && !answer.count && ctx.error[0] && strlen(ctx.error) < sizeof ctx.error);
    }
    ipvg_images_answer_free(&answer);
    free(text);
    char *bytes = malloc(size ? size : 1);
    require(bytes != NULL);
    memcpy(bytes, data, size);
    if (ipvg_images_check(&ctx, "x", bytes, size) == IPVG_OK) require_picture(bytes, size);
    base64(bytes, size);
    free(bytes);
    return 0;
}

#include "images.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base64.h"
#include "picture.h"
#include "reply.h"

ipvg_status ipvg_images_check(ipvg_context *ctx, const char *what, const void *data, size_t size)
{
    int64_t height, width;
    if (!ipvg_picture_look(data, size, &height, &width))
        return ipvg_fail(ctx, IPVG_E_FORMAT, "%s: not a PNG, JPEG or WebP picture (%zu bytes)", what, size);
    if (height > IPVG_IMAGES_PIXELS / width)
        return ipvg_fail(ctx, IPVG_E_FORMAT, "%s: a picture of %lld x %lld pixels; at most %d are taken", what,
                         (long long)width, (long long)height, IPVG_IMAGES_PIXELS);
    return IPVG_OK;
}

static ipvg_status decode(ipvg_context *ctx, ipvg_images_item *item, const char *what, const char *text)
{
    size_t length = strlen(text);
    item->data = malloc(length / 4 * 3 + 2);
    if (!item->data) return ipvg_fail(ctx, IPVG_E_MEMORY, "no memory for a picture");
    if (!ipvg_base64_read(item->data, &item->size, text, length))
        return ipvg_fail(ctx, IPVG_E_FORMAT, "%s: damaged base64", what);
    return ipvg_images_check(ctx, what, item->data, item->size);
}

static ipvg_status read_item(ipvg_context *ctx, ipvg_images_item *item, const cJSON *value, size_t index)
{
    char what[48];
    ipvg_status status = ipvg_reply_copy(ctx, &item->text, ipvg_reply_text(ipvg_reply_item(value, "revised_prompt")));
    const char *base64 = ipvg_reply_text(ipvg_reply_item(value, "b64_json"));
    const char *url = ipvg_reply_text(ipvg_reply_item(value, "url"));
    if (status != IPVG_OK) return status;
    snprintf(what, sizeof what, "data[%zu].%s", index, base64 ? "b64_json" : "url");
    if (!base64 && url && strncmp(url, "data:", 5) == 0) { /* some servers put the picture itself there */
        base64 = strstr(url, ";base64,");
        if (!base64) return ipvg_fail(ctx, IPVG_E_FORMAT, "%s: a data URL that is not base64", what);
        base64 += strlen(";base64,");
    }
    if (base64) return decode(ctx, item, what, base64);
    if (url) return ipvg_reply_copy(ctx, &item->url, url);
    return ipvg_fail(ctx, IPVG_E_FORMAT, "data[%zu]: has neither b64_json nor url", index);
}

ipvg_status ipvg_images_read(ipvg_context *ctx, ipvg_images_answer *answer, const char *text, size_t size)
{
    ipvg_status status;
    cJSON *root = NULL;
    memset(answer, 0, sizeof *answer);
    IPVG_TRY(ipvg_json_parse(ctx, &root, text, size));
    IPVG_TRY(ipvg_reply_error(ctx, root));
    const cJSON *data = ipvg_reply_item(root, "data"), *usage = ipvg_reply_item(root, "usage"), *value;
    answer->input_tokens = ipvg_reply_count(ipvg_reply_item(usage, "input_tokens"));
    answer->output_tokens = ipvg_reply_count(ipvg_reply_item(usage, "output_tokens"));
    size_t count = cJSON_IsArray(data) ? (size_t)cJSON_GetArraySize(data) : 0;
    if (count == 0 || count > IPVG_IMAGES_COUNT) {
        status =
            !cJSON_IsArray(data)
                ? ipvg_fail(ctx, IPVG_E_FORMAT, "data: expected a list; this is no answer of an images endpoint")
                : ipvg_fail(ctx, IPVG_E_FORMAT, "data: expected 1 to %d pictures, got %zu", IPVG_IMAGES_COUNT, count);
        goto done;
    }
    answer->items = calloc(count, sizeof *answer->items);
    if (!answer->items) {
        status = ipvg_fail(ctx, IPVG_E_MEMORY, "no memory for the answer");
        goto done;
    }
    cJSON_ArrayForEach(value, data)
    {
        IPVG_TRY(read_item(ctx, &answer->items[answer->count], value, answer->count));
        answer->count++;
    }
done:
    cJSON_Delete(root);
    if (status != IPVG_OK) {
        answer->count += answer->items != NULL; /* the one that failed holds memory too */
        ipvg_images_answer_free(answer);
    }
    return status;
}

void ipvg_images_answer_free(ipvg_images_answer *answer)
{
    for (size_t i = 0; answer->items && i < answer->count; i++) {
        free(answer->items[i].data);
        free(answer->items[i].url);
        free(answer->items[i].text);
    }
    free(answer->items);
    memset(answer, 0, sizeof *answer);
}

#include "reply.h"

#include <stdlib.h>
#include <string.h>

const cJSON *ipvg_reply_item(const cJSON *object, const char *name)
{
    return cJSON_IsObject(object) ? cJSON_GetObjectItemCaseSensitive(object, name) : NULL;
}

const char *ipvg_reply_text(const cJSON *value)
{
    return cJSON_IsString(value) && value->valuestring[0] ? value->valuestring : NULL;
}

ipvg_status ipvg_reply_copy(ipvg_context *ctx, char **out, const char *text)
{
    *out = text ? strdup(text) : NULL;
    return *out || !text ? IPVG_OK : ipvg_fail(ctx, IPVG_E_MEMORY, "no memory for the answer");
}

int64_t ipvg_reply_count(const cJSON *value)
{
    double v = cJSON_IsNumber(value) ? value->valuedouble : -1;
    return v >= 0 && v <= 1e15 ? (int64_t)v : -1;
}

/* The message of an error object in any of the forms that servers use. */
static const char *error_text(const cJSON *root)
{
    if (cJSON_IsArray(root)) root = cJSON_GetArrayItem(root, 0);
    const cJSON *error = ipvg_reply_item(root, "error");
    const char *text = ipvg_reply_text(ipvg_reply_item(error, "message"));
    if (!text) text = ipvg_reply_text(error);
    if (!text && !ipvg_reply_item(root, "choices")) text = ipvg_reply_text(ipvg_reply_item(root, "message"));
    if (!text && !ipvg_reply_item(root, "choices")) text = ipvg_reply_text(ipvg_reply_item(root, "detail"));
    return text;
}

ipvg_status ipvg_reply_error(ipvg_context *ctx, const cJSON *root)
{
    char said[512] = "";
    const cJSON *error = ipvg_reply_item(root, "error");
    if (!error || cJSON_IsNull(error)) return IPVG_OK;
    const char *message = error_text(root);
    if (message) ipvg_reply_printable(said, sizeof said, message, strlen(message));
    return ipvg_fail(ctx, IPVG_E_BACKEND, "%s", said[0] ? said : "an error that is not explained");
}

void ipvg_reply_printable(char *out, size_t room, const char *text, size_t size)
{
    size_t n = 0, i = 0;
    for (; i < size && n + 1 < room; i++) {
        unsigned char c = (unsigned char)text[i];
        if (c > 32 && c != 127)
            out[n++] = (char)c;
        else if (n && out[n - 1] != ' ')
            out[n++] = ' ';
    }
    if (i < size && ((unsigned char)text[i] & 0xc0) == 0x80) { /* inside a character: take its start away too */
        while (n && ((unsigned char)out[n - 1] & 0xc0) == 0x80) n--;
        if (n && (unsigned char)out[n - 1] >= 0xc0) n--;
    }
    while (n && out[n - 1] == ' ') n--;
    out[n] = 0;
}

void ipvg_reply_explain(char *out, size_t room, const char *text, size_t size)
{
    ipvg_context ctx;
    cJSON *root;
    ipvg_context_init(&ctx, 1);
    const char *message = ipvg_json_parse(&ctx, &root, text, size) == IPVG_OK ? error_text(root) : NULL;
    if (message)
        ipvg_reply_printable(out, room, message, strlen(message));
    else
        ipvg_reply_printable(out, room < 201 ? room : 201, text, size);
    cJSON_Delete(root);
}

#include "chat.h"

#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- request ---- */

/* "data:image/jpeg;base64,...", for free(); NULL without memory. */
static char *data_url(const ipvg_chat_part *part)
{
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    const unsigned char *in = part->data;
    size_t head = strlen(part->mime) + strlen("data:;base64,");
    char *url = malloc(head + (part->size + 2) / 3 * 4 + 1);
    if (!url) return NULL;
    snprintf(url, head + 1, "data:%s;base64,", part->mime);
    char *out = url + head;
    for (size_t i = 0; i < part->size; i += 3) {
        size_t left = part->size - i;
        uint32_t bits = (uint32_t)in[i] << 16 | (left > 1 ? (uint32_t)in[i + 1] << 8 : 0) | (left > 2 ? in[i + 2] : 0);
        *out++ = digits[bits >> 18];
        *out++ = digits[bits >> 12 & 63];
        *out++ = left > 1 ? digits[bits >> 6 & 63] : '=';
        *out++ = left > 2 ? digits[bits & 63] : '=';
    }
    *out = 0;
    return url;
}

static bool add_part(cJSON *list, const ipvg_chat_part *part)
{
    cJSON *item = cJSON_CreateObject();
    if (!item || !cJSON_AddItemToArray(list, item)) {
        cJSON_Delete(item);
        return false;
    }
    if (part->text)
        return cJSON_AddStringToObject(item, "type", "text") && cJSON_AddStringToObject(item, "text", part->text);
    char *url = data_url(part);
    cJSON *image = NULL;
    bool done = url && cJSON_AddStringToObject(item, "type", "image_url") &&
                (image = cJSON_AddObjectToObject(item, "image_url")) && cJSON_AddStringToObject(image, "url", url);
    free(url);
    return done;
}

static bool add_message(cJSON *list, const ipvg_chat_message *message)
{
    cJSON *item = cJSON_CreateObject();
    if (!item || !cJSON_AddItemToArray(list, item)) {
        cJSON_Delete(item);
        return false;
    }
    if (!cJSON_AddStringToObject(item, "role", message->role)) return false;
    if (message->count == 1 && message->parts[0].text)
        return cJSON_AddStringToObject(item, "content", message->parts[0].text);
    cJSON *content = cJSON_AddArrayToObject(item, "content");
    for (size_t i = 0; content && i < message->count; i++)
        if (!add_part(content, &message->parts[i])) return false;
    return content != NULL;
}

static bool add_option(cJSON *root, const ipvg_chat_option *option)
{
    char digits[32];
    switch (option->kind) {
    case IPVG_CHAT_NUMBER:
        if (option->number != floor(option->number) || fabs(option->number) > 9007199254740992.0)
            return cJSON_AddNumberToObject(root, option->name, option->number);
        /* cJSON writes 15 digits where those are "close enough": a seed must be whole. */
        snprintf(digits, sizeof digits, "%.0f", option->number);
        return cJSON_AddRawToObject(root, option->name, digits);
    case IPVG_CHAT_BOOL: return cJSON_AddBoolToObject(root, option->name, option->number != 0);
    case IPVG_CHAT_TEXT: return cJSON_AddStringToObject(root, option->name, option->text);
    }
    return false;
}

ipvg_status ipvg_chat_write(ipvg_context *ctx, char **body, const char *model, const ipvg_chat_message *messages,
                            size_t message_count, const ipvg_chat_option *options, size_t option_count)
{
    cJSON *root = cJSON_CreateObject(), *list = NULL;
    *body = NULL;
    bool done =
        root && cJSON_AddStringToObject(root, "model", model) && (list = cJSON_AddArrayToObject(root, "messages"));
    for (size_t i = 0; done && i < message_count; i++) done = add_message(list, &messages[i]);
    for (size_t i = 0; done && i < option_count; i++) done = add_option(root, &options[i]);
    if (done) *body = cJSON_PrintUnformatted(root);
    cJSON_Delete(root);
    return *body ? IPVG_OK : ipvg_fail(ctx, IPVG_E_MEMORY, "no memory for a request");
}

/* ---- answer ---- */

static const cJSON *item(const cJSON *object, const char *name)
{
    return cJSON_IsObject(object) ? cJSON_GetObjectItemCaseSensitive(object, name) : NULL;
}

/* The text of a string that is there and not empty, else NULL. */
static const char *text_of(const cJSON *value)
{
    return cJSON_IsString(value) && value->valuestring[0] ? value->valuestring : NULL;
}

/* The message of an error object in any of the forms that servers use. */
static const char *error_text(const cJSON *root)
{
    if (cJSON_IsArray(root)) root = cJSON_GetArrayItem(root, 0);
    const cJSON *error = item(root, "error");
    const char *text = text_of(item(error, "message"));
    if (!text) text = text_of(error);
    if (!text && !item(root, "choices")) text = text_of(item(root, "message"));
    if (!text && !item(root, "choices")) text = text_of(item(root, "detail"));
    return text;
}

/* Control characters become spaces, runs of spaces one; what has no room is cut between characters. */
static void copy_printable(char *out, size_t room, const char *text, size_t size)
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

void ipvg_chat_explain(char *out, size_t room, const char *text, size_t size)
{
    ipvg_context ctx;
    cJSON *root;
    ipvg_context_init(&ctx, 1);
    const char *message = ipvg_json_parse(&ctx, &root, text, size) == IPVG_OK ? error_text(root) : NULL;
    if (message)
        copy_printable(out, room, message, strlen(message));
    else
        copy_printable(out, room < 201 ? room : 201, text, size);
    cJSON_Delete(root);
}

static ipvg_status copy_text(ipvg_context *ctx, char **out, const char *text)
{
    *out = strdup(text);
    return *out ? IPVG_OK : ipvg_fail(ctx, IPVG_E_MEMORY, "no memory for the answer");
}

/* A list of parts in place of a string: its texts, one behind the other. */
static ipvg_status join_parts(ipvg_context *ctx, char **out, const cJSON *parts)
{
    const cJSON *part;
    size_t size = 1;
    cJSON_ArrayForEach(part, parts)
    {
        const cJSON *text = item(part, "text");
        if (!cJSON_IsString(text))
            return ipvg_fail(ctx, IPVG_E_FORMAT, "choices[0].message.content: a part of it is no text");
        size += strlen(text->valuestring);
    }
    char *end = *out = malloc(size);
    if (!end) return ipvg_fail(ctx, IPVG_E_MEMORY, "no memory for the answer");
    cJSON_ArrayForEach(part, parts)
    {
        const char *text = item(part, "text")->valuestring;
        size_t n = strlen(text);
        memcpy(end, text, n);
        end += n;
    }
    *end = 0;
    return IPVG_OK;
}

/* A count of tokens; -1 for anything that cannot be one. */
static int64_t count_of(const cJSON *value)
{
    double v = cJSON_IsNumber(value) ? value->valuedouble : -1;
    return v >= 0 && v <= 1e15 ? (int64_t)v : -1;
}

static ipvg_status read_choice(ipvg_context *ctx, ipvg_chat_answer *answer, const cJSON *choice)
{
    const cJSON *message = item(choice, "message");
    if (!cJSON_IsObject(message)) return ipvg_fail(ctx, IPVG_E_FORMAT, "choices[0].message: expected an object");
    const char *reason = text_of(item(choice, "finish_reason"));
    if (reason) copy_printable(answer->finish_reason, sizeof answer->finish_reason, reason, strlen(reason));
    const char *refusal = text_of(item(message, "refusal"));
    const cJSON *content = item(message, "content");
    ipvg_status status = refusal ? copy_text(ctx, &answer->refusal, refusal) : IPVG_OK;
    if (status != IPVG_OK) return status;
    if (cJSON_IsString(content)) return copy_text(ctx, &answer->content, content->valuestring);
    if (cJSON_IsArray(content)) return join_parts(ctx, &answer->content, content);
    if (!content || cJSON_IsNull(content)) return IPVG_OK;
    return ipvg_fail(ctx, IPVG_E_FORMAT, "choices[0].message.content: expected text");
}

ipvg_status ipvg_chat_read(ipvg_context *ctx, ipvg_chat_answer *answer, const char *text, size_t size)
{
    ipvg_status status;
    cJSON *root = NULL;
    char said[512];
    memset(answer, 0, sizeof *answer);
    IPVG_TRY(ipvg_json_parse(ctx, &root, text, size));
    const cJSON *choices = item(root, "choices"), *usage = item(root, "usage"), *error = item(root, "error");
    answer->prompt_tokens = count_of(item(usage, "prompt_tokens"));
    answer->completion_tokens = count_of(item(usage, "completion_tokens"));
    const char *who = text_of(item(root, "model"));
    if (who) copy_printable(answer->model, sizeof answer->model, who, strlen(who));
    if (error && !cJSON_IsNull(error)) {
        const char *message = error_text(root);
        copy_printable(said, sizeof said, message ? message : "", message ? strlen(message) : 0);
        status = ipvg_fail(ctx, IPVG_E_BACKEND, "%s", said[0] ? said : "an error that is not explained");
    } else if (!cJSON_IsArray(choices)) {
        status = ipvg_fail(ctx, IPVG_E_FORMAT, "choices: expected a list; this is no chat completion");
    } else if (cJSON_GetArraySize(choices) == 0) {
        status = ipvg_fail(ctx, IPVG_E_FORMAT, "choices: the list is empty");
    } else {
        status = read_choice(ctx, answer, cJSON_GetArrayItem(choices, 0));
    }
done:
    cJSON_Delete(root);
    if (status != IPVG_OK) ipvg_chat_answer_free(answer);
    return status;
}

void ipvg_chat_answer_free(ipvg_chat_answer *answer)
{
    free(answer->content);
    free(answer->refusal);
    memset(answer, 0, sizeof *answer);
}

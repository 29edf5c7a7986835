#include "chat.h"

#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base64.h"
#include "reply.h"

/* ---- request ---- */

/* "data:image/jpeg;base64,...", for free(); NULL without memory. */
static char *data_url(const ipvg_chat_part *part)
{
    size_t head = strlen(part->mime) + strlen("data:;base64,");
    char *url = malloc(head + IPVG_BASE64_LENGTH(part->size) + 1);
    if (!url) return NULL;
    snprintf(url, head + 1, "data:%s;base64,", part->mime);
    ipvg_base64_write(url + head, part->data, part->size);
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

/* A list of parts in place of a string: its texts, one behind the other. */
static ipvg_status join_parts(ipvg_context *ctx, char **out, const cJSON *parts)
{
    const cJSON *part;
    size_t size = 1;
    cJSON_ArrayForEach(part, parts)
    {
        const cJSON *text = ipvg_reply_item(part, "text");
        if (!cJSON_IsString(text))
            return ipvg_fail(ctx, IPVG_E_FORMAT, "choices[0].message.content: a part of it is no text");
        size += strlen(text->valuestring);
    }
    char *end = *out = malloc(size);
    if (!end) return ipvg_fail(ctx, IPVG_E_MEMORY, "no memory for the answer");
    cJSON_ArrayForEach(part, parts)
    {
        const char *text = ipvg_reply_item(part, "text")->valuestring;
        size_t n = strlen(text);
        memcpy(end, text, n);
        end += n;
    }
    *end = 0;
    return IPVG_OK;
}

static ipvg_status read_choice(ipvg_context *ctx, ipvg_chat_answer *answer, const cJSON *choice)
{
    const cJSON *message = ipvg_reply_item(choice, "message");
    if (!cJSON_IsObject(message)) return ipvg_fail(ctx, IPVG_E_FORMAT, "choices[0].message: expected an object");
    const char *reason = ipvg_reply_text(ipvg_reply_item(choice, "finish_reason"));
    if (reason) ipvg_reply_printable(answer->finish_reason, sizeof answer->finish_reason, reason, strlen(reason));
    const char *refusal = ipvg_reply_text(ipvg_reply_item(message, "refusal"));
    const cJSON *content = ipvg_reply_item(message, "content");
    ipvg_status status = refusal ? ipvg_reply_copy(ctx, &answer->refusal, refusal) : IPVG_OK;
    if (status != IPVG_OK) return status;
    if (cJSON_IsString(content)) return ipvg_reply_copy(ctx, &answer->content, content->valuestring);
    if (cJSON_IsArray(content)) return join_parts(ctx, &answer->content, content);
    if (!content || cJSON_IsNull(content)) return IPVG_OK;
    return ipvg_fail(ctx, IPVG_E_FORMAT, "choices[0].message.content: expected text");
}

ipvg_status ipvg_chat_read(ipvg_context *ctx, ipvg_chat_answer *answer, const char *text, size_t size)
{
    ipvg_status status;
    cJSON *root = NULL;
    memset(answer, 0, sizeof *answer);
    IPVG_TRY(ipvg_json_parse(ctx, &root, text, size));
    const cJSON *choices = ipvg_reply_item(root, "choices"), *usage = ipvg_reply_item(root, "usage");
    answer->prompt_tokens = ipvg_reply_count(ipvg_reply_item(usage, "prompt_tokens"));
    answer->completion_tokens = ipvg_reply_count(ipvg_reply_item(usage, "completion_tokens"));
    const char *who = ipvg_reply_text(ipvg_reply_item(root, "model"));
    if (who) ipvg_reply_printable(answer->model, sizeof answer->model, who, strlen(who));
    IPVG_TRY(ipvg_reply_error(ctx, root));
    if (!cJSON_IsArray(choices)) {
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

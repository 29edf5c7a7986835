/* Chat completions as OpenAI's API defines them and many servers speak it: the body of a request, the parts of an answer.
 *
 *     ipvg_chat_part parts[] = {{.text = "Describe the face."}, {.data = jpeg, .size = n, .mime = "image/jpeg"}};
 *     ipvg_chat_message messages[] = {{"user", parts, 2}};
 *     ipvg_chat_option options[] = {{.name = "max_tokens", .kind = IPVG_CHAT_NUMBER, .number = 5000}};
 *     IPVG_TRY(ipvg_chat_write(ctx, &body, "gpt-4o", messages, 1, options, 1));        // free(body)
 *     ...
 *     IPVG_TRY(ipvg_chat_read(ctx, &answer, text, size));                              // ipvg_chat_answer_free(&answer)
 *
 * All text is UTF-8. The answer's bytes are a stranger's: any of them end in an answer or in an error, never worse. */
#ifndef IPVG_REMOTE_CHAT_H
#define IPVG_REMOTE_CHAT_H

#include <stdint.h>

#include "json.h"

typedef struct ipvg_chat_part {
    const char *text; /* or NULL and an image: */
    const void *data; /* a picture's file, sent as a data URL */
    size_t size;      /* of data, bytes */
    const char *mime; /* "image/jpeg" */
} ipvg_chat_part;

typedef struct ipvg_chat_message {
    const char *role; /* "system", "user", "assistant" */
    const ipvg_chat_part *parts;
    size_t count; /* of parts, >= 1; a single text goes as a plain string, which every server takes */
} ipvg_chat_message;

typedef struct ipvg_chat_option {
    const char *name;
    enum { IPVG_CHAT_NUMBER, IPVG_CHAT_TEXT, IPVG_CHAT_BOOL } kind;
    double number;    /* also of BOOL: 0 or 1 */
    const char *text; /* of TEXT */
} ipvg_chat_option;

/* *body: JSON with a zero byte behind it, for free(). Items in the order model, messages, options. */
ipvg_status ipvg_chat_write(ipvg_context *ctx, char **body, const char *model, const ipvg_chat_message *messages,
                            size_t message_count, const ipvg_chat_option *options, size_t option_count);

typedef struct ipvg_chat_answer {
    char *content;                            /* of the first choice; NULL when it has none */
    char *refusal;                            /* why the model declined; NULL when it did not */
    char finish_reason[32];                   /* "stop", "length", "content_filter", ...; "" when not said */
    char model[128];                          /* who answered; "" when not said */
    int64_t prompt_tokens, completion_tokens; /* -1 when not said */
} ipvg_chat_answer;

/* The body of an answer with status 200. IPVG_E_FORMAT names what is missing or of a wrong type; an error object, which
 * some servers send with 200, is IPVG_E_BACKEND with its message. `answer` is zeroed first. */
ipvg_status ipvg_chat_read(ipvg_context *ctx, ipvg_chat_answer *answer, const char *text, size_t size);
void ipvg_chat_answer_free(ipvg_chat_answer *answer);

#endif

/* The reply of an images endpoint as OpenAI's API defines it: pictures as base64 or as addresses to fetch.
 *
 *     IPVG_TRY(ipvg_images_read(ctx, &answer, text, size));                      // ipvg_images_answer_free(&answer)
 *     for (size_t i = 0; i < answer.count; i++) ... answer.items[i].data or answer.items[i].url ...
 *
 * The bytes are a stranger's: any of them end in an answer or in an error, never worse. Pictures are looked at by their
 * headers alone: PNG, JPEG or WebP of at most IPVG_IMAGES_PIXELS. */
#ifndef IPVG_REMOTE_IMAGES_H
#define IPVG_REMOTE_IMAGES_H

#include <stddef.h>
#include <stdint.h>

#include "../base/context.h"

enum { IPVG_IMAGES_COUNT = 16, IPVG_IMAGES_PIXELS = 1 << 26 };

typedef struct ipvg_images_item {
    void *data;  /* a picture's file; NULL: fetch url */
    size_t size; /* of data, bytes */
    char *url;   /* NULL when there is data */
    char *text;  /* the prompt as the service rewrote it; NULL when it did not say */
} ipvg_images_item;

typedef struct ipvg_images_answer {
    ipvg_images_item *items;
    size_t count;                        /* 1 to IPVG_IMAGES_COUNT */
    int64_t input_tokens, output_tokens; /* -1 when not said */
} ipvg_images_answer;

/* The body of an answer with status 200. IPVG_E_FORMAT names what is missing or wrong; an error object is IPVG_E_BACKEND
 * with its message. `answer` is zeroed first. */
ipvg_status ipvg_images_read(ipvg_context *ctx, ipvg_images_answer *answer, const char *text, size_t size);
void ipvg_images_answer_free(ipvg_images_answer *answer);

/* Whether a file may go to a decoder; `what` begins the error. */
ipvg_status ipvg_images_check(ipvg_context *ctx, const char *what, const void *data, size_t size);

#endif

/* One HTTP exchange at a time over a connection that stays open.
 *
 *     ipvg_http *http = NULL;
 *     ipvg_http_answer answer = {0};
 *     IPVG_TRY(ipvg_http_open(ctx, &http));
 *     IPVG_TRY(ipvg_http_send(ctx, http, &answer, &(ipvg_http_request){.url = url, .key = key, .body = json, ...}));
 *     if (answer.status == 200) ... answer.body, answer.size ...
 * done:
 *     ipvg_http_answer_free(&answer);
 *     ipvg_http_close(&http);
 *
 * Cancelling (context.h) is looked for every 50 ms, also while a name is resolved or a server keeps silent. TLS is always
 * verified. A redirect is never followed: it would carry the key to whoever the server names. No compression is asked for
 * and none undone, so that a small answer cannot become a large one. Proxies come from the environment (https_proxy, ...).
 * The key is in no error text and is blanked in whatever the server sends back. */
#ifndef IPVG_REMOTE_HTTP_H
#define IPVG_REMOTE_HTTP_H

#include <stdbool.h>
#include <stddef.h>

#include "../base/context.h"

typedef struct ipvg_http ipvg_http;

/* A field of a form (multipart/form-data). */
typedef struct ipvg_http_field {
    const char *name;
    const void *data;
    size_t size;          /* of data, bytes */
    const char *filename; /* of a file, with its type ("image/png"); NULL: a plain value */
    const char *type;
} ipvg_http_field;

typedef struct ipvg_http_request {
    const char *url;  /* http:// or https:// */
    const char *key;  /* goes as "Authorization: Bearer key"; NULL: none */
    bool plain_key;   /* it goes as "api-key: key" instead */
    const void *body; /* posted as application/json; NULL: post the fields, and without any, get */
    size_t size;      /* of body, bytes */
    const ipvg_http_field *fields;
    size_t field_count;
    double connect_timeout; /* seconds until a connection stands, TLS included */
    double timeout;         /* seconds for the whole exchange */
    double silence_timeout; /* seconds without a byte in either direction; 0: no limit but `timeout` */
    size_t max_bytes;       /* a larger answer is refused */
    const char *ca_file;    /* certificates to trust instead of the system's; NULL: the system's */
} ipvg_http_request;

typedef struct ipvg_http_answer {
    long status;          /* 200, 429, ...; 0 when there was no answer */
    char *body;           /* with a zero byte behind it */
    size_t size;          /* of body, without that byte */
    char type[96];        /* the content type, "" if none */
    char request_id[128]; /* x-request-id, "" if none; printable ASCII */
    double retry_after;   /* seconds the server asks to wait, 0 if it does not */
    bool fault;           /* the exchange failed in a way that another try may not: connection, time-out */
} ipvg_http_answer;

ipvg_status ipvg_http_open(ipvg_context *ctx, ipvg_http **out);
void ipvg_http_close(ipvg_http **http);

/* IPVG_OK for any status: the caller judges it. IPVG_E_BACKEND when there is no whole answer (answer->fault says whether
 * to try again), IPVG_E_ARGUMENT for a URL or key that cannot be sent. `answer` must be zeroed or used before. */
ipvg_status ipvg_http_send(ipvg_context *ctx, ipvg_http *http, ipvg_http_answer *answer,
                           const ipvg_http_request *request);
void ipvg_http_answer_free(ipvg_http_answer *answer);

/* Of a clock that only goes forward. */
double ipvg_http_seconds(void);

/* Overwrites each occurrence of the key in text (size bytes) with '*'. Keys of fewer than 8 characters are placeholders
 * ("EMPTY", "none") and stay, since blanking them would damage words. */
void ipvg_key_blank(char *text, size_t size, const char *key);

#endif

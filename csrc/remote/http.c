#include "http.h"

#include <curl/curl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <time.h>

enum { POLL_MS = 50 };

struct ipvg_http {
    CURLM *multi; /* drives `easy`: its waits end every POLL_MS, unlike those of curl_easy_perform */
    CURL *easy;
    char error[CURL_ERROR_SIZE];
};

/* What the callbacks see of a running exchange. */
typedef struct exchange {
    ipvg_http_answer *answer;
    size_t capacity, max_bytes;
    curl_off_t header_bytes;
    double wait_ms; /* what "retry-after-ms" says, -1: nothing */
    bool too_large, no_memory, silent;
} exchange;

static CURLcode global_status;
static void global_init(void) { global_status = curl_global_init(CURL_GLOBAL_DEFAULT); }

ipvg_status ipvg_http_open(ipvg_context *ctx, ipvg_http **out)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    *out = NULL;
    pthread_once(&once, global_init);
    if (global_status != CURLE_OK)
        return ipvg_fail(ctx, IPVG_E_BACKEND, "libcurl cannot start: %s", curl_easy_strerror(global_status));
    ipvg_http *http = calloc(1, sizeof *http);
    if (http) http->multi = curl_multi_init();
    if (http) http->easy = curl_easy_init();
    if (!http || !http->multi || !http->easy) {
        ipvg_http_close(&http);
        return ipvg_fail(ctx, IPVG_E_MEMORY, "no memory for a connection");
    }
    *out = http;
    return IPVG_OK;
}

void ipvg_http_close(ipvg_http **http)
{
    if (!*http) return;
    curl_easy_cleanup((*http)->easy);
    curl_multi_cleanup((*http)->multi);
    free(*http);
    *http = NULL;
}

void ipvg_http_answer_free(ipvg_http_answer *answer)
{
    free(answer->body);
    memset(answer, 0, sizeof *answer);
}

void ipvg_key_blank(char *text, size_t size, const char *key)
{
    size_t n = key ? strlen(key) : 0;
    if (n < 8 || !text) return;
    for (char *p = text; (p = memmem(p, size - (size_t)(p - text), key, n)); p += n) memset(p, '*', n);
}

static size_t on_body(char *data, size_t one, size_t size, void *user)
{
    exchange *e = user;
    ipvg_http_answer *a = e->answer;
    size *= one;
    if (size > e->max_bytes - a->size) {
        e->too_large = true;
        return 0; /* ends the transfer */
    }
    if (a->size + size + 1 > e->capacity) {
        size_t capacity = 2 * e->capacity + size + 1;
        char *body = realloc(a->body, capacity);
        if (!body) {
            e->no_memory = true;
            return 0;
        }
        a->body = body;
        e->capacity = capacity;
    }
    memcpy(a->body + a->size, data, size);
    a->size += size;
    a->body[a->size] = 0;
    return size;
}

static size_t on_header(char *line, size_t one, size_t size, void *user)
{
    static const char name[] = "x-request-id:", wait[] = "retry-after-ms:";
    exchange *e = user;
    size *= one;
    e->header_bytes += (curl_off_t)size;
    if (size > sizeof wait && strncasecmp(line, wait, sizeof wait - 1) == 0) { /* finer than Retry-After, beside it */
        e->wait_ms = 0;
        for (size_t i = sizeof wait - 1; i < size && e->wait_ms < 1e9; i++)
            if (line[i] >= '0' && line[i] <= '9')
                e->wait_ms = 10 * e->wait_ms + (line[i] - '0');
            else if (line[i] != ' ')
                break;
    }
    if (size < sizeof name || strncasecmp(line, name, sizeof name - 1) != 0) return size;
    size_t n = 0;
    for (size_t i = sizeof name - 1; i < size && n + 1 < sizeof e->answer->request_id; i++)
        if (line[i] > ' ' && line[i] < 127) e->answer->request_id[n++] = line[i];
    e->answer->request_id[n] = 0;
    return size;
}

/* Whether the same request may succeed a moment later. */
static bool passes(CURLcode code)
{
    switch (code) {
    case CURLE_COULDNT_RESOLVE_PROXY:
    case CURLE_COULDNT_RESOLVE_HOST:
    case CURLE_COULDNT_CONNECT:
    case CURLE_OPERATION_TIMEDOUT:
    case CURLE_PARTIAL_FILE:
    case CURLE_GOT_NOTHING:
    case CURLE_SEND_ERROR:
    case CURLE_RECV_ERROR:
    case CURLE_SSL_CONNECT_ERROR:
    case CURLE_HTTP2:
    case CURLE_HTTP2_STREAM: return true;
    default: return false;
    }
}

/* scheme://host[:port] of the URL: what an error may show. The rest could hold more than a name. */
static int origin(const char *url)
{
    const char *host = strstr(url, "://");
    return (int)(host ? (size_t)(host + 3 - url) + strcspn(host + 3, "/?#") : strlen(url));
}

static ipvg_status check(ipvg_context *ctx, const ipvg_http_request *r)
{
    if (strncasecmp(r->url, "http://", 7) != 0 && strncasecmp(r->url, "https://", 8) != 0)
        return ipvg_fail(ctx, IPVG_E_ARGUMENT, "URL: expected http:// or https:// in front");
    for (const char *p = r->url; *p; p++)
        if (*p <= ' ' || *p >= 127)
            return ipvg_fail(ctx, IPVG_E_ARGUMENT, "URL: holds a space or a character that is not printable ASCII");
    if (memchr(r->url, '@', (size_t)origin(r->url)))
        return ipvg_fail(ctx, IPVG_E_ARGUMENT, "URL: names a user or password; give a key apart from it");
    for (const char *p = r->key ? r->key : ""; *p; p++) /* a line end in it would add headers of its own */
        if (*p <= ' ' || *p >= 127)
            return ipvg_fail(ctx, IPVG_E_ARGUMENT, "key: holds a space or a character that is not printable ASCII");
    return IPVG_OK;
}

/* Headers in *list and their number so far; a failed append leaves the list as it was. */
static bool add_header(struct curl_slist **list, const char *line)
{
    struct curl_slist *longer = curl_slist_append(*list, line);
    if (longer) *list = longer;
    return longer != NULL;
}

static bool add_headers(struct curl_slist **list, const ipvg_http_request *r)
{
    if (r->body && !add_header(list, "Content-Type: application/json")) return false;
    if (!add_header(list, r->body || r->field_count ? "Accept: application/json" : "Accept: image/*")) return false;
    /* "Expect:" keeps curl from waiting a second for leave to send a picture. */
    if (!add_header(list, "Expect:") || !add_header(list, "User-Agent: ipvg")) return false;
    if (!r->key || !r->key[0]) return true;
    size_t room = strlen(r->key) + 32;
    char *line = malloc(room);
    if (!line) return false;
    snprintf(line, room, r->plain_key ? "api-key: %s" : "Authorization: Bearer %s", r->key);
    bool added = add_header(list, line);
    explicit_bzero(line, room);
    free(line);
    return added;
}

/* *form: NULL when the request is none. */
static bool make_form(CURL *easy, curl_mime **form, const ipvg_http_request *r)
{
    *form = NULL;
    if (r->body || r->field_count == 0) return true;
    if (!(*form = curl_mime_init(easy))) return false;
    for (size_t i = 0; i < r->field_count; i++) {
        const ipvg_http_field *f = &r->fields[i];
        curl_mimepart *part = curl_mime_addpart(*form);
        if (!part || curl_mime_name(part, f->name) || curl_mime_data(part, f->data, f->size)) return false;
        if (f->filename && (curl_mime_filename(part, f->filename) || curl_mime_type(part, f->type))) return false;
    }
    return true;
}

static ipvg_status set_up(ipvg_context *ctx, ipvg_http *http, const ipvg_http_request *r, exchange *e,
                          struct curl_slist *headers, curl_mime *form)
{
    CURL *c = http->easy;
    CURLcode err = CURLE_OK;
#define SET(option, value) \
    if (err == CURLE_OK) err = curl_easy_setopt(c, option, value)
    http->error[0] = 0;
    SET(CURLOPT_ERRORBUFFER, http->error);
    SET(CURLOPT_URL, r->url);
    SET(CURLOPT_PROTOCOLS_STR, "http,https");
    SET(CURLOPT_FOLLOWLOCATION, 0L);
    SET(CURLOPT_SSL_VERIFYPEER, 1L);
    SET(CURLOPT_SSL_VERIFYHOST, 2L);
    if (r->ca_file) SET(CURLOPT_CAINFO, r->ca_file);
    SET(CURLOPT_NOSIGNAL, 1L);
    SET(CURLOPT_QUICK_EXIT, 1L); /* closing does not wait for a resolver that hangs */
    SET(CURLOPT_TCP_KEEPALIVE, 1L);
    SET(CURLOPT_HTTPHEADER, headers);
    if (form) {
        SET(CURLOPT_MIMEPOST, form);
    } else if (r->body) {
        SET(CURLOPT_POST, 1L);
        SET(CURLOPT_POSTFIELDS, r->body);
        SET(CURLOPT_POSTFIELDSIZE_LARGE, (curl_off_t)r->size);
    } else {
        SET(CURLOPT_HTTPGET, 1L);
    }
    SET(CURLOPT_CONNECTTIMEOUT_MS, (long)(r->connect_timeout * 1000) + 1);
    SET(CURLOPT_TIMEOUT_MS, (long)(r->timeout * 1000) + 1);
    SET(CURLOPT_WRITEFUNCTION, on_body);
    SET(CURLOPT_WRITEDATA, e);
    SET(CURLOPT_HEADERFUNCTION, on_header);
    SET(CURLOPT_HEADERDATA, e);
#undef SET
    if (err == CURLE_OUT_OF_MEMORY) return ipvg_fail(ctx, IPVG_E_MEMORY, "no memory for a request");
    if (err != CURLE_OK) return ipvg_fail(ctx, IPVG_E_BACKEND, "libcurl: %s", curl_easy_strerror(err));
    /* Not every libcurl is built with HTTP/2; then HTTP/1.1 does. */
    curl_easy_setopt(c, CURLOPT_HTTP_VERSION, (long)CURL_HTTP_VERSION_2TLS);
    return IPVG_OK;
}

double ipvg_http_seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Bytes that have passed in either direction. */
static curl_off_t passed(CURL *easy, const exchange *e)
{
    curl_off_t up = 0, down = 0;
    curl_easy_getinfo(easy, CURLINFO_SIZE_UPLOAD_T, &up);
    curl_easy_getinfo(easy, CURLINFO_SIZE_DOWNLOAD_T, &down);
    return up + down + e->header_bytes;
}

/* Runs the transfer; *result is how it ended. curl's own low-speed limit looks at averages over six seconds, in which a
 * picture that went up hides that nothing comes back; so silence is measured here. */
static ipvg_status transfer(ipvg_context *ctx, ipvg_http *http, CURLcode *result, exchange *e, double silence_timeout)
{
    curl_off_t bytes = -1;
    double last = 0;
    ipvg_status status = IPVG_OK;
    int running = 1;
    CURLMcode err = curl_multi_add_handle(http->multi, http->easy);
    bool added = err == CURLM_OK;
    while (err == CURLM_OK) {
        err = curl_multi_perform(http->multi, &running);
        if (err != CURLM_OK || !running) break;
        err = curl_multi_poll(http->multi, NULL, 0, POLL_MS, NULL);
        if ((status = ipvg_check_cancel(ctx)) != IPVG_OK) break;
        if (passed(http->easy, e) != bytes) {
            bytes = passed(http->easy, e);
            last = ipvg_http_seconds();
        } else if (silence_timeout > 0 && ipvg_http_seconds() - last > silence_timeout) {
            e->silent = true;
            break;
        }
    }
    int left;
    *result = e->silent ? CURLE_OPERATION_TIMEDOUT : CURLE_OUT_OF_MEMORY;
    for (CURLMsg *m; added && (m = curl_multi_info_read(http->multi, &left));)
        if (m->msg == CURLMSG_DONE) *result = m->data.result;
    if (added) curl_multi_remove_handle(http->multi, http->easy);
    if (status == IPVG_OK && err != CURLM_OK)
        status = err == CURLM_OUT_OF_MEMORY ? ipvg_fail(ctx, IPVG_E_MEMORY, "no memory for a request")
                                            : ipvg_fail(ctx, IPVG_E_BACKEND, "libcurl: %s", curl_multi_strerror(err));
    return status;
}

static ipvg_status judge(ipvg_context *ctx, ipvg_http *http, const ipvg_http_request *r, const exchange *e,
                         CURLcode result)
{
    int shown = origin(r->url);
    const char *why = http->error[0] ? http->error : curl_easy_strerror(result);
    if (e->silent)
        return ipvg_fail(ctx, IPVG_E_BACKEND, "%.*s: not a byte for %g seconds", shown, r->url, r->silence_timeout);
    if (e->too_large)
        return ipvg_fail(ctx, IPVG_E_BACKEND, "%.*s: the answer is larger than %zu bytes", shown, r->url, e->max_bytes);
    if (e->no_memory || result == CURLE_OUT_OF_MEMORY)
        return ipvg_fail(ctx, IPVG_E_MEMORY, "%.*s: no memory for the exchange", shown, r->url);
    if (result == CURLE_PEER_FAILED_VERIFICATION || result == CURLE_SSL_CACERT_BADFILE)
        return ipvg_fail(ctx, IPVG_E_BACKEND, "%.*s: its certificate is not trusted (%s); name its CA with ca_file",
                         shown, r->url, why);
    return ipvg_fail(ctx, IPVG_E_BACKEND, "%.*s: %s", shown, r->url, why);
}

ipvg_status ipvg_http_send(ipvg_context *ctx, ipvg_http *http, ipvg_http_answer *answer, const ipvg_http_request *r)
{
    ipvg_status status;
    exchange e = {.answer = answer, .max_bytes = r->max_bytes, .capacity = 1, .wait_ms = -1};
    struct curl_slist *headers = NULL;
    curl_mime *form = NULL;
    CURLcode result;
    ipvg_http_answer_free(answer);
    IPVG_TRY(check(ctx, r));
    answer->body = calloc(1, 1);
    if (!answer->body || !add_headers(&headers, r) || !make_form(http->easy, &form, r)) {
        status = ipvg_fail(ctx, IPVG_E_MEMORY, "no memory for a request");
        goto done;
    }
    IPVG_TRY(set_up(ctx, http, r, &e, headers, form));
    IPVG_TRY(transfer(ctx, http, &result, &e, r->silence_timeout));
    curl_easy_getinfo(http->easy, CURLINFO_RESPONSE_CODE, &answer->status);
    if (result != CURLE_OK) {
        answer->fault = passes(result) && !e.too_large && !e.no_memory;
        status = judge(ctx, http, r, &e, result);
        ipvg_key_blank(ctx->error, strlen(ctx->error), r->key);
        goto done;
    }
    const char *type = NULL;
    curl_off_t wait = 0;
    curl_easy_getinfo(http->easy, CURLINFO_CONTENT_TYPE, &type);
    curl_easy_getinfo(http->easy, CURLINFO_RETRY_AFTER, &wait); /* seconds from either form of the header */
    snprintf(answer->type, sizeof answer->type, "%s", type ? type : "");
    answer->retry_after = e.wait_ms >= 0 ? e.wait_ms / 1000 : wait > 0 ? (double)wait : 0;
done:
    if (answer->body) ipvg_key_blank(answer->body, answer->size, r->key);
    ipvg_key_blank(answer->request_id, strlen(answer->request_id), r->key);
    ipvg_key_blank(answer->type, strlen(answer->type), r->key);
    curl_easy_reset(http->easy); /* it points to the headers and the form; its connections stay */
    curl_mime_free(form);
    for (struct curl_slist *h = headers; h; h = h->next) explicit_bzero(h->data, strlen(h->data));
    curl_slist_free_all(headers);
    return status;
}

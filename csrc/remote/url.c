#include "url.h"

#include <curl/curl.h>
#include <string.h>

typedef struct parts {
    CURLU *handle;
    char *scheme, *host, *user;
} parts;

static CURLUcode parse(parts *p, const char *url)
{
    p->handle = curl_url();
    if (!p->handle) return CURLUE_OUT_OF_MEMORY;
    CURLUcode err = curl_url_set(p->handle, CURLUPART_URL, url, 0);
    if (!err) err = curl_url_get(p->handle, CURLUPART_SCHEME, &p->scheme, 0);
    if (!err) err = curl_url_get(p->handle, CURLUPART_HOST, &p->host, 0);
    if (!err && curl_url_get(p->handle, CURLUPART_USER, &p->user, 0) == CURLUE_OUT_OF_MEMORY)
        err = CURLUE_OUT_OF_MEMORY;
    return err;
}

static void release(parts *p)
{
    curl_free(p->scheme);
    curl_free(p->host);
    curl_free(p->user);
    curl_url_cleanup(p->handle);
}

/* Names and numbers of this machine. libcurl has made the other spellings of 127.0.0.1 (0x7f.1, 2130706433) this one. */
static bool is_loopback(const char *host)
{
    if (!strcmp(host, "localhost") || !strcmp(host, "[::1]")) return true;
    return !strncmp(host, "127.", 4) && strspn(host, "0123456789.") == strlen(host);
}

ipvg_status ipvg_url_check(ipvg_context *ctx, const char *url, const char *service, bool any_http)
{
    ipvg_status status = IPVG_OK;
    parts to = {0}, from = {0};
    CURLUcode err = parse(&to, url);
    if (!err) err = parse(&from, service);
    if (err == CURLUE_OUT_OF_MEMORY) {
        status = ipvg_fail(ctx, IPVG_E_MEMORY, "no memory for a request");
    } else if (err) {
        status = ipvg_fail(ctx, IPVG_E_FORMAT, "url: not an address that can be fetched (%s)", curl_url_strerror(err));
    } else if (to.user) {
        status = ipvg_fail(ctx, IPVG_E_FORMAT, "url: names a user or password; not fetched");
    } else if (strcmp(to.scheme, "https") != 0 && strcmp(to.scheme, "http") != 0) {
        status = ipvg_fail(ctx, IPVG_E_FORMAT, "url: expected https, got %.20s", to.scheme);
    } else if (!strcmp(to.scheme, "http") && !any_http && !(is_loopback(to.host) && is_loopback(from.host))) {
        status = ipvg_fail(ctx, IPVG_E_FORMAT,
                           "url: http://%.100s is not encrypted and not fetched; http_urls=True allows it", to.host);
    }
    release(&to);
    release(&from);
    return status;
}

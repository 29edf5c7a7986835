#include "json.h"

#include <stdbool.h>
#include <string.h>

/* Bytes of the UTF-8 character at p, 0 if there is none (RFC 3629: shortest form, no surrogates, up to U+10FFFF). */
static size_t utf8(const unsigned char *p, const unsigned char *end)
{
    size_t n = p[0] < 0x80 ? 1 : p[0] < 0xc2 ? 0 : p[0] < 0xe0 ? 2 : p[0] < 0xf0 ? 3 : p[0] < 0xf5 ? 4 : 0;
    if (n == 0 || (size_t)(end - p) < n) return 0;
    for (size_t i = 1; i < n; i++)
        if ((p[i] & 0xc0) != 0x80) return 0;
    if ((p[0] == 0xe0 && p[1] < 0xa0) || (p[0] == 0xed && p[1] > 0x9f)) return 0;
    if ((p[0] == 0xf0 && p[1] < 0x90) || (p[0] == 0xf4 && p[1] > 0x8f)) return 0;
    return n;
}

/* The number behind "\u" at p, -1 if it is none. */
static int hex4(const unsigned char *p, const unsigned char *end)
{
    int value = 0;
    if (end - p < 6 || p[0] != '\\' || p[1] != 'u') return -1;
    for (int i = 2; i < 6; i++) {
        int c = p[i] | 0x20; /* small letters; a digit has that bit set */
        int digit = p[i] >= '0' && p[i] <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
        if (digit < 0) return -1;
        value = value * 16 + digit;
    }
    return value;
}

/* Why the string that starts behind the quote at *at cannot be taken, NULL if it can; *at moves behind its end. */
static const char *look_at_string(const unsigned char **at, const unsigned char *end)
{
    const unsigned char *p = *at;
    while (p < end && *p != '"') {
        if (*p < 0x20) return *p ? "a control character inside a string" : "a NUL byte";
        if (*p != '\\') {
            size_t n = utf8(p, end);
            if (!n) return "bytes that are not UTF-8";
            p += n;
            continue;
        }
        if (end - p < 2) return "a string without an end";
        if (p[1] != 'u') {
            p += 2;
            continue;
        }
        int unit = hex4(p, end);
        if (unit < 0) return "a wrong \\u escape";
        if (unit == 0) return "a NUL character (\\u0000)";
        if (unit >= 0xdc00 && unit <= 0xdfff) return "a lone surrogate";
        p += 6;
        if (unit >= 0xd800 && unit <= 0xdbff) {
            int low = hex4(p, end);
            if (low < 0xdc00 || low > 0xdfff) return "a lone surrogate";
            p += 6;
        }
    }
    if (p >= end) return "a string without an end";
    *at = p + 1;
    return NULL;
}

static const char *look_through(const unsigned char *p, const unsigned char *end)
{
    long depth = 0, values = 1;
    while (p < end) {
        unsigned char c = *p++;
        const char *why = c == 0 ? "a NUL byte" : c >= 0x80 ? "bytes outside of strings" : NULL;
        if (c == '"') why = look_at_string(&p, end);
        if (why) return why;
        depth += (c == '{' || c == '[') - (c == '}' || c == ']');
        values += c == ',' || c == '{' || c == '[';
        if (depth > IPVG_JSON_DEPTH) return "more than 64 levels";
        if (values > IPVG_JSON_VALUES) return "more than 100000 values";
    }
    return NULL;
}

static bool is_space(char c) { return c == ' ' || c == '\t' || c == '\n' || c == '\r'; }

ipvg_status ipvg_json_parse(ipvg_context *ctx, cJSON **out, const char *text, size_t size)
{
    const char *end = NULL;
    *out = NULL;
    if (size >= 3 && memcmp(text, "\xef\xbb\xbf", 3) == 0) text += 3, size -= 3; /* a byte order mark */
    size_t n = size;
    while (n && is_space(text[n - 1])) n--;
    if (n == 0) return ipvg_fail(ctx, IPVG_E_FORMAT, "an empty answer instead of JSON");
    const char *why = look_through((const unsigned char *)text, (const unsigned char *)text + size);
    if (why) return ipvg_fail(ctx, IPVG_E_FORMAT, "JSON that cannot be used: it holds %s", why);
    /* With the zero byte: 1.7.15 reads past the end of input that stops inside an object otherwise. cJSON also notes where
     * a parse failed in a global that we never read. */
    *out = cJSON_ParseWithLengthOpts(text, size + 1, &end, 0);
    if (!*out)
        return ipvg_fail(ctx, IPVG_E_FORMAT, "not JSON, or cut short (%zu bytes, wrong near byte %zu)", size,
                         end ? (size_t)(end - text) : 0);
    if (end < text + n) {
        cJSON_Delete(*out);
        *out = NULL;
        return ipvg_fail(ctx, IPVG_E_FORMAT, "more than one JSON value");
    }
    return IPVG_OK;
}

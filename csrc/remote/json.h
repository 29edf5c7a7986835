/* JSON from strangers. cJSON alone would let pass what C strings cannot hold: it cuts a string at \u0000 without a word,
 * takes any bytes for UTF-8, accepts text behind the value and nests a thousand deep. So the bytes are looked through
 * first, and only then parsed. */
#ifndef IPVG_REMOTE_JSON_H
#define IPVG_REMOTE_JSON_H

#include <cjson/cJSON.h>
#include <stddef.h>

#include "../base/context.h"

enum { IPVG_JSON_DEPTH = 64, IPVG_JSON_VALUES = 100000 };

/* *out: the value, for cJSON_Delete. text (size): UTF-8 with a zero byte behind it. IPVG_E_FORMAT unless it is one whole
 * JSON value of at most that depth and that many values, without a NUL, a lone surrogate or invalid UTF-8 in it. */
ipvg_status ipvg_json_parse(ipvg_context *ctx, cJSON **out, const char *text, size_t size);

#endif

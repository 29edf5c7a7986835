/* What every kind of reply has in common: errors in the forms that servers use, text for people, counts of tokens. */
#ifndef IPVG_REMOTE_REPLY_H
#define IPVG_REMOTE_REPLY_H

#include <stdint.h>

#include "json.h"

/* The item of an object, NULL for anything else. */
const cJSON *ipvg_reply_item(const cJSON *object, const char *name);

/* The text of a string that is there and not empty, else NULL. */
const char *ipvg_reply_text(const cJSON *value);

/* A copy of text, for free(); NULL stays NULL. */
ipvg_status ipvg_reply_copy(ipvg_context *ctx, char **out, const char *text);

/* A count of tokens; -1 for anything that cannot be one. */
int64_t ipvg_reply_count(const cJSON *value);

/* IPVG_E_BACKEND with the message when the reply is an error object, which some servers send with status 200. */
ipvg_status ipvg_reply_error(ipvg_context *ctx, const cJSON *root);

/* Control characters become spaces, runs of spaces one; what has no room (bytes of out) is cut between characters. */
void ipvg_reply_printable(char *out, size_t room, const char *text, size_t size);

/* What a failed answer says about itself, whatever its form, into out (room bytes): the message of an error object, else
 * the start of the body. Never fails. */
void ipvg_reply_explain(char *out, size_t room, const char *text, size_t size);

#endif

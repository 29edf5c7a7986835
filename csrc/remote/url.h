/* Where a reply may send us. Read by libcurl's own parser, so that what is checked is what is used. */
#ifndef IPVG_REMOTE_URL_H
#define IPVG_REMOTE_URL_H

#include <stdbool.h>

#include "../base/context.h"

/* IPVG_OK when `url`, which a reply of `service` names, may be fetched: https to any host, whose certificate then proves
 * that it is meant to be reached by that name; http only from this machine to itself, or with any_http. The error never
 * shows more than the origin: an address may carry a signature. */
ipvg_status ipvg_url_check(ipvg_context *ctx, const char *url, const char *service, bool any_http);

#endif

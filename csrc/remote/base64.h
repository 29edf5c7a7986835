/* Base64 (RFC 4648, the plain alphabet), as pictures travel inside JSON. */
#ifndef IPVG_REMOTE_BASE64_H
#define IPVG_REMOTE_BASE64_H

#include <stdbool.h>
#include <stddef.h>

/* Characters for size bytes, without a zero byte. */
#define IPVG_BASE64_LENGTH(size) (((size) + 2) / 3 * 4)

/* out: IPVG_BASE64_LENGTH(size) + 1 characters, a zero byte last. */
void ipvg_base64_write(char *out, const void *data, size_t size);

/* Decodes length characters into out, which has room for length / 4 * 3 + 2 bytes and may be text itself; *size is how
 * many there are. Line ends are skipped and the padding may be missing. false, and nothing to rely on in out, for any other
 * character, a wrong length, or bits behind the last byte. */
bool ipvg_base64_read(void *out, size_t *size, const char *text, size_t length);

#endif

#include "base64.h"

#include <stdint.h>

void ipvg_base64_write(char *out, const void *data, size_t size)
{
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    const unsigned char *in = data;
    for (size_t i = 0; i < size; i += 3) {
        size_t left = size - i;
        uint32_t bits = (uint32_t)in[i] << 16 | (left > 1 ? (uint32_t)in[i + 1] << 8 : 0) | (left > 2 ? in[i + 2] : 0);
        *out++ = digits[bits >> 18];
        *out++ = digits[bits >> 12 & 63];
        *out++ = left > 1 ? digits[bits >> 6 & 63] : '=';
        *out++ = left > 2 ? digits[bits & 63] : '=';
    }
    *out = 0;
}

static int digit_of(unsigned char c)
{
    if (c >= 'A' && c <= 'Z') return c - 'A';
    if (c >= 'a' && c <= 'z') return c - 'a' + 26;
    if (c >= '0' && c <= '9') return c - '0' + 52;
    return c == '+' ? 62 : c == '/' ? 63 : -1;
}

bool ipvg_base64_read(void *out, size_t *size, const char *text, size_t length)
{
    unsigned char *bytes = out;
    uint32_t bits = 0;
    size_t digits = 0, padding = 0, n = 0;
    for (size_t i = 0; i < length; i++) {
        int digit = digit_of((unsigned char)text[i]);
        if (text[i] == '\n' || text[i] == '\r') continue;
        if (text[i] == '=') {
            padding++;
            continue;
        }
        if (digit < 0 || padding) return false;
        bits = bits << 6 | (uint32_t)digit;
        if (++digits % 4 != 1) bytes[n++] = (unsigned char)(bits >> (6 - 2 * ((digits - 1) % 4)));
    }
    size_t rest = digits % 4; /* of the last group: 2 for one byte, 3 for two */
    if (rest == 1 || (padding && padding != (4 - rest) % 4)) return false;
    if ((rest == 2 && bits & 15) || (rest == 3 && bits & 3)) return false;
    *size = n;
    return true;
}

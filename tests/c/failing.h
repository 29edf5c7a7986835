/* The n-th allocation that our own objects ask for fails: the linker leads their calls here (--wrap, see the Makefile), those
 * of the libraries below go on as ever. EACH_FAILS runs a piece of work once with each of its allocations failing: every
 * time it must be IPVG_E_MEMORY with a text, and the same objects must then give the same bytes as before. What it leaks,
 * LeakSanitizer finds. */
#ifndef IPVG_TESTS_FAILING_H
#define IPVG_TESTS_FAILING_H

#include <errno.h>
#include <stdbool.h>
#include <stddef.h>
#include <string.h>
#include <sys/types.h>

#include "../../csrc/base/context.h"
#include "check.h"

static long until_failure; /* 0: none fails */
static bool failed;

static inline bool fails(void)
{
    if (until_failure == 0 || --until_failure != 0) return false;
    failed = true;
    errno = ENOMEM;
    return true;
}

/* Replaces `type name(parameters)`, called as name arguments; `none` is what it gives without memory. */
#define FAILING(type, none, name, parameters, arguments) \
    type __real_##name parameters;                       \
    type __wrap_##name parameters;                       \
    type __wrap_##name parameters { return fails() ? none : __real_##name arguments; }

FAILING(void *, NULL, malloc, (size_t size), (size))
FAILING(void *, NULL, calloc, (size_t count, size_t size), (count, size))
FAILING(void *, NULL, realloc, (void *old, size_t size), (old, size))
FAILING(void *, NULL, aligned_alloc, (size_t alignment, size_t size), (alignment, size))
FAILING(char *, NULL, strdup, (const char *text), (text))
FAILING(char *, NULL, realpath, (const char *path, char *out), (path, out))
FAILING(void *, (void *)-1, mmap, (void *at, size_t size, int protection, int flags, int fd, off_t offset),
        (at, size, protection, flags, fd, offset))

/* work(result) clears what it writes to the `bytes` of result first. */
static inline void each_fails(const char *what, ipvg_context *ctx, ipvg_status (*work)(void *), void *result,
                              size_t bytes, long least)
{
    char *expected = __real_malloc(bytes);
    ipvg_status status = work(result);
    long n = 1;
    if (status != IPVG_OK) printf("%s: \"%s\"\n", what, ctx->error);
    CHECK(expected && status == IPVG_OK);
    memcpy(expected, result, bytes);
    for (;; n++) {
        ctx->error[0] = 0;
        failed = false;
        until_failure = n;
        status = work(result);
        until_failure = 0;
        if (!failed) {
            CHECK(status == IPVG_OK);
            break;
        }
        if (status != IPVG_E_MEMORY || !ctx->error[0])
            printf("%s, allocation %ld: status %d, \"%s\"\n", what, n, status, ctx->error);
        CHECK(status == IPVG_E_MEMORY && ctx->error[0]);
        CHECK(work(result) == IPVG_OK && memcmp(result, expected, bytes) == 0);
    }
    printf("%s: %ld allocations\n", what, n - 1);
    CHECK(n > least);
    free(expected);
}
#define EACH_FAILS(ctx, work, result, least) each_fails(#work, ctx, work, result, sizeof(result), least)

#endif

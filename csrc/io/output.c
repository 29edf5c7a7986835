#include "output.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* A name beside `path` that no file has yet, created empty. */
static char *create_beside(const char *path)
{
    const char *slash = strrchr(path, '/');
    int folder = slash ? (int)(slash + 1 - path) : 0;
    size_t size = strlen(path) + 64;
    char *name = malloc(size);
    if (!name) return NULL;
    for (int i = 0; i < 1000; i++) {
        /* At most 180 bytes of the final name: folders allow 255 for a whole one. */
        snprintf(name, size, "%.*s.%.180s.%ld-%d.part", folder, path, path + folder, (long)getpid(), i);
        int fd = open(name, O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC, 0666); /* the umask applies, unlike mkstemp */
        if (fd >= 0) {
            close(fd);
            return name;
        }
        if (errno != EEXIST) break;
    }
    int err = errno;
    free(name);
    errno = err;
    return NULL;
}

ipvg_status ipvg_output_begin(ipvg_context *ctx, ipvg_output *out, const char *path)
{
    memset(out, 0, sizeof *out);
    struct stat st;
    if (stat(path, &st) == 0) {
        if (S_ISDIR(st.st_mode)) return ipvg_fail(ctx, IPVG_E_ARGUMENT, "%s is a folder: name a file in it", path);
        if (!S_ISREG(st.st_mode)) return ipvg_fail(ctx, IPVG_E_ARGUMENT, "%s is not a regular file", path);
        out->path = realpath(path, NULL);
    } else {
        out->path = strdup(path);
    }
    if (!out->path) return ipvg_fail_errno(ctx, "%s: cannot be written", path);
    out->temporary = create_beside(out->path);
    if (!out->temporary) {
        ipvg_status status = ipvg_fail_errno(ctx, "%s: cannot be written", path);
        ipvg_output_abandon(out);
        return status;
    }
    return IPVG_OK;
}

ipvg_status ipvg_output_commit(ipvg_context *ctx, ipvg_output *out)
{
    if (rename(out->temporary, out->path) != 0) return ipvg_fail_errno(ctx, "%s: cannot be written", out->path);
    free(out->temporary);
    out->temporary = NULL;
    return IPVG_OK;
}

void ipvg_output_abandon(ipvg_output *out)
{
    if (out->temporary) unlink(out->temporary);
    free(out->temporary);
    free(out->path);
    memset(out, 0, sizeof *out);
}

#define _POSIX_C_SOURCE 200809L /* pread */

#include "file.h"

#include <errno.h>
#include <sys/types.h>
#include <unistd.h>

int ipvg_file_read(const ipvg_file *file, void *to, size_t bytes, uint64_t offset)
{
    for (size_t done = 0; done < bytes;) {
        ssize_t n = pread(file->fd, (char *)to + done, bytes - done, (off_t)(offset + done));
        if (n == 0) return IPVG_FILE_CUT;
        if (n < 0 && errno != EINTR) return errno;
        if (n > 0) done += (size_t)n;
    }
    return 0;
}

ipvg_status ipvg_file_fail(ipvg_context *ctx, const ipvg_file *file, int error)
{
    if (error == IPVG_FILE_CUT)
        return ipvg_fail(ctx, IPVG_E_FORMAT, "%s: it was cut short while it was in use; open it again", file->path);
    errno = error;
    return ipvg_fail_errno(ctx, "%s", file->path);
}

/* An open file, read at any place by any thread.
 *
 *     if ((error = ipvg_file_read(file, to, bytes, offset))) return ipvg_file_fail(ctx, file, error);
 *
 * Reading goes past the page tables: a mapping of several GB costs each of its pages a fault, and threads that take faults
 * side by side wait for each other. A file that has been cut short is an error here, where a mapping ends the process. */
#ifndef IPVG_BASE_FILE_H
#define IPVG_BASE_FILE_H

#include <stddef.h>
#include <stdint.h>

#include "context.h"

typedef struct ipvg_file {
    const char *path; /* for errors */
    int fd;           /* -1: it is not open */
} ipvg_file;

#define IPVG_FILE_CUT (-1)

/* 0, an errno, or IPVG_FILE_CUT: it ends before offset + bytes. */
int ipvg_file_read(const ipvg_file *file, void *to, size_t bytes, uint64_t offset);
/* What is said about that. */
ipvg_status ipvg_file_fail(ipvg_context *ctx, const ipvg_file *file, int error);

#endif

/* A file that appears whole or not at all: written under a temporary name in the same folder, then renamed.
 *
 *     ipvg_output out;
 *     IPVG_TRY(ipvg_output_begin(ctx, &out, "clip.mp4"));
 *     ... write to out.temporary ...
 *     IPVG_TRY(ipvg_output_commit(ctx, &out));     // clip.mp4 is there, or still its old self
 * done:
 *     ipvg_output_abandon(&out);                   // nothing after a commit */
#ifndef IPVG_IO_OUTPUT_H
#define IPVG_IO_OUTPUT_H

#include "../base/context.h"

typedef struct ipvg_output {
    char *path;      /* where it will be: symbolic links are followed, the link stays */
    char *temporary; /* where it is being written */
} ipvg_output;

/* Creates the empty temporary file. Refuses a target that exists and is not a regular file: renaming over a device
 * such as /dev/full would replace it. */
ipvg_status ipvg_output_begin(ipvg_context *ctx, ipvg_output *out, const char *path);
ipvg_status ipvg_output_commit(ipvg_context *ctx, ipvg_output *out);
/* Removes what was written unless it was committed; accepts a zeroed struct and may be called twice. */
void ipvg_output_abandon(ipvg_output *out);

#endif

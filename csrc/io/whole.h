/* Whether a file ends where it says. FFmpeg reads the start of a Matroska or a GIF that was cut short as a shorter video,
 * without a word; of the other kinds it complains itself. */
#ifndef IPVG_IO_WHOLE_H
#define IPVG_IO_WHOLE_H

#include <stdbool.h>

#include "source.h"

/* Of an opened source. True also for a kind that does not say where it ends. */
bool ipvg_source_is_whole(const ipvg_source *source);

#endif

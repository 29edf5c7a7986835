/* Replays the corpus of tests/fuzz/fuzz_video.c. */
#include "check.h"

#if __has_include(<libavformat/avformat.h>)

#include "../fuzz/fuzz_video.c"
#include "replay.h"

int main(void)
{
    replay("tests/fuzz/corpus/video");
    return 0;
}

#else

int main(void) { return 0; }

#endif

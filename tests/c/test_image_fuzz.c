/* Replays the corpus of tests/fuzz/fuzz_image.c. */
#include "check.h"

#if __has_include(<libavformat/avformat.h>)

#include "../fuzz/fuzz_image.c"
#include "replay.h"

int main(void)
{
    replay("tests/fuzz/corpus/image");
    return 0;
}

#else

int main(void) { return 0; }

#endif

/* Replays the corpus of tests/fuzz/fuzz_chat.c. */
#include "check.h"

#if __has_include(<curl/curl.h>) && __has_include(<cjson/cJSON.h>)

#include "../fuzz/fuzz_chat.c"
#include "replay.h"

int main(void)
{
    replay("tests/fuzz/corpus/chat");
    return 0;
}

#else

int main(void) { return 0; }

#endif

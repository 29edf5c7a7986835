/* Replays the corpus of tests/fuzz/fuzz_images.c; run from the root of the repository. */
#include "check.h"

#if __has_include(<curl/curl.h>) && __has_include(<cjson/cJSON.h>)

#include <dirent.h>

#include "../fuzz/fuzz_images.c"

int main(void)
{
    static uint8_t data[1 << 16];
    DIR *dir = opendir("tests/fuzz/corpus/images");
    struct dirent *entry;
    int count = 0;

    CHECK(dir != NULL);
    while ((entry = readdir(dir))) {
        char path[512];
        snprintf(path, sizeof path, "tests/fuzz/corpus/images/%.255s", entry->d_name);
        FILE *f = entry->d_name[0] == '.' ? NULL : fopen(path, "rb");
        if (!f) continue;
        size_t size = fread(data, 1, sizeof data, f);
        fclose(f);
        LLVMFuzzerTestOneInput(data, size);
        count++;
    }
    closedir(dir);
    CHECK(count > 0);
    return 0;
}

#else

int main(void) { return 0; }

#endif

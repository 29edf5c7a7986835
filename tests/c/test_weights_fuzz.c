/* Replays the corpus of tests/fuzz/fuzz_weights.c; run from the root of the repository. */
#include <dirent.h>

#include "../fuzz/fuzz_weights.c"
#include "check.h"

int main(void)
{
    static uint8_t data[1 << 16];
    DIR *dir = opendir("tests/fuzz/corpus/weights");
    struct dirent *entry;
    int count = 0;

    CHECK(dir != NULL);
    while ((entry = readdir(dir))) {
        char path[512];
        snprintf(path, sizeof path, "tests/fuzz/corpus/weights/%.255s", entry->d_name);
        FILE *f = entry->d_name[0] == '.' ? NULL : fopen(path, "rb");
        if (!f) continue;
        size_t size = fread(data, 1, sizeof data, f);
        fclose(f);
        uint8_t *exact = malloc(size ? size : 1); /* so that a byte read beyond the input is seen */
        CHECK(exact);
        memcpy(exact, data, size);
        LLVMFuzzerTestOneInput(exact, size);
        free(exact);
        count++;
    }
    closedir(dir);
    CHECK(count > 0);
    unlink(file());
    return 0;
}

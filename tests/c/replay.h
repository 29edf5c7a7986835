/* Replays a fuzzer's corpus: each file of the folder goes through LLVMFuzzerTestOneInput. Run from the repository's root. */
#ifndef IPVG_TESTS_REPLAY_H
#define IPVG_TESTS_REPLAY_H

#include <dirent.h>
#include <stdint.h>

#include "check.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static inline void replay(const char *folder)
{
    static uint8_t data[1 << 16];
    DIR *dir = opendir(folder);
    struct dirent *entry;
    int count = 0;

    CHECK(dir != NULL);
    while ((entry = readdir(dir))) {
        char path[512];
        snprintf(path, sizeof path, "%s/%.255s", folder, entry->d_name);
        FILE *f = entry->d_name[0] == '.' ? NULL : fopen(path, "rb");
        if (!f) continue;
        size_t size = fread(data, 1, sizeof data, f);
        fclose(f);
        LLVMFuzzerTestOneInput(data, size);
        count++;
    }
    closedir(dir);
    CHECK(count > 0);
}

#endif

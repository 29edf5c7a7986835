#include "choices.h"

#include <cuda_runtime_api.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define MOST 64 /* numbers of a row */

bool ipvg_choices_wanted(void)
{
    const char *tune = getenv("IPVG_CUDA_TUNE");
    return !tune || strcmp(tune, "0");
}

static size_t width(const ipvg_choices *c) { return (size_t)(c->key + c->value); }

static int64_t *find(const ipvg_choices *c, const void *key)
{
    for (int i = 0; i < c->count; i++) {
        int64_t *row = c->rows + (size_t)i * width(c);
        if (memcmp(row, key, (size_t)c->key * sizeof *row) == 0) return row;
    }
    return NULL;
}

const int64_t *ipvg_choices_get(const ipvg_choices *c, const void *key)
{
    const int64_t *row = find(c, key);
    return row ? row + c->key : NULL;
}

/* A row for a key that has none yet; NULL: no memory. */
static int64_t *add(ipvg_choices *c, const void *key)
{
    if (c->count == c->capacity) {
        int capacity = c->capacity ? 2 * c->capacity : 32;
        int64_t *rows = realloc(c->rows, (size_t)capacity * width(c) * sizeof *rows);
        if (!rows) return NULL;
        c->rows = rows;
        c->capacity = capacity;
    }
    int64_t *row = c->rows + (size_t)c->count++ * width(c);
    memcpy(row, key, (size_t)c->key * sizeof *row);
    return row;
}

/* ==== the file ==== */

static void name_file(ipvg_choices *c, const char *what, int device, size_t version)
{
    const char *cache = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
    struct cudaDeviceProp properties;
    char folder[512], own[520], gpu[96];
    size_t n = 0;
    int size;

    if (cudaGetDeviceProperties(&properties, device) != cudaSuccess) return;
    for (const char *p = properties.name; *p && n + 1 < sizeof gpu; p++)
        gpu[n++] = (*p >= 'a' && *p <= 'z') || (*p >= 'A' && *p <= 'Z') || (*p >= '0' && *p <= '9') ? *p : '-';
    gpu[n] = 0;
    if (cache && cache[0])
        size = snprintf(folder, sizeof folder, "%s", cache);
    else if (home && home[0])
        size = snprintf(folder, sizeof folder, "%s/.cache", home);
    else
        return;
    if (size >= (int)sizeof folder - 6) return;
    mkdir(folder, 0777);
    snprintf(own, sizeof own, "%s/ipvg", folder);
    if (mkdir(own, 0777) && errno != EEXIST) return;
    size = snprintf(c->file, sizeof c->file, "%s/%s-%s-%zu.txt", own, what, gpu, version);
    if (size >= (int)sizeof c->file) c->file[0] = 0;
}

static void load(ipvg_choices *c)
{
    FILE *f = c->file[0] ? fopen(c->file, "r") : NULL;
    char line[20 * MOST];
    while (f && fgets(line, sizeof line, f)) {
        int64_t numbers[MOST];
        uint64_t number;
        size_t read = 0;
        int used;
        for (const char *at = line; read < width(c) && sscanf(at, "%" SCNx64 "%n", &number, &used) == 1; at += used)
            memcpy(&numbers[read++], &number, sizeof number);
        int64_t *row = read < width(c) || find(c, numbers) ? NULL : add(c, numbers);
        if (row) memcpy(row, numbers, width(c) * sizeof *row);
    }
    if (f) fclose(f);
}

/* Written beside it and renamed, so that no reader sees half a file. What another process added meanwhile is read first. */
static void save(ipvg_choices *c)
{
    char temporary[1100];
    if (!c->file[0]) return;
    load(c);
    snprintf(temporary, sizeof temporary, "%s.%ld", c->file, (long)getpid());
    FILE *f = fopen(temporary, "w");
    if (!f) return;
    for (size_t i = 0; i < (size_t)c->count * width(c); i++)
        fprintf(f, "%" PRIx64 "%c", (uint64_t)c->rows[i], (i + 1) % width(c) ? ' ' : '\n');
    if (fclose(f) || rename(temporary, c->file)) unlink(temporary);
}

/* ==== ==== */

void ipvg_choices_open(ipvg_choices *c, const char *what, int key, int value, int device, size_t version, bool keep)
{
    *c = (ipvg_choices){.key = key, .value = value};
    if (!keep || key + value > MOST) return;
    name_file(c, what, device, version);
    load(c);
}

void ipvg_choices_close(ipvg_choices *c)
{
    free(c->rows);
    *c = (ipvg_choices){0};
}

void ipvg_choices_put(ipvg_choices *c, const void *key, const void *value)
{
    int64_t *row = find(c, key);
    if (!row) row = add(c, key);
    if (!row) return;
    memcpy(row + c->key, value, (size_t)c->value * sizeof *row);
    save(c);
}

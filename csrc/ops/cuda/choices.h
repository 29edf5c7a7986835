/* Choices that were timed once, by shape: which algorithm, which plan. */
#ifndef IPVG_OPS_CUDA_CHOICES_H
#define IPVG_OPS_CUDA_CHOICES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Rows of numbers: a key, then what was chosen. In a file of the user's cache too, for this GPU and this version of the
 * library: a line a row, in hexadecimal. What does not read as expected is passed over, and timed again. */
typedef struct ipvg_choices {
    int key, value; /* numbers of each */
    int count, capacity;
    int64_t *rows;
    char file[1024]; /* empty: for this process alone */
} ipvg_choices;

/* keep: in <cache>/ipvg/<what>-<GPU>-<version>.txt, whose folders are made; what it holds is read. */
void ipvg_choices_open(ipvg_choices *c, const char *what, int key, int value, int device, size_t version, bool keep);
void ipvg_choices_close(ipvg_choices *c);
/* The value of a key, until the next `put`; NULL: none. */
const int64_t *ipvg_choices_get(const ipvg_choices *c, const void *key);
/* A new choice, or another one for a key. Without memory for it nothing is remembered. */
void ipvg_choices_put(ipvg_choices *c, const void *key, const void *value);

/* Whether choices are timed: not if IPVG_CUDA_TUNE is 0, which takes each library's first guess. */
bool ipvg_choices_wanted(void);

#endif

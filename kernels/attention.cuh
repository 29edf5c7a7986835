/* What the two attention kernels share. */
#ifndef IPVG_KERNELS_ATTENTION_CUH
#define IPVG_KERNELS_ATTENTION_CUH

#include "number.cuh"

struct few_keys {
    array o, q, k, v;
    float scale; /* times log2 e */
    float more;  /* to the last key's score, before it is scaled */
    int heads, lq, lk, strips;
    int shares; /* blocks of a head */
};

/* attention90.cu: strips and shares are its own affair. */
int attention_by_groups(few_keys j, int processors, void *stream);

/* How many blocks share the strips of a head, `together` of which are at work at a time in each: so that the last blocks end
 * together, at one block a multiprocessor. Half a round is for the start of a block. */
int attention_shares(int heads, int64_t strips, int together, int processors);

#endif

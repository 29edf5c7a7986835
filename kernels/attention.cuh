/* What the two attention kernels share. */
#ifndef IPVG_KERNELS_ATTENTION_CUH
#define IPVG_KERNELS_ATTENTION_CUH

#include "launch.cuh"
#include "team.cuh"

struct few_keys {
    array o, q, k, v;
    float scale; /* times log2 e */
    float more;  /* to the last key's score, before it is scaled */
    int heads, lq, lk, strips;
    int shares; /* blocks of a head */
};

/* w[e]: this lane's two columns of the e-th of four tiles that lie side by side, of a row that four lanes share. Each of them
 * gets the eight columns of one tile: rows are written in pieces of 16 bytes. */
__device__ inline uint4 whole_piece(unsigned (&w)[4])
{
    const int four = (int)threadIdx.x % 4;
#pragma unroll
    for (int bit = 1; bit < 4; bit *= 2) /* w[e] of lane f and w[f] of lane e change places */
#pragma unroll
        for (int e = 0; e < 4; e++)
            if (!(e & bit)) {
                const bool high = four & bit;
                const unsigned got = __shfl_xor_sync(FULL_WARP, high ? w[e] : w[e | bit], bit);
                (high ? w[e] : w[e | bit]) = got;
            }
    return make_uint4(w[0], w[1], w[2], w[3]);
}

/* attention90.cu: strips and shares are its own affair. */
int attention_by_groups(few_keys j, int processors, void *stream);

/* How many blocks share the strips of a head, `together` of which are at work at a time in each: so that the last blocks end
 * together, at one block a multiprocessor. Half a round is for the start of a block. */
int attention_shares(int heads, int64_t strips, int together, int processors);

#endif

/* Random numbers that any machine draws alike, a GPU too: element i of a stream depends on (seed, stream, i) alone, and
 * is computed with integers and with IEEE double +, -, *, / and sqrt, each rounded once. No libm, no fused multiply-add.
 *
 *     block b      Philox4x32-10 with key (seed low, seed high) and counter (b low, b high, stream, 0): words w0..w3
 *     element i    the 64-bit word W of block i / 2: w0 + 2^32 w1 for even i, w2 + 2^32 w3 for odd i
 *     uniform      u = ((W >> 12) + 1/2) 2^-52, exact, in (0, 1) and symmetric about 1/2
 *     normal       the inverse normal distribution of u by AS241 PPND16 (random.c), rounded to float32; |z| < 8.3
 *
 * Philox: Salmon, Moraes, Dror, Shaw, SC 2011. AS241: Wichura, Applied Statistics 37 (1988). */
#ifndef IPVG_BASE_RANDOM_H
#define IPVG_BASE_RANDOM_H

#include <stdint.h>

/* The Philox4x32-10 block of a counter. */
void ipvg_philox(uint32_t out[4], const uint32_t counter[4], const uint32_t key[2]);

/* The point below which a share u of the normal distribution lies; 0 < u < 1. */
double ipvg_normal_quantile(double u);

/* out (count): elements first, first + 1, ... of a stream of standard normals. */
void ipvg_normals(float *out, uint64_t seed, uint32_t stream, uint64_t first, int64_t count);

#endif

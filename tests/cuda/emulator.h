/* A CUDA device emulated on the CPU, for machines without one. The same .cu files, compiled by g++ against fake/, run on
 * it, and so does all host code that speaks to the runtime. Correctness only: it says nothing about speed.
 *
 *     g++ -std=c++17 -ffp-contract=off -Itests/cuda/fake -x c++ kernels/norm.cu tests/cuda/block.cc memory.cc stream.cc ...
 *
 * What it finds:
 *   - device memory touched by the host: it is closed (mprotect) unless a kernel or a copy runs
 *   - host memory given to a kernel
 *   - a kernel that reads or writes outside of an allocation: guard pages right behind each one, and a canary before it
 *     and in the padding, looked at when it is freed and by emulator_check()
 *   - numbers that nobody wrote: fresh memory is NaN in every float format
 *   - a missing wait: a stream does nothing until somebody waits for it (an event, a copy to pageable memory, cudaFree, ...)
 *   - the same of a block's dynamic shared memory: NaN at first, a guard page behind it
 *   - __syncthreads or shuffles that not all threads reach; threads of a block run in both orders, block by block
 * Each of these ends the process with a sentence. EMULATOR_MEMORY (bytes, default 16 GiB) limits the device's memory. */
#ifndef IPVG_TESTS_CUDA_EMULATOR_H
#define IPVG_TESTS_CUDA_EMULATOR_H

#include <stddef.h>

#define EMULATOR_SHARED (227 * 1024) /* bytes of shared memory that a block may have, as on an H100 */

#ifdef __cplusplus
extern "C" {
#endif

/* Queues work(user) on a stream, as a kernel would be: device memory is open while it runs. For stand-ins of cuBLASLt and
 * cuDNN. release(user) follows once it can run no more; it may be NULL. */
int emulator_enqueue(void *stream, void (*work)(void *user), void (*release)(void *user), void *user);

/* Ends the process unless p is NULL or device memory: for the arguments of such work. */
void emulator_device(const void *p);

/* Bytes that cudaMalloc has given out, now and at most since the start (or since emulator_set_limit). */
size_t emulator_used(void);
size_t emulator_peak(void);
/* What the device has in total; 0: back to EMULATOR_MEMORY. Also sets the peak to what is used now. */
void emulator_set_limit(size_t bytes);
/* Kernels started since the start. */
long emulator_launches(void);
/* How often somebody waited for an event behind which no stream had anything more to do: a GPU then stands still. */
__attribute__((visibility("default"))) long emulator_dry(void);
/* Looks at all canaries. */
void emulator_check(void);

#ifdef __cplusplus
}
#endif

#endif

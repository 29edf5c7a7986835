/* What the parts of the emulator know of each other. */
#ifndef IPVG_TESTS_CUDA_DEVICE_H
#define IPVG_TESTS_CUDA_DEVICE_H

#include <cuda_runtime.h>

#include <mutex>

#include "emulator.h"

extern std::recursive_mutex device_lock; /* one thing happens at a time */

[[noreturn]] void emulator_die(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* Device memory may be touched while an `open_memory` lives. */
struct open_memory {
    open_memory();
    ~open_memory();
};

enum class place { pageable, pinned, device };
/* Where p lies; ends the process if [p, p + bytes) runs over the end of its allocation. */
place place_of(const void *p, size_t bytes);

cudaError_t set_error(cudaError_t error); /* remembered for cudaGetLastError if it is one */

/* All work of all streams. */
void drain_all();
bool is_capturing();

/* Where the guard page behind a block's dynamic shared memory begins; NULL before the first kernel. */
const char *emulator_shared_end();

void run_grid(const cudaLaunchConfig_t &config, const std::function<void()> &kernel);

#endif

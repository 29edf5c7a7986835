/* Device memory: guarded, poisoned and closed; pinned host memory. */
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

#include <map>

#include "device.h"

#define PAGE 4096
#define CANARY 0xa5

std::recursive_mutex device_lock;

namespace
{
struct block {
    size_t bytes; /* as asked for */
    char *pages;  /* what lies between the two guard pages */
    size_t length;
};

std::map<char *, block> blocks; /* by the address that was given out */
std::map<char *, size_t> pinned;
size_t used, peak, limit;
int opened;
cudaError_t last_error;
} // namespace

void emulator_die(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    fprintf(stderr, "emulated device: ");
    vfprintf(stderr, format, arguments);
    fprintf(stderr, "\n");
    va_end(arguments);
    abort();
}

cudaError_t set_error(cudaError_t error)
{
    if (error != cudaSuccess && error != cudaErrorNotReady) last_error = error;
    return error;
}

/* ==== who touched it? ==== */

static void on_fault(int number, siginfo_t *info, void *)
{
    const char *at = (const char *)info->si_addr;
    for (const auto &entry : blocks) {
        const block &b = entry.second;
        if (at < b.pages - PAGE || at >= b.pages + b.length + PAGE) continue;
        fprintf(stderr, "emulated device: %s, byte %td of an allocation of %zu, %s\n", opened ? "a kernel" : "the host",
                at - entry.first, b.bytes, opened ? "read or wrote outside of it" : "touched device memory");
    }
    const size_t past = (size_t)(at - emulator_shared_end());
    if (emulator_shared_end() && past < PAGE)
        fprintf(stderr, "emulated device: a kernel read or wrote byte %zu behind its shared memory\n", past);
    signal(number, SIG_DFL); /* the access is tried again, and now ends the process */
}

static void watch_faults()
{
    static bool watching;
    struct sigaction action = {};
    if (watching) return;
    watching = true;
    action.sa_sigaction = on_fault;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    sigaction(SIGSEGV, &action, NULL);
}

open_memory::open_memory()
{
    device_lock.lock();
    if (opened++) return;
    for (const auto &entry : blocks) mprotect(entry.second.pages, entry.second.length, PROT_READ | PROT_WRITE);
}

open_memory::~open_memory()
{
    if (!--opened)
        for (const auto &entry : blocks) mprotect(entry.second.pages, entry.second.length, PROT_NONE);
    device_lock.unlock();
}

/* ==== allocations ==== */

static size_t total_memory()
{
    const char *text = getenv("EMULATOR_MEMORY");
    return limit ? limit : text ? strtoull(text, NULL, 10) : (size_t)16 << 30;
}

static void check_block(char *p, const block &b)
{
    for (char *c = b.pages; c < b.pages + b.length; c++) {
        if (c == p) c += b.bytes;
        if (c < b.pages + b.length && (unsigned char)*c != CANARY)
            emulator_die("somebody wrote byte %td of an allocation of %zu bytes", c - p, b.bytes);
    }
}

extern "C" {

size_t emulator_used(void) { return used; }
size_t emulator_peak(void) { return peak; }
void emulator_set_limit(size_t bytes)
{
    limit = bytes;
    peak = used;
}

void emulator_check(void)
{
    open_memory open;
    for (const auto &entry : blocks) check_block(entry.first, entry.second);
}

/* Ends at a guard page, as near as an alignment of 256 bytes allows. */
cudaError_t cudaMalloc(void **p, size_t bytes)
{
    std::lock_guard<std::recursive_mutex> guard(device_lock);
    const size_t rounded = (bytes + 255) / 256 * 256, length = (rounded + PAGE - 1) / PAGE * PAGE;
    *p = NULL;
    if (is_capturing()) return set_error(cudaErrorStreamCaptureUnsupported);
    if (!bytes) return cudaSuccess;
    if (bytes > total_memory() || used + rounded > total_memory()) return set_error(cudaErrorMemoryAllocation);
    watch_faults();
    char *map = (char *)mmap(NULL, length + 2 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (map == MAP_FAILED) return set_error(cudaErrorMemoryAllocation);
    char *pages = map + PAGE, *given = pages + length - rounded;
    madvise(pages, length, MADV_HUGEPAGE); /* opening and closing costs by the page */
    mprotect(pages, length, PROT_READ | PROT_WRITE);
    memset(pages, CANARY, length);
    memset(given, 0xff, bytes); /* NaN in every float format */
    if (!opened) mprotect(pages, length, PROT_NONE);
    blocks[given] = {bytes, pages, length};
    used += rounded;
    if (used > peak) peak = used;
    *p = given;
    return cudaSuccess;
}

static cudaError_t release(void *p)
{
    auto entry = blocks.find((char *)p);
    if (entry == blocks.end()) return set_error(cudaErrorInvalidValue);
    {
        open_memory open;
        check_block(entry->first, entry->second);
    }
    used -= (entry->second.bytes + 255) / 256 * 256;
    munmap(entry->second.pages - PAGE, entry->second.length + 2 * PAGE);
    blocks.erase(entry);
    return cudaSuccess;
}

cudaError_t cudaFree(void *p)
{
    std::lock_guard<std::recursive_mutex> guard(device_lock);
    if (!p) return cudaSuccess;
    if (is_capturing()) return set_error(cudaErrorStreamCaptureUnsupported);
    drain_all();
    return release(p);
}

cudaError_t cudaMallocAsync(void **p, size_t bytes, cudaStream_t) { return cudaMalloc(p, bytes); }

cudaError_t cudaFreeAsync(void *p, cudaStream_t stream)
{
    if (!p) return cudaSuccess;
    return (cudaError_t)emulator_enqueue(
        stream, [](void *q) { release(q); }, NULL, p);
}

cudaError_t cudaHostAlloc(void **p, size_t bytes, unsigned)
{
    std::lock_guard<std::recursive_mutex> guard(device_lock);
    *p = bytes ? aligned_alloc(PAGE, (bytes + PAGE - 1) / PAGE * PAGE) : NULL;
    if (bytes && !*p) return set_error(cudaErrorMemoryAllocation);
    if (*p) {
        memset(*p, 0xff, bytes);
        pinned[(char *)*p] = bytes;
    }
    return cudaSuccess;
}
cudaError_t cudaMallocHost(void **p, size_t bytes) { return cudaHostAlloc(p, bytes, 0); }

cudaError_t cudaFreeHost(void *p)
{
    std::lock_guard<std::recursive_mutex> guard(device_lock);
    if (!p) return cudaSuccess;
    drain_all();
    if (!pinned.erase((char *)p)) return set_error(cudaErrorInvalidValue);
    free(p);
    return cudaSuccess;
}

cudaError_t cudaHostRegister(void *p, size_t bytes, unsigned)
{
    std::lock_guard<std::recursive_mutex> guard(device_lock);
    if (!p || !bytes || !pinned.emplace((char *)p, bytes).second) return set_error(cudaErrorInvalidValue);
    return cudaSuccess;
}

cudaError_t cudaHostUnregister(void *p)
{
    std::lock_guard<std::recursive_mutex> guard(device_lock);
    drain_all();
    return set_error(pinned.erase((char *)p) ? cudaSuccess : cudaErrorInvalidValue);
}

cudaError_t cudaMemGetInfo(size_t *available, size_t *total)
{
    *total = total_memory();
    *available = used < *total ? *total - used : 0;
    return cudaSuccess;
}

cudaError_t cudaPointerGetAttributes(cudaPointerAttributes *attributes, const void *p)
{
    const place where = place_of(p, 1);
    *attributes = {};
    attributes->type = where == place::device   ? cudaMemoryTypeDevice
                       : where == place::pinned ? cudaMemoryTypeHost
                                                : cudaMemoryTypeUnregistered;
    if (where == place::device) attributes->devicePointer = (void *)p;
    if (where == place::pinned) attributes->hostPointer = (void *)p;
    return cudaSuccess;
}

cudaError_t cudaGetLastError(void)
{
    const cudaError_t error = last_error;
    last_error = cudaSuccess;
    return error;
}
cudaError_t cudaPeekAtLastError(void) { return last_error; }
}

place place_of(const void *p, size_t bytes)
{
    std::lock_guard<std::recursive_mutex> guard(device_lock);
    char *at = (char *)p;
    auto entry = blocks.upper_bound(at);
    if (entry != blocks.begin()) {
        const auto &[start, b] = *--entry;
        if (at < start + b.bytes) {
            if (at + bytes > start + b.bytes)
                emulator_die("%zu bytes from byte %td of an allocation of %zu", bytes, at - start, b.bytes);
            return place::device;
        }
    }
    auto locked = pinned.upper_bound(at);
    if (locked != pinned.begin()) {
        const auto &[start, size] = *--locked;
        if (at < start + size) return at + bytes <= start + size ? place::pinned : place::pageable;
    }
    return place::pageable;
}

void emulator_device(const void *p)
{
    if (p && place_of(p, 1) != place::device) emulator_die("a kernel gets %p, which is host memory", p);
}

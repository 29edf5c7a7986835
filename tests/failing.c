/* For tests/test_allocation.py, which preloads it into Python: the n-th allocation that the library asks for fails, and what it
 * holds is counted. Whose a call is, its return address says: of ipvg's own extension modules (OURS); or of Python's allocator too
 * (PYTHON). Failures inside FFmpeg or TLS would be theirs: some of them crash.
 *
 *     failing_watch("/ipvg/");                    // objects whose path holds this are ours
 *     failing_call(callable, 3, OURS);            // callable(), during which the third one fails
 *     failing_happened(); failing_live(); */
#define _GNU_SOURCE
#include <errno.h>
#include <link.h>
#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

void *__libc_malloc(size_t);
void *__libc_calloc(size_t, size_t);
void *__libc_realloc(void *, size_t);
void *__libc_memalign(size_t, size_t);
void __libc_free(void *);

enum { OURS, PYTHON, RANGES = 16, SLOTS = 1 << 16 };

static struct {
    uintptr_t from, to;
} ours[RANGES];
static int range_count;
static _Thread_local long until_failure;
static _Thread_local int whose, happened;

static bool from_us(const void *caller)
{
    uintptr_t at = (uintptr_t)caller;
    for (int i = 0; i < range_count; i++)
        if (at >= ours[i].from && at < ours[i].to) return true;
    return false;
}

static bool fails(bool counts)
{
    if (until_failure == 0 || !counts || --until_failure != 0) return false;
    happened = 1;
    errno = ENOMEM;
    return true;
}

/* ---- what the library holds ---- */

static void *held[SLOTS]; /* open addressing; (void *)1: was taken */
static long live;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static void *hold(void *p)
{
    pthread_mutex_lock(&lock);
    size_t i = ((uintptr_t)p >> 4) * 2654435761u % SLOTS;
    while ((uintptr_t)held[i] > 1) i = (i + 1) % SLOTS;
    held[i] = p;
    live++;
    pthread_mutex_unlock(&lock);
    return p;
}

static void let_go(void *p)
{
    if (!live || !p) return;
    pthread_mutex_lock(&lock);
    size_t i = ((uintptr_t)p >> 4) * 2654435761u % SLOTS;
    while (held[i] && held[i] != p) i = (i + 1) % SLOTS;
    if (held[i] == p) held[i] = (void *)1, live--;
    pthread_mutex_unlock(&lock);
}

/* ---- the C library's ---- */

#define CALLER __builtin_return_address(0)
#define TAKE(call)                     \
    const bool mine = from_us(CALLER); \
    if (fails(mine)) return NULL;      \
    void *p = call;                    \
    return p && mine ? hold(p) : p

void *malloc(size_t size) { TAKE(__libc_malloc(size)); }
void *calloc(size_t count, size_t size) { TAKE(__libc_calloc(count, size)); }
void *aligned_alloc(size_t alignment, size_t size) { TAKE(__libc_memalign(alignment, size)); }
void *realloc(void *old, size_t size)
{
    const bool mine = from_us(CALLER);
    if (fails(mine)) return NULL;
    let_go(old);
    void *p = __libc_realloc(old, size);
    return p && mine ? hold(p) : p;
}
char *strdup(const char *text)
{
    const bool mine = from_us(CALLER);
    const size_t size = strlen(text) + 1;
    if (fails(mine)) return NULL;
    char *p = __libc_malloc(size);
    if (p) memcpy(p, text, size);
    return p && mine ? hold(p) : p;
}
void *mmap(void *at, size_t size, int protection, int flags, int fd, off_t offset)
{
    if (fails(from_us(CALLER))) return MAP_FAILED;
    return (void *)syscall(SYS_mmap, at, size, protection, flags, fd, offset);
}
void free(void *p)
{
    let_go(p);
    __libc_free(p);
}

/* ---- Python's ---- */

typedef struct allocator {
    void *state;
    void *(*malloc)(void *, size_t);
    void *(*calloc)(void *, size_t, size_t);
    void *(*realloc)(void *, void *, size_t);
    void (*free)(void *, void *);
} allocator; /* PyMemAllocatorEx */

typedef struct object object;
extern void PyMem_GetAllocator(int, allocator *), PyMem_SetAllocator(int, allocator *);
extern object *PyObject_CallNoArgs(object *);
#pragma weak PyMem_GetAllocator
#pragma weak PyMem_SetAllocator
#pragma weak PyObject_CallNoArgs

static allocator below[3]; /* PYMEM_DOMAIN_RAW (left alone), MEM, OBJ */

static void *py_malloc(void *a, size_t n)
{
    return fails(whose != OURS) ? NULL : ((allocator *)a)->malloc(((allocator *)a)->state, n);
}
static void *py_calloc(void *a, size_t c, size_t n)
{
    return fails(whose != OURS) ? NULL : ((allocator *)a)->calloc(((allocator *)a)->state, c, n);
}
static void *py_realloc(void *a, void *p, size_t n)
{
    return fails(whose != OURS) ? NULL : ((allocator *)a)->realloc(((allocator *)a)->state, p, n);
}
static void py_free(void *a, void *p) { ((allocator *)a)->free(((allocator *)a)->state, p); }

static int add_range(struct dl_phdr_info *info, size_t size, void *part)
{
    (void)size;
    if (!strstr(info->dlpi_name, part)) return 0;
    for (int i = 0; i < info->dlpi_phnum && range_count < RANGES; i++) {
        const ElfW(Phdr) *p = &info->dlpi_phdr[i];
        if (p->p_type != PT_LOAD || !(p->p_flags & PF_X)) continue;
        ours[range_count].from = info->dlpi_addr + p->p_vaddr;
        ours[range_count++].to = info->dlpi_addr + p->p_vaddr + p->p_memsz;
    }
    return 0;
}

/* How many ranges of code are watched by now. */
int failing_watch(const char *part)
{
    dl_iterate_phdr(add_range, (void *)(uintptr_t)part);
    for (int d = 1; d < 3 && !below[d].malloc; d++) {
        PyMem_GetAllocator(d, &below[d]);
        PyMem_SetAllocator(d, &(allocator){&below[d], py_malloc, py_calloc, py_realloc, py_free});
    }
    return range_count;
}

object *failing_call(object *callable, long n, int who)
{
    happened = 0;
    whose = who;
    until_failure = n;
    object *result = PyObject_CallNoArgs(callable);
    until_failure = 0;
    return result;
}

int failing_happened(void) { return happened; }
long failing_live(void) { return live; }

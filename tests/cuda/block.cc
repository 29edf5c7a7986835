/* Runs a grid: block after block, the threads of a block as fibers that change places at __syncthreads and shuffles. A thread
 * that meets neither costs two changes of stack. */
#include <sys/mman.h>

#include <vector>

#include "device.h"

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

#define STACK (256 * 1024)

namespace
{
enum state { READY, AT_WARP, AT_BLOCK, DONE };

struct thread {
    void *stack_pointer;
    char *stack;
    state at;
    unsigned shuffles; /* so far: says which of the two rows of `value` is in use */
};

struct warp {
    uint64_t value[2][32];
    int arrived;
    unsigned mask; /* of the shuffle that is being waited for */
};

thread threads[1024];
warp warps[32];
int count, ended, waiting, current;
void *scheduler_pointer;
std::vector<char *> spare;
char *shared, *shared_end; /* dynamic shared memory lies at its end, before a guard page */
const std::function<void()> *work;
} // namespace

/* ==== changing stacks ==== */

#if defined(__x86_64__)
extern "C" void emulator_switch(void **from, void *to);
asm(R"(
    .text
    .globl emulator_switch
    .hidden emulator_switch
    .type emulator_switch, @function
emulator_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
    .size emulator_switch, .-emulator_switch
)");

static void *new_stack_pointer(char *stack, void (*entry)())
{
    void **top = (void **)(stack + STACK);
    *--top = NULL; /* where a caller would be: keeps the stack aligned as after a call */
    *--top = (void *)entry;
    for (int i = 0; i < 6; i++) *--top = NULL;
    return top;
}
#else
#error "the emulator changes stacks in x86-64 assembly; write emulator_switch for this machine"
#endif

static char *new_stack()
{
    if (!spare.empty()) {
        char *stack = spare.back();
        spare.pop_back();
        return stack;
    }
    char *p =
        (char *)mmap(NULL, STACK + 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED || mprotect(p, 4096, PROT_NONE)) emulator_die("no memory for a thread's stack");
    return p + 4096;
}

static void leave(state at)
{
    thread *me = &threads[current];
    me->at = at;
    emulator_switch(&me->stack_pointer, scheduler_pointer);
}

static void thread_main()
{
    (*work)();
    ended++;
    leave(DONE);
}

static void resume(int i)
{
    thread *t = &threads[i];
    current = i;
    threadIdx = {(unsigned)i, 0, 0};
    if (!t->stack) {
        t->stack = new_stack();
        t->stack_pointer = new_stack_pointer(t->stack, thread_main);
    }
    emulator_switch(&scheduler_pointer, t->stack_pointer);
    if (t->at == DONE) {
        spare.push_back(t->stack);
        t->stack = NULL;
    }
}

/* ==== barriers ==== */

extern "C" void __syncthreads(void)
{
    if (++waiting == count) {
        waiting = 0;
        for (int i = 0; i < count; i++) threads[i].at = READY;
        return;
    }
    if (ended) emulator_die("__syncthreads after %d threads of the block have ended", ended);
    leave(AT_BLOCK);
}

extern "C" int emulator_lane(void) { return current % 32; }

extern "C" uint64_t emulator_shuffle(unsigned mask, uint64_t value, int from)
{
    warp *w = &warps[current / 32];
    const int lane = current % 32, first = current - lane;
    const unsigned row = threads[current].shuffles++ & 1;
    if (!(mask >> lane & 1)) emulator_die("a shuffle by lane %d, which its mask %08x leaves out", lane, mask);
    if (!(mask >> from & 1)) emulator_die("a shuffle reads lane %d, which its mask %08x leaves out", from, mask);
    if (w->arrived && w->mask != mask) emulator_die("shuffles with masks %08x and %08x meet", w->mask, mask);
    w->mask = mask;
    w->value[row][lane] = value;
    if (++w->arrived == __builtin_popcount(mask)) {
        w->arrived = 0;
        for (int i = 0; i < 32; i++)
            if (mask >> i & 1) threads[first + i].at = READY;
    } else {
        leave(AT_WARP);
    }
    return w->value[row][from];
}

extern "C" void emulator_exchange(uint64_t value, uint64_t all[32])
{
    emulator_shuffle(0xffffffffu, value, 0);
    const uint64_t *row = warps[current / 32].value[(threads[current].shuffles - 1) & 1];
    for (int i = 0; i < 32; i++) all[i] = row[i];
}

/* ==== blocks ==== */

extern "C" void *emulator_shared(void) { return shared; }

const char *emulator_shared_end() { return shared_end; }

static void new_shared(size_t bytes)
{
    if (!shared_end) {
        const size_t room = (EMULATOR_SHARED + 4095) / 4096 * 4096;
        char *p = (char *)mmap(NULL, room + 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (p == MAP_FAILED || mprotect(p + room, 4096, PROT_NONE)) emulator_die("no memory for shared memory");
        shared_end = p + room;
    }
    shared = shared_end - (bytes + 15) / 16 * 16;
}

static void run_block(bool backwards)
{
    for (int i = 0; i < count; i++) threads[i].at = READY, threads[i].shuffles = 0;
    for (int i = 0; i < (count + 31) / 32; i++) warps[i].arrived = 0;
    ended = waiting = 0;
    while (ended < count) {
        bool moved = false;
        for (int k = 0; k < count; k++) {
            const int i = backwards ? count - 1 - k : k;
            if (threads[i].at != READY) continue;
            resume(i);
            moved = true;
        }
        if (!moved)
            emulator_die(
                "block %u: %d of %d threads ended, %d wait at __syncthreads, the others in shuffles: nobody can go on",
                blockIdx.x, ended, count, waiting);
    }
}

void run_grid(const cudaLaunchConfig_t &config, const std::function<void()> &kernel)
{
    gridDim = config.gridDim;
    blockDim = config.blockDim;
    count = (int)blockDim.x;
    work = &kernel;
    new_shared(config.dynamicSmemBytes);
    for (unsigned b = 0; b < gridDim.x; b++) {
        blockIdx = {b, 0, 0};
        memset(shared, 0xff, (size_t)(shared_end - shared));
        run_block(b & 1);
    }
}

/* A signal that arrives during a matrix product finds its thread on its own stack. oneDNN's gemm kernels may use a block of
 * the heap as their stack, over whose neighbours the signal's frame is then written: the crash comes later, elsewhere.
 *
 *     make sanitize        builds it with -fsanitize=address,undefined and runs it */
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <sys/time.h>
#include <time.h>
#include <ucontext.h>

#include "../../csrc/ops/ops.h"
#include "check.h"

static pthread_t self;
static uintptr_t low, high; /* of this thread's stack */
static volatile sig_atomic_t taken, elsewhere, off_stack;

static void take(int signal, siginfo_t *info, void *context)
{
    (void)signal, (void)info;
    uintptr_t stack = (uintptr_t)((ucontext_t *)context)->uc_mcontext.gregs[REG_RSP];
    taken++;
    if (!pthread_equal(pthread_self(), self))
        elsewhere++; /* a worker: it can be in such a kernel as well */
    else if (stack < low || stack >= high)
        off_stack++;
}

static void know_my_stack(void)
{
    pthread_attr_t attr;
    void *base;
    size_t size;
    self = pthread_self();
    CHECK(pthread_getattr_np(self, &attr) == 0 && pthread_attr_getstack(&attr, &base, &size) == 0);
    pthread_attr_destroy(&attr);
    low = (uintptr_t)base, high = low + size;
}

static ipvg_tensor ones(int64_t rows, int64_t columns)
{
    ipvg_tensor t = ipvg_tensor_of(NULL, IPVG_F32, rows, columns);
    float *p = t.data = malloc(ipvg_tensor_bytes(&t));
    CHECK(p);
    for (int64_t i = 0; i < rows * columns; i++) p[i] = 1;
    return t;
}

int main(void)
{
    static const int64_t sizes[][3] = {{24, 64, 256}, {512, 64, 256}, {320, 256, 64}, {77, 2100, 60}, {1000, 16, 300}};
    const struct sigaction action = {.sa_sigaction = take, .sa_flags = SA_SIGINFO | SA_RESTART};
    const struct itimerval often = {{0, 100}, {0, 100}}, never = {{0, 0}, {0, 0}};
    ipvg_context ctx;
    ipvg_backend *be = NULL;
    ipvg_arena arena = {0};
    ipvg_exec ex;
    sigset_t mask;

    know_my_stack();
    ipvg_context_init(&ctx, 2);
    CHECK(ipvg_backend_cpu(&ctx, &be, IPVG_F32) == IPVG_OK);
    ex = (ipvg_exec){.ctx = &ctx, .be = be, .arena = &arena};
    CHECK(ipvg_arena_reserve(&ctx, &be->memory, &arena, 1 << 22) == IPVG_OK);
    CHECK(sigaction(SIGALRM, &action, NULL) == 0 && setitimer(ITIMER_REAL, &often, NULL) == 0);
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        ipvg_tensor x = ones(sizes[i][0], sizes[i][1]), w = ones(sizes[i][2], sizes[i][1]);
        ipvg_tensor y = ones(sizes[i][0], sizes[i][2]);
        for (clock_t end = clock() + CLOCKS_PER_SEC; clock() < end;) /* two threads: half a second */
            CHECK(ipvg_linear(&ex, &y, &x, &w, NULL, IPVG_ACT_NONE) == IPVG_OK);
        CHECK(*(float *)y.data == (float)sizes[i][1]);
        free(x.data), free(w.data), free(y.data);
    }
    CHECK(setitimer(ITIMER_REAL, &never, NULL) == 0);
    printf("%d signals, %d in a worker, %d off the stack\n", (int)taken, (int)elsewhere, (int)off_stack);
    CHECK(taken > 20 && elsewhere == 0 && off_stack == 0);
    CHECK(pthread_sigmask(SIG_BLOCK, NULL, &mask) == 0 && !sigismember(&mask, SIGALRM)); /* as it was before */
    ipvg_arena_free(&arena);
    ipvg_backend_free(&be);
    return 0;
}

/* The emulated device finds what it says it finds (emulator.h): each mistake is made once, in a process of its own. */
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include <vector>

#include "emulator.h"
#include "fake/cuda_bf16.h"
#include "fake/cuda_fp16.h"
#include "fake/cuda_fp8.h"

static int failures;

#define CHECK(condition) \
    if (!(condition)) failures++, printf("FAIL %s:%d: %s\n", __FILE__, __LINE__, #condition)

template <typename... P, typename... A>
static cudaError_t start_shared(void (*kernel)(P...), unsigned blocks, unsigned threads, size_t shared,
                                cudaStream_t stream, A... args)
{
    cudaLaunchConfig_t config = {};
    config.dynamicSmemBytes = shared;
    config.gridDim = dim3(blocks);
    config.blockDim = dim3(threads);
    config.stream = stream;
    return cudaLaunchKernelEx(&config, kernel, P(args)...);
}
template <typename... P, typename... A>
static cudaError_t start(void (*kernel)(P...), unsigned blocks, unsigned threads, cudaStream_t stream, A... args)
{
    return start_shared(kernel, blocks, threads, 0, stream, args...);
}

/* Whether `mistake` ends the process, with `word` in its last words. */
static void must_die(const char *word, void (*mistake)())
{
    int ends[2];
    char said[2048];
    fflush(stdout);
    if (pipe(ends)) return;
    const pid_t child = fork();
    if (!child) {
        dup2(ends[1], 2);
        mistake();
        _exit(0);
    }
    close(ends[1]);
    size_t length = 0;
    for (ssize_t n; length + 1 < sizeof said && (n = read(ends[0], said + length, sizeof said - 1 - length)) > 0;)
        length += (size_t)n;
    said[length] = 0;
    close(ends[0]);
    int status = 0;
    waitpid(child, &status, 0);
    if ((WIFEXITED(status) && !WEXITSTATUS(status)) || !strstr(said, word))
        failures++, printf("FAIL: expected \"%s\", status %x, got: %s\n", word, status, said);
}

/* ==== kernels, right and wrong ==== */

static void write_at(int *p, int64_t i) { p[i] = 1; }

/* out[block] = the sum of in over a block, by shuffles and shared memory. */
static void block_sum(int *out, const int *in)
{
    __shared__ int part[32];
    int v = in[blockIdx.x * blockDim.x + threadIdx.x];
    for (int step = 16; step; step /= 2) v += __shfl_xor_sync(0xffffffffu, v, step);
    if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = v;
    __syncthreads();
    if (threadIdx.x == 0) {
        for (unsigned w = 1; w < blockDim.x / 32; w++) part[0] += part[w];
        out[blockIdx.x] = part[0];
    }
}

/* out[block] = how many of the first `n` floats of its shared memory are NaN; then they are not. */
static void count_fresh(int *out, int n)
{
    float *shared = (float *)emulator_shared();
    out[blockIdx.x] = 0;
    for (int i = 0; i < n; i++) {
        out[blockIdx.x] += std::isnan(shared[i]);
        shared[i] = 0;
    }
}

static void half_syncs(int)
{
    if (threadIdx.x < 16) __syncthreads();
}

static void half_shuffles(int *p)
{
    if (threadIdx.x < 16) p[threadIdx.x] = __shfl_xor_sync(0xffffffffu, 1, 1);
}

static int *device_ints(size_t n)
{
    int *p;
    cudaMalloc((void **)&p, n * sizeof(int));
    return p;
}

static void test_kernels()
{
    std::vector<int> in(4 * 96), out(4);
    for (size_t i = 0; i < in.size(); i++) in[i] = (int)(i * i);
    int *a = device_ints(in.size()), *b = device_ints(4);
    cudaMemcpy(a, in.data(), in.size() * sizeof(int), cudaMemcpyHostToDevice);
    CHECK(start(block_sum, 4, 96, nullptr, b, a) == cudaSuccess);
    cudaMemcpy(out.data(), b, 4 * sizeof(int), cudaMemcpyDeviceToHost);
    for (int k = 0; k < 4; k++) {
        int sum = 0;
        for (int i = 0; i < 96; i++) sum += in[(size_t)(k * 96 + i)];
        CHECK(out[(size_t)k] == sum);
    }
    CHECK(start_shared(count_fresh, 4, 1, 400, nullptr, b, 100) == cudaSuccess);
    cudaMemcpy(out.data(), b, 4 * sizeof(int), cudaMemcpyDeviceToHost);
    for (int k = 0; k < 4; k++) CHECK(out[(size_t)k] == 100);
    CHECK(start_shared(count_fresh, 1, 1, EMULATOR_SHARED + 1, nullptr, b, 1) == cudaErrorInvalidConfiguration);
    CHECK(start(write_at, 1, 2048, nullptr, a, 0) == cudaErrorInvalidConfiguration);
    CHECK(cudaGetLastError() == cudaErrorInvalidConfiguration && cudaGetLastError() == cudaSuccess);
    emulator_check();
    CHECK(cudaFree(a) == cudaSuccess && cudaFree(b) == cudaSuccess && emulator_used() == 0);
}

static void test_mistakes()
{
    must_die("the host, byte 0", [] { device_ints(100)[0] = 1; });
    must_die("a kernel, byte 256", [] { start(write_at, 1, 1, nullptr, device_ints(64), 64); });
    must_die("a kernel", [] { start(write_at, 1, 1, nullptr, device_ints(64), -1500); });
    must_die("somebody wrote byte 400", [] {
        int *p = device_ints(100);
        start(write_at, 1, 1, nullptr, p, 100);
        cudaFree(p);
    });
    must_die("somebody wrote byte -4", [] {
        start(write_at, 1, 1, nullptr, device_ints(100), -1);
        emulator_check();
    });
    must_die("host memory", [] {
        std::vector<int> host(64);
        start(write_at, 1, 1, nullptr, host.data(), 0);
    });
    must_die("behind its shared memory", [] { start_shared(count_fresh, 1, 1, 400, nullptr, device_ints(1), 101); });
    must_die("__syncthreads", [] { start(half_syncs, 1, 64, nullptr, 0); });
    must_die("nobody can go on", [] { start(half_shuffles, 1, 32, nullptr, device_ints(32)); });
    must_die("bytes from byte", [] {
        std::vector<int> host(101);
        cudaMemcpy(host.data(), device_ints(100), 404, cudaMemcpyDeviceToHost);
    });
    must_die("a copy of kind", [] {
        int host;
        cudaMemcpy(device_ints(1), &host, 4, cudaMemcpyDeviceToHost);
    });
}

/* ==== streams: nothing is done before somebody waits ==== */

static void test_streams()
{
    cudaStream_t s, t;
    cudaEvent_t e;
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    int *pinned, one = 1, *p = device_ints(2);
    float fresh;
    cudaMemcpy(&fresh, p, sizeof fresh, cudaMemcpyDeviceToHost);
    CHECK(std::isnan(fresh));
    cudaStreamCreateWithFlags(&s, cudaStreamNonBlocking);
    cudaStreamCreateWithFlags(&t, cudaStreamNonBlocking);
    cudaEventCreate(&e);
    cudaMallocHost((void **)&pinned, sizeof *pinned);
    *pinned = 5;
    cudaMemcpyAsync(p, &one, sizeof one, cudaMemcpyHostToDevice, s);
    one = 2; /* pageable memory was read at once */
    cudaMemcpyAsync(pinned, p, sizeof one, cudaMemcpyDeviceToHost, s);
    cudaEventRecord(e, s);
    CHECK(*pinned == 5);
    cudaStreamWaitEvent(t, e, 0);
    CHECK(*pinned == 5 && cudaEventQuery(e) == cudaErrorNotReady);
    cudaStreamSynchronize(t); /* by way of the event, s is done too */
    CHECK(*pinned == 1 && cudaEventQuery(e) == cudaSuccess && cudaStreamQuery(s) == cudaSuccess);

    cudaStreamBeginCapture(s, cudaStreamCaptureModeThreadLocal);
    cudaMemsetAsync(p, 0, sizeof *p, s);
    CHECK(cudaMalloc((void **)&exec, 4) == cudaErrorStreamCaptureUnsupported);
    cudaStreamEndCapture(s, &graph);
    cudaGraphInstantiate(&exec, graph, 0);
    cudaGraphDestroy(graph);
    cudaMemcpy(&one, p, sizeof one, cudaMemcpyDeviceToHost);
    CHECK(one == 1);
    cudaGraphLaunch(exec, s);
    cudaStreamSynchronize(s);
    cudaMemcpy(&one, p, sizeof one, cudaMemcpyDeviceToHost);
    CHECK(one == 0);
    cudaGraphExecDestroy(exec);

    emulator_set_limit(1000);
    void *q;
    CHECK(cudaMalloc(&q, 2000) == cudaErrorMemoryAllocation && !q && cudaGetLastError() == cudaErrorMemoryAllocation);
    emulator_set_limit(0);
    cudaFreeHost(pinned), cudaEventDestroy(e), cudaStreamDestroy(s), cudaStreamDestroy(t), cudaFree(p);
}

/* Narrow floats, from their definition: the nearest of all values, ties to the even one. */
static void test_floats()
{
    double value[128];
    for (int i = 0; i < 127; i++) value[i] = i < 8 ? ldexp(i, -9) : ldexp(8 + (i & 7), (i >> 3) - 10);
    for (double x = 0; x < 480; x += x < 1 ? 1.0 / 4096 : 1.0 / 16) {
        int best = 0;
        for (int i = 1; i < 127; i++) {
            const double a = fabs(value[i] - x), b = fabs(value[best] - x);
            if (a < b || (a == b && !(i & 1))) best = i;
        }
        CHECK(__nv_cvt_float_to_fp8((float)x, __NV_SATFINITE, __NV_E4M3) == best);
        CHECK(__nv_cvt_float_to_fp8(-(float)x, __NV_SATFINITE, __NV_E4M3) == (best | 0x80));
    }
    for (unsigned i = 0; i < 0x7c00; i++) {
        const float x = __half2float(__ushort_as_half((unsigned short)i));
        const float next = i + 1 < 0x7c00 ? __half2float(__ushort_as_half((unsigned short)(i + 1))) : 65536.f;
        CHECK(__half_as_ushort(__float2half_rn(x)) == i);
        CHECK(__half_as_ushort(__float2half_rn((x + next) / 2)) == i + (i & 1));
    }
}

int main()
{
    test_mistakes();
    test_kernels();
    test_streams();
    test_floats();
    printf(failures ? "%d failures\n" : "ok\n", failures);
    return failures != 0;
}

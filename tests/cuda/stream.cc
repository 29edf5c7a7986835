/* Streams, events, copies and graphs. Work is done as late as possible: when somebody waits for it. */
#include <stdio.h>

#include <algorithm>
#include <chrono>
#include <deque>
#include <memory>
#include <set>
#include <vector>

#include "device.h"

typedef std::function<void()> job;

struct CUstream_st {
    std::deque<job> queue;
    bool blocking = true; /* the legacy stream and this one wait for each other */
    CUgraph_st *capture = nullptr;
};

/* One recording of an event. */
struct ticket {
    CUstream_st *stream;
    bool done = false;
    std::chrono::steady_clock::time_point when;
};

struct CUevent_st {
    std::shared_ptr<ticket> last;
};

struct CUgraph_st {
    std::vector<job> jobs;
};
struct CUgraphExec_st {
    std::vector<job> jobs;
};

namespace
{
std::set<CUstream_st *> streams;
CUstream_st legacy;
long launches, dry;
int capturing;
typedef std::lock_guard<std::recursive_mutex> locked;
} // namespace

bool is_capturing() { return capturing > 0; }

static void step(CUstream_st *s)
{
    job j = std::move(s->queue.front());
    s->queue.pop_front();
    j();
}

static void drain(CUstream_st *s)
{
    while (!s->queue.empty()) step(s);
}

void drain_all()
{
    drain(&legacy);
    for (CUstream_st *s : streams) drain(s);
}

static CUstream_st *stream_of(cudaStream_t stream)
{
    if (!stream || stream == cudaStreamLegacy || stream == cudaStreamPerThread) return &legacy;
    if (!streams.count(stream)) emulator_die("a stream that does not exist");
    return stream;
}

/* Work on the legacy stream waits for all blocking streams, and they wait for it: it is done at once. */
static cudaError_t enqueue(cudaStream_t stream, job j)
{
    locked guard(device_lock);
    CUstream_st *s = stream_of(stream);
    if (s->capture) {
        s->capture->jobs.push_back(std::move(j));
    } else if (s == &legacy) {
        for (CUstream_st *other : streams)
            if (other->blocking) drain(other);
        j();
    } else {
        s->queue.push_back(std::move(j));
    }
    return cudaSuccess;
}

static void complete(const std::shared_ptr<ticket> &t)
{
    if (t->done) return;
    while (!t->done) {
        if (t->stream->queue.empty()) emulator_die("an event that nothing will complete");
        step(t->stream);
    }
    dry += std::all_of(streams.begin(), streams.end(), [](const CUstream_st *s) { return s->queue.empty(); });
}

cudaError_t emulator_launch(const cudaLaunchConfig_t &c, std::function<void()> kernel)
{
    locked guard(device_lock);
    const dim3 b = c.blockDim, g = c.gridDim;
    if (b.x < 1 || b.x > 1024 || b.y != 1 || b.z != 1 || g.x < 1 || g.x > 0x7fffffffu || g.y != 1 || g.z != 1 ||
        c.dynamicSmemBytes > EMULATOR_SHARED || c.numAttrs)
        return set_error(cudaErrorInvalidConfiguration);
    launches++;
    return enqueue(c.stream, [c, kernel = std::move(kernel)] {
        open_memory open;
        run_grid(c, kernel);
    });
}

/* ==== copies ==== */

struct rectangle {
    char *dst;
    const char *src;
    size_t dst_pitch, src_pitch, width, height;
};

static size_t extent(size_t pitch, size_t width, size_t height) { return height ? pitch * (height - 1) + width : 0; }

static void move(const rectangle &r)
{
    open_memory open;
    for (size_t y = 0; y < r.height; y++) memcpy(r.dst + y * r.dst_pitch, r.src + y * r.src_pitch, r.width);
}

/* Waits where CUDA does: pageable memory is read before the call returns, and written before it returns. */
static cudaError_t copy(rectangle r, cudaMemcpyKind kind, cudaStream_t stream, bool wait)
{
    locked guard(device_lock);
    const size_t to = extent(r.dst_pitch, r.width, r.height), from = extent(r.src_pitch, r.width, r.height);
    if (!to || !r.width) return cudaSuccess;
    const place dst = place_of(r.dst, to), src = place_of(r.src, from);
    const bool to_device = dst == place::device, from_device = src == place::device;
    if (kind != cudaMemcpyDefault &&
        (to_device != (kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice) ||
         from_device != (kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice)))
        emulator_die("a copy of kind %d between other kinds of memory", (int)kind);
    if (to_device && from_device && r.dst < r.src + from && r.src < r.dst + to)
        emulator_die("a copy between overlapping device memory");
    CUstream_st *s = stream_of(stream);
    if (wait && is_capturing()) return set_error(cudaErrorStreamCaptureUnsupported);
    if (src == place::pageable && !s->capture) {
        auto staged = std::make_shared<std::vector<char>>(r.width * r.height);
        for (size_t y = 0; y < r.height; y++) memcpy(staged->data() + y * r.width, r.src + y * r.src_pitch, r.width);
        r.src_pitch = r.width;
        enqueue(stream, [r, staged] {
            rectangle held = r;
            held.src = staged->data();
            move(held);
        });
    } else {
        enqueue(stream, [r] { move(r); });
    }
    if ((wait || dst == place::pageable) && !s->capture) drain(s);
    return cudaSuccess;
}

extern "C" {

int emulator_enqueue(void *stream, void (*work)(void *), void (*release)(void *), void *user)
{
    std::shared_ptr<void> held(user, [release](void *p) {
        if (release) release(p);
    });
    return enqueue((cudaStream_t)stream, [work, held] {
        open_memory open;
        work(held.get());
    });
}

long emulator_launches(void) { return launches; }
long emulator_dry(void) { return dry; }

cudaError_t cudaMemcpyAsync(void *dst, const void *src, size_t bytes, enum cudaMemcpyKind kind, cudaStream_t stream)
{
    return copy({(char *)dst, (const char *)src, bytes, bytes, bytes, bytes ? 1u : 0u}, kind, stream, false);
}
cudaError_t cudaMemcpy(void *dst, const void *src, size_t bytes, enum cudaMemcpyKind kind)
{
    return copy({(char *)dst, (const char *)src, bytes, bytes, bytes, bytes ? 1u : 0u}, kind, NULL, true);
}
cudaError_t cudaMemcpy2DAsync(void *dst, size_t dst_pitch, const void *src, size_t src_pitch, size_t width,
                              size_t height, enum cudaMemcpyKind kind, cudaStream_t stream)
{
    if (width > dst_pitch || width > src_pitch) return set_error(cudaErrorInvalidValue);
    return copy({(char *)dst, (const char *)src, dst_pitch, src_pitch, width, height}, kind, stream, false);
}
cudaError_t cudaMemcpy2D(void *dst, size_t dst_pitch, const void *src, size_t src_pitch, size_t width, size_t height,
                         enum cudaMemcpyKind kind)
{
    if (width > dst_pitch || width > src_pitch) return set_error(cudaErrorInvalidValue);
    return copy({(char *)dst, (const char *)src, dst_pitch, src_pitch, width, height}, kind, NULL, true);
}
cudaError_t cudaMemsetAsync(void *p, int value, size_t bytes, cudaStream_t stream)
{
    if (!bytes) return cudaSuccess;
    if (place_of(p, bytes) != place::device) return set_error(cudaErrorInvalidValue);
    return enqueue(stream, [p, value, bytes] {
        open_memory open;
        memset(p, value, bytes);
    });
}
cudaError_t cudaMemset(void *p, int value, size_t bytes) { return cudaMemsetAsync(p, value, bytes, NULL); }

/* ==== streams ==== */

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned flags)
{
    locked guard(device_lock);
    *stream = new CUstream_st;
    (*stream)->blocking = !(flags & cudaStreamNonBlocking);
    streams.insert(*stream);
    return cudaSuccess;
}
cudaError_t cudaStreamCreate(cudaStream_t *stream) { return cudaStreamCreateWithFlags(stream, 0); }
cudaError_t cudaStreamCreateWithPriority(cudaStream_t *stream, unsigned flags, int)
{
    return cudaStreamCreateWithFlags(stream, flags);
}

cudaError_t cudaStreamDestroy(cudaStream_t stream)
{
    locked guard(device_lock);
    if (!streams.count(stream)) return set_error(cudaErrorInvalidResourceHandle);
    drain(stream);
    streams.erase(stream);
    delete stream;
    return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream)
{
    locked guard(device_lock);
    CUstream_st *s = stream_of(stream);
    if (s->capture) return set_error(cudaErrorStreamCaptureUnsupported);
    if (s == &legacy)
        for (CUstream_st *other : streams)
            if (other->blocking) drain(other);
    drain(s);
    return cudaSuccess;
}

cudaError_t cudaStreamQuery(cudaStream_t stream)
{
    locked guard(device_lock);
    CUstream_st *s = stream_of(stream);
    if (s->queue.empty()) return cudaSuccess;
    step(s); /* who asks often enough sees it end */
    return cudaErrorNotReady;
}

cudaError_t cudaDeviceSynchronize(void)
{
    locked guard(device_lock);
    if (is_capturing()) return set_error(cudaErrorStreamCaptureUnsupported);
    drain_all();
    return cudaSuccess;
}

/* The function may not touch device memory: it is closed. */
cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t fn, void *user)
{
    return enqueue(stream, [fn, user] { fn(user); });
}

/* ==== events ==== */

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned)
{
    *event = new CUevent_st;
    return cudaSuccess;
}
cudaError_t cudaEventCreate(cudaEvent_t *event) { return cudaEventCreateWithFlags(event, 0); }
cudaError_t cudaEventDestroy(cudaEvent_t event)
{
    locked guard(device_lock);
    delete event;
    return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream)
{
    locked guard(device_lock);
    auto t = std::make_shared<ticket>();
    t->stream = stream_of(stream);
    if (t->stream->capture) return set_error(cudaErrorStreamCaptureUnsupported);
    event->last = t;
    return enqueue(stream, [t] {
        t->done = true;
        t->when = std::chrono::steady_clock::now();
    });
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned)
{
    locked guard(device_lock);
    std::shared_ptr<ticket> t = event->last;
    if (!t) return cudaSuccess; /* never recorded */
    if (stream_of(stream)->capture) return set_error(cudaErrorStreamCaptureUnsupported);
    return enqueue(stream, [t] { complete(t); });
}

cudaError_t cudaEventSynchronize(cudaEvent_t event)
{
    locked guard(device_lock);
    if (event->last) complete(event->last);
    return cudaSuccess;
}

cudaError_t cudaEventQuery(cudaEvent_t event)
{
    locked guard(device_lock);
    if (!event->last || event->last->done) return cudaSuccess;
    step(event->last->stream);
    return cudaErrorNotReady;
}

cudaError_t cudaEventElapsedTime(float *milliseconds, cudaEvent_t start, cudaEvent_t end)
{
    locked guard(device_lock);
    if (!start->last || !end->last) return set_error(cudaErrorInvalidResourceHandle);
    if (!start->last->done || !end->last->done) return cudaErrorNotReady;
    *milliseconds = std::chrono::duration<float, std::milli>(end->last->when - start->last->when).count();
    return cudaSuccess;
}

/* ==== graphs: of one stream ==== */

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, enum cudaStreamCaptureMode)
{
    locked guard(device_lock);
    CUstream_st *s = stream_of(stream);
    if (s == &legacy || s->capture) return set_error(cudaErrorStreamCaptureUnsupported);
    s->capture = new CUgraph_st;
    capturing++;
    return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph)
{
    locked guard(device_lock);
    CUstream_st *s = stream_of(stream);
    *graph = s->capture;
    if (!s->capture) return set_error(cudaErrorInvalidValue);
    s->capture = nullptr;
    capturing--;
    return cudaSuccess;
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t *exec, cudaGraph_t graph, unsigned long long)
{
    *exec = new CUgraphExec_st{graph->jobs};
    return cudaSuccess;
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream)
{
    for (const job &j : exec->jobs) enqueue(stream, j);
    return cudaSuccess;
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph)
{
    delete graph;
    return cudaSuccess;
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec)
{
    delete exec;
    return cudaSuccess;
}

/* ==== the device ==== */

cudaError_t cudaGetDeviceCount(int *count)
{
    *count = 1;
    return cudaSuccess;
}
cudaError_t cudaGetDevice(int *device)
{
    *device = 0;
    return cudaSuccess;
}
cudaError_t cudaSetDevice(int device) { return set_error(device ? cudaErrorInvalidDevice : cudaSuccess); }

cudaError_t cudaGetDeviceProperties(cudaDeviceProp *p, int device)
{
    size_t available;
    if (device) return set_error(cudaErrorInvalidDevice);
    *p = {};
    snprintf(p->name, sizeof p->name, "emulated device");
    cudaMemGetInfo(&available, &p->totalGlobalMem);
    p->sharedMemPerBlock = 48 << 10;
    p->maxThreadsPerBlock = 1024;
    p->warpSize = 32;
    p->major = 9;
    p->multiProcessorCount = 2;
    p->l2CacheSize = 1 << 20;
    return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr attribute, int device)
{
    if (device) return set_error(cudaErrorInvalidDevice);
    switch (attribute) {
    case cudaDevAttrMaxThreadsPerBlock: *value = 1024; return cudaSuccess;
    case cudaDevAttrMultiProcessorCount: *value = 2; return cudaSuccess;
    case cudaDevAttrComputeCapabilityMajor: *value = 9; return cudaSuccess;
    case cudaDevAttrComputeCapabilityMinor: *value = 0; return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = EMULATOR_SHARED; return cudaSuccess;
    }
    return set_error(cudaErrorInvalidValue);
}

cudaError_t cudaDriverGetVersion(int *version)
{
    *version = CUDART_VERSION;
    return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int *version)
{
    *version = CUDART_VERSION;
    return cudaSuccess;
}

const char *cudaGetErrorName(cudaError_t error)
{
    switch (error) {
    case cudaSuccess: return "cudaSuccess";
    case cudaErrorInvalidValue: return "cudaErrorInvalidValue";
    case cudaErrorMemoryAllocation: return "cudaErrorMemoryAllocation";
    case cudaErrorInvalidConfiguration: return "cudaErrorInvalidConfiguration";
    case cudaErrorInvalidMemcpyDirection: return "cudaErrorInvalidMemcpyDirection";
    case cudaErrorInvalidDevice: return "cudaErrorInvalidDevice";
    case cudaErrorNoDevice: return "cudaErrorNoDevice";
    case cudaErrorInvalidResourceHandle: return "cudaErrorInvalidResourceHandle";
    case cudaErrorNotReady: return "cudaErrorNotReady";
    case cudaErrorIllegalAddress: return "cudaErrorIllegalAddress";
    case cudaErrorStreamCaptureUnsupported: return "cudaErrorStreamCaptureUnsupported";
    case cudaErrorUnknown: break;
    }
    return "cudaErrorUnknown";
}
const char *cudaGetErrorString(cudaError_t error) { return cudaGetErrorName(error); }
}

/* What the video VAE needs around its convolutions: channels last, a pixel's channels are a row. */
#include <type_traits>

#include "team.cuh"

/* ==== after a convolution: bias, residual, norm, SiLU ==== */

#define MOST_CHANNELS 4096 /* a pixel stays in registers: with V = 1, TEAM_MOST threads hold 8 numbers each */

/* C: c where the compiler is to know it, one of the autoencoder's 96, 192 and 384, of which 4, 8, 16 threads keep 3 chunks. */
template <int V, int C>
using pixel_keep = std::integral_constant<int, C ? 3 : keep<V>::chunks>;

template <int V, bool Usual, int C>
__global__ void __launch_bounds__(C ? 128 : TEAM_MOST, 1)
    conv_finish_kernel(array y, array z, array x, array bias, array residual, array gamma, bool silu, int64_t pixels,
                       int64_t c, int lanes)
{
    constexpr int N = pixel_keep<V, C>::value;
    const team t = team_for<V, N, C>(&c, lanes);
    if (Usual) y.dtype = z.dtype = x.dtype = bias.dtype = residual.dtype = IPVG_K_F16, gamma.dtype = IPVG_K_F32;
    kept_row<V, N> row(t, x, pixels, c);
    float squares = 0.f;
    auto finish = [&](float(&v)[V], const float(&r)[V], int column) {
        float b[V];
        load_or<V>(b, bias, column, 0.f);
#pragma unroll
        for (int i = 0; i < V; i++) {
            v[i] = v[i] + b[i] + r[i];
            squares = fmaf(v[i], v[i], squares);
        }
        if (y.data) store<V>(y, t.row * y.ld + column, v);
    };
    if (residual.data)
        row.each_with(residual, finish);
    else
        row.each([&](float(&v)[V], int column) {
            const float none[V] = {};
            finish(v, none, column);
        });
    if (!z.data) return; /* all threads of the grid */
    const float length = sqrtf(team_sum(t, squares));
    const float scale = sqrtf((float)c) / (length > 1e-12f ? length : 1e-12f);
    row.each([&](const float(&v)[V], int column) {
        float g[V], out[V];
        load_vector<V>(g, gamma, column);
#pragma unroll
        for (int i = 0; i < V; i++) {
            out[i] = v[i] * scale * g[i];
            if (silu) out[i] = Usual ? silu_near(out[i]) : silu_of(out[i]);
        }
        store<V>(z, t.row * z.ld + column, out);
    });
}

int ipvg_k_conv_finish(array y, array z, array x, array bias, array residual, array gamma, bool silu, int64_t pixels,
                       int64_t c, void *stream)
{
    bias = flat(bias), gamma = flat(gamma);
    if (pixels < 0 || c < 1 || c > MOST_CHANNELS || y.dtype == IPVG_K_E4M3 || z.dtype == IPVG_K_E4M3 ||
        !readable(x, bias, residual, gamma) || (z.data && !gamma.data))
        return cudaErrorInvalidValue;
    if (!y.data && !z.data) return cudaSuccess;
    const bool fast = wide(c, x) && (!y.data || aligned(y)) && (!z.data || aligned(z)) &&
                      (!bias.data || aligned(bias)) && (!residual.data || aligned(residual)) &&
                      (!gamma.data || aligned(gamma));
    const bool usual = fast && all_of(IPVG_K_F16, y, z, x, bias, residual) && all_of(IPVG_K_F32, gamma),
               known = usual && (c == 96 || c == 192 || c == 384);
    const team_plan plan = plan_teams(pixels, fast ? c / 8 : c,
                                      known  ? pixel_keep<8, 96>::value
                                      : fast ? pixel_keep<8, 0>::value
                                             : pixel_keep<1, 0>::value);
    return launch(!fast      ? conv_finish_kernel<1, false, 0>
                  : !usual   ? conv_finish_kernel<8, false, 0>
                  : !known   ? conv_finish_kernel<8, true, 0>
                  : c == 96  ? conv_finish_kernel<8, true, 96>
                  : c == 192 ? conv_finish_kernel<8, true, 192>
                             : conv_finish_kernel<8, true, 384>,
                  plan.blocks, plan.threads, stream, y, z, x, bias, residual, gamma, silu, pixels, c, plan.lanes);
}

/* ==== planes (channels first) and pixels (channels last) ==== */

/* One thread a pixel: neighbours read neighbours in each plane, and write whole lines. */
__global__ void planes_to_pixels_kernel(array y, array x, array div, array add, int64_t pixels, int64_t c)
{
    const int64_t p = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (p >= pixels) return;
    for (int64_t i = 0; i < y.ld; i++) {
        float v = 0.f;
        if (i < c) {
            v = load_one(x, i * x.ld + p);
            if (div.data) v = v / load_one(div, i);
            if (add.data) v = __fadd_rn(v, load_one(add, i));
        }
        store_one(y, p * y.ld + i, v);
    }
}

__global__ void pixels_to_planes_kernel(array y, array x, array sub, array mul, int64_t pixels, int64_t c)
{
    const int64_t p = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (p >= pixels) return;
    for (int64_t i = 0; i < c; i++) {
        float v = load_one(x, p * x.ld + i);
        if (sub.data) v = __fsub_rn(v, load_one(sub, i));
        if (mul.data) v = __fmul_rn(v, load_one(mul, i));
        store_one(y, i * y.ld + p, v);
    }
}

int ipvg_k_planes_to_pixels(array y, array x, array div, array add, int64_t pixels, int64_t c, void *stream)
{
    if (pixels < 0 || c < 0 || y.ld < c || y.dtype == IPVG_K_E4M3 || !readable(x, div, add))
        return cudaErrorInvalidValue;
    return launch(planes_to_pixels_kernel, ceil_div(pixels, 256), 256, stream, y, x, div, add, pixels, c);
}

int ipvg_k_pixels_to_planes(array y, array x, array sub, array mul, int64_t pixels, int64_t c, void *stream)
{
    if (pixels < 0 || c < 0 || x.ld < c || y.dtype == IPVG_K_E4M3 || !readable(x, sub, mul))
        return cudaErrorInvalidValue;
    return launch(pixels_to_planes_kernel, ceil_div(pixels, 256), 256, stream, y, x, sub, mul, pixels, c);
}

/* ==== bytes ==== */

__global__ void to_bytes_kernel(uint8_t *y, int32_t *odd, array x, int64_t count)
{
    const int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= count) return;
    const float v = load_one(x, i);
    if (!(v - v == 0.f)) *odd = 1; /* of NaN and infinity it is NaN; whoever writes it writes the same */
    y[i] = (uint8_t)rintf((fminf(fmaxf(v, -1.f), 1.f) + 1.f) * 127.5f);
}

int ipvg_k_to_bytes(uint8_t *y, int32_t *odd, array x, int64_t count, void *stream)
{
    if (count < 0 || !readable(x)) return cudaErrorInvalidValue;
    return launch(to_bytes_kernel, ceil_div(count, 256), 256, stream, y, odd, x, count);
}

/* ==== frames that grow ==== */

/* Where line `number` of y, w pixels of c channels, comes from: the first pixel's row in x, or none. A pixel `p` of it is
 * row begin + (p - left) / shrink of x, from channel `channel` on. */
struct line_source {
    int64_t begin, channel;
    bool inside;
};

struct upsample_lines {
    int space, time;
    int64_t h, w, c;
    __device__ line_source operator()(int64_t line) const
    {
        const int64_t high = h * space, frame = line / high;
        return {(frame / time * h + line % high / space) * w, frame % time * c, true};
    }
};

struct pad_lines {
    int64_t top, h, high, w;
    __device__ line_source operator()(int64_t line) const
    {
        const int64_t frame = line / high, row = line % high - top;
        return {(frame * h + row) * w, 0, row >= 0 && row < h};
    }
};

/* One block a line of y: `width` pixels, of which those from `left` on show x, each `shrink` times. */
template <int V, class Lines>
__global__ void lines_kernel(array y, array x, Lines lines, int width, int left, int shrink, int w, int c)
{
    const line_source from = lines(blockIdx.x);
    const int chunks = c / V;
    for (int i = threadIdx.x; i < width * chunks; i += blockDim.x) {
        const int p = i / chunks, column = i % chunks * V, source = p < left ? -1 : (p - left) / shrink;
        float v[V] = {};
        if (from.inside && source >= 0 && source < w)
            load<V>(v, x, (from.begin + source) * x.ld + from.channel + column);
        store<V>(y, ((int64_t)blockIdx.x * width + p) * y.ld + column, v);
    }
}

template <class Lines>
static int run_lines(array y, array x, Lines lines, int64_t count, int64_t width, int64_t left, int shrink, int64_t w,
                     int64_t c, void *stream)
{
    if (c < 1 || y.dtype == IPVG_K_E4M3 || !readable(x) || width * c > INT32_MAX) return cudaErrorInvalidValue;
    const bool fast = wide(c, y, x);
    return launch(fast ? lines_kernel<8, Lines> : lines_kernel<1, Lines>, count, 256, stream, y, x, lines, (int)width,
                  (int)left, shrink, (int)w, (int)c);
}

int ipvg_k_upsample(array y, array x, int space, int time, int64_t frames, int64_t h, int64_t w, int64_t c,
                    void *stream)
{
    if (space < 1 || time < 1 || frames < 0 || h < 0 || w < 0) return cudaErrorInvalidValue;
    return run_lines(y, x, upsample_lines{space, time, h, w, c}, frames * time * h * space, w * space, 0, space, w, c,
                     stream);
}

int ipvg_k_pad(array y, array x, int top, int bottom, int left, int right, int64_t frames, int64_t h, int64_t w,
               int64_t c, void *stream)
{
    const int64_t high = top + h + bottom;
    if (top < 0 || bottom < 0 || left < 0 || right < 0 || frames < 0 || h < 0 || w < 0) return cudaErrorInvalidValue;
    return run_lines(y, x, pad_lines{top, h, high, w}, frames * high, left + w + right, left, 1, w, c, stream);
}

/* ==== weights of a convolution ==== */

__global__ void conv_weights_kernel(array y, array x, int64_t cout, int64_t cin, int64_t kt, int64_t plane,
                                    int64_t rotate, int64_t cin_padded, int64_t count)
{
    const int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= count) return;
    const int64_t in = i % cin_padded, k = i / cin_padded % plane, time = i / (cin_padded * plane) % kt;
    const int64_t out = i / (cin_padded * plane * kt);
    float v = 0.f;
    if (in < cin && out < cout) v = load_one(x, ((out * cin + in) * kt + (time + rotate) % kt) * plane + k);
    store_one(y, i, v);
}

int ipvg_k_conv_weights(array y, array x, int64_t cout, int64_t cin, int64_t kt, int64_t plane, int64_t rotate,
                        int64_t cout_padded, int64_t cin_padded, void *stream)
{
    const int64_t count = cout_padded * kt * plane * cin_padded;
    if (cout < 0 || cin < 0 || kt < 1 || plane < 1 || rotate < 0 || cout_padded < cout || cin_padded < cin ||
        y.dtype == IPVG_K_E4M3 || !readable(x))
        return cudaErrorInvalidValue;
    return launch(conv_weights_kernel, ceil_div(count, 256), 256, stream, y, x, cout, cin, kt, plane, rotate,
                  cin_padded, count);
}

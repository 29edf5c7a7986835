/* Moving numbers: embedding rows, and patches. */
#include "team.cuh"

/* ==== embedding rows ==== */

template <int V>
__global__ void __launch_bounds__(TEAM_MOST, 1)
    gather_rows_kernel(array y, array table, const int32_t *ids, int64_t table_rows, int64_t count, int64_t d,
                       int lanes)
{
    const team t(lanes);
    if (t.row >= count) return;
    const int32_t id = ids[t.row];
    const bool inside = id >= 0 && id < table_rows;
    for (int64_t c = t.lane; c < d / V; c += lanes) {
        float v[V];
        if (inside)
            load<V>(v, table, id * table.ld + c * V);
        else
            for (int k = 0; k < V; k++) v[k] = NAN;
        store<V>(y, t.row * y.ld + c * V, v);
    }
}

/* bad = the first place of an id outside the table, or -1. One warp. */
__global__ void check_ids_kernel(int32_t *bad, const int32_t *ids, int64_t table_rows, int64_t count)
{
    int32_t first = INT32_MAX;
    for (int64_t i = threadIdx.x; i < count; i += 32)
        if ((ids[i] < 0 || ids[i] >= table_rows) && i < first) first = (int32_t)i;
    for (int step = 16; step > 0; step /= 2) {
        const int32_t other = __shfl_xor_sync(FULL_WARP, first, step);
        first = other < first ? other : first;
    }
    if (threadIdx.x == 0) *bad = first == INT32_MAX ? -1 : first;
}

int ipvg_k_gather_rows(array y, int32_t *bad, array table, const int32_t *ids, int64_t table_rows, int64_t count,
                       int64_t d, void *stream)
{
    if (count < 0 || count > INT32_MAX || d < 1 || d > INT32_MAX || y.dtype == IPVG_K_E4M3 || !readable(table))
        return cudaErrorInvalidValue;
    const bool fast = wide(d, y, table);
    const team_plan plan = plan_teams(count, fast ? d / 8 : d, 1);
    const int error = launch(fast ? gather_rows_kernel<8> : gather_rows_kernel<1>, plan.blocks, plan.threads, stream, y,
                             table, ids, table_rows, count, d, plan.lanes);
    if (error || !bad) return error;
    return launch(check_ids_kernel, 1, 32, stream, bad, ids, table_rows, count);
}

/* ==== patches ==== */

/* Tokens and latent have as many numbers; thread i makes number i of the side that is written. */

struct patch_shape {
    int64_t channels, frames, h, w;
};

__device__ inline int64_t latent_at(const patch_shape &s, int64_t token, int64_t channel, int64_t row, int64_t column)
{
    const int64_t across = s.w / 2, down = s.h / 2;
    const int64_t y = token / across % down * 2 + row, x = token % across * 2 + column;
    return ((channel * s.frames + token / (across * down)) * s.h + y) * s.w + x;
}

__global__ void patchify_kernel(array tokens, array latent, patch_shape s, int64_t count)
{
    const int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= count) return;
    const int64_t token = i / (4 * s.channels), column = i % (4 * s.channels);
    store_one(tokens, token * tokens.ld + column,
              load_one(latent, latent_at(s, token, column / 4, column / 2 % 2, column % 2)));
}

__global__ void unpatchify_kernel(array latent, array tokens, patch_shape s, int64_t count)
{
    const int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= count) return;
    const int64_t x = i % s.w, y = i / s.w % s.h, frame = i / (s.w * s.h) % s.frames, c = i / (s.w * s.h * s.frames);
    const int64_t token = (frame * (s.h / 2) + y / 2) * (s.w / 2) + x / 2;
    store_one(latent, i, load_one(tokens, token * tokens.ld + (y % 2 * 2 + x % 2) * s.channels + c));
}

static bool bad_patches(const array &to, const array &from, const patch_shape &s)
{
    return s.channels < 1 || s.frames < 0 || s.h < 0 || s.w < 0 || s.h % 2 || s.w % 2 || to.dtype == IPVG_K_E4M3 ||
           !readable(from);
}

int ipvg_k_patchify(array tokens, array latent, int64_t channels, int64_t frames, int64_t h, int64_t w, void *stream)
{
    const patch_shape s = {channels, frames, h, w};
    const int64_t count = channels * frames * h * w;
    if (bad_patches(tokens, latent, s)) return cudaErrorInvalidValue;
    return launch(patchify_kernel, ceil_div(count, 256), 256, stream, tokens, latent, s, count);
}

int ipvg_k_unpatchify(array latent, array tokens, int64_t channels, int64_t frames, int64_t h, int64_t w, void *stream)
{
    const patch_shape s = {channels, frames, h, w};
    const int64_t count = channels * frames * h * w;
    if (bad_patches(latent, tokens, s)) return cudaErrorInvalidValue;
    return launch(unpatchify_kernel, ceil_div(count, 256), 256, stream, latent, tokens, s, count);
}

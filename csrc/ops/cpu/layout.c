/* Operations that move numbers without computing: embedding rows, patches, dtypes. */
#include <string.h>

#include "cpu.h"

ipvg_status ipvg_cpu_gather_rows(ipvg_exec *ex, ipvg_tensor *y, const ipvg_tensor *table, const ipvg_tensor *ids)
{
    const ipvg_loops *loops = ipvg_cpu_loops(ex);
    int64_t rows = y->shape[0], d = y->shape[1];
    size_t stride = (size_t)table->ld * ipvg_dtype_size(table->dtype);
    const int32_t *id = ids->data;
    ipvg_status status;
    IPVG_TRY(ipvg_cpu_need_f32(ex, "gather_rows", "y", y));
    if (table->dtype != IPVG_F32 && table->dtype != IPVG_BF16 && table->dtype != IPVG_F16)
        return ipvg_fail(ex->ctx, IPVG_E_TYPE, "gather_rows: table is %s, expected float32, bfloat16 or float16",
                         ipvg_dtype_name(table->dtype));
    if (ipvg_planning(ex)) goto done;
    for (int64_t r = 0; r < rows; r++)
        if (id[r] < 0 || id[r] >= table->shape[0])
            return ipvg_fail(ex->ctx, IPVG_E_ARGUMENT, "id %d at position %lld is outside the table of %lld rows",
                             id[r], (long long)r, (long long)table->shape[0]);
    for (int64_t r = 0; r < rows; r++)
        loops->widen((float *)y->data + r * y->ld, (const char *)table->data + (size_t)id[r] * stride, table->dtype, d);
done:
    return status;
}

/* tokens (F * h/2 * w/2, C * 4), columns (C, 2, 2) <-> latent (C, F, h, w); `columns` gives the place of channel c, row i,
 * column j within a patch. */
static void patches(const ipvg_tensor *tokens, const ipvg_tensor *latent, int64_t per_c, int64_t per_i, int64_t per_j,
                    bool to_tokens, int threads)
{
    int64_t channels = latent->shape[0], frames = latent->shape[1], h = latent->shape[2], w = latent->shape[3];
#pragma omp parallel for num_threads(threads) schedule(static) collapse(2) if (channels * frames * h * w > 65536)
    for (int64_t f = 0; f < frames; f++)
        for (int64_t y = 0; y < h; y++)
            for (int64_t c = 0; c < channels; c++) {
                float *pixel = (float *)latent->data + ((c * frames + f) * h + y) * w;
                float *token =
                    (float *)tokens->data + (f * (h / 2) + y / 2) * (w / 2) * tokens->ld + c * per_c + (y % 2) * per_i;
                for (int64_t x = 0; x < w; x++, pixel++) {
                    float *t = token + (x / 2) * tokens->ld + (x % 2) * per_j;
                    if (to_tokens)
                        *t = *pixel;
                    else
                        *pixel = *t;
                }
            }
}

ipvg_status ipvg_cpu_patchify(ipvg_exec *ex, ipvg_tensor *tokens, const ipvg_tensor *latent)
{
    ipvg_status status;
    IPVG_TRY(ipvg_cpu_need_f32(ex, "patchify", "tokens", tokens));
    IPVG_TRY(ipvg_cpu_need_f32(ex, "patchify", "latent", latent));
    if (!ipvg_planning(ex)) patches(tokens, latent, 4, 2, 1, true, ex->ctx->threads);
done:
    return status;
}

ipvg_status ipvg_cpu_unpatchify(ipvg_exec *ex, ipvg_tensor *latent, const ipvg_tensor *tokens)
{
    int64_t c = latent->shape[0];
    ipvg_status status;
    IPVG_TRY(ipvg_cpu_need_f32(ex, "unpatchify", "tokens", tokens));
    IPVG_TRY(ipvg_cpu_need_f32(ex, "unpatchify", "latent", latent));
    if (!ipvg_planning(ex)) patches(tokens, latent, 1, 2 * c, c, false, ex->ctx->threads);
done:
    return status;
}

ipvg_status ipvg_cpu_cast(ipvg_exec *ex, ipvg_tensor *y, const ipvg_tensor *x)
{
    const ipvg_loops *loops = ipvg_cpu_loops(ex);
    int64_t rows = ipvg_tensor_rows(x), d = x->ndim ? x->shape[x->ndim - 1] : 1;
    size_t size_x = ipvg_dtype_size(x->dtype), size_y = ipvg_dtype_size(y->dtype);
    const ipvg_tensor *both[2] = {x, y};
    for (int i = 0; i < 2; i++)
        if (both[i]->dtype != IPVG_F32 && both[i]->dtype != IPVG_BF16 && both[i]->dtype != IPVG_F16)
            return ipvg_fail(ex->ctx, IPVG_E_TYPE, "cast: %s is not offered, only float32, bfloat16 and float16",
                             ipvg_dtype_name(both[i]->dtype));
    if (x->dtype != IPVG_F32 && y->dtype != IPVG_F32 && x->dtype != y->dtype)
        return ipvg_fail(ex->ctx, IPVG_E_TYPE, "cast: from %s to %s only by way of float32", ipvg_dtype_name(x->dtype),
                         ipvg_dtype_name(y->dtype));
    if (ipvg_planning(ex)) return IPVG_OK;
    for (int64_t r = 0; r < rows; r++) {
        const char *in = (const char *)x->data + (size_t)(r * x->ld) * size_x;
        char *out = (char *)y->data + (size_t)(r * y->ld) * size_y;
        if (x->dtype == y->dtype)
            memmove(out, in, (size_t)d * size_x);
        else if (y->dtype == IPVG_F32)
            loops->widen((float *)out, in, x->dtype, d);
        else
            loops->narrow(out, (const float *)in, y->dtype, d);
    }
    return IPVG_OK;
}

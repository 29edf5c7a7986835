/* linear: y = act(x w^T + b). The dtypes are those of the tensors: model/place.h has brought weights and biases to what the
 * activations have. A GEMM takes the bias along, and GELU where its result is 16-bit: cuBLASLt's GELU is 7e-6 off the exact
 * tanh form, below half a bfloat16 but not below float32's own error. SiLU and float32's GELU follow in a kernel. */
#include "blas.h"

#define PART_ROWS 8192 /* of a 16-bit result that is quantised next: whole tiles of products, aligned scales */

static ipvg_status multiply(ipvg_exec *ex, ipvg_tensor *y, const ipvg_tensor *x, const ipvg_tensor *w,
                            const ipvg_tensor *b, bool gelu)
{
    const ipvg_gemm g = {.rows = x->shape[0],
                         .n = w->shape[0],
                         .k = x->shape[1],
                         .ldx = x->ld,
                         .ldw = w->ld,
                         .ldy = y->ld,
                         .batch = 1,
                         .in = x->dtype,
                         .out = y->dtype,
                         .bias = b != NULL,
                         .gelu = gelu};
    const ipvg_gemm_data data = {
        .y = y->data, .x = x->data, .w = w->data, .bias = b ? b->data : NULL, .scale_x = x->scale, .scale_w = w->scale};
    return ipvg_blas_gemm(ex, &g, 1.f, &data);
}

static ipvg_status activate(ipvg_exec *ex, ipvg_tensor *y, ipvg_act act)
{
    ipvg_k_array result;
    ipvg_status status = IPVG_OK;
    if (act == IPVG_ACT_NONE) goto done;
    IPVG_TRY(ipvg_cuda_array(ex, &result, "linear", y));
    IPVG_TRY(ipvg_cuda_check(ex->ctx,
                             ipvg_k_bias_act(result, result, (ipvg_k_array){0}, (ipvg_k_act)act, y->shape[0],
                                             y->shape[1], ipvg_cuda_of(ex)->stream),
                             "an activation"));
done:
    return status;
}

/* y, float32 or 16-bit. */
static ipvg_status product(ipvg_exec *ex, ipvg_tensor *y, const ipvg_tensor *x, const ipvg_tensor *w,
                           const ipvg_tensor *b, ipvg_act act)
{
    const bool gelu = act == IPVG_ACT_GELU_TANH && y->dtype != IPVG_F32;
    ipvg_status status = IPVG_OK;

    if (ipvg_planning(ex) || y->shape[0] == 0) goto done;
    IPVG_TRY(multiply(ex, y, x, w, b, gelu));
    IPVG_TRY(activate(ex, y, gelu ? IPVG_ACT_NONE : act));
done:
    return status;
}

/* y E4M3, rows at a time: a row's scale is known when its 16-bit form is, and that is as large as twice y. What act gave is
 * rounded to 16 bits first, which adds a 500th to what the rounding to E4M3 is off by. */
static ipvg_status product_to_e4m3(ipvg_exec *ex, ipvg_tensor *y, const ipvg_tensor *x, const ipvg_tensor *w,
                                   const ipvg_tensor *b, ipvg_act act)
{
    const int64_t rows = y->shape[0], shape[] = {rows < PART_ROWS ? rows : PART_ROWS, y->shape[1]};
    ipvg_tensor half;
    ipvg_status status;

    IPVG_TRY(ipvg_arena_tensor(ex->ctx, ex->arena, &half, IPVG_BF16, 2, shape));
    if (ipvg_planning(ex)) goto done;
    for (int64_t first = 0, count; first < rows; first += count) {
        count = rows - first < shape[0] ? rows - first : shape[0];
        ipvg_tensor in = ipvg_tensor_slice(x, first, count), mid = ipvg_tensor_slice(&half, 0, count);
        ipvg_tensor out = ipvg_tensor_slice(y, first, count);
        IPVG_TRY(product(ex, &mid, &in, w, b, act));
        IPVG_TRY(ipvg_cuda_cast(ex, &out, &mid));
    }
done:
    return status;
}

/* w is E4M3. An x that no kernel before has quantised is quantised here. */
static ipvg_status linear_e4m3(ipvg_exec *ex, ipvg_tensor *y, const ipvg_tensor *x, const ipvg_tensor *w,
                               const ipvg_tensor *b, ipvg_act act)
{
    size_t mark = ipvg_arena_mark(ex->arena);
    ipvg_tensor in = *x;
    ipvg_status status = IPVG_OK;

    if (w->shape[0] % 16 || w->shape[1] % 16)
        return ipvg_fail(ex->ctx, IPVG_E_UNSUPPORTED,
                         "linear: fp8 takes sizes that are multiples of 16, not (%lld, %lld); try dtype='bfloat16'",
                         (long long)w->shape[0], (long long)w->shape[1]);
    if ((y->dtype != IPVG_BF16 && y->dtype != IPVG_E4M3) || (b && b->dtype != IPVG_BF16))
        return ipvg_fail(ex->ctx, IPVG_E_TYPE, "linear: fp8 gives bfloat16 or fp8 and takes a bias in bfloat16");
    if (x->dtype != IPVG_E4M3) {
        IPVG_TRY(ipvg_arena_tensor(ex->ctx, ex->arena, &in, IPVG_E4M3, 2, x->shape));
        IPVG_TRY(ipvg_cuda_cast(ex, &in, x));
    }
    if (y->dtype == IPVG_E4M3)
        IPVG_TRY(product_to_e4m3(ex, y, &in, w, b, act));
    else
        IPVG_TRY(product(ex, y, &in, w, b, act));
done:
    ipvg_arena_reset(ex->arena, mark);
    return status;
}

ipvg_status ipvg_cuda_linear(ipvg_exec *ex, ipvg_tensor *y, const ipvg_tensor *x, const ipvg_tensor *w,
                             const ipvg_tensor *b, ipvg_act act, bool exact)
{
    ipvg_k_array unused;
    ipvg_status status;

    (void)exact;
    if (w->dtype == IPVG_E4M3) return linear_e4m3(ex, y, x, w, b, act);
    if (x->dtype != w->dtype || (b && b->dtype != y->dtype))
        return ipvg_fail(ex->ctx, IPVG_E_TYPE, "linear: x is %s with weights %s, y %s with a bias %s",
                         ipvg_dtype_name(x->dtype), ipvg_dtype_name(w->dtype), ipvg_dtype_name(y->dtype),
                         b ? ipvg_dtype_name(b->dtype) : "of none");
    IPVG_TRY(ipvg_cuda_array(ex, &unused, "linear", y));
    IPVG_TRY(product(ex, y, x, w, b, act));
done:
    return status;
}

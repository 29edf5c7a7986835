/* linear: y = act(x w^T + b). The dtypes are those of the tensors: model/place.h has brought weights and biases to what the
 * activations have. A GEMM takes the bias along, and GELU where its result is 16-bit: cuBLASLt's GELU is 7e-6 off the exact
 * tanh form, below half a bfloat16 but not below float32's own error. SiLU and float32's GELU follow in a kernel. */
#include "blas.h"

ipvg_status ipvg_cuda_linear(ipvg_exec *ex, ipvg_tensor *y, const ipvg_tensor *x, const ipvg_tensor *w,
                             const ipvg_tensor *b, ipvg_act act, bool exact)
{
    const bool gelu = act == IPVG_ACT_GELU_TANH && y->dtype != IPVG_F32;
    ipvg_k_array result;
    ipvg_status status;

    (void)exact;
    if (x->dtype != w->dtype || (b && b->dtype != y->dtype))
        return ipvg_fail(ex->ctx, IPVG_E_TYPE, "linear: x is %s with weights %s, y %s with a bias %s",
                         ipvg_dtype_name(x->dtype), ipvg_dtype_name(w->dtype), ipvg_dtype_name(y->dtype),
                         b ? ipvg_dtype_name(b->dtype) : "of none");
    IPVG_TRY(ipvg_cuda_array(ex, &result, "linear", y));
    if (ipvg_planning(ex) || y->shape[0] == 0) goto done;
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
    IPVG_TRY(ipvg_blas_gemm(ex, &g, 1.f, y->data, x->data, w->data, b ? b->data : NULL));
    if (act != IPVG_ACT_NONE && !gelu)
        IPVG_TRY(ipvg_cuda_check(ex->ctx,
                                 ipvg_k_bias_act(result, result, (ipvg_k_array){0}, (ipvg_k_act)act, y->shape[0],
                                                 y->shape[1], ipvg_cuda_of(ex)->stream),
                                 "an activation"));
done:
    return status;
}

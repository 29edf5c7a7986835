/* The CPU backend: its table, and which instruction set's loops this machine runs. */
#include <stdlib.h>
#include <string.h>

#include "cpu.h"

ipvg_status ipvg_cpu_need_f32(ipvg_exec *ex, const char *op, const char *what, const ipvg_tensor *t)
{
    if (t->dtype == IPVG_F32) return IPVG_OK;
    return ipvg_fail(ex->ctx, IPVG_E_TYPE, "%s: %s is %s, expected float32", op, what, ipvg_dtype_name(t->dtype));
}

ipvg_status ipvg_cpu_floats(ipvg_exec *ex, const float **out, const ipvg_tensor *t)
{
    *out = t->data;
    if (t->dtype == IPVG_F32) return IPVG_OK;
    if (t->dtype != IPVG_BF16 && t->dtype != IPVG_F16)
        return ipvg_fail(ex->ctx, IPVG_E_TYPE, "a weight is %s, expected float32, bfloat16 or float16",
                         ipvg_dtype_name(t->dtype));
    void *wide;
    ipvg_status status = ipvg_arena_alloc(ex->ctx, ex->arena, &wide, (size_t)ipvg_tensor_count(t) * sizeof(float));
    if (status != IPVG_OK) return status;
    if (!ipvg_planning(ex)) ipvg_cpu_loops(ex)->widen(wide, t->data, t->dtype, ipvg_tensor_count(t));
    *out = wide;
    return IPVG_OK;
}

static ipvg_status copy_in(ipvg_exec *ex, ipvg_tensor *dst, const void *host_src)
{
    if (!ipvg_planning(ex)) memcpy(dst->data, host_src, ipvg_tensor_bytes(dst));
    return IPVG_OK;
}

static ipvg_status copy_out(ipvg_exec *ex, void *host_dst, const ipvg_tensor *src)
{
    if (!ipvg_planning(ex)) memcpy(host_dst, src->data, ipvg_tensor_bytes(src));
    return IPVG_OK;
}

static void cpu_free(ipvg_backend *be)
{
    ipvg_cpu *cpu = be->state;
    ipvg_matmul16_free(&cpu->matmul16);
    free(cpu);
    free(be);
}

static const ipvg_loops *loops_of_machine(void)
{
    const char *limit = getenv("IPVG_ISA"); /* "baseline", "v3": for tests, and to compare */
    __builtin_cpu_init();
    bool v3 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    bool v4 = v3 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
              __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#ifdef IPVG_EMULATED_AVX512
    v4 = true;
#endif
    if (limit && !strcmp(limit, "baseline")) v3 = v4 = false;
    if (limit && !strcmp(limit, "v3")) v4 = false;
    return v4 ? &ipvg_loops_v4 : v3 ? &ipvg_loops_v3 : &ipvg_loops_baseline;
}

ipvg_status ipvg_backend_cpu(ipvg_context *ctx, ipvg_backend **out, ipvg_dtype compute)
{
    *out = NULL;
    if (compute != IPVG_F32 && compute != IPVG_BF16)
        return ipvg_fail(ctx, IPVG_E_UNSUPPORTED, "the CPU computes in float32 or bfloat16, not in %s",
                         ipvg_dtype_name(compute));
    ipvg_backend *be = malloc(sizeof *be);
    ipvg_cpu *cpu = calloc(1, sizeof *cpu);
    ipvg_status status = be && cpu ? IPVG_OK : ipvg_fail(ctx, IPVG_E_MEMORY, "no memory for a backend");
    if (status == IPVG_OK && compute == IPVG_BF16) status = ipvg_matmul16_new(ctx, &cpu->matmul16);
    if (status != IPVG_OK) {
        free(cpu);
        free(be);
        return status;
    }
    cpu->loops = loops_of_machine();
    *be = (ipvg_backend){
        .name = "cpu",
        .compute = compute,
        .activation = IPVG_F32, /* the values are rounded inside linear instead */
        .video = IPVG_F32,
        .ffn_rows = 2048,
        .few_keys = INT64_MAX,
        .host = true,
        .native = compute == IPVG_F32 || cpu->matmul16,
        .memory = ipvg_host_memory,
        .state = cpu,
        .free = cpu_free,
        .copy_in = copy_in,
        .copy_out = copy_out,
        .linear = ipvg_cpu_linear,
        .attention = ipvg_cpu_attention,
        .norm_modulate = ipvg_cpu_norm_modulate,
        .layer_norm = ipvg_cpu_layer_norm,
        .rms_norm = ipvg_cpu_rms_norm,
        .rms_norm_rope = ipvg_cpu_rms_norm_rope,
        .gate_residual = ipvg_cpu_gate_residual,
        .gated_gelu = ipvg_cpu_gated_gelu,
        .silu = ipvg_cpu_silu,
        .sums = ipvg_cpu_sums,
        .multiply = ipvg_cpu_multiply,
        .gram = ipvg_cpu_gram,
        .blur_tokens = ipvg_cpu_blur_tokens,
        .nag = ipvg_cpu_nag,
        .gather_rows = ipvg_cpu_gather_rows,
        .patchify = ipvg_cpu_patchify,
        .unpatchify = ipvg_cpu_unpatchify,
        .cast = ipvg_cpu_cast,
        .conv_prepare = ipvg_cpu_conv_prepare,
        .conv_release = ipvg_cpu_conv_release,
        .conv = ipvg_cpu_conv,
        .norm_silu = ipvg_cpu_norm_silu,
    };
    *out = be;
    return IPVG_OK;
}

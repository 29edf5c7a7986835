#include "matmul16.h"

#include <oneapi/dnnl/dnnl.h>
#include <stdlib.h>

struct ipvg_matmul16 {
    dnnl_engine_t engine;
    dnnl_stream_t stream;
};

/* oneDNN 3 made memory descriptors opaque and folded the operation's descriptor into the primitive's. */
#if DNNL_VERSION_MAJOR >= 3
typedef dnnl_memory_desc_t memory_desc;

static dnnl_status_t desc_new(memory_desc *d, int64_t rows, int64_t columns, int64_t sr, int64_t sc, dnnl_data_type_t t)
{
    return dnnl_memory_desc_create_with_strides(d, 2, (dnnl_dims_t){rows, columns}, t, (dnnl_dims_t){sr, sc});
}
static void desc_free(memory_desc d)
{
    if (d) dnnl_memory_desc_destroy(d);
}
static dnnl_status_t matmul_new(dnnl_primitive_desc_t *out, dnnl_engine_t engine, memory_desc *d)
{
    return dnnl_matmul_primitive_desc_create(out, engine, d[0], d[1], NULL, d[2], NULL);
}
#define DESC(d) (d)
#else
typedef dnnl_memory_desc_t memory_desc; /* a plain struct */

static dnnl_status_t desc_new(memory_desc *d, int64_t rows, int64_t columns, int64_t sr, int64_t sc, dnnl_data_type_t t)
{
    return dnnl_memory_desc_init_by_strides(d, 2, (dnnl_dims_t){rows, columns}, t, (dnnl_dims_t){sr, sc});
}
static void desc_free(memory_desc d) { (void)d; }
static dnnl_status_t matmul_new(dnnl_primitive_desc_t *out, dnnl_engine_t engine, memory_desc *d)
{
    dnnl_matmul_desc_t op;
    dnnl_status_t st = dnnl_matmul_desc_init(&op, &d[0], &d[1], NULL, &d[2]);
    return st != dnnl_success ? st : dnnl_primitive_desc_create(out, &op, NULL, engine, NULL);
}
#define DESC(d) (&(d))
#endif

/* The product as a primitive; oneDNN keeps the generated code of equal shapes, so asking again is cheap. */
static dnnl_status_t product(dnnl_primitive_t *out, memory_desc *d, dnnl_engine_t engine, int64_t ldy, int64_t rows,
                             int64_t k, int64_t n)
{
    dnnl_primitive_desc_t pd = NULL;
    dnnl_status_t st = desc_new(&d[0], rows, k, k, 1, dnnl_bf16);
    if (st == dnnl_success) st = desc_new(&d[1], k, n, 1, k, dnnl_bf16); /* w (n, k), seen as its transpose */
    if (st == dnnl_success) st = desc_new(&d[2], rows, n, ldy, 1, dnnl_f32);
    if (st == dnnl_success) st = matmul_new(&pd, engine, d);
    if (st == dnnl_success) st = dnnl_primitive_create(out, pd);
    if (pd) dnnl_primitive_desc_destroy(pd);
    return st;
}

ipvg_status ipvg_matmul16_new(ipvg_context *ctx, ipvg_matmul16 **out)
{
    *out = NULL;
    __builtin_cpu_init();
    /* Without the instruction oneDNN would offer its slow reference code, or refuse. */
    if (!__builtin_cpu_supports("avx512bf16")) return IPVG_OK;
    ipvg_matmul16 *m = calloc(1, sizeof *m);
    if (!m) return ipvg_fail(ctx, IPVG_E_MEMORY, "no memory for a matrix product");
    memory_desc d[3] = {0};
    dnnl_primitive_t probe = NULL;
    dnnl_status_t st = dnnl_engine_create(&m->engine, dnnl_cpu, 0);
    if (st == dnnl_success) st = dnnl_stream_create(&m->stream, m->engine, dnnl_stream_default_flags);
    if (st == dnnl_success) st = product(&probe, d, m->engine, 32, 32, 32, 32);
    for (int i = 0; i < 3; i++) desc_free(d[i]);
    if (probe) dnnl_primitive_destroy(probe);
    if (st == dnnl_success)
        *out = m;
    else
        ipvg_matmul16_free(&m);
    return IPVG_OK;
}

void ipvg_matmul16_free(ipvg_matmul16 **m)
{
    if (!*m) return;
    if ((*m)->stream) dnnl_stream_destroy((*m)->stream);
    if ((*m)->engine) dnnl_engine_destroy((*m)->engine);
    free(*m);
    *m = NULL;
}

ipvg_status ipvg_matmul16_run(ipvg_context *ctx, const ipvg_matmul16 *m, float *y, int64_t ldy, const uint16_t *x,
                              const uint16_t *w, int64_t rows, int64_t k, int64_t n)
{
    memory_desc d[3] = {0};
    void *const data[3] = {(void *)x, (void *)w, y};
    static const int role[3] = {DNNL_ARG_SRC, DNNL_ARG_WEIGHTS, DNNL_ARG_DST};
    dnnl_exec_arg_t args[3] = {0};
    dnnl_primitive_t primitive = NULL;
    dnnl_status_t st = product(&primitive, d, m->engine, ldy, rows, k, n);
    for (int i = 0; i < 3 && st == dnnl_success; i++) {
        args[i].arg = role[i];
        st = dnnl_memory_create(&args[i].memory, DESC(d[i]), m->engine, data[i]);
    }
    if (st == dnnl_success) st = dnnl_primitive_execute(primitive, m->stream, 3, args);
    if (st == dnnl_success) st = dnnl_stream_wait(m->stream);
    for (int i = 0; i < 3; i++) {
        if (args[i].memory) dnnl_memory_destroy(args[i].memory);
        desc_free(d[i]);
    }
    if (primitive) dnnl_primitive_destroy(primitive);
    return st == dnnl_success
               ? IPVG_OK
               : ipvg_fail(ctx, IPVG_E_BACKEND, "oneDNN's bfloat16 product of (%lld, %lld) and (%lld, %lld) failed: %d",
                           (long long)rows, (long long)k, (long long)n, (long long)k, (int)st);
}

#include "matmul16.h"

#include <oneapi/dnnl/dnnl.h>
#include <stdlib.h>

struct ipvg_matmul16 {
    dnnl_engine_t engine;
    dnnl_stream_t stream;
    dnnl_primitive_attr_t attr; /* scratch comes from the caller */
};

enum { X, W, Y, SCRATCH, PARTS };

/* oneDNN 3 made memory descriptors opaque and folded the operation's descriptor into the primitive's. */
#if DNNL_VERSION_MAJOR >= 3
typedef dnnl_memory_desc_t memory_desc;
typedef const_dnnl_memory_desc_t memory_view;

static dnnl_status_t desc_new(memory_desc *d, int64_t rows, int64_t columns, int64_t sr, int64_t sc, dnnl_data_type_t t)
{
    return dnnl_memory_desc_create_with_strides(d, 2, (dnnl_dims_t){rows, columns}, t, (dnnl_dims_t){sr, sc});
}
static void desc_free(memory_desc d)
{
    if (d) dnnl_memory_desc_destroy(d);
}
static dnnl_status_t matmul_new(dnnl_primitive_desc_t *out, const ipvg_matmul16 *m, memory_desc *d)
{
    return dnnl_matmul_primitive_desc_create(out, m->engine, d[X], d[W], NULL, d[Y], m->attr);
}
#define VIEW(d) (d)
#else
typedef dnnl_memory_desc_t memory_desc; /* a plain struct */
typedef const dnnl_memory_desc_t *memory_view;

static dnnl_status_t desc_new(memory_desc *d, int64_t rows, int64_t columns, int64_t sr, int64_t sc, dnnl_data_type_t t)
{
    return dnnl_memory_desc_init_by_strides(d, 2, (dnnl_dims_t){rows, columns}, t, (dnnl_dims_t){sr, sc});
}
static void desc_free(memory_desc d) { (void)d; }
static dnnl_status_t matmul_new(dnnl_primitive_desc_t *out, const ipvg_matmul16 *m, memory_desc *d)
{
    dnnl_matmul_desc_t op;
    dnnl_status_t st = dnnl_matmul_desc_init(&op, &d[X], &d[W], NULL, &d[Y]);
    return st != dnnl_success ? st : dnnl_primitive_desc_create(out, &op, m->attr, m->engine, NULL);
}
#define VIEW(d) (&(d))
#endif

/* One product. oneDNN keeps the generated code of equal shapes, so making it again is cheap. */
typedef struct product {
    memory_desc desc[3];
    dnnl_primitive_desc_t pd;
} product;

static dnnl_status_t product_new(product *p, const ipvg_matmul16 *m, int64_t ldy, int64_t rows, int64_t k, int64_t n)
{
    dnnl_status_t st = desc_new(&p->desc[X], rows, k, k, 1, dnnl_bf16);
    if (st == dnnl_success) st = desc_new(&p->desc[W], k, n, 1, k, dnnl_bf16); /* w (n, k), seen as its transpose */
    if (st == dnnl_success) st = desc_new(&p->desc[Y], rows, n, ldy, 1, dnnl_f32);
    if (st == dnnl_success) st = matmul_new(&p->pd, m, p->desc);
    return st;
}

static void product_free(product *p)
{
    for (int i = 0; i < 3; i++) desc_free(p->desc[i]);
    if (p->pd) dnnl_primitive_desc_destroy(p->pd);
}

static memory_view scratch_desc(const product *p)
{
    return dnnl_primitive_desc_query_md(p->pd, dnnl_query_scratchpad_md, 0);
}

static ipvg_status failed(ipvg_context *ctx, dnnl_status_t st, int64_t rows, int64_t k, int64_t n)
{
    return ipvg_fail(ctx, IPVG_E_BACKEND, "oneDNN's bfloat16 product of (%lld, %lld) and (%lld, %lld) failed: %d",
                     (long long)rows, (long long)k, (long long)n, (long long)k, (int)st);
}

ipvg_status ipvg_matmul16_new(ipvg_context *ctx, ipvg_matmul16 **out)
{
    *out = NULL;
    __builtin_cpu_init();
    /* Without the instruction oneDNN would offer its slow reference code, or refuse. */
    if (!__builtin_cpu_supports("avx512bf16")) return IPVG_OK;
    ipvg_matmul16 *m = calloc(1, sizeof *m);
    if (!m) return ipvg_fail(ctx, IPVG_E_MEMORY, "no memory for a matrix product");
    product probe = {0};
    dnnl_status_t st = dnnl_engine_create(&m->engine, dnnl_cpu, 0);
    if (st == dnnl_success) st = dnnl_stream_create(&m->stream, m->engine, dnnl_stream_default_flags);
    if (st == dnnl_success) st = dnnl_primitive_attr_create(&m->attr);
    if (st == dnnl_success) st = dnnl_primitive_attr_set_scratchpad_mode(m->attr, dnnl_scratchpad_mode_user);
    if (st == dnnl_success) st = product_new(&probe, m, 32, 32, 32, 32);
    product_free(&probe);
    if (st == dnnl_success)
        *out = m;
    else
        ipvg_matmul16_free(&m);
    return IPVG_OK;
}

void ipvg_matmul16_free(ipvg_matmul16 **m)
{
    if (!*m) return;
    if ((*m)->attr) dnnl_primitive_attr_destroy((*m)->attr);
    if ((*m)->stream) dnnl_stream_destroy((*m)->stream);
    if ((*m)->engine) dnnl_engine_destroy((*m)->engine);
    free(*m);
    *m = NULL;
}

ipvg_status ipvg_matmul16_scratch(ipvg_context *ctx, const ipvg_matmul16 *m, size_t *bytes, int64_t ldy, int64_t rows,
                                  int64_t k, int64_t n)
{
    product p = {0};
    dnnl_status_t st = product_new(&p, m, ldy, rows, k, n);
    if (st == dnnl_success) *bytes = dnnl_memory_desc_get_size(scratch_desc(&p));
    product_free(&p);
    return st == dnnl_success ? IPVG_OK : failed(ctx, st, rows, k, n);
}

ipvg_status ipvg_matmul16_run(ipvg_context *ctx, const ipvg_matmul16 *m, float *y, int64_t ldy, const uint16_t *x,
                              const uint16_t *w, void *scratch, int64_t rows, int64_t k, int64_t n)
{
    static const int role[PARTS] = {DNNL_ARG_SRC, DNNL_ARG_WEIGHTS, DNNL_ARG_DST, DNNL_ARG_SCRATCHPAD};
    void *const data[PARTS] = {(void *)x, (void *)w, y, scratch};
    dnnl_exec_arg_t args[PARTS] = {0};
    dnnl_primitive_t primitive = NULL;
    product p = {0};
    dnnl_status_t st = product_new(&p, m, ldy, rows, k, n);
    if (st == dnnl_success) st = dnnl_primitive_create(&primitive, p.pd);
    for (int i = 0; i < PARTS && st == dnnl_success; i++) {
        args[i].arg = role[i];
        st = dnnl_memory_create(&args[i].memory, i == SCRATCH ? scratch_desc(&p) : VIEW(p.desc[i]), m->engine, data[i]);
    }
    if (st == dnnl_success) st = dnnl_primitive_execute(primitive, m->stream, PARTS, args);
    if (st == dnnl_success) st = dnnl_stream_wait(m->stream);
    for (int i = 0; i < PARTS; i++)
        if (args[i].memory) dnnl_memory_destroy(args[i].memory);
    if (primitive) dnnl_primitive_destroy(primitive);
    product_free(&p);
    return st == dnnl_success ? IPVG_OK : failed(ctx, st, rows, k, n);
}

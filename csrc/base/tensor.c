#include "tensor.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

static const struct {
    size_t size;
    const char *name;
} dtypes[IPVG_DTYPES] = {
    [IPVG_F32] = {4, "float32"}, [IPVG_BF16] = {2, "bfloat16"}, [IPVG_F16] = {2, "float16"},
    [IPVG_F64] = {8, "float64"}, [IPVG_I32] = {4, "int32"},     [IPVG_I64] = {8, "int64"},
    [IPVG_U8] = {1, "uint8"},    [IPVG_E4M3] = {1, "fp8"},
};

size_t ipvg_dtype_size(ipvg_dtype dtype) { return dtypes[dtype].size; }
const char *ipvg_dtype_name(ipvg_dtype dtype) { return dtypes[dtype].name; }

ipvg_tensor ipvg_tensor_make(void *data, ipvg_dtype dtype, int ndim, const int64_t *shape)
{
    ipvg_tensor t = {.dtype = dtype, .ndim = ndim, .ld = ndim ? shape[ndim - 1] : 1, .data = data};
    for (int i = 0; i < ndim; i++) t.shape[i] = shape[i];
    return t;
}

int64_t ipvg_tensor_count(const ipvg_tensor *t)
{
    int64_t n = 1;
    for (int i = 0; i < t->ndim; i++) n *= t->shape[i];
    return n;
}

int64_t ipvg_tensor_rows(const ipvg_tensor *t)
{
    int64_t n = 1;
    for (int i = 0; i + 1 < t->ndim; i++) n *= t->shape[i];
    return n;
}

size_t ipvg_tensor_bytes(const ipvg_tensor *t) { return (size_t)ipvg_tensor_count(t) * ipvg_dtype_size(t->dtype); }

float ipvg_tensor_at(const ipvg_tensor *t, int64_t i)
{
    uint32_t bits;
    float x;
    if (t->dtype == IPVG_F32) return ((const float *)t->data)[i];
    if (t->dtype == IPVG_F64) return (float)((const double *)t->data)[i];
    bits = ((const uint16_t *)t->data)[i];
    if (t->dtype == IPVG_F16) {
        int exponent = (int)(bits >> 10 & 31), fraction = (int)(bits & 1023);
        if (exponent == 31)
            x = fraction ? NAN : INFINITY;
        else
            x = exponent ? ldexpf((float)(1024 + fraction), exponent - 25) : ldexpf((float)fraction, -24);
        return bits >> 15 ? -x : x;
    }
    bits <<= 16; /* bfloat16 is the upper half of a float32 */
    memcpy(&x, &bits, sizeof x);
    return x;
}

ipvg_tensor ipvg_tensor_slice(const ipvg_tensor *t, int64_t first, int64_t count)
{
    ipvg_tensor s = *t;
    int64_t step = t->ndim == 2 ? t->ld : ipvg_tensor_count(t) / (t->shape[0] ? t->shape[0] : 1);
    s.shape[0] = count;
    if (t->data) s.data = (char *)t->data + (size_t)(first * step) * ipvg_dtype_size(t->dtype);
    if (t->scale) s.scale += first;
    return s;
}

ipvg_tensor ipvg_tensor_columns(const ipvg_tensor *t, int64_t first, int64_t count)
{
    ipvg_tensor s = *t;
    s.shape[1] = count;
    if (t->data) s.data = (char *)t->data + (size_t)first * ipvg_dtype_size(t->dtype);
    return s;
}

const char *ipvg_shape_text(char *buf, size_t size, int ndim, const int64_t *shape)
{
    size_t n = (size_t)snprintf(buf, size, "(");
    for (int i = 0; i < ndim && n < size; i++)
        n += (size_t)snprintf(buf + n, size - n, i ? ", %lld" : "%lld", (long long)shape[i]);
    if (n < size) snprintf(buf + n, size - n, ndim == 1 ? ",)" : ")");
    return buf;
}

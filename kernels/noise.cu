/* Philox noise with the bits of csrc/base/random.c, which says what each formula is. */
#include "launch.cuh"

/* A double whose +, -, *, / round once each: the compiler would fuse a product and a sum into one operation. */
struct exact {
    double v;
    __device__ exact(double v_) : v(v_) {}
};
__device__ inline exact operator+(exact a, exact b) { return __dadd_rn(a.v, b.v); }
__device__ inline exact operator-(exact a, exact b) { return __dsub_rn(a.v, b.v); }
__device__ inline exact operator*(exact a, exact b) { return __dmul_rn(a.v, b.v); }
__device__ inline exact operator/(exact a, exact b) { return __ddiv_rn(a.v, b.v); }

__device__ inline void philox(uint32_t (&c)[4], uint32_t k0, uint32_t k1)
{
    for (int round = 0; round < 10; round++) {
        const uint64_t a = (uint64_t)0xD2511F53 * c[0], b = (uint64_t)0xCD9E8D57 * c[2];
        c[0] = (uint32_t)(b >> 32) ^ c[1] ^ k0;
        c[1] = (uint32_t)b;
        c[2] = (uint32_t)(a >> 32) ^ c[3] ^ k1;
        c[3] = (uint32_t)a;
        k0 += 0x9E3779B9;
        k1 += 0xBB67AE85;
    }
}

__device__ inline exact exact_log(double x)
{
    const int64_t bits = __double_as_longlong(x);
    int e = (int)(bits >> 52) - 1023;
    exact m = __longlong_as_double((bits & 0xFFFFFFFFFFFFFll) | 0x3FF0000000000000ll);
    if (m.v > 1.4142135623730951) m = m * 0.5, e++;
    const exact s = (m - 1.) / (m + 1.), z = s * s;
    exact sum = 1.0 / 21;
    for (int k = 19; k >= 1; k -= 2) sum = sum * z + exact(1.) / (double)k;
    return exact(e) * 0.6931471805599453 + exact(2) * s * sum;
}

/* AS241 PPND16: numerator and denominator of its three ranges. */
static __constant__ double coefficient[3][2][8] = {
    {{3.3871328727963666080e0, 1.3314166789178437745e2, 1.9715909503065514427e3, 1.3731693765509461125e4,
      4.5921953931549871457e4, 6.7265770927008700853e4, 3.3430575583588128105e4, 2.5090809287301226727e3},
     {1.0, 4.2313330701600911252e1, 6.8718700749205790830e2, 5.3941960214247511077e3, 2.1213794301586595867e4,
      3.9307895800092710610e4, 2.8729085735721942674e4, 5.2264952788528545610e3}},
    {{1.42343711074968357734e0, 4.63033784615654529590e0, 5.76949722146069140550e0, 3.64784832476320460504e0,
      1.27045825245236838258e0, 2.41780725177450611770e-1, 2.27238449892691845833e-2, 7.74545014278341407640e-4},
     {1.0, 2.05319162663775882187e0, 1.67638483018380384940e0, 6.89767334985100004550e-1, 1.48103976427480074590e-1,
      1.51986665636164571966e-2, 5.47593808499534494600e-4, 1.05075007164441684324e-9}},
    {{6.65790464350110377720e0, 5.46378491116411436990e0, 1.78482653991729133580e0, 2.96560571828504891230e-1,
      2.65321895265761230930e-2, 1.24266094738807843860e-3, 2.71155556874348757815e-5, 2.01033439929228813265e-7},
     {1.0, 5.99832206555887937690e-1, 1.36929880922735805310e-1, 1.48753612908506148525e-2, 7.86869131145613259100e-4,
      1.84631831751005468180e-5, 1.42151175831644588870e-7, 2.04426310338993978564e-15}}};

__device__ inline exact polynomial(const double (&c)[8], exact x)
{
    exact sum = c[7];
    for (int k = 6; k >= 0; k--) sum = sum * x + c[k];
    return sum;
}

__device__ inline double normal_quantile(double u)
{
    const exact q = exact(u) - 0.5;
    if (fabs(q.v) <= 0.425) {
        const exact r = exact(0.180625) - q * q;
        return (q * polynomial(coefficient[0][0], r) / polynomial(coefficient[0][1], r)).v;
    }
    const exact tail = q.v < 0 ? exact(u) : exact(1) - u;
    const exact r = __dsqrt_rn(-exact_log(tail.v).v);
    const int range = r.v <= 5 ? 1 : 2;
    const exact t = r - (range == 1 ? 1.6 : 5.);
    const exact z = polynomial(coefficient[range][0], t) / polynomial(coefficient[range][1], t);
    return q.v < 0 ? -z.v : z.v;
}

/* One thread a Philox block: elements 2 b and 2 b + 1. */
__global__ void normals_kernel(float *out, uint64_t seed, uint32_t stream_number, uint64_t first, int64_t count)
{
    const uint64_t b = (first >> 1) + (uint64_t)blockIdx.x * blockDim.x + threadIdx.x;
    uint32_t w[4] = {(uint32_t)b, (uint32_t)(b >> 32), stream_number, 0};
    if (2 * b >= first + (uint64_t)count) return;
    philox(w, (uint32_t)seed, (uint32_t)(seed >> 32));
    for (int i = 0; i < 2; i++) {
        const uint64_t at = 2 * b + (uint64_t)i, word = w[2 * i] | (uint64_t)w[2 * i + 1] << 32;
        if (at < first || at >= first + (uint64_t)count) continue;
        out[at - first] = (float)normal_quantile(((double)(word >> 12) + 0.5) * 0x1p-52); /* exact */
    }
}

int ipvg_k_normals(float *out, uint64_t seed, uint32_t stream_number, uint64_t first, int64_t count, void *stream)
{
    if (count < 0) return cudaErrorInvalidValue;
    const int64_t blocks = count ? (int64_t)((first + (uint64_t)count + 1) / 2 - first / 2) : 0;
    return launch(normals_kernel, ceil_div(blocks, 256), 256, stream, out, seed, stream_number, first, count);
}

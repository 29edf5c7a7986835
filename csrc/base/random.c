#include "random.h"

#include <math.h>
#include <string.h>

/* A fused multiply-add rounds once where these formulas round twice. GCC's -std=c11 never fuses; Clang must be told. */
#ifdef __clang__
#pragma STDC FP_CONTRACT OFF
#endif

void ipvg_philox(uint32_t out[4], const uint32_t counter[4], const uint32_t key[2])
{
    uint32_t c0 = counter[0], c1 = counter[1], c2 = counter[2], c3 = counter[3], k0 = key[0], k1 = key[1];
    for (int round = 0; round < 10; round++) {
        uint64_t a = (uint64_t)0xD2511F53 * c0, b = (uint64_t)0xCD9E8D57 * c2;
        c0 = (uint32_t)(b >> 32) ^ c1 ^ k0;
        c1 = (uint32_t)b;
        c2 = (uint32_t)(a >> 32) ^ c3 ^ k1;
        c3 = (uint32_t)a;
        k0 += 0x9E3779B9;
        k1 += 0xBB67AE85;
    }
    out[0] = c0, out[1] = c1, out[2] = c2, out[3] = c3;
}

/* log of a normal double above 0: x = 2^e m with m in [1/sqrt 2, sqrt 2), and log m = 2 atanh((m - 1) / (m + 1)) by its
 * series, whose argument is at most 0.172, so that ten terms reach double precision. */
static double exact_log(double x)
{
    uint64_t bits;
    memcpy(&bits, &x, sizeof bits);
    int e = (int)(bits >> 52) - 1023;
    bits = (bits & 0xFFFFFFFFFFFFFull) | 0x3FF0000000000000ull;
    double m;
    memcpy(&m, &bits, sizeof m);
    if (m > 1.4142135623730951) m *= 0.5, e++;
    double s = (m - 1) / (m + 1), z = s * s, sum = 1.0 / 21;
    for (int k = 19; k >= 1; k -= 2) sum = sum * z + 1.0 / k;
    return e * 0.6931471805599453 + 2 * s * sum;
}

static double polynomial(const double c[8], double x)
{
    double sum = c[7];
    for (int k = 6; k >= 0; k--) sum = sum * x + c[k];
    return sum;
}

/* AS241 PPND16: a quotient of two polynomials, in (u - 1/2)^2 near the middle and in sqrt(-log tail) outside. */
double ipvg_normal_quantile(double u)
{
    static const double middle[2][8] = {
        {3.3871328727963666080e0, 1.3314166789178437745e2, 1.9715909503065514427e3, 1.3731693765509461125e4,
         4.5921953931549871457e4, 6.7265770927008700853e4, 3.3430575583588128105e4, 2.5090809287301226727e3},
        {1.0, 4.2313330701600911252e1, 6.8718700749205790830e2, 5.3941960214247511077e3, 2.1213794301586595867e4,
         3.9307895800092710610e4, 2.8729085735721942674e4, 5.2264952788528545610e3}};
    static const double near[2][8] = {
        {1.42343711074968357734e0, 4.63033784615654529590e0, 5.76949722146069140550e0, 3.64784832476320460504e0,
         1.27045825245236838258e0, 2.41780725177450611770e-1, 2.27238449892691845833e-2, 7.74545014278341407640e-4},
        {1.0, 2.05319162663775882187e0, 1.67638483018380384940e0, 6.89767334985100004550e-1, 1.48103976427480074590e-1,
         1.51986665636164571966e-2, 5.47593808499534494600e-4, 1.05075007164441684324e-9}};
    static const double far[2][8] = {
        {6.65790464350110377720e0, 5.46378491116411436990e0, 1.78482653991729133580e0, 2.96560571828504891230e-1,
         2.65321895265761230930e-2, 1.24266094738807843860e-3, 2.71155556874348757815e-5, 2.01033439929228813265e-7},
        {1.0, 5.99832206555887937690e-1, 1.36929880922735805310e-1, 1.48753612908506148525e-2,
         7.86869131145613259100e-4, 1.84631831751005468180e-5, 1.42151175831644588870e-7, 2.04426310338993978564e-15}};
    double q = u - 0.5;
    if (fabs(q) <= 0.425) {
        double r = 0.180625 - q * q;
        return q * polynomial(middle[0], r) / polynomial(middle[1], r);
    }
    double r = sqrt(-exact_log(q < 0 ? u : 1 - u));
    double z = r <= 5 ? polynomial(near[0], r - 1.6) / polynomial(near[1], r - 1.6)
                      : polynomial(far[0], r - 5) / polynomial(far[1], r - 5);
    return q < 0 ? -z : z;
}

void ipvg_normals(float *out, uint64_t seed, uint32_t stream, uint64_t first, int64_t count)
{
    const uint32_t key[2] = {(uint32_t)seed, (uint32_t)(seed >> 32)};
    uint32_t w[4];
    for (int64_t n = 0; n < count; n++) {
        uint64_t i = first + (uint64_t)n, block = i >> 1;
        if (n == 0 || !(i & 1)) ipvg_philox(w, (uint32_t[]){(uint32_t)block, (uint32_t)(block >> 32), stream, 0}, key);
        uint64_t word = i & 1 ? w[2] | (uint64_t)w[3] << 32 : w[0] | (uint64_t)w[1] << 32;
        out[n] = (float)ipvg_normal_quantile(((double)(word >> 12) + 0.5) * 0x1p-52);
    }
}

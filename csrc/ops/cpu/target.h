/* Compiles every function below for the instruction set that ISA_LEVEL names (1 = SSE2, 3 = AVX2 + FMA, 4 = AVX-512), so
 * that the build needs no flags of its own per file. System headers come before it: their functions keep the target that
 * they were written for. */
#include <immintrin.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#ifdef __clang__
#if ISA_LEVEL == 4
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma"))), apply_to = function)
#elif ISA_LEVEL == 3
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma clang attribute push(__attribute__((target("sse2"))), apply_to = function)
#endif
#else
#if ISA_LEVEL == 4
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,prefer-vector-width=512")
#elif ISA_LEVEL == 3
#pragma GCC target("avx2,fma")
#endif
#endif

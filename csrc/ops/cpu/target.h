/* Compiles every function below for the instruction set that ISA_LEVEL names (1 = SSE2, 3 = AVX2 + FMA, 4 = AVX-512), so
 * that the build needs no flags of its own per file. System headers come before it: their functions keep the target that
 * they were written for. The including file ends with target_end.h. */
#include <immintrin.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#ifndef ISA_LEVEL
#define ISA_LEVEL 1
#endif

#if ISA_LEVEL == 4
#define ISA_NAME "x86-64-v4"
#ifdef IPVG_EMULATED_AVX512 /* a test's stand-in for the instructions */
#include IPVG_EMULATED_AVX512
#elif defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma"))), \
                             apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,prefer-vector-width=512")
#endif
#elif ISA_LEVEL == 3
#define ISA_NAME "x86-64-v3"
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx2,fma")
#endif
#else
#define ISA_NAME "x86-64"
#endif

/* Undoes target.h. */
#if defined(__clang__) && (ISA_LEVEL == 3 || (ISA_LEVEL == 4 && !defined(IPVG_EMULATED_AVX512)))
#pragma clang attribute pop
#endif

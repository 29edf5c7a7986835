/* Undoes target.h. */
#if defined(__clang__) && ISA_LEVEL >= 3
#pragma clang attribute pop
#endif

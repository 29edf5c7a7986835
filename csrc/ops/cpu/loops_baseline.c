#define ISA_LEVEL 1
#define ISA_TABLE ipvg_loops_baseline
#include "loops_impl.h"

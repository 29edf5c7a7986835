#define ISA_LEVEL 3
#define ISA_TABLE ipvg_loops_v3
#include "loops_impl.h"

#define ISA_LEVEL 4
#define ISA_TABLE ipvg_loops_v4
#include "loops_impl.h"

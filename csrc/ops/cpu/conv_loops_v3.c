#define ISA_LEVEL 3
#define CONV_TABLE ipvg_conv_loops_v3
#include "conv_loops_impl.h"

#define ISA_LEVEL 4
#define CONV_TABLE ipvg_conv_loops_v4
#include "conv_loops_impl.h"

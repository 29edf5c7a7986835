#define ISA_LEVEL 1
#define CONV_TABLE ipvg_conv_loops_baseline
#include "conv_loops_impl.h"

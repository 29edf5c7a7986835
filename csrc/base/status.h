/* What every fallible function of the core returns. The text that explains a failure lives in the context
 * (context.h); csrc/python/module.c alone turns a status into a Python exception. */
#ifndef IPVG_BASE_STATUS_H
#define IPVG_BASE_STATUS_H

typedef enum ipvg_status {
    IPVG_OK = 0,
    IPVG_E_ARGUMENT = -1,    /* a value, shape or range that cannot work        -> ValueError */
    IPVG_E_TYPE = -2,        /* a dtype that cannot work                        -> TypeError */
    IPVG_E_MEMORY = -3,      /* no memory                                       -> MemoryError */
    IPVG_E_IO = -4,          /* the system refused a file (sys_errno is set)    -> OSError */
    IPVG_E_FORMAT = -5,      /* bytes that are not what they claim to be        -> ipvg.FormatError */
    IPVG_E_CANCELLED = -6,   /* cancel() or Ctrl-C                              -> ipvg.Cancelled, KeyboardInterrupt */
    IPVG_E_UNSUPPORTED = -7, /* valid, but not by this build or machine         -> ipvg.UnsupportedError */
    IPVG_E_BACKEND = -8,     /* a library below failed (oneDNN, CUDA, FFmpeg)   -> ipvg.BackendError */
} ipvg_status;

#endif

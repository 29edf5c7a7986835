"""Which part of a stage a kernel is, by its name."""

from __future__ import annotations

import re

#: The first that fits: copies; cuDNN's and PyTorch's attention; norms, ipvg's (kernels/*.cu) and PyTorch's;
#: convolutions; matrix products. Everything else is "other": element by element, layouts, noise.
PARTS = (
    ("copy", r"^Mem(cpy|set)"),
    ("attention", r"sdpa|flash|fmha|attention"),
    ("norm", r"norm_|_norm|norm_kernel|layernorm|softmax|conv_finish|vectorized_layer_norm|rms"),
    ("conv", r"conv|fprop|dgrad|implicit|winograd|xmma.*ndhwc"),
    ("gemm", r"gemm|nvjet|cutlass|xmma|cublas|splitk|wgmma"),
)


def part_of(kernel: str) -> str:
    return next((part for part, pattern in PARTS if re.search(pattern, kernel, re.IGNORECASE)), "other")

"""Where a stage's time goes: which part of it a kernel is, by its name."""

from __future__ import annotations

import re

#: The first that fits: copies; cuDNN's and PyTorch's attention; norms, ipvg's (kernels/*.cu) and PyTorch's;
#: convolutions; matrix products. Everything else is "other": element by element, layouts, noise.
PARTS = (
    ("copy", r"^Mem(cpy|set)"),
    ("attention", r"sdpa|flash|fmha|attention"),
    ("norm", r"norm_|_norm|norm_kernel|layernorm|softmax|conv_finish|vectorized_layer_norm|rms|quantise"),
    ("conv", r"conv|fprop|dgrad|implicit|winograd|xmma.*ndhwc"),
    ("gemm", r"gem[mv]|nvjet|cutlass|xmma|cublas|splitk|wgmma"),
)


def part_of(kernel: str) -> str:
    return next((part for part, pattern in PARTS if re.search(pattern, kernel, re.IGNORECASE)), "other")


def summary(events: list[dict], seconds: float) -> dict:
    """Of a trace's events, whose durations are in microseconds. "idle": seconds that no kernel accounts for; a card
    that cooled before the trace makes it larger. "gaps": between its own first and last kernel, none running."""
    names: dict[str, list[float]] = {}
    work = [event for event in events if event.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset")]
    gaps, end = 0.0, None
    for event in sorted(work, key=lambda event: event["ts"]):
        names.setdefault(event["name"], []).append(event["dur"] / 1e6)
        gaps += max(0.0, event["ts"] - end) / 1e6 if end is not None else 0.0
        end = max(end or 0.0, event["ts"] + event["dur"])
    parts: dict[str, float] = {}
    for name, each in names.items():
        parts[part_of(name)] = parts.get(part_of(name), 0.0) + sum(each)
    dearest = sorted(names.items(), key=lambda item: -sum(item[1]))[:20]
    return {"idle": seconds - sum(parts.values()), "gaps": gaps, "parts": parts,
            "kernels": [(name[:120], part_of(name), len(each), sum(each)) for name, each in dearest]}  # fmt: skip

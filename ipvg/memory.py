"""How much memory a job needs, from the code that will run it: every model plans its scratch without computing."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from . import _core
from .checkpoint import Checkpoint
from .guidance import PRESETS, Guidance
from .guidance.weight import Field
from .source import check_size

if TYPE_CHECKING:
    from .lora import Lora


def estimate(
    checkpoint: Checkpoint,
    *,
    width: int,
    height: int,
    frames: int,
    guidance: Guidance | None = None,
    references: int = 1,
    loras: Sequence[Lora] = (),
    dtype: str = "float32",
    device: str = "cpu",
) -> dict[str, int]:
    """Bytes by part: "weights" (mapped, in the file's dtypes; what LoRAs change, in float32), "scratch" (the largest
    stage's), "latents" (prepared texts, contexts and the sampler's own) and "video" (the result).

    guidance: None = tpige_code(). Works without the files' data: only names and shapes are used. Raises ValueError for
    a size or device that cannot work, or a dtype other than float32, bfloat16 and fp8,
    ipvg.UnsupportedError for one that this device has not.
    """
    check_size((width, height), frames)
    dev = _core.Device(device, dtype=dtype)

    def model(kind, name):
        part = checkpoint.components[name]
        shapes = {k: (None, 0, e.dtype, e.shape) for k, e in part.entries.items()}
        return kind(dev, dataclasses.asdict(part.config), _core.Weights(shapes))

    text, vae, dit = model(_core.TextEncoder, "text"), model(_core.Vae, "vae"), model(_core.Dit, "dit")
    rule = PRESETS["tpige_code"]() if guidance is None else guidance
    h, w, f = height // 8, width // 8, references + (frames + 3) // 4
    of_vae, of_dit = vae.memory(frames, height, width), dit.memory(f, h, w, **_forward(rule, references))
    changed = {name for lora in loras for name in lora.tensors}
    entries = checkpoint.components["dit"].entries
    latent = dit.config["in_dim"] * f * h * w * 4
    return {
        "weights": sum(part.nbytes for part in checkpoint.components.values())
        + sum(4 * math.prod(entries[name].shape) for name in changed),
        "scratch": max(text.scratch(512), of_vae["encode"], of_vae["decode"], of_dit["scratch"]),
        "latents": len(rule.texts) * of_dit["text"]
        + len({b.reference if references else "" for b in rule.branches.values()}) * of_dit["context"]
        + (_slots(rule) + 1) * latent,  # and the noise
        "video": 3 * frames * height * width,
    }


def _forward(rule: Guidance, references: int) -> dict[str, Any]:
    """What a step asks of `Dit.memory`: all branches together."""
    branches = set(rule.branches.values())
    return {
        "branches": len(branches),
        "hints": len({(b.text, b.reference if references else "", b.nag) for b in branches}),
        "nag": any(b.nag for b in branches),
        "blur": any(b.blur_blocks for b in branches),
    }


def _slots(rule: Guidance) -> int:
    """Latent-sized tensors of a sampler, at most: the solver's five, the combined velocity, those of the branches, what
    operations make of them, APG's running differences, weights that are one number an element."""
    replaced = {o.replaces for o in rule.operations if o.replaces}
    apg = sum(o.kind == "apg" for o in rule.operations)
    fields = len(rule.branches) if any(isinstance(w, Field) for w in rule.weights.values()) else 0
    return 6 + len(rule.branches) + len(replaced) + 2 * apg + 2 * fields

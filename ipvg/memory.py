"""How much memory a job needs, from the code that will run it: every model plans its scratch without computing."""

from __future__ import annotations

import dataclasses

from . import _core
from .checkpoint import Checkpoint
from .source import check_size

#: Texts that a run holds at once, and references: what the presets need with one picture.
TEXTS, REFERENCES = 2, 1


def estimate(
    checkpoint: Checkpoint, *, width: int, height: int, frames: int, dtype: str = "float32", device: str = "cpu"
) -> dict[str, int]:
    """Bytes by part: "weights" (mapped, in the file's dtypes), "scratch" (the largest stage's), "latents" (prepared
    texts, contexts and the sampler's own) and "video" (the result).

    Works without the files' data: only names and shapes are used. Raises ValueError for a size or device that cannot
    work, or a dtype other than float32 and bfloat16.
    """
    check_size((width, height), frames)
    dev = _core.Device(device, dtype=dtype)

    def model(kind, name):
        part = checkpoint.components[name]
        shapes = {k: (None, 0, e.dtype, e.shape) for k, e in part.entries.items()}
        return kind(dev, dataclasses.asdict(part.config), _core.Weights(shapes))

    text, vae, dit = model(_core.TextEncoder, "text"), model(_core.Vae, "vae"), model(_core.Dit, "dit")
    h, w, f = height // 8, width // 8, REFERENCES + (frames + 3) // 4
    of_vae, of_dit = vae.memory(frames, height, width), dit.memory(f, h, w)
    latent = 16 * f * h * w * 4
    return {
        "weights": sum(part.nbytes for part in checkpoint.components.values()) + of_vae.get("weights", 0),
        "scratch": max(text.scratch(512), of_vae["encode"], of_vae["decode"], of_dit["scratch"]),
        "latents": TEXTS * of_dit["text"] + 2 * of_dit["context"] + 10 * latent,
        "video": 3 * frames * height * width,
    }

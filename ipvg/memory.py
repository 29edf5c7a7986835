"""How much memory a job needs, from the code that will run it: every model plans its scratch without computing."""

from __future__ import annotations

import bisect
import contextlib
import dataclasses
import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from . import _arguments, _core
from .checkpoint import Checkpoint
from .guidance import PRESETS, Guidance
from .guidance.weight import Field
from .source import check_size

if TYPE_CHECKING:
    from .lora import Lora

GIB = 2**30
MIB = 2**20


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
    device: str | _core.Device = "cpu",
    memory_limit: int | str | None = None,
    keep_text_encoder: bool = False,
) -> dict[str, int]:
    """Bytes by part: "weights" (mapped, in the file's dtypes; what LoRAs change, in float32), "scratch" (the largest
    stage's), "latents" (prepared texts, contexts and the sampler's own) and "video" (the result).

    On a GPU: of its memory, in the stage of a first job that takes most, and "cuda" (what CUDA takes for itself, an
    allowance) instead of "video". memory_limit, keep_text_encoder: as in `Pipeline.load`.
    guidance: None = tpige_code(). Works without the files' data: only names and shapes are used. Raises ValueError for
    a size or device that cannot work, or a dtype other than float32, bfloat16 and fp8, ipvg.UnsupportedError for one
    that this device has not; MemoryError for a memory_limit that is too small, with the smallest that will do.
    """
    plan = Plan(checkpoint, width, height, frames, guidance, references, dtype, device)
    if plan.device.memory is None:
        return plan.on_host(loras)
    if memory_limit is None:
        return plan.largest(keep_text_encoder)
    memory_limit, least = parse(memory_limit), plan.least(keep_text_encoder)
    if memory_limit < least:
        raise MemoryError(
            f"memory_limit: {memory_limit} bytes are too few for this job, which needs at least {least} "
            f"({memory_limit / GIB:.2f} and {least / GIB:.2f} GiB)"
        )
    return plan.largest(keep_text_encoder, memory_limit)


class Plan:
    """What the stages of a job take, by planning each of them with models that are shapes alone."""

    def __init__(self, checkpoint, width, height, frames, guidance, references, dtype, device):
        check_size((width, height), frames)
        self.checkpoint, self.frames, self.pixels = checkpoint, frames, width * height
        self.device = _core.Device(device, dtype=dtype) if isinstance(device, str) else device

        def model(kind, name):
            part = checkpoint.components[name]
            shapes = {k: (None, 0, e.dtype, e.shape) for k, e in part.entries.items()}
            return kind(self.device, dataclasses.asdict(part.config), _core.Weights(shapes))

        text, vae, dit = model(_core.TextEncoder, "text"), model(_core.Vae, "vae"), model(_core.Dit, "dit")
        rule = PRESETS["tpige_code"]() if guidance is None else guidance
        h, w, f = height // 8, width // 8, references + (frames + 3) // 4
        self.text, self.text_scratch = text.memory(), text.scratch(512)
        self.vae, self.dit = vae.memory(frames, height, width), dit.memory(f, h, w, **_forward(rule, references))
        self.states = 4 * 512 * dit.config["text_dim"]
        contexts = len({b.reference if references else "" for b in rule.branches.values()})
        latent = 4 * dit.config["in_dim"] * f * h * w
        self.latents = len(rule.texts) * self.dit["text"] + contexts * self.dit["context"] + (_slots(rule) + 1) * latent
        self.prepared = (  # of a GPU, where each is an allocation and the noise is not kept
            len(rule.texts) * _pages(self.dit["text"])
            + contexts * _pages(self.dit["context"])
            + _pages(_slots(rule) * latent)
        )

    def on_host(self, loras: Sequence[Lora]) -> dict[str, int]:
        components = self.checkpoint.components
        changed = {name for lora in loras for name in lora.tensors}
        return {
            "weights": sum(part.nbytes for part in components.values())
            + sum(4 * math.prod(components["dit"].entries[name].shape) for name in changed),
            "scratch": max(self.text_scratch, self.vae["encode"], self.vae["decode"], self.dit["scratch"]),
            "latents": self.latents,
            "video": 3 * self.frames * self.pixels,
        }

    def _stages(self, keep_text_encoder: bool, weights: str) -> list[dict[str, int]]:
        """weights: "weights", all of a model, or "least", streamed. Scratch is one block that grows; decoding has one
        of its own instead. The last two stages have the transformer."""
        text, vae, dit = _pages(self.text[weights]), _pages(self.vae["weights"]), _pages(self.dit[weights])
        kept = text if keep_text_encoder else 0
        encode = max(self.text_scratch, self.vae["encode"])
        stages = [
            {"weights": text, "scratch": self.text_scratch, "latents": self.states},
            {"weights": kept + vae, "scratch": encode, "latents": 0},
            {"weights": kept + vae + dit, "scratch": max(encode, self.dit["scratch"]), "latents": self.prepared},
            {"weights": kept + vae + dit, "scratch": self.vae["decode"], "latents": self.prepared},
        ]
        return [{**stage, "scratch": _pages(stage["scratch"])} for stage in stages]

    def largest(self, keep_text_encoder: bool, limit: int | None = None) -> dict[str, int]:
        """The stage that takes most. Under a limit: with as many blocks as will stay."""
        fixed = self.device.memory["fixed"]
        if limit is None:
            stages = self._stages(keep_text_encoder, "weights")
        else:
            stages = self._stages(keep_text_encoder, "least")
            block = _pages(self.dit["block"])
            most = (self.dit["weights"] - self.dit["least"]) // self.dit["block"] + 1
            for stage in stages[2:]:
                room = limit - fixed - sum(stage.values())
                stage["weights"] += block * max(0, min(most, room // block))
        return {**max(stages, key=lambda stage: sum(stage.values())), "cuda": fixed}

    def least(self, keep_text_encoder: bool) -> int:
        """The smallest memory_limit, in whole MiB; streaming has five allocations that end in pages of 2 MiB."""
        stages = self._stages(keep_text_encoder, "least")
        exact = self.device.memory["fixed"] + max(sum(stage.values()) for stage in stages)
        return -(-exact // MIB) * MIB + 5 * 2 * MIB


def _pages(size: int) -> int:
    """Bytes that a GPU's allocation takes (csrc/base/meter.c)."""
    unit = 256 if size < MIB else 2 * MIB
    return -(-size // unit) * unit


def parse(value: int | str | None) -> int | None:
    """Bytes of a memory_limit: a number of them, or a text as "24GB", "8 GiB", "900MB". ValueError, TypeError."""
    if isinstance(value, str):
        found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b\s*", value, re.ASCII | re.IGNORECASE)
        if not found:
            raise ValueError(f'memory_limit: {value!r} is no size; expected bytes, or a text as "24GB" or "8GiB"')
        value = int(float(found[1]) * (1024 if found[3] else 1000) ** " kmgt".index(found[2].lower() or " "))
    return None if value is None else _arguments.integer("memory_limit", value, 1, 2**63 - 1)


def check(checkpoint: Checkpoint, device: _core.Device, keep_text_encoder: bool, **job: Any) -> None:
    """Raises MemoryError with `advice` for a job that cannot fit. job: width, height, frames, guidance, references."""
    plan, memory = Plan(checkpoint, **job, dtype=device.dtype, device=device), device.memory
    needed = plan.least(keep_text_encoder) if memory["limit"] else sum(plan.largest(keep_text_encoder).values())
    if needed > (memory["limit"] or memory["total"]):
        raise MemoryError(f"out of memory before it began: {advice(checkpoint, device, keep_text_encoder, **job)}")


def advice(checkpoint: Checkpoint, device: _core.Device, keep_text_encoder: bool, **job: Any) -> str:
    """What a job that found no room needs, and what would fit the limit or the GPU."""
    memory = device.memory
    room = memory["limit"] or memory["total"]

    def least(keep=keep_text_encoder, on=device, **changed) -> int:
        return Plan(checkpoint, **{**job, **changed}, dtype=on.dtype, device=on).least(keep)

    whole = Plan(checkpoint, **job, dtype=device.dtype, device=device).largest(keep_text_encoder)
    fits = []
    if not memory["limit"] and least() <= room:
        fits.append(f"memory_limit={least()} or more")
    if keep_text_encoder and least(keep=False) <= room:
        fits.append("keep_text_encoder=False")
    if device.dtype == "float32":
        with contextlib.suppress(MemoryError, _core.BackendError):  # there may be no room even to ask
            if least(on=_core.Device(device.name, dtype="bfloat16")) <= room:
                fits.append('dtype="bfloat16"')
    pixels, frames = job["width"] * job["height"], job["frames"]
    sizes = [size for size in _SIZES if size[0] * size[1] < pixels and least(width=size[0], height=size[1]) <= room]
    fits += [f"size={size}" for size in sizes[:1]]
    fewer = range((frames - 1) // 4 - 1, -1, -1)
    n = bisect.bisect_left(fewer, True, key=lambda n: least(frames=4 * n + 1) <= room)
    fits += [f"frames={4 * k + 1}" for k in fewer[n : n + 1]]
    return (
        f"this job takes {sum(whole.values()) / GIB:.2f} GiB of the GPU's memory, streamed (memory_limit) at least "
        f"{least() / GIB:.2f}; there are {room / GIB:.2f}. What would fit, streamed: "
        f"{', or '.join(fits) if fits else 'nothing that ipvg knows of'}"
    )


_SIZES = ((1280, 720), (832, 480), (480, 320), (256, 192), (128, 96), (64, 64))  # to try, the largest first


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

"""LoRA files on the diffusion model: low-rank changes of its weights, merged in float32 when the model is made.

>>> style = pipe.load_lora("style.safetensors", strength=0.8)
>>> pipe.load_lora("identity.safetensors", blocks=range(10, 20))      # a second one, on ten main blocks only
>>> pipe.unload_lora(style)                                           # or unload_lora() for all

W' = W + strength (alpha / rank) up down, and W' = W + strength diff where a file stores a whole difference. alpha is
the rank where a file does not say. Weights that no LoRA touches stay in the mapped files; each that one does costs its
size in float32.

Key formats (METHOD section 2), told apart key by key, whatever the file mixes:

    diffusion_model.blocks.0.self_attn.q.lora_down.weight / lora_up.weight, .alpha      official names; also no prefix
    diffusion_model.blocks.0.self_attn.q.lora_A.weight / lora_B.weight                  also "model.diffusion_model."
    diffusion_model.blocks.0.norm3.diff / .diff_b, head.head.diff                       of a weight / a bias
    lora_unet_blocks_0_self_attn_q.lora_down.weight                                     kohya's: dots are underscores
    transformer.blocks.0.attn1.to_q.lora_A.weight                                       diffusers' names
    base_model.model.....lora_A.default.weight                                          PEFT's additions
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from . import _arguments
from ._core import FormatError
from .checkpoint import Component, DitConfig, Entry, expected, from_bfloat16, names
from .checkpoint.entry import printable
from .checkpoint.safetensors import read_header

_PREFIX = re.compile(r"(?:base_model\.model\.|model\.diffusion_model\.|diffusion_model\.|transformer\.|model\.)*")
_PAIR = re.compile(r"(.+)\.lora(?:_|\.)(down|up|A|B)(?:\.default)?(?:\.weight)?")
_OTHER = re.compile(r"(.+)\.(alpha|diff|diff_b)")


@dataclass
class _Change:
    """What a file says about one tensor of the model."""

    down: Entry | None = None
    up: Entry | None = None
    alpha: Entry | None = None
    diff: Entry | None = None


@dataclass(frozen=True, eq=False)
class Lora:
    """An opened LoRA file: headers only, its keys known and its shapes right. See `open`.

    path: the file. strength: of all blocks, or block number -> strength. tensors: the official names that it changes.
    skipped: keys that were passed over. rank: the largest.
    """

    path: Path
    strength: float | Mapping[int, float]
    changes: dict[str, _Change] = field(repr=False)
    skipped: tuple[str, ...] = ()

    @classmethod
    def open(
        cls,
        path: str | os.PathLike,
        config: DitConfig,
        *,
        strength: float = 1.0,
        blocks: Collection[int] | Mapping[int, float] | None = None,
        skip_unknown: bool = False,
    ) -> Lora:
        """Reads a .safetensors file's header and fits its keys to a model of these sizes.

        strength: any finite number; negative takes the change away. blocks: the main blocks that it acts on (and
            nothing else then), or block number -> a factor on strength; None: everything that the file changes.
        skip_unknown: pass over keys of parts that this model has not (image cross-attention, say); they are listed
            in `skipped`. Wrong shapes and half pairs are errors all the same.
        Raises FormatError that names the keys, OSError, TypeError, ValueError.
        """
        _arguments.number("strength", strength)
        path = Path(path)
        changes, unknown = _sort(read_header(path), config, path)
        if unknown and not skip_unknown:
            raise FormatError(
                f"{path}: {len(unknown)} keys fit no tensor of this model: {_few(unknown)}; skip_unknown=True passes "
                "over them"
            )
        if not changes:
            raise FormatError(f"{path}: no key of a LoRA for this model in it")
        _check(changes, config, path)
        return cls(path, _strengths(strength, blocks, config), changes, tuple(unknown))

    @property
    def tensors(self) -> tuple[str, ...]:
        return tuple(name for name in self.changes if self.factor(name) != 0)

    @property
    def rank(self) -> int:
        return max((c.down.shape[0] for c in self.changes.values() if c.down), default=0)

    def factor(self, tensor: str) -> float:
        """The strength on that tensor: 0 where the LoRA does not act."""
        if not isinstance(self.strength, Mapping):
            return self.strength
        block = re.match(r"blocks\.(\d+)\.", tensor)
        return self.strength.get(int(block[1]), 0.0) if block else 0.0

    def delta(self, tensor: str, shape: Sequence[int]) -> np.ndarray:
        """float32 of `shape`: what is added to that tensor."""
        change, out = self.changes[tensor], np.zeros(shape, np.float32)
        if change.down is not None:
            down, up = _float(change.down), _float(change.up)
            rank = len(down)
            scale = 1.0 if change.alpha is None else float(_float(change.alpha).reshape(())) / rank
            out += (up.reshape(-1, rank) @ down.reshape(rank, -1)).reshape(shape) * np.float32(scale)
        if change.diff is not None:
            out += _float(change.diff).reshape(shape)
        out *= np.float32(self.factor(tensor))
        return out

    def to_dict(self) -> dict[str, Any]:
        """For a manifest: file and strengths."""
        strength = self.strength
        if isinstance(strength, Mapping):
            return {"path": str(self.path), "blocks": {str(k): v for k, v in strength.items()}}
        return {"path": str(self.path), "strength": strength}


def merged(component: Component, loras: Sequence[Lora]) -> dict[str, np.ndarray]:
    """Official name -> float32 of every tensor that a LoRA changes; the changes are added in the order given.

    Raises FormatError for a result that is not finite: float16 files overflow.
    """
    out: dict[str, np.ndarray] = {}
    for lora in loras:
        for name in lora.tensors:
            if name not in out:
                out[name] = _float(component.entries[name])
            out[name] += lora.delta(name, out[name].shape)
            if not np.isfinite(out[name]).all():
                raise FormatError(f"{lora.path}: it makes '{name}' infinite or NaN")
    return out


def distilled(steps: int = 4, shift: float = 5.0) -> dict[str, Any]:
    """Settings for step-distilled models and LoRAs: few steps, one branch, no guidance. For `generate` and, without
    the guidance, `sampler`.

    steps: 4 to 8 is what such LoRAs are made for. shift: 5 to 8.

    >>> pipe.load_lora("distilled.safetensors")
    >>> pipe.generate("A woman walks on the beach.", [photo], **lora.distilled())
    """
    from .guidance import none

    return {
        "steps": _arguments.integer("steps", steps, 1, 50),
        "shift": _arguments.number("shift", shift, 0.1, 100),
        "guidance": none(),
    }


# ---- keys ----


def _sort(entries: Mapping[str, Entry], config: DitConfig, path: Path) -> tuple[dict[str, _Change], list[str]]:
    """(official tensor name -> its change, keys that fit none)."""
    shapes = expected(config)
    kohya = _kohya(shapes)
    changes: dict[str, _Change] = {}
    unknown = []
    for key, entry in entries.items():
        pair, other = _PAIR.fullmatch(key), _OTHER.fullmatch(key)
        module = (pair or other)[1] if pair or other else key
        slot = "diff"
        if pair:
            slot = "down" if pair[2] in ("down", "A") else "up"
        elif other and other[2] == "alpha":
            slot = "alpha"
        end = "bias" if other and other[2] == "diff_b" else "weight"
        tensor = _tensor(module, end, shapes, kohya) if pair or other else None
        if tensor is None:
            unknown.append(printable(key))
            continue
        change = changes.setdefault(tensor, _Change())
        if getattr(change, slot) is not None:
            raise FormatError(f"{path}: {printable(key)}: a second {slot} of '{tensor}'")
        setattr(change, slot, entry)
    return changes, unknown


def _kohya(shapes: Mapping[str, Any]) -> dict[str, str]:
    """Module name with underscores -> official module name; of both naming schemes."""
    out = {}
    for name in shapes:
        module = name.rpartition(".")[0]
        other = names.to_diffusers("dit", name)
        for known in (module, other.rpartition(".")[0] if other else module):
            out[known.replace(".", "_")] = module
    return out


def _tensor(module: str, end: str, shapes: Mapping[str, Any], kohya: Mapping[str, str]) -> str | None:
    if module.startswith(("lora_unet_", "lora_transformer_")):
        official = kohya.get(module.split("_", 2)[2])
        return f"{official}.{end}" if official and f"{official}.{end}" in shapes else None
    module = module[_PREFIX.match(module).end() :]
    for name in (f"{module}.{end}", module):  # the second: tensors that are no layer's, such as blocks.0.modulation
        official = names.to_official("dit", name)
        if official in shapes and name not in shapes:
            return official
        if name in shapes:
            return name
    return None


def _check(changes: Mapping[str, _Change], config: DitConfig, path: Path) -> None:
    shapes = expected(config)
    wrong = []
    for name, c in changes.items():
        shape = shapes[name]
        if (c.down is None) != (c.up is None):
            wrong.append(f"'{name}' has a lora_{'up' if c.down is None else 'down'} alone")
        elif c.down is not None:
            down, up = c.down.shape, c.up.shape
            inner = int(np.prod(shape[1:]))
            fits = len(shape) >= 2 and len(down) >= 2 and len(up) >= 2
            fits = fits and down[0] >= 1 and int(np.prod(down[1:])) == inner
            if not (fits and int(np.prod(up)) == shape[0] * down[0] and up[0] == shape[0]):
                wrong.append(f"'{name}' of {list(shape)} has down {list(down)} and up {list(up)}")
        elif c.diff is None:
            wrong.append(f"'{name}' has an alpha alone")
        if c.alpha is not None and c.alpha.count != 1:
            wrong.append(f"'{name}' has an alpha of {list(c.alpha.shape)}")
        if c.diff is not None and _squeezed(c.diff.shape) != _squeezed(shape):
            wrong.append(f"'{name}' of {list(shape)} has a diff of {list(c.diff.shape)}")
        for entry in (c.down, c.up, c.alpha, c.diff):
            if entry is not None and entry.dtype not in ("float32", "float16", "bfloat16", "float64"):
                wrong.append(f"'{name}' is changed by {entry.dtype}")
    if wrong:
        raise FormatError(f"{path}: {_few(wrong)}")


def _squeezed(shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(n for n in shape if n != 1)


def _strengths(strength: float, blocks, config: DitConfig) -> float | dict[int, float]:
    if blocks is None:
        return float(strength)
    if isinstance(blocks, str | bytes) or not isinstance(blocks, Collection):
        raise TypeError(f"blocks: expected block numbers, or a mapping of them to factors, got {blocks!r}")
    table = blocks if isinstance(blocks, Mapping) else dict.fromkeys(blocks, 1.0)
    return {
        _arguments.integer("blocks", block, 0, config.num_layers - 1):
            _arguments.number(f"blocks[{block}]", factor) * strength
        for block, factor in table.items()
    }  # fmt: skip


def _float(entry: Entry) -> np.ndarray:
    """A tensor of a file as float32."""
    array = entry.read()
    return from_bfloat16(array) if entry.dtype == "bfloat16" else np.array(array, np.float32)


def _few(items: list[str], most: int = 4) -> str:
    return ", ".join(items[:most]) + (f" and {len(items) - most} more" if len(items) > most else "")

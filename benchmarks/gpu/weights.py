"""Random weights of full size in seconds: drawn on the GPU by name, so that both sides hold the same numbers and either
can be made again. Every value is a bfloat16, whatever dtype a file stores it in."""

from __future__ import annotations

import gzip
import json
import math
import os
import shutil
import zlib
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from ipvg import _core
from ipvg.checkpoint import DitConfig, TextConfig, VaeConfig, expected, names

Config = DitConfig | TextConfig | VaeConfig
Tensors = dict[str, torch.Tensor]
ROOT = Path(__file__).resolve().parents[2]


def kind(config: Config) -> str:
    return {DitConfig: "dit", TextConfig: "text", VaeConfig: "vae"}[type(config)]


def draw(name: str, shape: tuple[int, ...], device: str) -> torch.Tensor:
    """Standard normal numbers of a name, float32."""
    generator = torch.Generator(device).manual_seed(zlib.crc32(name.encode()))
    return torch.randn(shape, generator=generator, device=device)


def weight(name: str, shape: tuple[int, ...], device: str) -> torch.Tensor:
    """Of a size that keeps activations in range: matrices 1 / sqrt(inputs); norms near 1, biases near 0."""
    x = draw(name, shape, device)
    if len(shape) == 1 or name.endswith("gamma"):
        x.mul_(0.1).add_(1.0 if name.endswith(("weight", "gamma")) else 0.0)
    elif "token_embedding" in name:
        pass  # T5's states begin at size 1
    elif "embedding" in name and "patch" not in name:
        x.mul_(0.02)
    else:
        x.mul_(math.prod(shape[1:]) ** -0.5)
    if name.endswith(".attn.q.weight"):
        x.mul_(0.125)  # umT5 folds 1 / sqrt(64) into it
    return x.bfloat16()


def make(config: Config, device: str) -> Tensors:
    """Official name -> bfloat16 tensor."""
    return {name: weight(name, shape, device) for name, shape in expected(config).items()}


def taken(config: Config, device: str) -> _core.Weights:
    """The same in the host's memory, as ipvg takes them: one tensor at a time passes the GPU, where PyTorch would keep
    its memory, which would count as ours."""
    arrays = {name: weight(name, shape, device).view(torch.int16).cpu() for name, shape in expected(config).items()}
    torch.cuda.empty_cache()
    return _core.Weights({name: (array.numpy().view(np.uint16), "bfloat16") for name, array in arrays.items()})


def room(needed: int) -> Path:
    """A folder in memory (/dev/shm) if that has room for so many bytes, else on disk: page cache either way."""
    for folder in ("/dev/shm", os.environ.get("TMPDIR", "/tmp")):
        if os.path.isdir(folder) and shutil.disk_usage(folder).free > 1.1 * needed:
            return Path(folder)
    raise OSError(f"neither /dev/shm nor TMPDIR has room for {needed / 2**30:.1f} GiB of weights")


def write_dit(folder: Path, config: DitConfig, tensors: Tensors, half: bool = False) -> None:
    """The official layout's transformer in the published dtypes of 1.3B: float32, but bfloat16 for the VACE blocks; or
    all of it in bfloat16."""
    path = folder / "diffusion_pytorch_model.safetensors"
    _save(path, tensors, half=lambda name: half or name.startswith("vace"))
    fields = asdict(config)
    table = {key: fields[key] for key in ("dim", "ffn_dim", "num_heads", "num_layers", "text_len", "freq_dim", "eps")}
    table |= {"_class_name": "VaceWanModel", "model_type": "vace", "vace_layers": list(config.vace_layers)}
    (folder / "config.json").write_text(json.dumps(table))


def write_rest(folder: Path, text: Tensors, vae: Tensors) -> None:
    """The other two components, and the small tokenizer of the tests: its ids are few, the embedding has room."""
    _save(folder / "models_t5_umt5-xxl-enc-bf16.safetensors", text, half=lambda name: True)
    _save(folder / "Wan2.1_VAE.safetensors", vae, half=lambda name: False)
    tokenizer = folder / "google" / "umt5-xxl" / "tokenizer.json"
    tokenizer.parent.mkdir(parents=True, exist_ok=True)
    tokenizer.write_bytes(gzip.decompress((ROOT / "tests/golden/tokenizer_standin.json.gz").read_bytes()))


def _save(path: Path, tensors: Tensors, half: Callable[[str], bool]) -> None:
    save_file({n: (t if half(n) else t.float()).cpu().contiguous() for n, t in tensors.items()}, path)


def renamed(component: str, tensors: Tensors) -> Tensors:
    """Under the names of diffusers and transformers."""
    out = {}
    for name, tensor in tensors.items():
        other = names.to_diffusers(component, name)
        if other is None:
            raise KeyError(f"{name}: no rule names this tensor for the peers")
        out[other] = tensor
    if component == "text":
        out[names.TIED] = out["shared.weight"]
    return out

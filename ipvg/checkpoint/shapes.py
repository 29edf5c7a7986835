"""The exact tensors that a component of given sizes consists of, under official names, and a check against them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

from .._core import FormatError
from .config import Config, DitConfig, Shapes, TextConfig, VaeConfig
from .entry import Entry, printable


def expected(config: Config) -> Shapes:
    """Every tensor of such a component: official name -> shape."""
    if isinstance(config, DitConfig):
        return _dit_shapes(config)
    return _vae_shapes(config) if isinstance(config, VaeConfig) else _text_shapes(config)


def _dit_shapes(c: DitConfig) -> Shapes:
    out: Shapes = {}

    def linear(name: str, rows: int, *columns: int) -> None:
        out[f"{name}.weight"] = (rows, *columns)
        out[f"{name}.bias"] = (rows,)

    linear("patch_embedding", c.dim, c.in_dim, *c.patch_size)
    linear("text_embedding.0", c.dim, c.text_dim)
    linear("text_embedding.2", c.dim, c.dim)
    linear("time_embedding.0", c.dim, c.freq_dim)
    linear("time_embedding.2", c.dim, c.dim)
    linear("time_projection.1", 6 * c.dim, c.dim)
    main = [f"blocks.{i}" for i in range(c.num_layers)]
    vace = [f"vace_blocks.{i}" for i in range(len(c.vace_layers))]
    for block in main + vace:
        out[f"{block}.modulation"] = (1, 6, c.dim)
        for attention in ("self_attn", "cross_attn"):
            for x in "qkvo":
                linear(f"{block}.{attention}.{x}", c.dim, c.dim)
            out[f"{block}.{attention}.norm_q.weight"] = out[f"{block}.{attention}.norm_k.weight"] = (c.dim,)
        linear(f"{block}.norm3", c.dim)
        linear(f"{block}.ffn.0", c.ffn_dim, c.dim)
        linear(f"{block}.ffn.2", c.dim, c.ffn_dim)
    linear("head.head", math.prod(c.patch_size) * c.out_dim, c.dim)
    out["head.modulation"] = (1, 2, c.dim)
    linear("vace_patch_embedding", c.dim, c.vace_in_dim, *c.patch_size)
    linear("vace_blocks.0.before_proj", c.dim, c.dim)
    for block in vace:
        linear(f"{block}.after_proj", c.dim, c.dim)
    return out


def _vae_shapes(c: VaeConfig) -> Shapes:
    out: Shapes = {}

    def conv(name: str, outs: int, ins: int, *kernel: int) -> None:
        out[f"{name}.weight"] = (outs, ins, *kernel)
        out[f"{name}.bias"] = (outs,)

    def residual(name: str, ins: int, outs: int) -> None:
        out[f"{name}.residual.0.gamma"] = (ins, 1, 1, 1)
        conv(f"{name}.residual.2", outs, ins, 3, 3, 3)
        out[f"{name}.residual.3.gamma"] = (outs, 1, 1, 1)
        conv(f"{name}.residual.6", outs, outs, 3, 3, 3)
        if ins != outs:
            conv(f"{name}.shortcut", outs, ins, 1, 1, 1)

    def middle(name: str, width: int) -> None:
        residual(f"{name}.middle.0", width, width)
        out[f"{name}.middle.1.norm.gamma"] = (width, 1, 1)
        conv(f"{name}.middle.1.to_qkv", 3 * width, width, 1, 1)
        conv(f"{name}.middle.1.proj", width, width, 1, 1)
        residual(f"{name}.middle.2", width, width)

    def head(name: str, width: int, outs: int) -> None:
        out[f"{name}.head.0.gamma"] = (width, 1, 1, 1)
        conv(f"{name}.head.2", outs, width, 3, 3, 3)

    last = len(c.dim_mult) - 1
    widths = [c.dim, *(c.dim * m for m in c.dim_mult)]
    conv("encoder.conv1", widths[0], 3, 3, 3, 3)
    at = 0
    for stage, (ins, outs) in enumerate(pairwise(widths)):
        for block in range(c.num_res_blocks):
            residual(f"encoder.downsamples.{at}", outs if block else ins, outs)
            at += 1
        if stage < last:
            conv(f"encoder.downsamples.{at}.resample.1", outs, outs, 3, 3)
            if c.temperal_downsample[stage]:
                conv(f"encoder.downsamples.{at}.time_conv", outs, outs, 3, 1, 1)
            at += 1
    middle("encoder", widths[-1])
    head("encoder", widths[-1], 2 * c.z_dim)
    conv("conv1", 2 * c.z_dim, 2 * c.z_dim, 1, 1, 1)
    conv("conv2", c.z_dim, c.z_dim, 1, 1, 1)

    widths = [c.dim * m for m in (c.dim_mult[-1], *reversed(c.dim_mult))]
    conv("decoder.conv1", widths[0], c.z_dim, 3, 3, 3)
    middle("decoder", widths[0])
    at = 0
    for stage, (ins, outs) in enumerate(pairwise(widths)):
        if stage:
            ins //= 2  # the upsampler in front halves the channels
        for block in range(c.num_res_blocks + 1):
            residual(f"decoder.upsamples.{at}", outs if block else ins, outs)
            at += 1
        if stage < last:
            conv(f"decoder.upsamples.{at}.resample.1", outs // 2, outs, 3, 3)
            if c.temperal_downsample[last - 1 - stage]:
                conv(f"decoder.upsamples.{at}.time_conv", 2 * outs, outs, 3, 1, 1)
            at += 1
    head("decoder", widths[-1], 3)
    return out


def _text_shapes(c: TextConfig) -> Shapes:
    out: Shapes = {"token_embedding.weight": (c.vocab, c.dim)}
    for i in range(c.num_layers):
        block = f"blocks.{i}"
        out[f"{block}.norm1.weight"] = out[f"{block}.norm2.weight"] = (c.dim,)
        for x in "qkv":
            out[f"{block}.attn.{x}.weight"] = (c.dim_attn, c.dim)
        out[f"{block}.attn.o.weight"] = (c.dim, c.dim_attn)
        out[f"{block}.ffn.gate.0.weight"] = out[f"{block}.ffn.fc1.weight"] = (c.dim_ffn, c.dim)
        out[f"{block}.ffn.fc2.weight"] = (c.dim, c.dim_ffn)
        out[f"{block}.pos_embedding.embedding.weight"] = (c.num_buckets, c.num_heads)
    out["norm.weight"] = (c.dim,)
    return out


def check_tensors(entries: Mapping[str, Entry], config: Config, where: str, unknown: Sequence[str] = ()) -> None:
    """FormatError that names what is missing, extra or misshapen (a few of each, and how many), with what was expected.
    unknown: names in the file that no naming rule knows; they count as extra."""
    wanted = expected(config)
    missing = [f"'{name}' {list(shape)}" for name, shape in wanted.items() if name not in entries]
    extra = [printable(name) for name in entries if name not in wanted] + list(unknown)
    wrong = [
        f"'{name}' has shape {list(entries[name].shape)}, expected {list(shape)}"
        for name, shape in wanted.items()
        if name in entries and entries[name].shape != shape
    ]
    found = {"missing": missing, "extra": extra, "wrong": wrong}
    problems = [_few(what, items) for what, items in found.items() if items]
    if problems:
        raise FormatError(f"{where}: {'; '.join(problems)} (expected the {len(wanted)} tensors of {config})"[:2000])


def _few(what: str, items: list[str], most: int = 4) -> str:
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return f"{len(items)} {what}: {', '.join(items[:most])}{more}"

"""What a component is: its sizes as a plain dataclass, read from either layout's config file or, where the official
layout has none, from the shapes of its tensors. What tensors a component then consists of: shapes.py."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from .._core import FormatError

Shapes = dict[str, tuple[int, ...]]

#: Wan2.1's latent statistics, a pair for each of the 16 channels: constants of the official code (and of diffusers'
#: vae/config.json). A latent is (mu - mean) / std.
LATENT_MEAN = (
    -0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
    0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921,
)  # fmt: skip
LATENT_STD = (
    2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
    3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.916,
)  # fmt: skip


@dataclass(frozen=True)
class DitConfig:
    """The denoising transformer. 1.3B: 1536, 8960, 12, 30; 14B: 5120, 13824, 40, 40."""

    dim: int
    ffn_dim: int
    num_heads: int
    num_layers: int
    vace_layers: tuple[int, ...]  # main blocks that receive a hint, ascending, the first is 0
    in_dim: int = 16
    out_dim: int = 16
    vace_in_dim: int = 96  # 16 inactive + 16 reactive + 64 mask channels
    freq_dim: int = 256
    text_dim: int = 4096
    text_len: int = 512
    eps: float = 1e-6
    patch_size: tuple[int, int, int] = (1, 2, 2)


@dataclass(frozen=True)
class VaeConfig:
    """The causal video VAE: 8 times smaller in space, 4 times in time."""

    dim: int = 96
    z_dim: int = 16
    dim_mult: tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: int = 2
    temperal_downsample: tuple[bool, ...] = (False, True, True)  # the reference's spelling
    mean: tuple[float, ...] = LATENT_MEAN
    std: tuple[float, ...] = LATENT_STD


@dataclass(frozen=True)
class TextConfig:
    """The umT5 encoder. umT5-XXL: 256384, 4096, 4096, 10240, 64, 24."""

    vocab: int
    dim: int
    dim_attn: int
    dim_ffn: int
    num_heads: int
    num_layers: int
    num_buckets: int = 32
    max_distance: int = 128
    eps: float = 1e-6
    text_len: int = 512


Config = DitConfig | VaeConfig | TextConfig


class _Fields:
    """A config file's values, each asked for with the range that makes sense."""

    def __init__(self, table: Mapping, where: str):
        self.table, self.where = table, where

    def fail(self, text: str):
        raise FormatError(f"{self.where}: {text}")

    def value(self, key: str, default=None):
        out = self.table.get(key)
        if out is None:
            if default is None:
                self.fail(f"'{key}' is missing")
            return default
        return out

    def integer(self, key: str, low: int, high: int, default: int | None = None) -> int:
        out = self.value(key, default)
        if type(out) is not int or not low <= out <= high:
            self.fail(f"'{key}' is {_short(out)}, expected an integer from {low} to {high}")
        return out

    def number(self, key: str, low: float, high: float, default: float) -> float:
        out = self.value(key, default)
        if type(out) not in (int, float) or not low <= out <= high:
            self.fail(f"'{key}' is {_short(out)}, expected a number from {low} to {high}")
        return float(out)

    def items(self, key: str, kinds: tuple[type, ...], most: int, default=None) -> tuple:
        out = self.value(key, default)
        if not isinstance(out, (list, tuple)) or len(out) > most or not all(type(x) in kinds for x in out):
            names = " or ".join(k.__name__ for k in kinds)
            self.fail(f"'{key}' is {_short(out)}, expected a list of at most {most} values ({names})")
        return tuple(out)

    def only(self, key: str, *allowed) -> None:
        """A setting that ipvg knows in one form alone; absent is that form."""
        if self.table.get(key) not in (None, *allowed):
            self.fail(f"'{key}' is {_short(self.table[key])}; ipvg knows {_short(allowed[0])} only")


def _short(value: object) -> str:
    if isinstance(value, int) and abs(value) >= 10**20:
        return "a huge number"
    return ascii(value if isinstance(value, (str, int, float, type(None))) else type(value).__name__)[:80]


def read_dit(table: Mapping, where: str, shapes: Shapes) -> DitConfig:
    """From either layout's config.json. `shapes` (official names) give the width of the text states, which the official
    file leaves out. Raises FormatError."""
    f = _Fields(table, where)
    heads = f.integer("num_attention_heads" if "num_attention_heads" in table else "num_heads", 1, 1024)
    if "num_attention_heads" in table:  # diffusers
        f.only("_class_name", "WanVACETransformer3DModel")
        f.only("qk_norm", "rms_norm_across_heads")
        f.only("cross_attn_norm", True)
        f.only("added_kv_proj_dim", 0)
        f.only("image_dim", 0)
        dim = heads * f.integer("attention_head_dim", 2, 1024)
        ins, outs, context = "in_channels", "out_channels", "vace_in_channels"
    else:
        f.only("_class_name", "VaceWanModel")
        f.only("model_type", "vace")
        f.only("qk_norm", True)
        f.only("cross_attn_norm", True)
        dim = f.integer("dim", 2, 1 << 16)
        ins, outs, context = "in_dim", "out_dim", "vace_in_dim"
    layers = f.integer("num_layers", 1, 1000)
    text = shapes.get("text_embedding.0.weight", ())
    out = DitConfig(
        dim=dim,
        ffn_dim=f.integer("ffn_dim", 1, 1 << 18),
        num_heads=heads,
        num_layers=layers,
        # The official code's default: every second block.
        vace_layers=f.items("vace_layers", (int,), layers, tuple(range(0, layers, 2))),
        in_dim=f.integer(ins, 1, 1024, 16),
        out_dim=f.integer(outs, 1, 1024, 16),
        vace_in_dim=f.integer(context, 1, 4096, 96),
        freq_dim=f.integer("freq_dim", 2, 1 << 16, 256),
        text_dim=f.integer("text_dim", 1, 1 << 16, text[1] if len(text) == 2 else 4096),
        text_len=f.integer("text_len", 1, 1 << 16, 512),
        eps=f.number("eps", 1e-12, 1e-2, 1e-6),
        patch_size=f.items("patch_size", (int,), 3, (1, 2, 2)),
    )
    if dim > 1 << 16 or dim % heads or (dim // heads) % 2 or dim // heads < 6:
        f.fail(f"dim {dim} does not divide into {heads} heads of an even size of 6 or more")
    vace = out.vace_layers
    if list(vace) != sorted(set(vace)) or vace[:1] != (0,) or vace[-1] >= layers:
        f.fail(f"'vace_layers' must ascend from 0 to less than num_layers = {layers}")
    if out.patch_size != (1, 2, 2):
        f.fail(f"'patch_size' is {_short(str(list(out.patch_size)))}; ipvg knows [1, 2, 2] only")
    if out.freq_dim % 2:
        f.fail(f"'freq_dim' is {out.freq_dim}, expected an even number")
    return out


def read_vae(table: Mapping, where: str) -> VaeConfig:
    """From diffusers' vae/config.json (official field names are understood too). Raises FormatError."""
    f = _Fields(table, where)
    f.only("_class_name", "AutoencoderKLWan")
    f.only("is_residual", False)
    f.only("in_channels", 3)
    f.only("out_channels", 3)
    f.only("patch_size", 1)
    if f.table.get("attn_scales"):
        f.fail("'attn_scales' is not empty; ipvg knows the VAE without them only")
    dim = f.integer("base_dim" if "base_dim" in table else "dim", 1, 1 << 14, 96)
    f.only("decoder_base_dim", dim)
    z_dim = f.integer("z_dim", 1, 256, 16)
    number = (int, float)
    return _checked_vae(
        VaeConfig(
            dim=dim,
            z_dim=z_dim,
            dim_mult=f.items("dim_mult", (int,), 8, (1, 2, 4, 4)),
            num_res_blocks=f.integer("num_res_blocks", 1, 16, 2),
            temperal_downsample=f.items("temperal_downsample", (bool,), 8, (False, True, True)),
            mean=tuple(float(x) for x in f.items("latents_mean", number, 256, LATENT_MEAN) if abs(x) < 1e6),
            std=tuple(float(x) for x in f.items("latents_std", number, 256, LATENT_STD) if 1e-6 < x < 1e6),
        ),
        where,
    )


def _checked_vae(c: VaeConfig, where: str) -> VaeConfig:
    def check(ok: bool, text: str) -> None:
        if not ok:
            raise FormatError(f"{where}: {text}")

    check(len(c.dim_mult) == 4 and all(1 <= m <= 64 for m in c.dim_mult), "'dim_mult' must be four factors up to 64")
    check(
        len(c.temperal_downsample) == 3 and sum(c.temperal_downsample) == 2,
        "'temperal_downsample' must be three values, two of them true: latents are 4 times shorter than the video",
    )
    check(all(c.dim * m % 2 == 0 for m in c.dim_mult), "'dim' times each of 'dim_mult' must be even")
    for name, values in (("latents_mean", c.mean), ("latents_std", c.std)):
        check(len(values) == c.z_dim, f"'{name}' must be z_dim = {c.z_dim} numbers in a sane range")
    return c


def infer_vae(shapes: Shapes, where: str) -> VaeConfig:
    """From the official VAE's tensors, which come without a config. Raises FormatError."""
    stem = _shape(shapes, "encoder.conv1.weight", 5, where)
    z_dim = _shape(shapes, "conv2.weight", 5, where)[0]
    if z_dim != len(LATENT_MEAN):
        raise FormatError(
            f"{where}: {z_dim} latent channels: the official layout carries no latent statistics, and those of Wan2.1 "
            f"are for {len(LATENT_MEAN)}; use the diffusers layout: vae/config.json has latents_mean and latents_std"
        )
    resamplers = _numbers(shapes, r"encoder\.downsamples\.(\d{1,4})\.resample\.1\.weight")
    if len(resamplers) != 3 or resamplers[0] < 1:
        raise FormatError(f"{where}: {len(resamplers)} downsampling blocks in the encoder, expected 3")
    blocks, dim = resamplers[0], stem[0]
    firsts = [f"encoder.downsamples.{stage * (blocks + 1)}" for stage in range(4)]
    widths = [_shape(shapes, f"{block}.residual.6.weight", 5, where)[0] for block in firsts]
    if dim < 1 or blocks > 16 or any(w % dim for w in widths):
        raise FormatError(f"{where}: widths {[dim, *widths]} of the encoder are no multiples of the first")
    config = VaeConfig(
        dim=dim,
        z_dim=z_dim,
        dim_mult=tuple(w // dim for w in widths),
        num_res_blocks=blocks,
        temperal_downsample=tuple(f"encoder.downsamples.{i}.time_conv.weight" in shapes for i in resamplers),
    )
    return _checked_vae(config, where)


def read_text(table: Mapping, where: str) -> TextConfig:
    """From transformers' text_encoder/config.json. Raises FormatError."""
    f = _Fields(table, where)
    f.only("model_type", "umt5")
    f.only("feed_forward_proj", "gated-gelu")
    f.only("dense_act_fn", "gelu_new")
    heads = f.integer("num_heads", 1, 1024)
    return TextConfig(
        vocab=f.integer("vocab_size", 4, 1 << 22),
        dim=f.integer("d_model", 1, 1 << 16),
        dim_attn=heads * f.integer("d_kv", 1, 1024),
        dim_ffn=f.integer("d_ff", 1, 1 << 18),
        num_heads=heads,
        num_layers=f.integer("num_layers", 1, 1000),
        num_buckets=f.integer("relative_attention_num_buckets", 4, 4096, 32),
        max_distance=f.integer("relative_attention_max_distance", 8, 1 << 16, 128),
        eps=f.number("layer_norm_epsilon", 1e-12, 1e-2, 1e-6),
    )


def infer_text(shapes: Shapes, where: str) -> TextConfig:
    """From the official encoder's tensors, which come without a config. Raises FormatError."""
    vocab, dim = _shape(shapes, "token_embedding.weight", 2, where)
    buckets, heads = _shape(shapes, "blocks.0.pos_embedding.embedding.weight", 2, where)
    attn = _shape(shapes, "blocks.0.attn.q.weight", 2, where)[0]
    layers = len(_numbers(shapes, r"blocks\.(\d{1,4})\.norm1\.weight"))
    ffn = _shape(shapes, "blocks.0.ffn.fc1.weight", 2, where)[0]
    if heads < 1 or attn < 1 or attn % heads or min(vocab, dim, buckets, ffn) < 1:
        raise FormatError(f"{where}: sizes {[vocab, dim, attn, ffn, buckets]} do not divide into {heads} heads")
    return TextConfig(vocab, dim, attn, ffn, heads, layers, buckets)


def _shape(shapes: Shapes, name: str, ndim: int, where: str) -> tuple[int, ...]:
    shape = shapes.get(name)
    if shape is None:
        raise FormatError(f"{where}: tensor '{name}' is missing, which tells this component's sizes")
    if len(shape) != ndim:
        raise FormatError(f"{where}: tensor '{name}' has shape {list(shape)}, expected {ndim} dimensions")
    return shape


def _numbers(shapes: Shapes, pattern: str) -> list[int]:
    return sorted(int(m[1]) for m in (re.fullmatch(pattern, name) for name in shapes) if m)

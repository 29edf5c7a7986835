"""Tensor names of diffusers and transformers to the official ones of Wan2.1 and back, by rule.

ipvg speaks official names everywhere; only this file knows the others. A rule is a pair of patterns in which {x} stands
for the same text on both sides: {n} a number, {p} "blocks" or "vace_blocks", {w} "weight" or "bias", {side} "encoder"
or "decoder", {qkvo} ... Only the VAE decoder needs arithmetic: diffusers nests its blocks, the official list is flat.
"""

from __future__ import annotations

import re
from functools import cache

_FIELDS = {
    "n": r"(?:0|[1-9]\d{0,3})",
    "p": r"blocks|vace_blocks",
    "w": r"weight|bias",
    "x": r"[qkv]",
    "qk": r"[qk]",
    "side": r"encoder|decoder",
    "part": r"resample\.1|time_conv",
    "qkvo": r"[qkvo]",
}

_DIT = [
    ("patch_embedding.{w}", "patch_embedding.{w}"),
    ("vace_patch_embedding.{w}", "vace_patch_embedding.{w}"),
    ("condition_embedder.text_embedder.linear_1.{w}", "text_embedding.0.{w}"),
    ("condition_embedder.text_embedder.linear_2.{w}", "text_embedding.2.{w}"),
    ("condition_embedder.time_embedder.linear_1.{w}", "time_embedding.0.{w}"),
    ("condition_embedder.time_embedder.linear_2.{w}", "time_embedding.2.{w}"),
    ("condition_embedder.time_proj.{w}", "time_projection.1.{w}"),
    ("{p}.{n}.scale_shift_table", "{p}.{n}.modulation"),
    ("{p}.{n}.attn1.to_{x}.{w}", "{p}.{n}.self_attn.{x}.{w}"),
    ("{p}.{n}.attn1.to_out.0.{w}", "{p}.{n}.self_attn.o.{w}"),
    ("{p}.{n}.attn1.norm_{qk}.weight", "{p}.{n}.self_attn.norm_{qk}.weight"),
    ("{p}.{n}.attn2.to_{x}.{w}", "{p}.{n}.cross_attn.{x}.{w}"),
    ("{p}.{n}.attn2.to_out.0.{w}", "{p}.{n}.cross_attn.o.{w}"),
    ("{p}.{n}.attn2.norm_{qk}.weight", "{p}.{n}.cross_attn.norm_{qk}.weight"),
    ("{p}.{n}.norm2.{w}", "{p}.{n}.norm3.{w}"),  # the norm before cross-attention: second there, third here
    ("{p}.{n}.ffn.net.0.proj.{w}", "{p}.{n}.ffn.0.{w}"),
    ("{p}.{n}.ffn.net.2.{w}", "{p}.{n}.ffn.2.{w}"),
    ("vace_blocks.{n}.proj_in.{w}", "vace_blocks.{n}.before_proj.{w}"),
    ("vace_blocks.{n}.proj_out.{w}", "vace_blocks.{n}.after_proj.{w}"),
    ("proj_out.{w}", "head.head.{w}"),
    ("scale_shift_table", "head.modulation"),
]

_TEXT = [
    ("shared.weight", "token_embedding.weight"),
    ("encoder.block.{n}.layer.0.layer_norm.weight", "blocks.{n}.norm1.weight"),
    ("encoder.block.{n}.layer.0.SelfAttention.{qkvo}.weight", "blocks.{n}.attn.{qkvo}.weight"),
    (
        "encoder.block.{n}.layer.0.SelfAttention.relative_attention_bias.weight",
        "blocks.{n}.pos_embedding.embedding.weight",
    ),
    ("encoder.block.{n}.layer.1.layer_norm.weight", "blocks.{n}.norm2.weight"),
    ("encoder.block.{n}.layer.1.DenseReluDense.wi_0.weight", "blocks.{n}.ffn.gate.0.weight"),
    ("encoder.block.{n}.layer.1.DenseReluDense.wi_1.weight", "blocks.{n}.ffn.fc1.weight"),
    ("encoder.block.{n}.layer.1.DenseReluDense.wo.weight", "blocks.{n}.ffn.fc2.weight"),
    ("encoder.final_layer_norm.weight", "norm.weight"),
]
#: The embedding under its second name: transformers ties it to shared.weight, and a file may carry either or both.
TIED = "encoder.embed_tokens.weight"

_RESIDUAL = [
    ("norm1.gamma", "residual.0.gamma"),
    ("conv1.{w}", "residual.2.{w}"),
    ("norm2.gamma", "residual.3.gamma"),
    ("conv2.{w}", "residual.6.{w}"),
    ("conv_shortcut.{w}", "shortcut.{w}"),
]
_VAE = [
    ("quant_conv.{w}", "conv1.{w}"),
    ("post_quant_conv.{w}", "conv2.{w}"),
    ("{side}.conv_in.{w}", "{side}.conv1.{w}"),
    ("{side}.conv_out.{w}", "{side}.head.2.{w}"),
    ("{side}.norm_out.gamma", "{side}.head.0.gamma"),
    ("{side}.mid_block.attentions.0.norm.gamma", "{side}.middle.1.norm.gamma"),
    ("{side}.mid_block.attentions.0.proj.{w}", "{side}.middle.1.proj.{w}"),
    ("{side}.mid_block.attentions.0.to_qkv.{w}", "{side}.middle.1.to_qkv.{w}"),
    *((f"{{side}}.mid_block.resnets.0.{a}", f"{{side}}.middle.0.{b}") for a, b in _RESIDUAL[:4]),
    *((f"{{side}}.mid_block.resnets.1.{a}", f"{{side}}.middle.2.{b}") for a, b in _RESIDUAL[:4]),
    *((f"encoder.down_blocks.{{n}}.{a}", f"encoder.downsamples.{{n}}.{b}") for a, b in _RESIDUAL),
    ("encoder.down_blocks.{n}.{part}.{w}", "encoder.downsamples.{n}.{part}.{w}"),
    # Diffusers' side of these two is made flat before and nested after the rules: see _flat and _nested.
    *((f"decoder.up_blocks.{{n}}.{a}", f"decoder.upsamples.{{n}}.{b}") for a, b in _RESIDUAL),
    ("decoder.up_blocks.{n}.{part}.{w}", "decoder.upsamples.{n}.{part}.{w}"),
]


@cache
def _rules(component: str):
    def pattern(text):
        seen: set[str] = set()
        out = []
        for piece in re.split(r"(\{\w+\})", text):
            field = piece[1:-1] if piece.startswith("{") else None
            if field is None:
                out.append(re.escape(piece))
            else:
                out.append(f"(?P={field})" if field in seen else f"(?P<{field}>{_FIELDS[field]})")
                seen.add(field)
        return re.compile("".join(out))

    return [(pattern(a), a, pattern(b), b) for a, b in {"dit": _DIT, "vae": _VAE, "text": _TEXT}[component]]


def to_official(component: str, name: str, num_res_blocks: int = 2) -> str | None:
    """The official name of a diffusers tensor, or None if no rule knows it. component: "dit", "vae" or "text";
    num_res_blocks: the VAE's, which places its decoder blocks."""
    flat = _flat(name, num_res_blocks) if component == "vae" else name
    for pattern, _, _, target in _rules(component):
        match = pattern.fullmatch(flat) if flat else None
        if match:
            return target.format_map(match.groupdict())
    return "token_embedding.weight" if component == "text" and name == TIED else None


def to_diffusers(component: str, name: str, num_res_blocks: int = 2) -> str | None:
    """The diffusers name of an official tensor, or None if no rule knows it; the inverse of to_official."""
    for _, target, pattern, _ in _rules(component):
        match = pattern.fullmatch(name)
        if match:
            out = target.format_map(match.groupdict())
            return _nested(out, num_res_blocks) if component == "vae" else out
    return None


def _flat(name: str, num_res_blocks: int) -> str | None:
    """decoder.up_blocks.1.resnets.2.x -> decoder.up_blocks.6.x; a stage is num_res_blocks + 1 blocks and a resampler"""
    match = re.fullmatch(rf"decoder\.up_blocks\.({_FIELDS['n']})\.(resnets|upsamplers)\.({_FIELDS['n']})\.(.+)", name)
    if not match:
        return None if name.startswith("decoder.up_blocks.") else name
    stage, kind, at, rest = int(match[1]), match[2], int(match[3]), match[4]
    resampler = kind == "upsamplers"
    if at > (0 if resampler else num_res_blocks) or resampler != rest.startswith(("resample.", "time_conv.")):
        return None
    return f"decoder.up_blocks.{stage * (num_res_blocks + 2) + (num_res_blocks + 1 if resampler else at)}.{rest}"


def _nested(name: str, num_res_blocks: int) -> str | None:
    match = re.fullmatch(r"decoder\.up_blocks\.(\d+)\.(.+)", name)
    if not match:
        return name
    stage, at = divmod(int(match[1]), num_res_blocks + 2)
    resampler = at == num_res_blocks + 1
    if resampler != match[2].startswith(("resample.", "time_conv.")):
        return None
    return f"decoder.up_blocks.{stage}.{'upsamplers.0' if resampler else f'resnets.{at}'}.{match[2]}"

"""The same models in diffusers and transformers, on the same weights: eager as they come, and in the fastest settings
known (compiled blocks with cuDNN's attention; the VAE compiled in bfloat16, or in float16 with channels last)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch

from ipvg.checkpoint import DitConfig, TextConfig, VaeConfig

from .weights import Tensors, renamed

#: What diffusers keeps in float32 when it loads the transformer in bfloat16 (its _keep_in_fp32_modules).
EXACT = ("rope", "time_embedder", "scale_shift_table", "norm1", "norm2", "norm3")


def _fill(model: torch.nn.Module, state: Tensors, dtype: torch.dtype, exact: tuple[str, ...] = ()) -> torch.nn.Module:
    """Gives a model on the meta device its weights. Those of the same dtype are shared, not copied."""
    cast = {n: t.float() if any(part in exact for part in n.split(".")) else t.to(dtype) for n, t in state.items()}
    model.load_state_dict(cast, assign=True, strict=True)
    return model.eval().requires_grad_(False)


def dit(c: DitConfig, tensors: Tensors, device: str, dtype: torch.dtype = torch.bfloat16) -> torch.nn.Module:
    from diffusers import WanVACETransformer3DModel
    from diffusers.models.transformers.transformer_wan import WanRotaryPosEmbed

    with torch.device("meta"):
        model = WanVACETransformer3DModel(
            num_attention_heads=c.num_heads, attention_head_dim=c.dim // c.num_heads, text_dim=c.text_dim,
            ffn_dim=c.ffn_dim, num_layers=c.num_layers, vace_layers=list(c.vace_layers), vace_in_channels=c.vace_in_dim,
            freq_dim=c.freq_dim,
        )  # fmt: skip
    _fill(model, renamed("dit", tensors), dtype, EXACT)
    model.set_attention_backend("native")  # what another model was set to holds for all
    with torch.device(device):  # its tables are no part of a state
        model.rope = WanRotaryPosEmbed(c.dim // c.num_heads, (1, 2, 2), model.config.rope_max_seq_len)
    return model


def compile_dit(model: torch.nn.Module, gpu: bool, mode: str | None) -> None:
    """The fastest exact setting of diffusers: its repeated blocks compiled, attention by cuDNN."""
    if gpu:
        model.set_attention_backend("_native_cudnn")
    torch._dynamo.reset()
    model.compile_repeated_blocks(fullgraph=True, dynamic=False, mode=mode)


def dit_inputs(c: DitConfig, x, context, states, device: str, dtype: torch.dtype) -> dict:
    """Arguments of its forward: (16, F, h, w), (96, Fc, h, w) and (n, text_dim) float32 arrays; texts are padded."""
    text = torch.nn.functional.pad(torch.from_numpy(states), (0, 0, 0, c.text_len - len(states)))
    given = {"hidden_states": x, "encoder_hidden_states": text, "control_hidden_states": context}
    out = {name: torch.as_tensor(value)[None].to(device, dtype) for name, value in given.items()}
    return out | {"timestep": torch.tensor([500], device=device), "return_dict": False}


def umt5(c: TextConfig, tensors: Tensors, dtype: torch.dtype = torch.bfloat16) -> torch.nn.Module:
    from transformers import UMT5Config, UMT5EncoderModel

    config = UMT5Config(
        vocab_size=c.vocab, d_model=c.dim, d_kv=c.dim_attn // c.num_heads, d_ff=c.dim_ffn, num_heads=c.num_heads,
        num_layers=c.num_layers, feed_forward_proj="gated-gelu",
    )  # fmt: skip
    with torch.device("meta"):
        model = UMT5EncoderModel(config)
    return _fill(model, renamed("text", tensors), dtype)


def compile_umt5(model: torch.nn.Module) -> None:
    torch._dynamo.reset()
    for block in model.encoder.block:
        block.compile(dynamic=False)


def vae(c: VaeConfig, tensors: Tensors, dtype: torch.dtype, channels_last: bool = False) -> torch.nn.Module:
    from diffusers import AutoencoderKLWan

    with torch.device("meta"):
        model = AutoencoderKLWan(
            base_dim=c.dim, z_dim=c.z_dim, dim_mult=list(c.dim_mult), num_res_blocks=c.num_res_blocks,
            temperal_downsample=list(c.temperal_downsample),
        )  # fmt: skip
    _fill(model, renamed("vae", tensors), dtype)
    if channels_last:
        formats = {4: torch.channels_last, 5: torch.channels_last_3d}
        for parameter in model.parameters():
            if parameter.ndim in formats:
                parameter.data = parameter.data.to(memory_format=formats[parameter.ndim])
    return model


def compile_vae(model: torch.nn.Module, part: str) -> None:
    """Its first and second frame are programs of their own, and a comparison with "Rep" breaks the decoder's third into
    its blocks: about 30 programs, more than PyTorch makes unless told to."""
    torch._dynamo.reset()
    torch._dynamo.config.recompile_limit = 64
    getattr(model, part).compile(dynamic=False)


def vae_run(model: torch.nn.Module, part: str, given: torch.Tensor, channels_last: bool) -> Callable[[], torch.Tensor]:
    """part: "decoder" or "encoder". given: a normalised latent (16, f, h, w), or frames (3, F, H, W) in [-1, 1]."""
    mean, std = (torch.tensor(x, device=given.device)[:, None, None, None]
                 for x in (model.config.latents_mean, model.config.latents_std))  # fmt: skip
    x = (given / (1 / std) + mean if part == "decoder" else given)[None].to(model.dtype)
    if channels_last:
        x = x.to(memory_format=torch.channels_last_3d)

    def run() -> torch.Tensor:
        with torch.no_grad():
            if part == "decoder":
                return model.decode(x, return_dict=False)[0][0]
            return (model.encode(x).latent_dist.mode()[0].float() - mean) * (1 / std)

    return run


SCORES = 4 << 30  # bytes of the reference's scores at a time


@contextlib.contextmanager
def exactly() -> Iterator[None]:
    """float32 without TF32, attention in plain steps over some queries at a time: the reference that both sides are
    measured against, at any length."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    whole = torch.nn.functional.scaled_dot_product_attention

    def in_parts(query, key, value, attn_mask=None, **options) -> torch.Tensor:
        if attn_mask is not None or options.get("is_causal"):
            return whole(query, key, value, attn_mask, **options)
        rows = max(1, SCORES // (4 * query.shape[:-2].numel() * key.shape[-2]))
        return torch.cat([whole(part, key, value, **options) for part in query.split(rows, -2)], -2)

    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.nn.functional.scaled_dot_product_attention = in_parts
    try:
        with sdpa_kernel(SDPBackend.MATH), torch.no_grad():
            yield
    finally:
        torch.nn.functional.scaled_dot_product_attention = whole
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


@contextlib.contextmanager
def widened(model: torch.nn.Module) -> Iterator[None]:
    """A 16-bit model computes with its own weights in float32, one layer's at a time: no second copy of 14B."""
    handles = []

    def widen(module: torch.nn.Module, _: object) -> None:
        module.narrow = [(p, p.data) for p in module.parameters(recurse=False)]
        for p, data in module.narrow:
            p.data = data.float()

    def restore(module: torch.nn.Module, *_: object) -> None:
        for p, data in module.narrow:
            p.data = data

    for module in model.modules():
        if not any(True for _ in module.children()) and any(True for _ in module.parameters(recurse=False)):
            handles += [module.register_forward_pre_hook(widen), module.register_forward_hook(restore)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()

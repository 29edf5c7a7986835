"""The small VACE denoiser: diffusers' WanVACETransformer3DModel, with a walk made for training.

Same numbers as diffusers (`measure.py walk` compares), but bf16 products over a float32 residual, one compiled function
for all blocks, text padding folded into one key (text.py), and the two ways to drop a reference.
"""

import torch
import torch.nn.functional as F

CONFIG = {
    "patch_size": (1, 2, 2),
    "num_attention_heads": 2,
    "attention_head_dim": 128,
    "in_channels": 16,
    "out_channels": 16,
    "text_dim": 128,
    "freq_dim": 256,
    "ffn_dim": 448,
    "num_layers": 12,
    "cross_attn_norm": True,
    "qk_norm": "rms_norm_across_heads",
    "vace_layers": [0, 4, 8],
    "vace_in_channels": 96,
}
DIM, HEADS = 256, 2
# The reference's place in the context: there; there but "absent" (all zero); gone, so that the control tokens move one
# latent frame ahead and zeros follow at the end, as in the released TPIGE code.
OWN, EMPTY, REMOVED = 0, 1, 2


def build():
    from diffusers import WanVACETransformer3DModel

    net = WanVACETransformer3DModel(**CONFIG)
    with torch.no_grad():
        for block in net.vace_blocks:  # hints start at zero, as VACE's do
            block.proj_out.weight.zero_()
            block.proj_out.bias.zero_()
        net.proj_out.weight.zero_()
        for m in net.modules():
            if isinstance(m, torch.nn.Linear) and m.weight.shape[0] >= DIM and m.weight.abs().sum() > 0:
                torch.nn.init.xavier_uniform_(m.weight)
    return net


def linear(m, x):
    return F.linear(x, m.weight.to(x.dtype), m.bias.to(x.dtype))


def layer_norm(x, eps=1e-6):
    return F.layer_norm(x, x.shape[-1:], eps=eps)


def heads(x):
    return x.unflatten(-1, (HEADS, -1)).transpose(1, 2)


def norm(m, x):
    return F.rms_norm(x.float(), x.shape[-1:], m.weight, m.eps)


def turned(m, x, cos, sin):
    """RMS norm over all heads, gain, rotary turn: (B, L, D) -> the same. Pairs change places by `flip`, heads come
    apart later: with `stack`, heads first, Inductor's kernel made a step 109 ms, not 59 (H200, `train.py bench`)."""
    y = norm(m, x)
    return (y * cos + y.unflatten(-1, (-1, 2)).flip(-1).flatten(-2) * sin).to(x.dtype)


def attend(m, x, cos, sin):
    """Self-attention; x (B, L, D) in the products' dtype."""
    q, k, v = linear(m.to_q, x), linear(m.to_k, x), linear(m.to_v, x)
    q, k = turned(m.norm_q, q, cos, sin), turned(m.norm_k, k, cos, sin)
    y = F.scaled_dot_product_attention(heads(q), heads(k), heads(v))
    return linear(m.to_out[0], y.transpose(1, 2).flatten(2))


def attend_text(m, x, text, bias):
    q, k, v = linear(m.to_q, x), linear(m.to_k, text), linear(m.to_v, text)
    q, k = norm(m.norm_q, q).to(x.dtype), norm(m.norm_k, k).to(x.dtype)
    w = heads(q) @ heads(k).transpose(-1, -2)
    w = (w.float() * (DIM // HEADS) ** -0.5 + bias[:, None, None]).softmax(-1).to(x.dtype)
    return linear(m.to_out[0], (w @ heads(v)).transpose(1, 2).flatten(2))


def block(m, x, text, bias, mod, cos, sin):
    """One main block (or the body of a VACE block). x float32 (B, L, D), mod float32 (B, 6, D)."""
    half = text.dtype
    e = (m.scale_shift_table + mod).unsqueeze(2).unbind(1)
    x = x + attend(m.attn1, (layer_norm(x) * (1 + e[1]) + e[0]).to(half), cos, sin) * e[2]
    y = F.layer_norm(x, x.shape[-1:], m.norm2.weight, m.norm2.bias, 1e-6).to(half)
    x = x + attend_text(m.attn2, y, text, bias)
    y = (layer_norm(x) * (1 + e[4]) + e[3]).to(half)
    y = linear(m.ffn.net[2], F.gelu(linear(m.ffn.net[0].proj, y), approximate="tanh"))
    return x + y * e[5]


def embed(m, x):
    """A (1, 2, 2) patch convolution as a product: x (B, T, C, H, W) -> (B, T * H/2 * W/2, D)."""
    b, t, c, h, w = x.shape
    x = x.view(b, t, c, h // 2, 2, w // 2, 2).permute(0, 1, 3, 5, 2, 4, 6).reshape(b, t * h * w // 4, c * 4)
    return F.linear(x, m.weight.flatten(1).to(x.dtype), m.bias.to(x.dtype))


def rope(net, t, h, w):
    """cos, and sin with the sign of what a pair's other number gets: (L, D)."""
    like = torch.empty(1, 1, t, 2 * h, 2 * w, device=net.proj_out.weight.device)
    cos, sin = (v[0, :, 0].float() for v in net.rope(like))
    sign = 2.0 * (torch.arange(sin.shape[1], device=sin.device) % 2) - 1
    return cos.repeat(1, HEADS), (sin * sign).repeat(1, HEADS)


def forward(net, x, context, sigma, text, bias, mode=None, run=block, half=torch.bfloat16, skip=()):
    """Velocity (B, T, 16, H, W), float32.

    x (B, T, 16, H, W): noisy latents, reference slots first. context (B, T, 96, H, W). sigma (B,). text, bias:
    text.states. mode (B,): REMOVED moves the context's tokens; EMPTY is the caller's zeros. skip: main blocks to leave
    out, their hints too."""
    b, t, _, h, w = x.shape
    cos, sin = rope(net, t, h // 2, w // 2)
    e = net.condition_embedder
    freq = e.timesteps_proj(sigma.float() * 1000)
    temb = F.linear(F.silu(F.linear(freq, e.time_embedder.linear_1.weight, e.time_embedder.linear_1.bias)), e.time_embedder.linear_2.weight, e.time_embedder.linear_2.bias)  # fmt: skip  # noqa: E501
    mod = F.linear(F.silu(temb), e.time_proj.weight, e.time_proj.bias).unflatten(1, (6, -1))
    text = text.to(half)
    text = linear(e.text_embedder.linear_2, F.gelu(linear(e.text_embedder.linear_1, text), approximate="tanh"))
    x = embed(net.patch_embedding, x.to(half)).float()
    c = embed(net.vace_patch_embedding, context.to(half)).float()
    if mode is not None:
        slot = h * w // 4
        moved = torch.cat([c[:, slot:], torch.zeros_like(c[:, :slot])], 1)
        c = torch.where((mode == REMOVED)[:, None, None], moved, c)
    hints = []
    for m in net.vace_blocks:
        if m.proj_in is not None:
            c = linear(m.proj_in, c.to(half)).float() + x
        c = run(m, c, text, bias, mod, cos, sin)
        hints.append(linear(m.proj_out, c.to(half)).float())
    at = {layer: i for i, layer in enumerate(CONFIG["vace_layers"])}
    for i, m in enumerate(net.blocks):
        if i in skip:
            continue
        x = run(m, x, text, bias, mod, cos, sin)
        if i in at:
            x = x + hints[at[i]]
    shift, scale = (net.scale_shift_table + temb[:, None]).chunk(2, 1)
    y = F.linear(layer_norm(x) * (1 + scale) + shift, net.proj_out.weight, net.proj_out.bias)
    y = y.view(b, t, h // 2, w // 2, 2, 2, 16).permute(0, 1, 6, 2, 4, 3, 5)
    return y.reshape(b, t, 16, h, w)

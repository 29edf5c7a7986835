"""The causal video autoencoder of Wan2.1, small, in one pass over time.

The network is diffusers' AutoencoderKLWan; only its walk is ours: diffusers encodes 1, 4, 4, ... frames at a time with
a cache per convolution, which is slow to train. All frames at once give the same numbers, if the first frame passes
around the time convolutions of the resamplers (`measure.py walk` compares both).

Activations are (B*T, C, H, W) in channels-last memory, so that a causal 3x3x3 convolution can be a 2-D one over three
stacked frames, or, for single pictures, over its last tap alone.
"""

import torch
import torch.nn.functional as F
from torch import nn

from norm_silu import rms_silu

MEAN = (
    -0.7571,
    -0.7089,
    -0.9113,
    0.1075,
    -0.1745,
    0.9653,
    -0.1517,
    1.5508,
    0.4134,
    -0.0715,
    0.5517,
    -0.3632,
    -0.1922,
    -0.9497,
    0.2503,
    -0.2921,
)
STD = (
    2.8184,
    1.4541,
    2.3275,
    2.6558,
    1.2196,
    1.7708,
    2.6052,
    2.0743,
    3.2687,
    2.1526,
    2.8652,
    1.5579,
    1.6382,
    1.1253,
    2.8251,
    1.916,
)
BASE, RES_BLOCKS = 24, 1

CONV = "3d"  # how 3x3x3 convolutions run: "3d", or "2d" (frames stacked as channels)


def build(base=BASE, res_blocks=RES_BLOCKS):
    from diffusers import AutoencoderKLWan

    return AutoencoderKLWan(base_dim=base, num_res_blocks=res_blocks, z_dim=16, dim_mult=[1, 2, 4, 4])


def quiet_start(net):
    """Second convolution of every residual block zero: the net starts as a short chain of resamplers."""
    for name, p in net.named_parameters():
        if ".conv2." in name:
            nn.init.zeros_(p)
    return net


def weight(m, like):
    return m.weight.to(like.dtype), None if m.bias is None else m.bias.to(like.dtype)


def conv3(w, b, x, t):
    """3x3x3 (or 3x1x1) convolution of clips that already carry two frames of zeros in front: x (B*(t+2), C, H, W)."""
    pad = w.shape[3] // 2
    v = x.unflatten(0, (-1, t + 2))
    if CONV == "2d":
        stack = torch.cat([v[:, :-2], v[:, 1:-1], v[:, 2:]], 2).flatten(0, 1)
        w = w.permute(0, 2, 1, 3, 4).flatten(1, 2)
        return F.conv2d(
            stack.contiguous(memory_format=torch.channels_last),
            w.contiguous(memory_format=torch.channels_last),
            b,
            padding=pad,
        )
    y = F.conv3d(v.transpose(1, 2), w.contiguous(memory_format=torch.channels_last_3d), b, padding=(0, pad, pad))
    return y.transpose(1, 2).flatten(0, 1)


def causal(m, x, t):
    """A WanCausalConv3d with a 3x3x3, 3x1x1 or 1x1x1 kernel, on x (B*t, C, H, W)."""
    w, b = weight(m, x)
    if w.shape[2] == 1 or t == 1:
        return F.conv2d(x, w[:, :, -1].contiguous(memory_format=torch.channels_last), b, padding=w.shape[3] // 2)
    v = x.unflatten(0, (-1, t))
    zero = torch.zeros_like(v[:, :1])
    return conv3(w, b, torch.cat([zero, zero, v], 1).flatten(0, 1), t)


def norm_conv(norm, m, x, t):
    """Norm, SiLU and a 3x3x3 causal convolution."""
    x = rms_silu(x, norm.gamma.flatten(), t, 2 if t > 1 else 0)
    return causal(m, x, 1) if t == 1 else conv3(*weight(m, x), x, t)


def residual(m, x, t):
    skip = x if isinstance(m.conv_shortcut, nn.Identity) else causal(m.conv_shortcut, x, t)
    return skip + norm_conv(m.norm2, m.conv2, norm_conv(m.norm1, m.conv1, x, t), t)


def attention(m, x):
    n, c, h, w = x.shape
    y = F.normalize(x.float(), dim=1).to(x.dtype) * (c**0.5 * m.norm.gamma.to(x.dtype))
    qkv = F.conv2d(y, *weight(m.to_qkv, y)).flatten(2).transpose(1, 2)[:, None]
    y = F.scaled_dot_product_attention(*qkv.chunk(3, -1))[:, 0].transpose(1, 2).reshape(n, c, h, w)
    return x + F.conv2d(y.contiguous(memory_format=torch.channels_last), *weight(m.proj, y))


def resample(m, x, t):
    """A WanResample; returns the new number of frames too."""
    if m.mode == "upsample3d" and t > 1:
        v = x.unflatten(0, (-1, t))
        rest = causal(m.time_conv, v[:, 1:].flatten(0, 1), t - 1).unflatten(0, (-1, t - 1))
        rest = rest.unflatten(2, (2, -1)).transpose(2, 3)  # (B, T-1, C, 2, H, W)
        rest = rest.movedim(3, 2).flatten(1, 2)
        x, t = torch.cat([v[:, :1], rest], 1).flatten(0, 1), 2 * t - 1
    if m.mode.startswith("upsample"):
        x = F.interpolate(x, scale_factor=2, mode="nearest")
        return F.conv2d(x.contiguous(memory_format=torch.channels_last), *weight(m.resample[1], x), padding=1), t
    x = F.conv2d(F.pad(x, (0, 1, 0, 1)), *weight(m.resample[1], x), stride=2)
    if m.mode == "downsample3d" and t > 1:
        v = x.unflatten(0, (-1, t))
        w, b = weight(m.time_conv, x)
        now = torch.cat([v[:, 0:-2:2], v[:, 1:-1:2], v[:, 2::2]], 2)  # (B, T//2, 3C, H, W)
        w2 = w.permute(0, 2, 1, 3, 4).flatten(1, 2).contiguous(memory_format=torch.channels_last)
        t = (t + 1) // 2
        y = F.conv2d(now.flatten(0, 1).contiguous(memory_format=torch.channels_last), w2, b).unflatten(0, (-1, t - 1))
        x = torch.cat([v[:, :1], y], 1).flatten(0, 1)
    return x, t


def walk(blocks, x, t):
    for m in blocks:
        kind = type(m).__name__
        if kind == "WanResample":
            x, t = resample(m, x, t)
        elif kind == "WanResidualBlock":
            x = residual(m, x, t)
        elif kind == "WanAttentionBlock":
            x = attention(m, x)
        elif kind == "WanMidBlock":
            x, t = walk([m.resnets[0], m.attentions[0], m.resnets[1]], x, t)
        elif kind == "WanUpBlock":
            x, t = walk([*m.resnets, *(m.upsamplers or [])], x, t)
        else:
            raise TypeError(kind)
    return x, t


def encode(net, x):
    """(B, T, 3, H, W) in [-1, 1] -> mean and log variance, (B, 1 + (T-1)/4, 16, H/8, W/8), in raw units."""
    e, t = net.encoder, x.shape[1]
    x = causal(e.conv_in, x.flatten(0, 1).contiguous(memory_format=torch.channels_last), t)
    x, t = walk([*e.down_blocks, e.mid_block], x, t)
    x = norm_conv(e.norm_out, e.conv_out, x, t)
    x = causal(net.quant_conv, x, t).unflatten(0, (-1, t)).float()
    mean, logvar = x.chunk(2, 2)
    return mean, logvar.clamp(-30, 20)


def decode(net, z, dtype=None):
    """(B, t, 16, h, w) -> (B, 4(t-1)+1, 3, 8h, 8w), not clamped."""
    d, t = net.decoder, z.shape[1]
    x = z.flatten(0, 1).to(dtype or z.dtype).contiguous(memory_format=torch.channels_last)
    x = causal(d.conv_in, causal(net.post_quant_conv, x, t), t)
    x, t = walk([d.mid_block, *d.up_blocks], x, t)
    return norm_conv(d.norm_out, d.conv_out, x, t).unflatten(0, (-1, t))


@torch.no_grad()
def fit_constants(net, mean, std):
    """Move latents of this mean and std onto Wan's published MEAN and STD: exact, since quant_conv is 1x1x1.

    The official code has those sixteen pairs built in, so a checkpoint must meet them, not the other way round."""
    gain = torch.tensor(STD) / std
    shift = torch.tensor(MEAN) - gain * mean
    q, p = net.quant_conv, net.post_quant_conv
    q.weight[:16] *= gain.view(-1, 1, 1, 1, 1)
    q.bias[:16] = q.bias[:16] * gain + shift
    q.bias[16:] += 2 * gain.log()
    # Decoder: W (z - shift) / gain + b
    p.bias -= p.weight[:, :, 0, 0, 0] @ (shift / gain)
    p.weight /= gain.view(1, -1, 1, 1, 1)
    return net

"""RMS norm over channels, gain, SiLU and causal padding in one kernel, forward and backward.

As separate passes over the activations they cost more than the convolutions of a small VAE."""

import torch
import torch.nn.functional as F

try:
    import triton
    import triton.language as tl
except ImportError:
    triton = None


def plain(x, gamma, t, pad):
    h = F.normalize(x.float(), dim=1) * (x.shape[1] ** 0.5 * gamma.float().view(1, -1, 1, 1))
    h = F.silu(h).to(x.dtype).unflatten(0, (-1, t))
    return torch.cat([torch.zeros_like(h[:, :1])] * pad + [h], 1).flatten(0, 1)


if triton:

    @triton.jit
    def _forward(X, G, Y, n, clip, gap, C: tl.constexpr, BC: tl.constexpr, BR: tl.constexpr):
        row = tl.program_id(0).to(tl.int64) * BR + tl.arange(0, BR)
        col = tl.arange(0, BC)
        at = row[:, None] * C + col[None, :]
        ok = (row[:, None] < n) & (col[None, :] < C)
        x = tl.load(X + at, mask=ok, other=0.0).to(tl.float32)
        g = tl.load(G + col, mask=col < C, other=0.0).to(tl.float32)
        r = tl.rsqrt(tl.sum(x * x, 1) / C + 1e-20)
        h = x * r[:, None] * g[None, :]
        y = h / (1 + tl.exp(-h))
        tl.store(Y + at + ((row // clip + 1) * gap * C)[:, None], y.to(Y.dtype.element_ty), mask=ok)

    @triton.jit
    def _backward(
        X, G, DY, DX, DG, n, clip, gap, C: tl.constexpr, BC: tl.constexpr, BR: tl.constexpr, LOOP: tl.constexpr
    ):
        col = tl.arange(0, BC)
        g = tl.load(G + col, mask=col < C, other=0.0).to(tl.float32)
        dg = tl.zeros([BC], tl.float32)
        for i in range(LOOP):
            row = (tl.program_id(0).to(tl.int64) * LOOP + i) * BR + tl.arange(0, BR)
            at = row[:, None] * C + col[None, :]
            ok = (row[:, None] < n) & (col[None, :] < C)
            x = tl.load(X + at, mask=ok, other=0.0).to(tl.float32)
            dy = tl.load(DY + at + ((row // clip + 1) * gap * C)[:, None], mask=ok, other=0.0).to(tl.float32)
            r = tl.rsqrt(tl.sum(x * x, 1) / C + 1e-20)
            xn = x * r[:, None]
            h = xn * g[None, :]
            s = 1 / (1 + tl.exp(-h))
            dh = dy * s * (1 + h * (1 - s))
            dg += tl.sum(dh * xn, 0)
            d = dh * g[None, :]
            dx = r[:, None] * (d - xn * (tl.sum(d * xn, 1) / C)[:, None])
            tl.store(DX + at, dx.to(DX.dtype.element_ty), mask=ok)
        tl.atomic_add(DG + col, dg, mask=col < C)


class _RmsSilu(torch.autograd.Function):
    """Rows are pixels; a clip's first row is moved down by the padding of all clips up to it."""

    @staticmethod
    def forward(ctx, x, gamma, t, pad):
        x = x.contiguous(memory_format=torch.channels_last)
        n, c, h, w = x.shape
        y = torch.empty(
            (n // t * (t + pad), c, h, w), dtype=x.dtype, device=x.device, memory_format=torch.channels_last
        )
        if pad:
            y.unflatten(0, (-1, t + pad))[:, :pad].zero_()
        bc = triton.next_power_of_2(c)
        ctx.sizes = n * h * w, t * h * w, pad * h * w, c, bc, 2048 // bc
        _forward[(triton.cdiv(n * h * w, 2048 // bc),)](x, gamma, y, *ctx.sizes)
        ctx.save_for_backward(x, gamma)
        return y

    @staticmethod
    def backward(ctx, dy):
        x, gamma = ctx.saved_tensors
        dy = dy.contiguous(memory_format=torch.channels_last)
        dx, dg = torch.empty_like(x), torch.zeros_like(gamma)
        loop = 8
        _backward[(triton.cdiv(ctx.sizes[0], ctx.sizes[-1] * loop),)](x, gamma, dy, dx, dg, *ctx.sizes, loop)
        return dx, dg, None, None


def rms_silu(x, gamma, t=1, pad=0):
    """x (B*t, C, H, W), gamma (C,) float32 -> (B*(t+pad), C, H, W): `pad` zero frames before each clip."""
    if x.is_cuda and triton:
        return _RmsSilu.apply(x, gamma, t, pad)
    return plain(x, gamma, t, pad)

"""RMS norm over all heads, gain and rotary turn of queries and keys in one kernel, forward and backward.

Inductor's own kernel for it writes heads apart and pairs by `stack`: 3.7 ms where the bytes take 0.15 (H100).
"""

import torch
import torch.nn.functional as F

try:
    import triton
    import triton.language as tl
except ImportError:
    triton = None

WAY = "kernel"  # or stack, heads, late: what `train.py bench --turn` compares


def plain(x, weight, eps, cos, sin, heads):
    """As diffusers does it. x (B, L, D), cos and sin (L, head / 2) -> (B, L, D)."""
    y = F.rms_norm(x.float(), x.shape[-1:], weight, eps).unflatten(-1, (heads, -1, 2))
    a, b = y.unbind(-1)
    cos, sin = cos[:, None], sin[:, None]
    return torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(-3).to(x.dtype)


def paired(cos, sin):
    return torch.stack([cos, cos], -1).flatten(-2), torch.stack([-sin, sin], -1).flatten(-2)


def swapped(x):
    return x.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)


def by_heads(x, weight, eps, cos, sin, heads):
    y = F.rms_norm(x.float(), x.shape[-1:], weight, eps).unflatten(-1, (heads, -1)).transpose(1, 2)
    c, s = paired(cos, sin)
    return (y * c + swapped(y) * s).to(x.dtype).transpose(1, 2).flatten(2)


def late(x, weight, eps, cos, sin, heads):
    y = F.rms_norm(x.float(), x.shape[-1:], weight, eps)
    c, s = (v.repeat(1, heads) for v in paired(cos, sin))
    return (y * c + swapped(y) * s).to(x.dtype)


if triton:

    @triton.jit
    def _turn(X, G, COS, SIN, Y, n, length, eps, D: tl.constexpr, HEAD: tl.constexpr, BR: tl.constexpr):
        row = tl.program_id(0) * BR + tl.arange(0, BR)
        col = tl.arange(0, D)
        ok = (row < n)[:, None] & (col >= 0)[None, :]
        at = row.to(tl.int64)[:, None] * D
        x = tl.load(X + at + col[None, :], mask=ok, other=0.0).to(tl.float32)
        z = tl.load(X + at + (col ^ 1)[None, :], mask=ok, other=0.0).to(tl.float32)
        g, h = tl.load(G + col), tl.load(G + (col ^ 1))
        angle = (row % length)[:, None] * (HEAD // 2) + ((col % HEAD) // 2)[None, :]
        cos, sin = tl.load(COS + angle), tl.load(SIN + angle)
        sin = tl.where((col % 2 == 0)[None, :], -sin, sin)
        r = tl.rsqrt(tl.sum(x * x, 1) / D + eps)
        y = (x * g[None, :] * cos + z * h[None, :] * sin) * r[:, None]
        tl.store(Y + at + col[None, :], y.to(Y.dtype.element_ty), mask=ok)

    @triton.jit
    def _turn_back(
        X, G, COS, SIN, DY, DX, DG, n, length, eps,
        D: tl.constexpr, HEAD: tl.constexpr, BR: tl.constexpr, LOOP: tl.constexpr,
    ):  # fmt: skip
        col = tl.arange(0, D)
        g = tl.load(G + col)
        dg = tl.zeros([D], tl.float32)
        for i in range(LOOP):
            row = (tl.program_id(0) * LOOP + i) * BR + tl.arange(0, BR)
            ok = (row < n)[:, None] & (col >= 0)[None, :]
            at = row.to(tl.int64)[:, None] * D
            x = tl.load(X + at + col[None, :], mask=ok, other=0.0).to(tl.float32)
            dy = tl.load(DY + at + col[None, :], mask=ok, other=0.0).to(tl.float32)
            dz = tl.load(DY + at + (col ^ 1)[None, :], mask=ok, other=0.0).to(tl.float32)
            angle = (row % length)[:, None] * (HEAD // 2) + ((col % HEAD) // 2)[None, :]
            cos, sin = tl.load(COS + angle), tl.load(SIN + angle)
            sin = tl.where((col % 2 == 0)[None, :], sin, -sin)
            r = tl.rsqrt(tl.sum(x * x, 1) / D + eps)
            x = x * r[:, None]
            dy = dy * cos + dz * sin
            dg += tl.sum(dy * x, 0)
            d = dy * g[None, :]
            dx = (d - x * (tl.sum(d * x, 1) / D)[:, None]) * r[:, None]
            tl.store(DX + at + col[None, :], dx.to(DX.dtype.element_ty), mask=ok)
        tl.store(DG + tl.program_id(0) * D + col, dg)


ROWS, LOOP = 8, 16


@torch.library.custom_op("tiny::turn", mutates_args=())
def turn(
    x: torch.Tensor, weight: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, eps: float, heads: int
) -> torch.Tensor:
    x = x.contiguous()
    y, d, n = torch.empty_like(x), x.shape[-1], x.numel() // x.shape[-1]
    _turn[(triton.cdiv(n, ROWS),)](x, weight, cos, sin, y, n, len(cos), eps, d, d // heads, ROWS)
    return y


@torch.library.custom_op("tiny::turn_back", mutates_args=())
def turn_back(
    x: torch.Tensor,
    weight: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    eps: float,
    heads: int,
    dy: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    x, dy = x.contiguous(), dy.contiguous()
    dx, d, n = torch.empty_like(x), x.shape[-1], x.numel() // x.shape[-1]
    programs = triton.cdiv(n, ROWS * LOOP)
    dg = torch.empty(programs, d, device=x.device)  # a row a program, summed after: no atomics, the same bits each time
    _turn_back[(programs,)](x, weight, cos, sin, dy, dx, dg, n, len(cos), eps, d, d // heads, ROWS, LOOP)
    return dx, dg.sum(0)


@turn.register_fake
def _(x, weight, cos, sin, eps, heads):
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


@turn_back.register_fake
def _(x, weight, cos, sin, eps, heads, dy):
    return torch.empty(x.shape, dtype=x.dtype, device=x.device), torch.empty_like(weight)


def _keep(ctx, inputs, output):
    *tensors, ctx.eps, ctx.heads = inputs
    ctx.save_for_backward(*tensors)


def _back(ctx, dy):
    return (*turn_back(*ctx.saved_tensors, ctx.eps, ctx.heads, dy), None, None, None, None)


turn.register_autograd(_back, setup_context=_keep)


def rotated(x, weight, eps, cos, sin, heads):
    """x (B, L, D) before the norm -> (B, L, D) after it, turned, in x's dtype. cos, sin: (L, half a head)."""
    if not (x.is_cuda and triton):
        return plain(x, weight, eps, cos, sin, heads)
    if WAY == "kernel":
        return turn(x, weight, cos, sin, eps, heads)
    return {"stack": plain, "heads": by_heads, "late": late}[WAY](x, weight, eps, cos, sin, heads)

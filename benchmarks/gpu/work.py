"""What a stage must compute: its matrix products, attentions and convolutions by shape, and the fewest bytes it moves.

    forward = dit(B13, latent=(22, 60, 104))
    forward.flops("gemm")                                  # 1.32e14
    forward.seconds(lambda job: measured_rate_of(job))     # the floor: every job at its ceiling

Operations are counted as 2 a multiplication. Bytes are what is left if every pass over an activation that can be fused
with its neighbour is fused: a job reads its inputs and writes its output once. The floor is arithmetic alone: bytes of
the passes that no product can take along (norms, rotary embedding, gates) are `loose`: they say how far above the floor
an exact engine ends.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from ipvg.checkpoint import DitConfig, TextConfig, VaeConfig

B13 = DitConfig(dim=1536, ffn_dim=8960, num_heads=12, num_layers=30, vace_layers=tuple(range(0, 30, 2)))
B14 = DitConfig(dim=5120, ffn_dim=13824, num_heads=40, num_layers=40, vace_layers=tuple(range(0, 40, 5)))
UMT5 = TextConfig(vocab=256384, dim=4096, dim_attn=4096, dim_ffn=10240, num_heads=64, num_layers=24)
VAE = VaeConfig()
HALF = 2  # bytes of a 16-bit number
TEXT = 512  # keys of cross-attention


@dataclass(frozen=True)
class Gemm:
    """y (rows, outs) = x (rows, ins) w (outs, ins)^T."""

    rows: int
    outs: int
    ins: int
    kind = "gemm"

    @property
    def flops(self) -> int:
        return 2 * self.rows * self.outs * self.ins


@dataclass(frozen=True)
class Attention:
    """softmax(q k^T) v of `heads` heads of `size` columns."""

    heads: int
    queries: int
    keys: int
    size: int
    kind = "attention"

    @property
    def flops(self) -> int:
        return 4 * self.heads * self.queries * self.keys * self.size


@dataclass(frozen=True)
class Conv:
    """A convolution of kt x k x k that makes frames of rows x cols pixels, with stride in space."""

    ins: int
    outs: int
    kt: int
    k: int
    rows: int
    cols: int
    stride: int = 1
    kind = "conv"

    @property
    def flops(self) -> int:
        """Of one frame."""
        return 2 * self.rows * self.cols * self.outs * self.ins * self.kt * self.k * self.k


Job = Gemm | Attention | Conv


@dataclass
class Work:
    """jobs: shape -> how often. fused: the fewest bytes. loose: bytes of the passes that no product can take along."""

    jobs: dict[Job, int] = field(default_factory=dict)
    fused: int = 0
    loose: int = 0

    def add(self, job: Job, count: int = 1) -> None:
        self.jobs[job] = self.jobs.get(job, 0) + count

    def flops(self, kind: str | None = None) -> int:
        return sum(n * job.flops for job, n in self.jobs.items() if kind in (None, job.kind))

    def seconds(self, rate: Callable[[Job], float], kind: str | None = None) -> float:
        """rate: operations a second that a job reaches."""
        return sum(n * job.flops / rate(job) for job, n in self.jobs.items() if kind in (None, job.kind))

    def large(self, share: float = 0.01) -> list[Job]:
        """The shapes worth measuring, the most expensive first: those with a share of the whole, and the first of each
        kind. The others are near enough to one of them."""
        dearest = sorted(self.jobs, key=lambda job: -self.jobs[job] * job.flops)
        least = share * self.flops()
        firsts = {job.kind: job for job in reversed(dearest)}.values()
        return [job for job in dearest if self.jobs[job] * job.flops >= least or job in firsts]

    def __add__(self, other: Work) -> Work:
        out = Work(dict(self.jobs), self.fused + other.fused, self.loose + other.loose)
        for job, n in other.jobs.items():
            out.add(job, n)
        return out

    def times(self, n: int) -> Work:
        return Work({job: n * count for job, count in self.jobs.items()}, n * self.fused, n * self.loose)


def latent(frames: int, height: int, width: int, references: int = 1) -> tuple[int, int, int]:
    """(F, h, w) of a video's latent with its reference slots."""
    return references + 1 + (frames - 1) // 4, height // 8, width // 8


def tokens(size: tuple[int, int, int]) -> int:
    return size[0] * (size[1] // 2) * (size[2] // 2)


def dit(c: DitConfig, size: tuple[int, int, int], residual: int = HALF, keys: int = TEXT) -> Work:
    """One forward with every VACE block, texts and context prepared. residual: bytes of a number of the stream between
    the blocks; the reference has 4. keys: of cross-attention; a text's padding, all of it equal, need be one."""
    out, rows = Work(), tokens(size)
    dim, blocks, hints = c.dim, c.num_layers + len(c.vace_layers), len(c.vace_layers)
    out.add(Gemm(rows, 3 * dim, dim), blocks)  # q, k, v
    out.add(Gemm(rows, dim, dim), 3 * blocks + hints + (hints > 0))  # o, q and o of the text, hints, before_proj
    out.add(Gemm(rows, c.ffn_dim, dim), blocks)
    out.add(Gemm(rows, dim, c.ffn_dim), blocks)
    out.add(Gemm(rows, dim, 4 * c.in_dim))
    out.add(Gemm(rows, 4 * c.out_dim, dim))
    out.add(Attention(c.num_heads, rows, rows, dim // c.num_heads), blocks)
    out.add(Attention(c.num_heads, rows, keys, dim // c.num_heads), blocks)

    one = rows * dim * HALF  # bytes of an activation
    stream = 1 + 2 * residual // HALF + 1  # gate + residual + next norm: y and x in, x and h out
    rope, text_norm = 4, 2  # q and k in and out; the text's q
    products = 4 + 2 + 2 + 2 + 2 + 2 * c.ffn_dim / dim  # qkv, o, q, o; up, down
    attentions = 4 + 2
    parameters = sum(job.outs * job.ins * n for job, n in out.jobs.items() if isinstance(job, Gemm))
    out.loose = int(one * (blocks * (3 * stream + rope + text_norm) + 2 * hints))
    out.fused = out.loose + int(one * (blocks * (products + attentions) + 2 * hints)) + parameters * HALF
    return out


def umt5(c: TextConfig, rows: int = TEXT) -> Work:
    out = Work()
    out.add(Gemm(rows, c.dim_attn, c.dim), 3 * c.num_layers)
    out.add(Gemm(rows, c.dim, c.dim_attn), c.num_layers)
    out.add(Gemm(rows, c.dim_ffn, c.dim), 2 * c.num_layers)
    out.add(Gemm(rows, c.dim, c.dim_ffn), c.num_layers)
    out.add(Attention(c.num_heads, rows, rows, c.dim_attn // c.num_heads), c.num_layers)
    parameters = sum(job.outs * job.ins * n for job, n in out.jobs.items() if isinstance(job, Gemm))
    passes = c.num_layers * (2 * 4 * c.dim + 6 * c.dim_attn + 2 * c.dim + 4 * c.dim_ffn)
    out.fused = HALF * (parameters + rows * passes)
    out.loose = HALF * rows * c.num_layers * (2 * 4 * c.dim + 3 * c.dim_ffn)
    return out


class _Vae:
    """Adds up convolutions while a stage's frames pass."""

    def __init__(self, c: VaeConfig):
        self.c, self.work = c, Work()

    def conv(self, ins: int, outs: int, kt: int, k: int, rows: int, cols: int, frames: int, stride: int = 1) -> None:
        job = Conv(ins, outs, kt, k, rows, cols, stride)
        self.work.add(job, frames)
        pixels = rows * cols * frames
        self.work.fused += HALF * pixels * (ins * stride * stride + outs) + HALF * ins * outs * kt * k * k

    def residual(self, ins: int, outs: int, rows: int, cols: int, frames: int) -> None:
        self.conv(ins, outs, 3, 3, rows, cols, frames)
        self.conv(outs, outs, 3, 3, rows, cols, frames)
        if ins != outs:
            self.conv(ins, outs, 1, 1, rows, cols, frames)
        pixels = rows * cols * frames
        self.work.fused += HALF * pixels * outs  # the residual
        # Norms: the sum over channels needs a whole pixel, which no convolution of cuDNN has at hand. The result in,
        # the normed one out; after the second also the residual in and the sum out.
        self.work.loose += HALF * pixels * (2 * outs + 4 * outs)

    def middle(self, width: int, rows: int, cols: int, frames: int) -> None:
        for _ in range(2):
            self.residual(width, width, rows, cols, frames)
        self.work.add(Gemm(rows * cols, 3 * width, width), frames)
        self.work.add(Gemm(rows * cols, width, width), frames)
        self.work.add(Attention(1, rows * cols, rows * cols, width), frames)


def vae_decode(c: VaeConfig, frames: int, height: int, width: int) -> Work:
    v, n = _Vae(c), 1 + (frames - 1) // 4
    rows, cols, last = height // 8, width // 8, len(c.dim_mult) - 1
    widths = [c.dim * m for m in (c.dim_mult[-1], *reversed(c.dim_mult))]
    v.conv(c.z_dim, widths[0], 3, 3, rows, cols, n)
    v.middle(widths[0], rows, cols, n)
    for stage in range(last + 1):
        ins, outs = widths[stage] // (2 if stage else 1), widths[stage + 1]
        for block in range(c.num_res_blocks + 1):
            v.residual(outs if block else ins, outs, rows, cols, n)
        if stage == last:
            break
        if c.temperal_downsample[last - 1 - stage]:  # the first frame passes by
            v.conv(outs, 2 * outs, 3, 1, rows, cols, n - 1)
            n = 1 + 2 * (n - 1)
        rows, cols = 2 * rows, 2 * cols
        v.conv(outs, outs // 2, 1, 3, rows, cols, n)
    v.conv(widths[-1], 3, 3, 3, rows, cols, n)
    return v.work


def vae_encode(c: VaeConfig, frames: int, height: int, width: int) -> Work:
    v, n, rows, cols = _Vae(c), frames, height, width
    widths = [c.dim, *(c.dim * m for m in c.dim_mult)]
    v.conv(3, widths[0], 3, 3, rows, cols, n)
    for stage in range(len(c.dim_mult)):
        ins, outs = widths[stage], widths[stage + 1]
        for block in range(c.num_res_blocks):
            v.residual(outs if block else ins, outs, rows, cols, n)
        if stage == len(c.dim_mult) - 1:
            break
        rows, cols = rows // 2, cols // 2
        v.conv(outs, outs, 1, 3, rows, cols, n, stride=2)
        if c.temperal_downsample[stage]:
            n = 1 + (n - 1) // 2
            v.conv(outs, outs, 3, 1, rows, cols, n - 1)
    v.middle(widths[-1], rows, cols, n)
    v.conv(widths[-1], 2 * c.z_dim, 3, 3, rows, cols, n)
    return v.work


def total(parts: Iterable[Work]) -> Work:
    out = Work()
    for part in parts:
        out = out + part
    return out

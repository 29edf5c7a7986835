"""What this card reaches on a shape and nothing else, under a load kept on for seconds: the best of the libraries that
PyTorch brings, in the same run as everything that is compared with it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch

from .meter import Meter
from .work import Attention, Conv, Gemm, Job

FRAMES = 4  # of one convolution: what a latent frame makes; far below 2^31 elements


class Ceilings:
    """rate(job): operations a second. copy, upload: bytes a second, read and written ones counted; to the device."""

    def __init__(self, meter: Meter):
        self.meter = meter
        self.known: dict[Job, float] = {}
        self._bytes: dict[str, float] = {}
        self.half = torch.bfloat16

    def measure(self, jobs: Iterable[Job]) -> None:
        for job in jobs:
            if job not in self.known:
                how = {"gemm": self._gemm, "attention": self._attention, "conv": self._conv}[job.kind]
                self.known[job] = max(self.meter.rate(run, amount) for run, amount in how(job))
                self.meter.empty()

    def rate(self, job: Job) -> float:
        """Measured, or of the measured shape of its kind that is nearest."""
        if job in self.known:
            return self.known[job]
        same = [known for known in self.known if known.kind == job.kind]
        if not same:
            raise KeyError(f"no {job.kind} was measured, so {job} has no ceiling")
        return self.known[min(same, key=lambda known: _distance(known, job))]

    def record(self) -> list[dict]:
        out = [{"kind": job.kind, **vars(job), "tflops": rate / 1e12} for job, rate in self.known.items()]
        return out + [{"kind": kind, "gb_per_s": rate / 1e9} for kind, rate in self._bytes.items()]

    @property
    def copy(self) -> float:
        return self._measured("copy", self._copy)

    @property
    def upload(self) -> float:
        return self._measured("upload", self._upload)

    def _measured(self, kind: str, how: Callable[[], float]) -> float:
        if kind not in self._bytes:
            self._bytes[kind] = how()
            self.meter.empty()
        return self._bytes[kind]

    def _random(self, *shape: int, dtype: torch.dtype | None = None) -> torch.Tensor:
        return torch.randn(shape, device=self.meter.device, dtype=dtype or self.half)

    def _gemm(self, job: Gemm) -> Iterable[tuple[Callable[[], object], float]]:
        x, w = self._random(job.rows, job.ins), self._random(job.outs, job.ins)
        y = torch.empty(job.rows, job.outs, device=x.device, dtype=x.dtype)
        libraries = ("cublas", "cublaslt") if self.meter.gpu else ("default",)
        for library in libraries:
            if self.meter.gpu:
                torch.backends.cuda.preferred_blas_library(library)
            yield lambda: torch.mm(x, w.t(), out=y), job.flops
        if self.meter.gpu:
            torch.backends.cuda.preferred_blas_library("default")

    def _attention(self, job: Attention) -> Iterable[tuple[Callable[[], object], float]]:
        from torch.nn.attention import SDPBackend, sdpa_kernel

        def heads(rows: int) -> torch.Tensor:  # (1, heads, rows, size) in memory as (rows, heads, size)
            return self._random(1, rows, job.heads, job.size).transpose(1, 2)

        q, k, v = heads(job.queries), heads(job.keys), heads(job.keys)
        order = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION]

        def run() -> None:
            with sdpa_kernel(order if self.meter.gpu else SDPBackend.MATH, set_priority=True):
                torch.nn.functional.scaled_dot_product_attention(q, k, v)

        yield run, job.flops

    def _conv(self, job: Conv) -> Iterable[tuple[Callable[[], object], float]]:
        pad = job.k // 2 if job.stride == 1 else 0
        rows, cols = (n * job.stride + (job.k - 1 if job.stride > 1 else 0) for n in (job.rows, job.cols))
        last = {"memory_format": torch.channels_last_3d}
        dtype = torch.float16 if self.meter.gpu else torch.float32
        x = self._random(1, job.ins, FRAMES + job.kt - 1, rows, cols, dtype=dtype).to(**last)
        w = self._random(job.outs, job.ins, job.kt, job.k, job.k, dtype=dtype).to(**last)
        b = self._random(job.outs, dtype=dtype)
        torch.backends.cudnn.benchmark = True
        arguments = {"stride": (1, job.stride, job.stride), "padding": (0, pad, pad)}
        yield lambda: torch.nn.functional.conv3d(x, w, b, **arguments), FRAMES * job.flops
        torch.backends.cudnn.benchmark = False

    def _copy(self) -> float:
        x = self._random(2**30 if self.meter.gpu else 2**20)
        y = torch.empty_like(x)
        return self.meter.rate(lambda: y.copy_(x), 2 * x.nbytes)

    def _upload(self) -> float:
        x = torch.empty(2**30 if self.meter.gpu else 2**20, dtype=torch.uint8, pin_memory=self.meter.gpu)
        y = torch.empty_like(x, device=self.meter.device, pin_memory=False)
        return self.meter.rate(lambda: y.copy_(x, non_blocking=True), x.nbytes)


def _distance(a: Job, b: Job) -> float:
    return sum(abs(math.log(x / y)) for x, y in zip(vars(a).values(), vars(b).values()))

"""The two numbers of every row before anything is measured: operations and bytes, and the seconds that they take at
ceilings known from elsewhere. `engine.py --floors` prints them; NOTES.md keeps them beside what came out."""

from __future__ import annotations

from dataclasses import dataclass

from . import work
from .work import Attention, Gemm, Job, Work


@dataclass(frozen=True)
class Card:
    """Rates measured earlier on one card, sustained where known. gemm: by width 1536, 5120, 4096 of the model."""

    name: str
    gemm: dict[int, float]
    attention: tuple[float, float]  # of 34320 and of 79200 tokens
    conv: dict[int, float]  # by channels
    copy: float  # bytes a second, read and written
    upload: float = 54.8e9

    def rate(self, job: Job) -> float:
        if isinstance(job, Gemm):
            return self.gemm.get(job.ins, self.gemm.get(job.outs, min(self.gemm.values())))
        if isinstance(job, Attention):
            return self.attention[job.queries > 60_000]
        return self.conv[min(self.conv, key=lambda channels: abs(channels - min(job.ins, job.outs)))]


CARDS = (
    Card("H100", {1536: 740e12, 5120: 690e12, 4096: 700e12}, (633e12, 587e12), {96: 305e12, 192: 513e12, 384: 564e12},
         3.0e12),
    Card("H200", {1536: 663e12, 5120: 663e12, 4096: 663e12}, (575e12, 565e12), {96: 352e12, 192: 547e12, 384: 702e12},
         4.2e12),
)  # fmt: skip

P480, P720 = (81, 480, 832), (81, 720, 1280)
STAGES: dict[str, Work] = {
    "1.3B forward 480p": work.dit(work.B13, work.latent(*P480)),
    **{
        f"1.3B forward, {size[1]}p {size[0]} frames": work.dit(work.B13, work.latent(*size))
        for size in ((17, 480, 832), (49, 480, 832), (161, 480, 832), (17, 720, 1280), P720)
    },
    "14B forward 480p": work.dit(work.B14, work.latent(*P480)),
    "14B forward 720p": work.dit(work.B14, work.latent(*P720)),
    "1.3B step, 3 branches": work.dit(work.B13, work.latent(*P480)).times(3),
    "VAE decode 480p": work.vae_decode(work.VAE, *P480),
    "VAE encode 480p": work.vae_encode(work.VAE, *P480),
    "umT5-XXL, 512 tokens": work.umt5(work.UMT5),
    "1.3B video, 50 steps": work.total(
        [
            work.dit(work.B13, work.latent(*P480)).times(150),
            work.umt5(work.UMT5).times(2),
            work.vae_encode(work.VAE, *P480),
            work.vae_decode(work.VAE, *P480),
        ]
    ),
}


def table() -> str:
    """Markdown: a stage a line, and for each card seconds of arithmetic, of fused bytes and of loose ones, in ms."""
    heads = [f"{card.name}: arithmetic / bytes / loose, ms" for card in CARDS]
    lines = ["| work | TFLOP: gemm / attention / conv | GB fused / loose | " + " | ".join(heads) + " |"]
    lines.append("|---" * (3 + len(CARDS)) + "|")
    for name, stage in STAGES.items():
        flops = " / ".join(f"{stage.flops(kind) / 1e12:.4g}" for kind in ("gemm", "attention", "conv"))
        cells = [flops, f"{stage.fused / 1e9:.4g} / {stage.loose / 1e9:.4g}"]
        for card in CARDS:
            seconds = stage.seconds(card.rate), stage.fused / card.copy, stage.loose / card.copy
            cells.append(" / ".join(f"{s * 1e3:.4g}" for s in seconds))
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)

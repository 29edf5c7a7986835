"""Judges of the rendered world: face embedders and the attribute probe. Small CNNs, exported to ONNX."""

import torch
import torch.nn.functional as F
from torch import nn

import people
import scenes

PROBE_FRAMES = (0, 4, 8, 12, 16)
HEADS = {
    **{k: len(v) for k, v in scenes.CATEGORIES.items()},
    "hair_colour": len(people.HAIR_COLOURS),
    "hair_style": len(people.HAIR_STYLES),
    "face": 2,
}


def conv(a, b, stride=1, act=nn.SiLU):
    return nn.Sequential(nn.Conv2d(a, b, 3, stride, 1, bias=False), nn.BatchNorm2d(b), act())


class Residual(nn.Module):
    def __init__(self, c, act):
        super().__init__()
        self.body = nn.Sequential(conv(c, c, act=act), nn.Conv2d(c, c, 3, 1, 1, bias=False), nn.BatchNorm2d(c))
        self.act = act()

    def forward(self, x):
        return self.act(x + self.body(x))


class Trunk(nn.Module):
    """128x128 -> 4x4 -> a vector. Stages are kept apart: early ones serve as a perceptual distance."""

    def __init__(self, channels, widths, out, residual=True, act=nn.SiLU):
        super().__init__()
        stages, last = [], channels
        for i, w in enumerate((*widths, widths[-1])):
            block = [conv(last, w, 2, act)]
            if residual and 0 < i < len(widths):
                block.append(Residual(w, act))
            stages.append(nn.Sequential(*block))
            last = w
        self.stages = nn.ModuleList(stages)
        self.pool = nn.Conv2d(last, last, 4, groups=last, bias=False)
        self.out = nn.Linear(last, out)

    def features(self, x, stages):
        found = []
        for stage in self.stages[:stages]:
            x = stage(x)
            found.append(x)
        return found

    def forward(self, x):
        for stage in self.stages:
            x = stage(x)
        return self.out(self.pool(x).flatten(1))


class Embedder(nn.Module):
    """(B, 3, 128, 128) in [-1, 1] -> (B, 128), unit length. Kind "a" judges; kind "b", another, may shape losses."""

    def __init__(self, kind="a"):
        super().__init__()
        self.trunk = (
            Trunk(3, (24, 48, 80, 128), 128)
            if kind == "a"
            else Trunk(3, (16, 40, 72, 112), 128, residual=False, act=nn.ReLU)
        )

    def forward(self, x):
        return F.normalize(self.trunk(x), dim=1)


class Probe(nn.Module):
    """(B, 5, 3, 128, 128): frames PROBE_FRAMES of a clip, in [-1, 1] -> (B, sum of HEADS) logits."""

    def __init__(self):
        super().__init__()
        self.trunk = Trunk(3 * len(PROBE_FRAMES), (32, 48, 80, 112), 192)
        self.heads = nn.Linear(192, sum(HEADS.values()))

    def forward(self, x):
        return self.heads(F.silu(self.trunk(x.flatten(1, 2))))


def split(logits):
    """(B, sum) -> {head: (B, classes)}."""
    return dict(zip(HEADS, logits.split(list(HEADS.values()), 1)))


def labels(who, scene):
    """{head: (n,) int64} of rendered clips; the face head is set by the trainer."""
    out = {k: scene[k] for k in scenes.CATEGORIES}
    out["hair_colour"] = people.pick(who["hair_colour"], people.HAIR_COLOURS)
    out["hair_style"] = people.pick(who["hair_style"], people.HAIR_STYLES)
    return out


def degrade(x, g):
    """What a generator does to pictures: softness, noise, a shift in brightness and framing. x: (B, C, H, W)."""
    b, dev = len(x), x.device
    r = lambda *s: torch.rand(*s, device=dev, generator=g)
    scale, shift = 1 + 0.16 * (r(b) - 0.5), 0.16 * (r(b, 2) - 0.5)
    theta = torch.zeros(b, 2, 3, device=dev)
    theta[:, 0, 0] = theta[:, 1, 1] = scale
    theta[:, :, 2] = shift
    x = F.grid_sample(x, F.affine_grid(theta, x.shape, align_corners=False), padding_mode="border", align_corners=False)
    soft = F.interpolate(F.interpolate(x, scale_factor=0.25, mode="area"), scale_factor=4, mode="bilinear")
    mild = F.interpolate(F.interpolate(x, scale_factor=0.5, mode="area"), scale_factor=2, mode="bilinear")
    k = r(b, 1, 1, 1)
    x = torch.where(k < 0.12, soft, torch.where(k < 0.40, mild, x))
    gain, lift = 1 + 0.3 * (r(b, 1, 1, 1) - 0.5), 0.2 * (r(b, 1, 1, 1) - 0.5)
    noise = torch.randn(x.shape, device=dev, generator=g) * 0.12 * r(b, 1, 1, 1) ** 2
    return (x * gain + lift + noise).clamp(-1, 1)

"""A judge that tells whether a picture shows a face: `judges/seen.onnx`, one logit a picture. On a CPU.

    python models/tiny/seen.py render --people 960 --seed 6200011 --out a.npz   # frames of clips; 0.2 s each on a core
    python models/tiny/seen.py render --people 800 --seed 1099511630777 --out held.npz
    python models/tiny/seen.py train --data a.npz --held held.npz               # ten minutes on half a core

The embedders and the probe answer for any picture; this one is taught what has no face: see `without`. Held-out people
have seeds from pool.HELD_OUT on; some kinds are held out too (`untaught`). Writes its error rates into judges.json.
"""

import argparse
import time

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

import dit
import dit_data
import nets
import people
import pool
import scenes
import text
import traits
import vae
import world
from export import add_judge, shipped_vae

SIZE = 128


class Seen(nn.Module):
    """(B, 3, 128, 128) in [-1, 1] -> (B, 1) logits."""

    def __init__(self):
        super().__init__()
        self.trunk = nets.Trunk(3, (16, 24, 32, 48), 1)

    def forward(self, x):
        return self.trunk(x)


def render(a):
    """One frame each of clips, with the face's mask."""
    world._compiled = traits.compiled
    count = a.people - a.people % 8
    who, scene = people.sample(count, a.seed), scenes.sample(count, a.seed + 1)
    parts = []
    for i in range(0, count, 8):
        rows = torch.arange(i, i + 8)
        at = (i // 8 * 5 % 17,)
        parts.append(world.render(pool.rows(who, rows), pool.rows(scene, rows), at=at, chunk=8))
        print(i + 8, flush=True)
    images, masks = (torch.cat(p)[:, 0].numpy() for p in zip(*parts))
    np.savez(a.out, images=images, masks=masks)


def load(path):
    """Pictures (n, 3, 128, 128) in [-1, 1], masks (n, 1, 128, 128)."""
    table = np.load(path)
    return pool.to_float(torch.from_numpy(table["images"])), torch.from_numpy(table["masks"])[:, None].float()


# ---- pictures without a face ----


def blurred(x, size, mode="bilinear"):
    return F.interpolate(F.interpolate(x, size=size, mode="area"), size=SIZE, mode=mode)


def shuffled(x, g, across):
    """Tiles of the picture in another order."""
    side = SIZE // across
    tiles = x.unflatten(-1, (across, side)).unflatten(-3, (across, side)).movedim(-2, -3).flatten(-4, -3)
    tiles = tiles[:, :, torch.randperm(across**2, generator=g)]
    return tiles.unflatten(2, (across, across)).movedim(3, 4).flatten(4, 5).flatten(2, 3)


def noise(n, g):
    """Of several grains, contrasts and colours, over a colour."""
    found = []
    for _ in range(n):
        a, b, c, d = torch.rand(4, generator=g).tolist()
        grain = 2 ** int(7 * a)
        x = torch.randn(1, 3 if b < 0.6 else 1, SIZE // grain + 1, SIZE // grain + 1, generator=g)
        x = F.interpolate(x, size=SIZE, mode="nearest" if c < 0.3 else "bicubic").expand(1, 3, SIZE, SIZE)
        found.append(x * (0.02 + 0.8 * d) + 1.4 * torch.rand(1, 3, 1, 1, generator=g) - 0.7)
    return torch.cat(found).clamp(-1, 1)


def erased(x, mask, g):
    """The face painted over by what a picture of few pixels has there, or by noise; half of them seen from near."""
    hole = F.max_pool2d(F.avg_pool2d((mask > 0).float(), 3, 1, 1), 15, 1, 7)
    fill = torch.where(torch.rand(len(x), 1, 1, 1, generator=g) < 0.7, blurred(x, 4), noise(len(x), g))
    x = x * (1 - hole) + fill * hole
    where = torch.randint(0, 65, (2,), generator=g).tolist()
    near = F.interpolate(x[..., where[0] : where[0] + 64, where[1] : where[1] + 64], size=SIZE, mode="bilinear")
    return torch.where(torch.rand(len(x), 1, 1, 1, generator=g) < 0.5, near, x)


@torch.no_grad()
def decoded(net, x, g):
    """Latents that are noise, wholly or nearly, as the autoencoder shows them: one frame, or the last of five."""
    z = dit_data.latents(net, x[:, None], 32).float()
    share = 0.75 + 0.5 * torch.rand(len(x), 1, 1, 1, 1, generator=g)  # a half of them wholly
    share = share.clamp(max=1)
    z = torch.cat([z, z], 1)
    z = z + share * (torch.randn(z.shape, generator=g) - z)
    y = torch.cat([vae.decode(net, dit_data.restore(p)) for p in z.split(32)])
    return torch.where(torch.rand(len(x), 1, 1, 1, generator=g) < 0.5, y[:, 0], y[:, -1]).clamp(-1, 1)


def without(x, mask, bank, g):
    """{kind: pictures without a face}, made from pictures and from decoded noise."""
    return {
        "noise": noise(len(x), g),
        "decoded noise": bank[torch.randint(len(bank), (len(x),), generator=g)],
        "blurred": blurred(x, int(torch.randint(2, 8, (1,), generator=g))),
        "a mosaic": blurred(x, int(torch.randint(2, 8, (1,), generator=g)), "nearest"),
        "shuffled": shuffled(x, g, 4 if torch.rand(1, generator=g) < 0.5 else 8),
        "erased": erased(x, mask, g),
    }


@torch.no_grad()
def untaught(codec, x, g):
    """Kinds that training never shows: pixels in another order, waves, and what an untrained denoiser makes."""
    n = len(x)
    across = torch.linspace(-1, 1, SIZE)
    a, b, c = torch.rand(3, n, 1, 1, 1, generator=g)
    waves = torch.sin((3 + 60 * a) * (across[:, None] * torch.cos(6 * b) + across * torch.sin(6 * b)) + 6 * c)
    net, encoder = dit.build(), text.build()
    nn.init.normal_(net.proj_out.weight, std=0.05)
    states, bias = text.states(encoder, torch.randint(4, 400, (n, text.LENGTH), generator=g))
    z = torch.randn(n, 1, 16, 16, 16, generator=g)
    for step in range(8):
        at = torch.full((n,), 1 - step / 8)
        z = z - dit.forward(net, z, torch.zeros(n, 1, 96, 16, 16), at, states, bias, half=torch.float32) / 8
    return {
        "pixels in another order": x.flatten(2)[:, :, torch.randperm(SIZE**2, generator=g)].view_as(x),
        "waves": (waves * torch.rand(n, 3, 1, 1, generator=g)).clamp(-1, 1),
        "an untrained denoiser's": vae.decode(codec, dit_data.restore(z))[:, 0].clamp(-1, 1),
    }


def burnt(x, g):
    """More contrast and other colours, as much guidance makes them; mirrored or not."""
    r = lambda *s: torch.rand(*s, generator=g)
    middle = x.mean((1, 2, 3), keepdim=True)
    x = (x - middle) * (1 + 1.5 * r(len(x), 1, 1, 1) ** 2) + middle + 0.3 * (r(len(x), 3, 1, 1) - 0.5)
    return torch.where(r(len(x), 1, 1, 1) < 0.5, x.flip(-1), x).clamp(-1, 1)


# ---- training, measuring ----


def train(a):
    torch.manual_seed(41)
    torch.set_num_threads(a.threads)
    images, masks = load(a.data)
    codec, g, began = shipped_vae(), torch.Generator().manual_seed(41), time.time()
    bank = decoded(codec, images[: a.bank], g)
    print(f"{len(bank)} pictures of decoded noise, {time.time() - began:.0f} s", flush=True)
    net = Seen().train()
    optimiser = torch.optim.AdamW(net.parameters(), 3e-3, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, total_steps=a.steps, pct_start=0.1)
    for step in range(a.steps):
        pick = torch.randint(len(images), (40,), generator=g)
        own, other = pick[:30], pick[30:]
        x = torch.cat([images[own], *without(images[other[:5]], masks[other[:5]], bank, g).values()])
        x = burnt(nets.degrade(x, g) if step % 3 else x, g)
        truth = (torch.arange(len(x)) < len(own)).float()[:, None]
        loss = F.binary_cross_entropy_with_logits(net(x), truth)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 5.0)
        optimiser.step()
        schedule.step()
        if step % 100 == 0 or step == a.steps - 1:
            print(step, round(loss.item(), 4), f"{time.time() - began:.0f} s", flush=True)
    net.eval()
    about = f"a logit, above 0 where single pictures show a face; trained on {len(images)} people (seen.py)"
    add_judge(net, "seen", seen=about, seen_figures=measure(net, codec, a.held))


@torch.no_grad()
def measure(net, codec, held):
    """Shares of pictures of each kind that are judged wrongly: faces not seen, faces seen where there is none."""
    images, masks = load(held)
    g = torch.Generator().manual_seed(43)
    bank = decoded(codec, images[:64], g)
    kinds = {"rendered": images, "degraded": nets.degrade(images, g), "burnt": burnt(images, g)}
    parts = [without(x, m, bank, g) for x, m in zip(images.split(16), masks.split(16))]
    kinds |= {k: torch.cat([p[k] for p in parts]) for k in parts[0]} | untaught(codec, images[:128], g)
    found = {}
    for kind, x in kinds.items():
        face = kind in ("rendered", "degraded", "burnt")
        said = torch.cat([net(p) for p in x.split(64)])[:, 0] > 0
        found[kind] = {"face": face, "pictures": len(x), "wrong": round(float((said != face).float().mean()), 4)}
        print(kind, found[kind], flush=True)
    return found


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("what", choices=("render", "train"))
    p.add_argument("--people", type=int, default=960)
    p.add_argument("--seed", type=int, default=6200011)
    p.add_argument("--out", default="seen.npz")
    p.add_argument("--data", default="seen.npz")
    p.add_argument("--held", default="held.npz")
    p.add_argument("--steps", type=int, default=500)
    p.add_argument("--bank", type=int, default=96, help="pictures of decoded noise")
    p.add_argument("--threads", type=int, default=1)
    a = p.parse_args()
    render(a) if a.what == "render" else train(a)


if __name__ == "__main__":
    main()

"""What the denoiser trains on: latents of rendered clips, of two reference pictures each, of masked sources; captions.

A cache holds them on the device: about 80 KB a clip, and 110 KB more for each clip that has a masked source.
"""

import random

import torch

import captions
import people
import pool
import scenes
import text
import vae
import world

NEGATIVE = (  # Wan's default, which uncond branches use; the small tokenizer reads it as unknown
    "色调艳丽，过曝，静态，细节模糊不清，字幕，风格，作品，画作，画面，静止，整体发灰，最差质量，低质量，JPEG压缩残留，丑陋的，"
    "残缺的，多余的手指，画得不好的手部，画得不好的脸部，畸形的，毁容的，形态畸形的肢体，手指融合，静止不动的画面，杂乱的背景，三条腿，"
    "背景人很多，倒着走"
)


def normalise(latent):
    """Raw latents (..., 16, h, w) -> what the denoiser sees."""
    mean, std = (torch.tensor(v, device=latent.device).view(-1, 1, 1) for v in (vae.MEAN, vae.STD))
    return (latent - mean) / std


def restore(latent):
    mean, std = (torch.tensor(v, device=latent.device).view(-1, 1, 1) for v in (vae.MEAN, vae.STD))
    return latent * std + mean


@torch.no_grad()
def latents(net, clip, chunk=64):
    """uint8 (n, T, H, W, 3), or float in [-1, 1] (n, T, 3, H, W) -> bf16 (n, t, 16, h, w)."""
    half = torch.bfloat16 if clip.is_cuda else torch.float32
    out = []
    for part in clip.split(chunk):
        x = pool.to_float(part) if part.dtype == torch.uint8 else part
        out.append(normalise(vae.encode(net, x.to(half))[0]).to(torch.bfloat16))
    return torch.cat(out)


def regions(mask, g):
    """Where to generate (1) and what to keep (0), bool (n, T, H, W), and the kind (n): 0 a box around the person, 1 all
    but it, 2 frames (1, 5 or 9 at the start, at the end or at both stay), 3 any box, 4 everything (control frames).

    One frame at the end comes often, for it is the hardest: of its latent's four frames `fold` takes the third, so
    that the mask says nothing of it, and it stands behind three grey ones in the source's latent."""
    n, t, h, w = mask.shape
    dev = mask.device
    draw = lambda of: torch.tensor(of, device=dev)[torch.randint(len(of), (n,), device=dev, generator=g)]
    on = (mask > 0).any(1)
    y, x, time = (torch.arange(k, device=dev) for k in (h, w, t))
    rows, cols = on.any(2), on.any(1)
    first = lambda v: torch.where(v.any(1), v.float().argmax(1), 0)
    top, left = first(rows) - 4, first(cols) - 4
    bottom, right = h - first(rows.flip(1)) + 4, w - first(cols.flip(1)) + 4
    kind = draw((0, 1, 2, 2, 2, 3, 4))
    rnd = torch.rand(4, n, device=dev, generator=g)
    free = kind == 3
    top, left = (torch.where(free, (r * s * 0.75).long(), b) for r, s, b in ((rnd[0], h, top), (rnd[2], w, left)))
    bottom, right = (
        torch.where(free, a + ((0.25 + 0.75 * r) * (s - a)).long(), b)
        for a, r, s, b in ((top, rnd[1], h, bottom), (left, rnd[3], w, right))
    )
    within = lambda v, a, b: (v >= a[:, None]) & (v < b[:, None])
    box = within(y, top, bottom)[:, :, None] & within(x, left, right)[:, None]
    box = torch.where((kind == 1)[:, None, None], ~box, box)[:, None].expand(n, t, h, w)
    ends, kept, zero = draw((0, 1, 1, 2)), draw((1, 1, 5, 9)), torch.zeros(n, dtype=torch.long, device=dev)
    kept = torch.where(ends == 2, kept.clamp(max=(t - 1) // 2), kept.clamp(max=t - 1))
    made = within(time, torch.where(ends == 1, zero, kept), torch.where(ends == 0, zero + t, t - kept))
    made = made[:, :, None, None].expand(n, t, h, w)
    frames, every = ((kind == k).view(-1, 1, 1, 1) for k in (2, 4))
    return torch.where(frames, made, box) | every, kind


def masked(x, region, kind):
    """The two sources, floats (n, T, 3, H, W): what is kept, and what is shown where something is to be made. As in the
    official preparation that is grey, or else the model learns to copy what it is to make; for control frames it is
    the clip without its colours."""
    m = region[:, :, None].float()
    shown = x.mean(2, keepdim=True).expand_as(x) * (kind == 4).view(-1, 1, 1, 1, 1)
    return x * (1 - m), shown * m


def fold(region):
    """bool (n, T, H, W) -> the 64 mask channels (n, t, 64, h, w), time by nearest-exact."""
    n, t, h, w = region.shape
    m = region.view(n, t, h // 8, 8, w // 8, 8).permute(0, 1, 3, 5, 2, 4).flatten(2, 3)
    short = (t + 3) // 4
    return m[:, ((torch.arange(short) + 0.5) * t / short).long().to(region.device)]


def build(net, n, seed, device, edits=0.5, chunk=512, tokenizer=None, frames=17, size=128):
    """The cache of n clips: a dict of tensors on the device."""
    who, scene = people.sample(n, seed), scenes.sample(n, seed + 1)
    rng = random.Random(seed)
    g = torch.Generator(device).manual_seed(seed)
    parts = {k: [] for k in ("clip", "face", "refs", "source", "fold")}
    edited = int(n * edits)
    for a in range(0, n, chunk):
        b = min(a + chunk, n)
        some = pool.rows(who, slice(a, b))
        clip, mask = world.render(some, pool.rows(scene, slice(a, b)), frames, size=size, device=device)
        parts["clip"].append(latents(net, clip))
        parts["face"].append(torch.nn.functional.avg_pool2d(mask.float() / 255, 8)[:, ::4].to(torch.bfloat16))
        refs = [
            world.render(some, scenes.portrait(b - a, seed + 2 + 7 * a + k), 1, size=size, device=device)[0]
            for k in (0, 1)
        ]
        parts["refs"].append(torch.cat([latents(net, r) for r in refs], 1))
        if a < edited:
            region, kind = regions(mask, g)
            kept, shown = masked(pool.to_float(clip), region, kind)
            parts["source"].append(torch.cat([latents(net, kept), latents(net, shown)], 2))
            parts["fold"].append(fold(region))
    out = {k: torch.cat(v) for k, v in parts.items() if v}
    lines = [[captions.caption(who, scene, i, rng) for _ in (0, 1)] for i in range(n)]
    out["ids"] = torch.stack([text.encode(tokenizer, [row[k] for row in lines]) for k in (0, 1)], 1).to(device)
    out["null"] = text.encode(tokenizer, ["", NEGATIVE]).to(device)
    out["empty"] = latents(net, torch.zeros(1, frames, 3, size, size, device=device))[0]
    return out


def batch(cache, n, refs, frames, g, drop=True, offset=0):
    """Inputs of one step: latents of `frames` (1 or all) latent frames behind `refs` reference slots.

    offset: take the references of the clip that many rows further on (a stranger's)."""
    dev, total = cache["clip"].device, len(cache["clip"])
    r = lambda *s: torch.rand(*s, device=dev, generator=g)
    pick = (r(n) * total).long().clamp(max=total - 1)
    edit = (r(n) < 0.45) & drop
    have = len(cache["source"]) if "source" in cache else 0
    pick = torch.where(edit, pick % max(have, 1), pick) if have else pick
    edit = edit & (have > 0)
    x0 = cache["clip"][pick, :frames]
    face = cache["face"][pick, :frames].float()
    empty = cache["empty"][:frames]
    control = torch.cat([empty, empty, torch.ones_like(empty).repeat(1, 4, 1, 1)], 1).expand(n, -1, -1, -1, -1)
    if have:
        where = pick % have
        own = torch.cat([cache["source"][where, :frames], cache["fold"][where, :frames].to(x0.dtype)], 2)
        control = torch.where(edit.view(-1, 1, 1, 1, 1), own, control)
    weight = 1 + 4 * face
    mode = torch.zeros(n, dtype=torch.long, device=dev)
    if refs:
        order = (r(n) < 0.5).long()[:, None] ^ torch.arange(refs, device=dev)
        ref = cache["refs"][((pick + offset) % total)[:, None], order]
        slot = torch.cat([ref, torch.zeros_like(ref).repeat(1, 1, 5, 1, 1)], 2)
        if drop:
            k = r(n)
            mode = torch.where(k < 0.09, 1, torch.where((k < 0.18) & (refs == 1), 2, 0))
            slot = torch.where((mode == 1).view(-1, 1, 1, 1, 1), torch.zeros_like(slot), slot)
        x0 = torch.cat([cache["refs"][pick[:, None], order] if offset else ref, x0], 1)
        control = torch.cat([slot, control], 1)
        weight = torch.cat([torch.full_like(weight[:, :1], 0.25).expand(-1, refs, -1, -1), weight], 1)
    ids = cache["ids"][pick, (r(n) < 0.5).long()]
    if drop:
        blank = r(n) < 0.12
        ids = torch.where(blank[:, None], cache["null"][(r(n) < 0.5).long()], ids)
    u = torch.where(r(n) < 0.15, r(n), torch.sigmoid(torch.randn(n, device=dev, generator=g)))
    sigma = 3 * u / (1 + 2 * u)
    noise = torch.randn(x0.shape, device=dev, generator=g)
    return {"x0": x0, "noise": noise, "control": control, "weight": weight, "ids": ids, "sigma": sigma, "mode": mode}

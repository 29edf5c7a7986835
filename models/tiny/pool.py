"""Pools of rendered pictures and clips, held as uint8 on the training device.

Seeds name the data: identity seeds below HELD_OUT are for training, from HELD_OUT on for evaluation, never mixed.
"""

import torch

import people
import scenes
import world

HELD_OUT = 1 << 40


def join(*parts):
    return {k: torch.cat([p[k] for p in parts]) for k in parts[0]}


def rows(batch, index):
    return {k: v[index] for k, v in batch.items()}


def clips(n, seed, device, frames=17, at=None, samples=2, size=128):
    """(clip (n, T, H, W, 3), mask (n, T, H, W)), both uint8, and their people and scenes."""
    who, scene = people.sample(n, seed), scenes.sample(n, seed + 1)
    clip, mask = world.render(who, scene, frames, at=at, samples=samples, size=size, device=device)
    return clip, mask, who, scene


def views(n, seed, device, each=4, samples=2, size=128):
    """`each` pictures of n people and of a near-twin of each, each in its own scene: uint8 (2, n, each, H, W, 3)."""
    who = people.sample(n, seed)
    both = join(who, people.near_twin(who, seed + 1))
    index = torch.arange(2 * n).repeat_interleave(each)
    half = len(index) // 2
    scene = join(scenes.sample(half, seed + 2), scenes.portrait(len(index) - half, seed + 3))
    scene = rows(scene, torch.randperm(len(index), generator=torch.Generator().manual_seed(seed)))
    image, _ = world.render(rows(both, index), scene, 1, samples=samples, size=size, device=device)
    return image.reshape(2, n, each, size, size, 3)


def to_float(image):
    """uint8 (..., H, W, 3) -> float (..., 3, H, W) in [-1, 1]."""
    return image.movedim(-1, -3).float().div(127.5).sub(1)

"""Held-out (person, caption) pairs for benchmarks/identity.py, which then needs no torch.

    python models/tiny/pairs.py --out pairs.npz                # a minute or two on a GPU, hours on a CPU

Writes pairs.npz (10 MB) and beside it pairs.clips.npz (270 MB). Sets of pairs, each with the same keys
(`main_reference`, ...):

main        random scenes. other: further clips alone, of five frames each, for distances between distributions.
conflict    the reference contradicts the caption: it wears glasses and the caption's person does not, or the other way
            round; it has another expression, and hard light from the other side. Background and clothes differ too.

SET_reference  uint8 (n, 128, 128, 3)       a portrait of the person in a scene of its own
SET_clip       uint8 (m, 17, 128, 128, 3)   the caption's scene as rendered, of the first m pairs: what a perfect model
                                            could make; in the second file
SET_caption    str (n,)                     names the scene and never the face, which only the reference shows
SET_scene      int (n, 6)                   indices into judges.json's heads, in the order of scenes.CATEGORIES
SET_person     int (n, 6)                   of hair style, hair colour (probe), noun, skin, eyes, beard (traits)
"""

import argparse
import os
import random
import time

import numpy as np
import torch

import captions
import nets
import people
import pool
import scenes
import traits
import world

SEED = pool.HELD_OUT + 2001  # people nobody trained on or chose anything by
PERSON = ("hair_style", "hair_colour", "noun", "skin", "eyes", "beard")


def conflicts(n, seed):
    """Scenes of n clips and of their references, which contradict each other."""
    scene, portrait = scenes.sample(n, seed), scenes.portrait(n, seed + 1)
    glasses, none = scenes.ACCESSORIES.index("glasses"), scenes.ACCESSORIES.index("none")
    first = torch.arange(n) % 2 == 0  # here the reference wears the glasses
    portrait["accessory"] = torch.where(first, glasses, none)
    scene["accessory"] = torch.where(first, none, glasses)
    g = torch.Generator().manual_seed(seed + 2)
    for key in ("expression", "background", "clothes"):
        count = len(scenes.CATEGORIES[key])
        portrait[key] = (scene[key] + torch.randint(1, count, (n,), generator=g)) % count
    left = torch.rand(n, generator=g) < 0.5
    portrait["light_side"] = torch.where(left, 0.1, 0.9)
    scene["light_side"] = 1 - portrait["light_side"]
    portrait["light_hard"] = torch.ones(n)
    return scene, portrait


def build(kind, n, clips, seed, device):
    """{KIND_key: array} of one set."""
    who = people.sample(n, seed)
    if kind == "conflict":
        scene, portrait = conflicts(n, seed + 1)
    else:
        scene, portrait = scenes.sample(n, seed + 1), scenes.portrait(n, seed + 4)
    some = [pool.rows(t, slice(0, clips)) for t in (who, scene)]
    found = {"clip": world.render(*some, 17, at=nets.PROBE_FRAMES if kind == "other" else None, device=device)[0]}
    found["clip"] = found["clip"].cpu().numpy()
    if kind != "other":
        found["reference"] = world.render(who, portrait, 1, device=device)[0][:, 0].cpu().numpy()
        rng = random.Random(seed)
        found["caption"] = np.array([captions.caption(who, scene, i, rng, face=0) for i in range(n)])
        found["scene"] = torch.stack([scene[k] for k in scenes.CATEGORIES], 1).numpy()
        labels = {**nets.labels(who, scene), **traits.labels(who)}
        found["person"] = torch.stack([labels[k] for k in PERSON], 1).numpy()
    return {f"{kind}_{k}": v for k, v in found.items()}


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--out", default="pairs.npz")
    p.add_argument("--pairs", type=int, default=128, help="of main, and clips of other")
    p.add_argument("--conflicts", type=int, default=64)
    p.add_argument("--clips", type=int, default=10**9, help="at most so many of main and conflict are rendered")
    p.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    a = p.parse_args()
    if a.device == "cpu":
        world._compiled = traits.compiled  # once for each count of frames: take multiples of four pairs
    began, found = time.time(), {"heads": np.array(tuple(scenes.CATEGORIES)), "person_heads": np.array(PERSON)}
    for i, (kind, n) in enumerate((("main", a.pairs), ("other", a.pairs), ("conflict", a.conflicts))):
        found |= build(kind, n, n if kind == "other" else min(n, a.clips), SEED + 10 * i, a.device)
        print(f"{kind}: {n}, {time.time() - began:.0f} s", flush=True)
    clips = {k: found.pop(k) for k in list(found) if k.endswith("_clip")}
    for path, arrays in ((a.out.removesuffix(".npz") + ".clips.npz", clips), (a.out, found)):
        with open(path + ".part", "wb") as f:
            np.savez(f, **arrays)
        os.replace(path + ".part", path)


if __name__ == "__main__":
    main()

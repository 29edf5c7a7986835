"""A judge of what captions can say of a face but the attribute probe does not see: `judges/traits.onnx`. On a CPU.

    python models/tiny/traits.py render --people 2400 --seed 5000011 --out a.npz     # portraits; 0.2 s each on a core
    python models/tiny/traits.py train --data a.npz --held held.npz                  # 18 minutes on half a core

Starts from the face embedder's convolutions, whose normalisation is folded into them, and learns the seven heads
below from single portraits. Held-out people have seeds from pool.HELD_OUT on. Writes the model, and its accuracy and
thresholds into judges.json: the least confidence at which 97 % of what it says is right, or null where none is.
"""

import argparse
import functools
import os
import time

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

import nets
import people
import pool
import scenes
import world

JUDGES = os.path.join(os.path.dirname(os.path.abspath(__file__)), "judges")
HEADS = {
    "noun": ("woman", "man"),
    "age": ("young", "middle-aged", "old"),
    "skin": ("very light", "light", "tan", "brown", "dark"),
    "eyes": people.EYE_COLOURS,
    "beard": ("no beard", "stubble", "moustache", "goatee", "full beard"),
    "freckles": ("no freckles", "freckles"),
    "mole": ("no mole", "a mole"),
}
RIGHT = 0.97  # of what is said at a threshold


def labels(who):
    """{head: (n,) int64}, by the slices of people.traits."""
    beard = torch.tensor([0, 0, 1, 2, 3, 4])[people.pick(who["beard"], people.BEARDS)]
    return {
        "noun": (who["masculine"] > 0.5).long(),
        "age": (who["age"] * 2.999).long(),
        "skin": people.pick(who["skin"], people.SKIN_RGB),
        "eyes": people.pick(who["eye_colour"], people.EYE_COLOURS),
        "beard": beard,
        "freckles": (who["freckles"] > 0.7).long(),
        "mole": (who["mole"] > 0.7).long(),
    }


@functools.lru_cache(None)
def compiled(device, keys):
    """The renderer's functions compiled for a CPU, which takes minutes and makes them thirty times as fast: put it in
    the place of `world._compiled`."""
    names = {k: i for i, k in enumerate(keys)}
    parts = (world._march, world._distance, world.paint.colour)
    return [torch.compile(functools.partial(f, names), dynamic=False, fullgraph=True) for f in parts]


def render(a):
    """Portraits, batch by batch."""
    world._compiled = compiled
    who, scene = people.sample(a.people, a.seed), scenes.portrait(a.people, a.seed + 1)
    found = []
    for i in range(0, a.people - a.people % 8, 8):
        rows = torch.arange(i, i + 8)
        found.append(world.render(pool.rows(who, rows), pool.rows(scene, rows), 1, chunk=8)[0][:, 0].numpy())
        print(i + 8, flush=True)
    np.savez(a.out, images=np.concatenate(found), **{f"who_{k}": v.numpy() for k, v in who.items()})


class Traits(nn.Module):
    """(B, 3, 128, 128) in [-1, 1] -> (B, sum of HEADS) logits. Layers as in nets.Embedder("a"), norms folded in."""

    def __init__(self):
        super().__init__()
        conv = lambda a, b, stride=1: nn.Conv2d(a, b, 3, stride, 1)
        widths = (3, 24, 48, 80, 128, 128)
        self.down = nn.ModuleList(conv(widths[i], widths[i + 1], 2) for i in range(5))
        self.body = nn.ModuleList(nn.ModuleList([conv(c, c), conv(c, c)]) for c in (48, 80, 128))
        self.near = nn.Conv2d(48, 48, 5, 2, 2)  # iris, freckles and moles are few pixels: a path of its own for them
        self.far = nn.Conv2d(48, 48, 3, 2, 1)
        self.out = nn.Linear(128 * 16 + 48 * 64, sum(len(v) for v in HEADS.values()))
        self.drop = nn.Dropout(0.3)

    def forward(self, x):
        near = None
        for i, down in enumerate(self.down):
            x = F.silu(down(x))
            if 0 < i < 4:
                first, second = self.body[i - 1]
                x = F.silu(x + second(F.silu(first(x))))
            if i == 1:
                near = F.silu(self.far(F.silu(self.near(x))))
        return self.out(self.drop(torch.cat([x.flatten(1), near.flatten(1)], 1)))

    def start(self):
        """The embedder's convolutions, from its ONNX file, in the order of the forward pass."""
        import onnx
        from onnx import numpy_helper

        model = onnx.load(os.path.join(JUDGES, "face.onnx"))
        values = [numpy_helper.to_array(w) for w in model.graph.initializer if w.name.startswith("onnx::Conv")]
        order = [self.down[0]]
        for i in (0, 1, 2):
            order += [self.down[i + 1], *self.body[i]]
        order.append(self.down[4])
        for layer, weight, bias in zip(order, values[::2], values[1::2]):
            layer.weight.data.copy_(torch.from_numpy(weight.astype(np.float32)))
            layer.bias.data.copy_(torch.from_numpy(bias.astype(np.float32)))


def load(path):
    table = np.load(path)
    images = torch.from_numpy(table["images"])
    who = {k[4:]: torch.from_numpy(table[k])[: len(images)] for k in table.files if k.startswith("who_")}
    return images, labels(who)


def split(logits):
    return dict(zip(HEADS, logits.split([len(v) for v in HEADS.values()], 1)))


def train(a):
    torch.manual_seed(31)
    torch.set_num_threads(a.threads)
    parts = [load(path) for path in a.data]
    images = torch.cat([p[0] for p in parts])
    truth = {h: torch.cat([p[1][h] for p in parts]) for h in HEADS}
    net, g, began = Traits(), torch.Generator().manual_seed(31), time.time()
    net.start()
    optimiser = torch.optim.AdamW(net.parameters(), 1e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 1e-3, total_steps=a.steps, pct_start=0.1)
    for step in range(a.steps):
        pick = torch.randint(len(images), (64,), generator=g)
        x = pool.to_float(images[pick])
        if step % 3:  # every third batch as rendered, so that fine marks are learned too
            x = nets.degrade(x, g)
        x = torch.where(torch.rand(64, 1, 1, 1, generator=g) < 0.5, x.flip(-1), x)
        logits = split(net(x))
        loss = sum(F.cross_entropy(logits[h], truth[h][pick], label_smoothing=0.03) for h in HEADS)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 5.0)
        optimiser.step()
        schedule.step()
        if step % 100 == 0 or step == a.steps - 1:
            print(step, round(loss.item(), 3), f"{time.time() - began:.0f} s", flush=True)
    net.eval()
    from export import add_judge

    about = f"logits of single portraits, heads in this order; trained on {len(images)} people (traits.py)"
    heads = {h: list(v) for h, v in HEADS.items()}
    add_judge(net, "traits", traits=about, trait_heads=heads, trait_figures=measure(net, a.held))


@torch.no_grad()
def measure(net, held):
    """{head: accuracy, threshold, share of people of whom it is said at that threshold}."""
    images, truth = load(held)
    logits = split(torch.cat([net(pool.to_float(x)) for x in images.split(64)]))
    found = {}
    for head, z in logits.items():
        sure, says = z.softmax(1).max(1)
        right = says == truth[head]
        order = sure.argsort(descending=True)
        share = right[order].float().cumsum(0) / torch.arange(1, len(order) + 1)
        good = (share >= RIGHT).nonzero().flatten()
        last = int(good.max()) if len(good) and int(good.max()) >= 9 else None
        cut = None if last is None else round(float(sure[order[last]]), 4)
        found[head] = {
            "accuracy": round(float(right.float().mean()), 4),
            "threshold": cut,
            "said": 0.0 if cut is None else round(float((sure >= cut).float().mean()), 4),
        }
        print(head, found[head])
    return found


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("what", choices=("render", "train"))
    p.add_argument("--people", type=int, default=2400)
    p.add_argument("--seed", type=int, default=5000011)
    p.add_argument("--out", default="people.npz")
    p.add_argument("--data", nargs="+", default=["people.npz"])
    p.add_argument("--held", default="held.npz")
    p.add_argument("--steps", type=int, default=600)
    p.add_argument("--threads", type=int, default=1)
    a = p.parse_args()
    render(a) if a.what == "render" else train(a)


if __name__ == "__main__":
    main()

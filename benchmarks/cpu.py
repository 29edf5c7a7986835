"""ipvg against diffusers and transformers on PyTorch, on the CPU: same weights, same inputs, same run.

    python benchmarks/cpu.py                          # ipvg alone, where PyTorch is not installed
    python benchmarks/cpu.py --threads 2 --runs 7 dit umt5 vae_decode vae_encode
    python benchmarks/cpu.py --dtype bfloat16         # both sides, but for ipvg's VAE; where the CPU has units for it

Each side lives in its own process, loads its model, warms up, and then the two take turns, so that a busy machine
hurts both. Printed are the medians, the ratio (peer's seconds / ours: above 1 ipvg is faster) of every pair of
neighbouring runs as median and range, how far the two results lie apart, and ipvg's peak memory against weights + its
own plan. Exit status 1: slower than the peer, results apart, or, in the work "memory", more than 5 % above the plan.
(The libraries below hold some 30 to 60 MiB of their own, whatever the model's size: much beside the few blocks that are
timed, little beside "memory", whose 2.9 GiB of weights are still less than a real model's.)

"step" and "step_stg" have no foreign peer: one step with its branches together against a sampler for each branch
("separate"), whose velocities must be the same bytes.

What is timed is what a sampler repeats. So for the transformer ipvg's prepared text and context are outside, since it
makes them once a video, while the peer's forward contains that work; its share is printed as well ("prepare").
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import multiprocessing
import os
import statistics
import sys
import time
import zlib
from dataclasses import asdict, replace
from functools import partial

import numpy as np

from ipvg import _core
from ipvg.checkpoint import DitConfig, TextConfig, VaeConfig, expected, names, to_bfloat16
from ipvg.guidance import Guidance, cfg, stg_r, tpige_code
from ipvg.plan import Prepared
from ipvg.sampler import Sampler
from ipvg.schedule import Schedule
from ipvg.source import Source

DIT = DitConfig(dim=1536, ffn_dim=8960, num_heads=12, num_layers=2, vace_layers=(0,))
UMT5 = TextConfig(vocab=64, dim=4096, dim_attn=4096, dim_ffn=10240, num_heads=64, num_layers=1)
BUNDLED = DitConfig(dim=256, ffn_dim=448, num_heads=2, num_layers=12, vace_layers=(0, 4, 8), text_dim=128)
VAE = VaeConfig()
TPIGE = tpige_code()
STG = cfg() + stg_r(0.5, blocks=[4])
VIDEO = (5, 240, 416)  # frames, height, width
LATENT = (1, 60, 104)  # one frame of 832x480: 1560 tokens
BUNDLED_LATENT = (6, 16, 16)  # 17 frames of 128x128 and a reference: 384 tokens
TEXT = 200  # tokens of the prompt
BOUND = {"float32": 1e-4, "bfloat16": 3e-2}  # relative L2 between the two: each bfloat16 side is off by about 1e-2
EXACT = ("modulation", "norm", "bias", "time_", "head.")  # what ipvg and the official files keep in float32


def weight(name, shape):
    """The same numbers on both sides, of a size that keeps activations in range."""
    x = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape, np.float32)
    if len(shape) == 1 or name.endswith("gamma"):
        return np.float32(name.endswith(("weight", "gamma"))) + np.float32(0.1) * x
    return x * np.float32(0.02 if "embedding" in name and "patch" not in name else np.prod(shape[1:]) ** -0.5)


def draw(name, shape):
    return np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape, np.float32)


def dit_inputs(config, latent):
    return draw("x", (16, *latent)), draw("context", (96, *latent)), draw("text", (TEXT, config.text_dim))


# ---- ipvg: build(threads, dtype) -> (run, bytes of weights, bytes planned, seconds of preparation) ----


def stored(config, dtype):
    """Weights as a file of that dtype holds them."""
    weights = {name: weight(name, shape) for name, shape in expected(config).items()}
    if dtype == "float32":
        return weights
    keep = {name for name in weights if any(part in name for part in EXACT)}
    return {name: w if name in keep else (to_bfloat16(w).reshape(w.shape), dtype) for name, w in weights.items()}


def ours_dit(config, latent, threads, dtype):
    weights = stored(config, dtype)
    model = _core.Dit(_core.Device("cpu", threads, dtype), asdict(config), _core.Weights(weights))
    x, context, text = dit_inputs(config, latent)
    began = time.perf_counter()
    prepared = model.text(text), model.context(context)
    prepare = time.perf_counter() - began
    return lambda: model.forward(x, 500, *prepared), size(weights), sum(model.memory(*latent).values()), prepare


def ours_umt5(threads, dtype):
    weights = stored(UMT5, dtype)
    config = asdict(UMT5) | {"norm_eps": UMT5.eps}
    model = _core.TextEncoder(_core.Device("cpu", threads, dtype), config, _core.Weights(weights))
    ids = np.arange(512) % UMT5.vocab
    return lambda: model.encode(ids), size(weights), model.scratch(512), 0.0


def ours_vae(work, threads):
    weights = {name: weight(name, shape) for name, shape in expected(VAE).items()}
    model = _core.Vae(_core.Device("cpu", threads), asdict(VAE), _core.Weights(weights))
    plan = model.memory(*VIDEO)[work]
    if work == "encode":
        video = vae_video()
        return lambda: model.encode(video), size(weights), plan, 0.0
    latent = vae_latent()
    return lambda: model.decode(latent).clip(-1, 1), size(weights), plan, 0.0  # the peer clamps


def ours_vae_decode(threads, dtype):  # float32 whatever the dtype, as the reference's is
    return ours_vae("decode", threads)


def ours_vae_encode(threads, dtype):
    return ours_vae("encode", threads)


def vae_video():
    return draw("video", (3, *VIDEO)).clip(-1, 1)


def vae_latent():
    return draw("latent", (16, (VIDEO[0] - 1) // 4 + 1, VIDEO[1] // 8, VIDEO[2] // 8))


def ours_memory(threads, dtype):
    config = replace(DIT, num_layers=12, vace_layers=(0, 2, 4, 6))
    weights = {name: np.full(shape, 0.01, np.float32) for name, shape in expected(config).items()}
    model = _core.Dit(_core.Device("cpu", threads, dtype), asdict(config), _core.Weights(weights))
    few = (1, 16, 16)
    x, context, text = dit_inputs(config, few)
    prepared = model.text(text), model.context(context)
    return lambda: model.forward(x, 500, *prepared), size(weights), sum(model.memory(*few).values()), 0.0


def ours_step(rule, threads, dtype):
    """The predictions of one step of a sampler, all branches together."""
    run, *rest = step(threads, dtype, [rule])
    return run, *rest, 0.0


def peer_step(rule, threads, dtype):
    """The same by a sampler for each branch."""
    run, *_ = step(threads, dtype, [Guidance({name: branch}, name) for name, branch in rule.branches.items()])
    return run, 0, 0, 0.0


def step(threads, dtype, rules):
    weights = stored(BUNDLED, dtype)
    model = _core.Dit(_core.Device("cpu", threads, dtype), asdict(BUNDLED), _core.Weights(weights))
    _, context, text = dit_inputs(BUNDLED, BUNDLED_LATENT)
    source = Source(context, 1, 4 * BUNDLED_LATENT[0] - 7, (8 * BUNDLED_LATENT[2], 8 * BUNDLED_LATENT[1]))
    prepared = Prepared(model, source, {"cond": text, "negative": text[:120]})
    samplers = [Sampler(model, prepared, source, guidance=rule, schedule=Schedule(2), seed=1) for rule in rules]

    def run():
        for sampler in samplers:
            sampler._core.predict()
        return np.stack([v for sampler in samplers for v in sampler._velocities().values()])

    branches = [b for rule in rules for b in rule.branches.values()]
    hints, references = {(b.text, b.reference) for b in branches}, {b.reference for b in branches}
    of = model.memory(*BUNDLED_LATENT, branches=len(branches), hints=len(hints))
    plan = of["scratch"] + 2 * of["text"] + len(references) * of["context"] + sum(s.bytes for s in samplers)
    return run, size(weights), plan


def size(weights):
    return sum((w[0] if isinstance(w, tuple) else w).nbytes for w in weights.values())


# ---- the peers ----


def fill(model, component, dtype):
    import torch

    for name, tensor in model.state_dict().items():
        tensor.copy_(torch.from_numpy(weight(names.to_official(component, name), tuple(tensor.shape))))
    return model.eval().to(getattr(torch, dtype))


def peer_dit(config, latent, threads, dtype):
    import torch
    from diffusers import WanVACETransformer3DModel

    torch.set_num_threads(threads)
    model = WanVACETransformer3DModel(
        num_attention_heads=config.num_heads, attention_head_dim=config.dim // config.num_heads,
        text_dim=config.text_dim, ffn_dim=config.ffn_dim, num_layers=config.num_layers,
        vace_layers=list(config.vace_layers), vace_in_channels=96,
    )  # fmt: skip
    model = fill(model, "dit", dtype)
    x, context, text = (torch.from_numpy(a)[None].to(model.dtype) for a in dit_inputs(config, latent))
    text = torch.nn.functional.pad(text, (0, 0, 0, config.text_len - TEXT))

    def run():
        with torch.inference_mode():
            return model(
                hidden_states=x, timestep=torch.tensor([500]), encoder_hidden_states=text,
                control_hidden_states=context, return_dict=False,
            )[0][0].float().numpy()  # fmt: skip

    return run, 0, 0, 0.0


def peer_umt5(threads, dtype):
    import torch
    from transformers import UMT5Config, UMT5EncoderModel

    torch.set_num_threads(threads)
    config = UMT5Config(
        vocab_size=UMT5.vocab, d_model=UMT5.dim, d_kv=UMT5.dim_attn // UMT5.num_heads, d_ff=UMT5.dim_ffn,
        num_heads=UMT5.num_heads, num_layers=1, feed_forward_proj="gated-gelu",
    )  # fmt: skip
    model = fill(UMT5EncoderModel(config), "text", dtype)
    ids = torch.arange(512)[None] % UMT5.vocab

    def run():
        with torch.inference_mode():
            return model(ids).last_hidden_state[0].float().numpy()

    return run, 0, 0, 0.0


def peer_vae(work, threads, dtype):
    import torch
    from diffusers import AutoencoderKLWan

    torch.set_num_threads(threads)
    model = fill(AutoencoderKLWan(), "vae", dtype)
    mean, std = (torch.tensor(x)[:, None, None, None] for x in (VAE.mean, VAE.std))
    video, latent = torch.from_numpy(vae_video())[None], torch.from_numpy(vae_latent())
    latent = (latent / (1 / std) + mean)[None].to(model.dtype)

    def run():
        with torch.inference_mode():
            if work == "encode":
                found = model.encode(video.to(model.dtype)).latent_dist.mode()[0].float()
                return ((found - mean) * (1 / std)).numpy()
            return model.decode(latent, return_dict=False)[0][0].float().numpy()

    return run, 0, 0, 0.0


def peer_vae_decode(threads, dtype):
    return peer_vae("decode", threads, dtype)


def peer_vae_encode(threads, dtype):
    return peer_vae("encode", threads, dtype)


WORK = {
    "dit": ("DiT, width 1536, 2 main + 1 VACE blocks, 1560 tokens", partial(ours_dit, DIT, LATENT),
            partial(peer_dit, DIT, LATENT), "diffusers"),
    "bundled": ("DiT of the bundled size: width 256, 12 main + 3 VACE blocks, 384 tokens",
                partial(ours_dit, BUNDLED, BUNDLED_LATENT), partial(peer_dit, BUNDLED, BUNDLED_LATENT), "diffusers"),
    "umt5": ("one umT5-XXL layer, 512 tokens", ours_umt5, peer_umt5, "transformers"),
    "vae_decode": ("VAE decode, full size, 5x240x416", ours_vae_decode, peer_vae_decode, "diffusers"),
    "vae_encode": ("VAE encode, full size, 5x240x416", ours_vae_encode, peer_vae_encode, "diffusers"),
    "step": ("a step of tpige_code, bundled size", partial(ours_step, TPIGE), partial(peer_step, TPIGE), ""),
    "step_stg": ("a step of CFG + STG at block 4, bundled size", partial(ours_step, STG), partial(peer_step, STG), ""),
    "memory": ("DiT, width 1536, 12 main + 4 VACE blocks, 64 tokens", ours_memory, None, ""),
}  # fmt: skip


# ---- processes that take turns ----


def status_kib(key):
    with open("/proc/self/status") as f:
        return next(int(line.split()[1]) for line in f if line.startswith(key))


def worker(pipe, build, threads, dtype):
    os.environ["OMP_NUM_THREADS"] = str(threads)
    before = status_kib("VmRSS")
    run, weights, plan, prepare = build(threads, dtype)
    with open("/proc/self/clear_refs", "w") as f:
        f.write("5")  # the peak from here on: weights are random numbers, whose making takes memory of its own
    result = run()
    pipe.send((result, weights, plan, prepare))
    while pipe.recv():
        began = time.perf_counter()
        run()
        pipe.send(time.perf_counter() - began)
    pipe.send((status_kib("VmHWM") - before) * 1024)


class Side:
    def __init__(self, build, threads, dtype):
        context = multiprocessing.get_context("spawn")
        self.pipe, child = context.Pipe()
        self.process = context.Process(target=worker, args=(child, build, threads, dtype), daemon=True)
        self.process.start()
        child.close()  # so that a side that dies is an EOFError here, not silence
        self.result, self.weights, self.plan, self.prepare = self.pipe.recv()
        self.seconds = []

    def turn(self):
        self.pipe.send(True)
        self.seconds.append(self.pipe.recv())

    def end(self):
        self.pipe.send(False)
        self.peak = self.pipe.recv()
        self.process.join()


def measure(name, runs, threads, dtype):
    title, build, build_peer, library = WORK[name]
    ours = Side(build, threads, dtype)
    there = build_peer and (not library or all(map(importlib.util.find_spec, ("torch", library))))
    peer = Side(build_peer, threads, dtype) if there else None
    for _ in range(runs):
        ours.turn()
        if peer:
            peer.turn()
    for side in filter(None, (ours, peer)):
        side.end()
    row = {"work": title, "dtype": dtype, "threads": threads, "runs": runs, "seconds": statistics.median(ours.seconds),
           "prepare_seconds": ours.prepare, "weights_mib": ours.weights / 2**20, "plan_mib": ours.plan / 2**20,
           "peak_over_plan": ours.peak / (ours.weights + ours.plan)}  # fmt: skip
    if peer:
        ratios = sorted(b / a for a, b in zip(ours.seconds, peer.seconds, strict=True))
        error = np.linalg.norm(ours.result - peer.result) / np.linalg.norm(peer.result)
        row |= {"peer": library or "separate", "peer_seconds": statistics.median(peer.seconds),
                "ratio": statistics.median(ratios), "ratio_range": [ratios[0], ratios[-1]],
                "peer_peak_mib": peer.peak / 2**20, "relative_l2": float(error)}  # fmt: skip
    bound = BOUND[dtype] if library else 0
    row["ok"] = row.get("ratio", 1) >= 1 and row.get("relative_l2", 0) <= bound
    if name == "memory":
        row["ok"] = row["peak_over_plan"] <= 1.05
    return row


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("work", nargs="*", help=f"which: {', '.join(WORK)} (default: all)")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--dtype", choices=list(BOUND), default="float32")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if unknown := set(args.work) - set(WORK):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(WORK)}")
    rows = []
    for name in args.work or WORK:
        row = measure(name, args.runs, args.threads, args.dtype)
        rows.append(row)
        if args.json:
            continue
        print(f"{row['work']}, {row['dtype']}, {row['threads']} threads, {row['runs']} runs")
        print(f"  ipvg      {row['seconds']:.3f} s, prepare {row['prepare_seconds']:.3f} s")
        print(f"  memory    peak {row['peak_over_plan']:.3f} x (weights {row['weights_mib']:.0f} MiB + plan "
              f"{row['plan_mib']:.0f} MiB)")  # fmt: skip
        if "peer" in row:
            low, high = row["ratio_range"]
            print(f"  {row['peer']:9} {row['peer_seconds']:.3f} s; ratio {row['ratio']:.2f} ({low:.2f} to {high:.2f}); "
                  f"results {row['relative_l2']:.1e} apart")  # fmt: skip
        elif WORK[name][2]:
            print("  no peer here: pip install torch diffusers transformers")
    if args.json:
        print(json.dumps(rows, indent=1))
    return 0 if all(row["ok"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())

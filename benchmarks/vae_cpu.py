"""The full-size video VAE on the CPU in float32, against diffusers' AutoencoderKLWan on PyTorch, same weights and input.

    python benchmarks/vae_cpu.py [--frames 5] [--size 240x416] [--threads 2] [--repeat 3] [--work decode,encode]

The two take turns in one process, so that what else the machine does meets both; each gets one run to warm up. Prints for
both the median seconds, their ratio, how far the results lie apart (relative L2), and our peak memory beside the plan.
Exit status 1 if the ratio is below 1, the results differ, or the peak is more than 5 % above the plan. Without diffusers
(make test-peers installs it) it measures ipvg alone.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time

import numpy as np

CONFIG = {
    "dim": 96,
    "z_dim": 16,
    "dim_mult": [1, 2, 4, 4],
    "num_res_blocks": 2,
    "temperal_downsample": [False, True, True],
}


def memory(field: str) -> int:
    with open("/proc/self/status", encoding="ascii") as file:
        return next(1024 * int(line.split()[1]) for line in file if line.startswith(field))


def random_weights(rng):
    """For when there is no peer to take them from."""
    sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "tests"))
    from vae_oracle import shapes

    def draw(shape):
        bound = (3 / max(1, int(np.prod(shape[1:])))) ** 0.5 if len(shape) > 3 else 0.1
        return (rng.random(shape, np.float32) * 2 - 1) * np.float32(bound)

    return {name: draw(shape) + np.float32(name.endswith("gamma")) for name, shape in shapes(CONFIG).items()}


def peer_model(threads: int):
    """diffusers' VAE with its own initial weights, and those by official name; (None, None) without it."""
    try:
        import torch
        from diffusers import AutoencoderKLWan
    except ImportError:
        return None, None
    from ipvg.checkpoint.names import to_official

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model = AutoencoderKLWan().eval()
    return model, {to_official("vae", name): value.numpy() for name, value in model.state_dict().items()}


def peer_run(model, work: str, x):
    import torch

    with torch.no_grad():
        mean, std = (
            torch.tensor(v)[:, None, None, None] for v in (model.config.latents_mean, model.config.latents_std)
        )
        if work == "decode":
            return model.decode((torch.from_numpy(x) / (1 / std) + mean)[None], return_dict=False)[0][0].numpy()
        return ((model.encode(torch.from_numpy(x)[None]).latent_dist.mode()[0] - mean) * (1 / std)).numpy()


def timed(run):
    began = time.perf_counter()
    result = run()
    return time.perf_counter() - began, result


def measure(work: str, vae, peer, frames: int, height: int, width: int, repeat: int) -> bool:
    rng = np.random.default_rng(0)
    if work == "decode":
        x = rng.standard_normal((16, (frames - 1) // 4 + 1, height // 8, width // 8), np.float32)
    else:
        x = rng.uniform(-1, 1, (3, frames, height, width)).astype(np.float32)
    runs = {"ipvg": lambda: getattr(vae, work)(x)}
    if peer:
        runs["diffusers"] = lambda: peer_run(peer, work, x)
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    results = {}
    before = memory("VmRSS:")
    planned = vae.memory(frames, height, width)[work]
    for turn in range(repeat + 1):
        for name, run in runs.items():
            if name == "ipvg" and turn == 0:
                with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
                    file.write("5")  # the peak starts anew
            took, results[name] = timed(run)
            if name == "ipvg" and turn == 0:
                peak = memory("VmHWM:") - before - results[name].nbytes
            if turn:
                seconds[name].append(took)
    median = {name: statistics.median(times) for name, times in seconds.items()}
    line = f"{work} {frames}x{height}x{width}: ipvg {median['ipvg']:.2f} s"
    ok = peak <= 1.05 * planned
    if peer:
        ours, theirs = results["ipvg"], results["diffusers"]
        if work == "decode":
            ours = ours.clip(-1, 1)  # as diffusers does
        error = float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))
        ratio = median["diffusers"] / median["ipvg"]
        line += f" | diffusers {median['diffusers']:.2f} s | {ratio:.2f}x | relative L2 {error:.1e}"
        ok = ok and ratio >= 1 and error < 1e-4
    print(f"{line} | peak {peak / 2**20:.0f} MiB of {planned / 2**20:.0f} planned", flush=True)
    return ok


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--frames", type=int, default=5)
    parser.add_argument("--size", default="240x416", help="height x width")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--work", default="decode,encode")
    args = parser.parse_args()
    height, width = (int(v) for v in args.size.split("x"))

    from ipvg import _core

    peer, weights = peer_model(args.threads)
    weights = weights or random_weights(np.random.default_rng(1))
    ok = True
    for work in args.work.split(","):
        # A device of its own: its scratch is first touched in the warm-up run, where the peak is taken.
        vae = _core.Vae(_core.Device("cpu", threads=args.threads), CONFIG, _core.Weights(weights))
        ok = measure(work, vae, peer, args.frames, height, width, args.repeat) and ok
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())

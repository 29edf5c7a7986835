"""The video VAE against the official code: latents, frames, and every block's output for two of the cases."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from .golden import FP32, Case, Golden, Result

#: For sums over whole tensors: the error relative to the sum of magnitudes, which the JSON has too. Measured: 4e-7.
SUM = 1e-5


def check(golden: Golden, device: str) -> Iterator[Result]:
    from .. import _core

    weights = {name: golden.weight(name, shape) for name, shape in golden.data["weights"]["shapes"].items()}
    latent = golden.data["latent"]
    config = golden.data["config"] | {"mean": latent["mean"], "std": latent["std"]}
    vae = _core.Vae(_core.Device(device), config, _core.Weights(weights))
    for case in golden.cases.values():
        trace = Trace()
        if "latent" in case:
            ours = {"latent": vae.encode(frames_of(case), trace=trace)}
            chunks = [1] + [vae.stride[0]] * (ours["latent"].shape[1] - 1)
        else:
            ours = {"frames": vae.decode(case.input("latent"), trace=trace)}
            ours["frames_clamped"] = ours["frames"].clip(-1, 1)
            chunks = [1] * case.input("latent").shape[1]
        yield from _stages(golden, case, trace, len(chunks))
        for name in ("latent", "frames", "frames_clamped"):
            if name in case:
                yield case.compare(name, ours[name], FP32["vae"])
        if not any(name in case for name in ours):
            yield case.fail("", f"nothing to compare with {', '.join(ours)}")


def frames_of(case: Case) -> np.ndarray:
    """(3, T, H, W) float32 in [-1, 1]."""
    frames = case.input("video")
    if frames.dtype == np.uint8:  # (F, H, W, 3)
        frames = (frames.astype(np.float32) / np.float32(127.5) - 1).transpose(3, 0, 1, 2)
    return frames


class Trace:
    """Collects what Vae shows, frame by frame, in the order of computation."""

    def __init__(self) -> None:
        self.frames: dict[str, list[np.ndarray]] = {}

    def __call__(self, name: str, array: np.ndarray) -> None:
        self.frames.setdefault(name, []).append(array)

    def chunk(self, name: str, shape: tuple[int, ...], index: int, chunks: int) -> np.ndarray | None:
        """(C, T, H, W) that the reference computes in its chunk `index`, or None if there is no such stage here.

        Chunks after the first are alike, and stages that skip the first begin with the second.
        """
        if f"{name}.0" in self.frames and name not in self.frames:  # made as two halves of its channels
            halves = [self.chunk(f"{name}.{i}", shape, index, chunks) for i in range(2)]
            return None if halves[0] is None else np.concatenate(halves)
        if name not in self.frames:
            return None
        frames, time = self.frames[name], shape[1]
        if time == 0:
            return None
        last = len(frames) - (chunks - 1 - index) * time  # counted from the end, where all chunks are alike
        if index == 0:
            last = time
        return np.stack(frames[last - time : last]).transpose(3, 0, 1, 2)


def _stages(golden: Golden, case: Case, trace: Trace, chunks: int) -> Iterator[Result]:
    sums = {name: values for name, values in golden.data.get("stages", {}).get(case.name, {}).items() if name != "note"}
    for name in sorted(sums, key=_order):
        if name == "head.0":  # the norm before SiLU: one operation here, seen as head.1
            continue
        for index, expected in enumerate(sums[name]):
            if expected is None:
                continue
            whole = name.endswith("quant_conv")
            shape = tuple(expected["shape"])
            ours = trace.chunk(name, shape, chunks - 1 if whole else index, chunks)
            label = f"all/{name}" if whole else f"chunk{index}/{name}"
            if ours is None or ours.shape != shape:
                yield case.fail(label, f"expected {shape}, got {None if ours is None else ours.shape}")
                continue
            if label in case.stored:
                yield case.compare(label, ours, FP32["vae"])
            error = max(
                abs(float(ours.sum(dtype=np.float64)) - expected["sum"]),
                abs(float(np.abs(ours).sum(dtype=np.float64)) - expected["abs_sum"]),
            )
            ok = error <= SUM * expected["abs_sum"]
            yield Result(golden.stage, case.name, f"{label} (sums)", error / expected["abs_sum"], SUM, ok, "", "sums")


def _order(name: str) -> tuple:
    """In the order of computation."""
    part, _, rest = name.partition(".")
    numbers = [int(x) for x in rest.split(".") if x.isdigit()]
    first = {"post_quant_conv": 0, "conv1": 1, "head": 5, "quant_conv": 6}
    return first.get(part, 3), part in ("upsamples",), *numbers, not name.endswith("time_conv")

"""The VACE context against the original: reference fit, source resize, mask folding, and the whole context."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from .. import _core, prepare
from .golden import FP32, Case, Golden, Result

#: A fitted pixel in [-1, 1], absolute: a dozen float32 roundings. A sampling position that is rounded once more than
#: the reference's would show as 1e-5 to 1e-4.
CANVAS = 1e-6


def check(golden: Golden, device: str) -> Iterator[Result]:
    encode, cache = None, {}  # the cache: one VAE's encoding of nothing, by size
    for case in golden.cases.values():
        size = case.config.get("width"), case.config.get("height")
        if "canvas" in case:
            ours = prepare.fit_reference(case.input("image"), size)
            yield case.compare("canvas", ours[:, None], CANVAS, by="max abs")
        if "u8" in case:
            yield case.compare("u8", prepare.fit_video(case.input("video"), size, len(case["u8"])), 0, by="max abs")
        if "rows" in case:
            rows = case["rows"]
            yield case.compare("rows", np.array([_row(row) for row in rows.tolist()]), 0, by="max abs")
        if "context" in case:
            encode = encode or vae(golden, _core.Device(device)).encode
            ours = prepare.vace_context(encode, cache=cache, **arguments(case))
            yield case.compare("context", ours, FP32["vae"])
            # The mask channels pass through no network: equal, or wrong.
            error = np.abs(ours[32:] - case["context"][32:]).max()
            yield Result(golden.stage, case.name, "context[32:]", error, 0.0, error == 0, "folded mask", "max abs")


def _row(row: list[int]) -> list[int]:
    """A row of a table of sizes, with our answers in the place of the reference's."""
    if len(row) == 8:  # target H, W, image h, w | new h, w, top, left
        return row[:4] + list(_core.fit_size(*row[:4]))
    area, tokens, height, width, frames = row[:5]  # | H, W, frames, id of the last one, 1 when the ids are 0, 1, 2, ...
    (w, h), count = prepare.source_size(frames, height, width, area=area, tokens=tokens)
    ids = prepare.frame_ids(frames, count)
    return [*row[:5], h, w, count, ids[-1], int(ids == list(range(count)))]


def arguments(case: Case) -> dict[str, Any]:
    """What `prepare.vace_context` takes besides the encoder, from a case's config and inputs."""
    config = case.config
    out: dict[str, Any] = {
        "size": (config["width"], config["height"]),
        "frames": config["frames"],
        "references": [case.input(f"ref{i}") for i in range(config["references"])],
    }
    if config.get("source"):
        out["video"] = case.input("video")
    if config.get("mask"):
        if "recipe" in case.inputs["mask"]:
            out["mask"] = case.input("mask")
        else:  # the rule in words: only the first frame is kept
            out["video"][1:] = 127
            out["mask"] = np.full(out["video"].shape[:3], 255, np.uint8)
            out["mask"][0] = 0
    return out


def vae(golden: Golden, device: _core.Device) -> _core.Vae:
    """The VAE that golden.about describes; the file of the vae stage lists its tensors."""
    stage = Golden(golden.folder, "vae").data
    config = golden.about["vae"]
    for key in ("dim", "z_dim", "dim_mult", "num_res_blocks", "attn_scales", "temperal_downsample"):
        if stage["config"][key] != config[key]:
            raise ValueError(f"vae.json is of another VAE: {key} is {stage['config'][key]}, not {config[key]}")
    weights = {name: golden.weight(name, shape) for name, shape in stage["weights"]["shapes"].items()}
    return _core.Vae(device, config, _core.Weights(weights))

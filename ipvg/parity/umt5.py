"""umT5's encoder against the official T5EncoderModel: states, residual stream after each layer, position bias."""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np

from .golden import FP32, Case, Golden, Result

#: The position bias is a gather: nothing is computed that could round.
EXACT = 0.0


def check(golden: Golden, device: str) -> Iterator[Result]:
    from .. import _core

    weights = {name: golden.weight(name, shape) for name, shape in golden.data["weights"]["shapes"].items()}
    config = golden.data["config"] | {"eps": golden.data["config"]["norm_eps"]}
    on = _core.Device(device)
    encoder = _core.TextEncoder(on, config, _core.Weights(weights))
    # The same model with the bucket's number as its bias: so the buckets can be seen.
    numbers = {n: np.arange(w.shape[0], dtype=np.float32).repeat(w.shape[1]).reshape(w.shape)
               for n, w in weights.items() if "pos_embedding" in n}  # fmt: skip
    buckets = _core.TextEncoder(on, config, _core.Weights(weights | numbers))
    for case in golden.cases.values():
        if "ids" in case:
            yield from _encode(case, encoder)
        else:
            yield from _position_bias(case, encoder, buckets)


def _encode(case: Case, encoder) -> Iterator[Result]:
    ours: dict[str, np.ndarray] = {}
    ours["out"] = encoder.encode(case["ids"], trace=ours.__setitem__)
    compared = 0
    for name in sorted(case.tensors, key=_order):
        if name in ("ids", "out_bf16"):  # the input; how far off the reference itself is in bf16
            continue
        bound = FP32["umt5"]
        if name in ours and name.startswith("pos_bias"):
            ours[name], bound = _by_query_and_key(ours[name]), EXACT
        elif rows := re.fullmatch(r"(\w+)_(first|last)(\d+)", name):
            whole, n = ours[rows[1]], int(rows[3])
            ours[name] = whole[:n] if rows[2] == "first" else whole[-n:]
        yield case.compare(name, ours[name], bound) if name in ours else case.fail(name, "nothing of that name is made")
        compared += 1
    if not compared:
        yield case.fail("", "the case holds no tensor to compare")


def _position_bias(case: Case, encoder, buckets) -> Iterator[Result]:
    for name in case.tensors:
        if name == "bucket_by_distance":
            bias = _trace(buckets, case.tensors[name].shape[-1])["pos_bias0"]
            yield case.compare(name, bias[0].astype(np.int32), EXACT, by="max abs")
        elif layer := re.fullmatch(r"bias(\d+)_by_distance", name):
            bias = _trace(encoder, case.tensors[name].shape[-1])[f"pos_bias{layer[1]}"]
            yield case.compare(name, bias, EXACT)
        else:
            yield case.fail(name, "nothing of that name is made")


def _trace(encoder, distances: int) -> dict[str, np.ndarray]:
    seen: dict[str, np.ndarray] = {}
    encoder.encode(np.ones((distances + 1) // 2, np.int32), trace=seen.__setitem__)
    return seen


def _by_query_and_key(bias: np.ndarray) -> np.ndarray:
    """(H, 2L - 1) by distance -> (H, L, L)."""
    length = (bias.shape[1] + 1) // 2
    at = np.arange(length)
    return bias[:, at[None, :] - at[:, None] + length - 1]


def _order(name: str) -> tuple[int, int]:
    """In the order of computation: embedding, then bias and stream of each layer, then what is made of the output."""
    layer = re.search(r"(\d+)$", name)
    if name.startswith("pos_bias"):
        return 2 * int(layer[1]), 0
    if name.startswith("after_layer"):
        return 2 * int(layer[1]) + 1, 0
    return (-1, 0) if name == "embedding" else (10**6, 0)

"""The diffusion transformer against the official VaceWanModel: velocities, and every intermediate that a case holds."""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np

from .golden import FP32, Case, Golden, Result

#: Tensors that one block made of exact inputs, or that lie before the first block; the rest has more depth behind it.
_SHALLOW = re.compile(r"x_tokens|e|e0|text_rows|vace_tokens|(block0|vace0)_\w+")


def check(golden: Golden, device: str) -> Iterator[Result]:
    from .. import _core

    on = _core.Device(device)
    models = {}
    for case in golden.cases.values():
        name = case.config["config"]
        if name not in models:
            entry = golden.about["configs"][name]
            weights = {key: golden.weight(key, shape) for key, shape in entry["weights"].items()}
            models[name] = _core.Dit(on, {**golden.about["common"], **entry}, _core.Weights(weights))
        yield from _forward(case, models[name])


def _forward(case: Case, model) -> Iterator[Result]:
    config = case.config
    skip = config["skipped_main_block"]
    items: list[dict[str, np.ndarray]] = []
    for t, x, vace, text in zip(config["t"], config["x"], config["vace_context"], config["text"], strict=True):
        ours: dict[str, np.ndarray] = {}
        latent = input_of(case, x)
        ours["v"] = model.forward(
            latent, t,
            model.text(input_of(case, text), trace=ours.__setitem__),
            model.context(input_of(case, vace), frames=latent.shape[1], trace=ours.__setitem__),
            skip=() if skip is None else (skip,),
            keep_hint=config.get("keep_hint", False),
            scale=config["vace_context_scale"],
            trace=ours.__setitem__ if len(case.tensors) > 1 else None,
        )  # fmt: skip
        items.append(ours)
    order = list(items[0])  # the order of computation, so that the first failure is where the two part
    for name in sorted(case.tensors, key=lambda name: order.index(name) if name in order else -1):
        info = case.tensors[name]
        if name not in order:
            yield case.fail(name, "nothing of that name is made")
            continue
        batch = [item[name] for item in items]
        if name == "text_rows":  # the last stands for all padding
            batch = [np.pad(rows, ((0, model.config["text_len"] - len(rows)), (0, 0)), "edge") for rows in batch]
        if "rows" in info.extra:
            yield case.compare(name, batch[0][info.extra["rows"]], FP32["block"])
            continue
        ours = np.stack(batch)
        if ours.size == np.prod(info.shape):  # heads are an axis of their own there
            ours = ours.reshape(info.shape)
        yield case.compare(name, ours, FP32["block"] if _SHALLOW.fullmatch(name) else FP32["forward"])


def input_of(case: Case, text: str) -> np.ndarray:
    """An input by what the case calls it: "x", or "vace[:, 1:]" for one without its first frame."""
    name, _, rest = text.partition("[")
    array = case.input(name)
    if not rest:
        return array
    start = re.fullmatch(r":, (\d+):\]", rest)
    if not start:
        raise ValueError(f"input {text!r}: only name and name[:, n:] are known")
    return array[:, int(start[1]) :]

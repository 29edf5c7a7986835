"""A caption and a picture go through prompt and reference enhancement: one, or many with a bounded number at once.

>>> enhance("alice.png", "A woman walks on the beach.", prompt_enhancer=PromptEnhancer("gpt-4o"))
>>> enhance_many(pairs.read("pairs.csv"), "enhanced", prompt_enhancer="local")        # resumes where it stopped
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from . import _arguments
from .enhancement import Enhancement
from .face import Embedder
from .local import as_enhancer
from .manifest import sha256
from .pairs import Pair
from .pool import run_all
from .reference import as_maker, candidates_of, choose
from .video import read_image


def enhance(
    image,
    prompt: str,
    *,
    pipe=None,
    prompt_enhancer=None,
    reference_enhancer=None,
    embedder: Embedder | str | None = "auto",
    minimum: float | None = None,
    id: str = "",
    progress=None,
) -> Enhancement:
    """PE and IE of one caption and one picture; what `Pipeline.enhance` does.

    image: a path, a file's bytes or uint8 (H, W, 3). prompt_enhancer: "local", a PromptEnhancer or LocalEnhancer, a
    callable (instruction, text, image) -> str; None: the prompt stays. reference_enhancer: "vace" (one frame of the
    pipeline's own model), a VaceReference, an ImageEditor, a callable (picture, sentence) -> picture or pictures; None:
    the picture stays. It is told the appearance sentence, or the caption without a prompt enhancer.
    embedder: tells which candidate's face is most like the picture's; None: the first is taken. "auto": the bundled
    one, for pictures of the bundled world alone. minimum: see `reference.choose`.
    Raises ValueError when both enhancers are None, and what the enhancers raise.
    """
    _arguments.instance("prompt", prompt, str)
    if not prompt.strip():
        raise ValueError("prompt: is empty")
    enhancer, maker = as_enhancer(prompt_enhancer), as_maker(reference_enhancer, pipe)
    if enhancer is None and maker is None:
        raise ValueError("prompt_enhancer, reference_enhancer: both are None, so there is nothing to do")
    picture = read_image(image)
    found = Enhancement(caption=prompt, prompt=prompt, id=id)
    found.provenance = {"ipvg": _version(), "made": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
    if isinstance(image, str | os.PathLike):
        found.image = str(Path(image).absolute())
    else:
        found.pictures["image"] = picture
    if enhancer is not None:
        result = enhancer.face_aware(prompt, picture)
        found.prompt = result.text
        found.provenance["prompt"] = {**enhancer.describe(), **_about(result)}
        if result.problem:
            found.flags.append(f"prompt: {result.problem}")
    if maker is not None:
        _reference(found, picture, enhancer, maker, _embedder(embedder, picture, found.flags), minimum, progress)
    return found


def _reference(found: Enhancement, picture, enhancer, maker, embedder, minimum, progress) -> None:
    sentence = found.caption
    if enhancer is not None:
        result = enhancer.appearance(found.caption)
        found.provenance["appearance"] = {**enhancer.describe(), **_about(result)}
        if result.problem:
            found.flags.append(f"appearance: {result.problem}")
        sentence = result.text or found.caption
    found.appearance = sentence
    began = time.monotonic()
    choice = choose(picture, candidates_of(maker, picture, sentence, progress), embedder, minimum)
    if choice.problem:
        found.flags.append(f"reference: {choice.problem}")
    if choice.chosen is not None:
        found.pictures["reference"] = choice.picture
    similarity = None if choice.similarity is None else round(choice.similarity, 4)
    seconds = round(time.monotonic() - began, 3)
    found.provenance["reference"] = {**_described(maker), **choice.record, "similarity": similarity, "seconds": seconds}


def _embedder(embedder, picture: np.ndarray, flags: list[str]) -> Embedder | None:
    """The embedder to use; "auto" tells in a flag why there is none."""
    from ._core import UnsupportedError
    from .world import shared

    if embedder is None or isinstance(embedder, Embedder):
        return embedder
    if not isinstance(embedder, str) or embedder != "auto":
        return Embedder(embedder)
    try:
        reading = shared().read(picture)
        if reading.belongs:
            return Embedder.bundled()
        reason = "the picture is not of the bundled world; give an embedder for photographs"
    except (UnsupportedError, FileNotFoundError) as error:
        reason = str(error)
    flags.append(f"similarity: not measured: {reason}")
    return None


@dataclass(frozen=True)
class Item:
    """One of many. path: of its JSON. done: "made", "kept" (was there already) or "failed". error: None or why."""

    id: str
    path: Path
    done: str
    error: Exception | None = None


def enhance_many(
    pairs: Sequence[Pair],
    out: str | os.PathLike,
    *,
    pipe=None,
    prompt_enhancer=None,
    reference_enhancer=None,
    embedder: Embedder | str | None = "auto",
    minimum: float | None = None,
    concurrency: int | None = None,
    progress=None,
) -> list[Item]:
    """`enhance` of each pair into the folder `out`: ID.json, ID.reference.png; in order.

    What is there with the same inputs and settings is kept, edited by hand or not, so that a run which was stopped goes
    on; with others it is made anew, unless a person edited it: that is a failure of this item, and the file stays. A
    failure does not stop the others. concurrency: calls at once, None: the enhancer's; VACE runs one at a time.
    """
    enhancer, maker = as_enhancer(prompt_enhancer), as_maker(reference_enhancer, pipe)
    if enhancer is None and maker is None:
        raise ValueError("prompt_enhancer, reference_enhancer: both are None, so there is nothing to do")
    count = getattr(enhancer, "concurrency", 8) if concurrency is None else concurrency
    count = _arguments.integer("concurrency", count, 1, 256)
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    settings = {"prompt": enhancer and enhancer.describe(), "reference": maker and _described(maker)}
    settings["minimum"] = minimum
    settings["embedder"] = embedder if embedder is None or isinstance(embedder, str) else repr(embedder)
    one_at_a_time = _Alone(maker) if maker is not None else None

    def one(pair: Pair) -> Item:
        path = out / f"{pair.id}.json"
        key = _key({**settings, "caption": pair.prompt, "image": sha256(pair.image)})
        if path.exists():
            old = Enhancement.load(path)
            if old.provenance.get("key") == key:
                return Item(pair.id, path, "kept")
            if old.edited:
                raise ValueError(
                    f"{path}: was edited by hand and made with other inputs or settings; move it away to make it anew"
                )
        found = enhance(
            pair.image, pair.prompt, prompt_enhancer=enhancer, reference_enhancer=one_at_a_time, embedder=embedder,
            minimum=minimum, id=pair.id,
        )  # fmt: skip
        found.provenance["key"] = key
        return Item(pair.id, found.save(path), "made")

    def cancel() -> None:
        for part in (getattr(enhancer, "_endpoint", None), maker):
            if hasattr(part, "cancel"):
                part.cancel()

    results = run_all(one, pairs, count, stage="enhancing", progress=progress, errors="return", cancel=cancel)
    return [
        Item(pair.id, out / f"{pair.id}.json", "failed", result) if isinstance(result, Exception) else result
        for pair, result in zip(pairs, results)
    ]


class _Alone:
    """A maker that threads call; VACE one after the other."""

    def __init__(self, maker):
        from .reference import VaceReference

        self.maker, self._lock = maker, threading.Lock() if isinstance(maker, VaceReference) else None

    def describe(self) -> dict[str, Any]:
        return _described(self.maker)

    def __call__(self, picture, sentence):
        if self._lock is None:
            return self.maker(picture, sentence)
        with self._lock:
            return self.maker(picture, sentence)


def _described(maker) -> dict[str, Any]:
    if hasattr(maker, "describe"):
        return maker.describe()
    return {"by": "callable", "name": getattr(maker, "__name__", type(maker).__name__)}


def _about(result) -> dict[str, Any]:
    """Where a text comes from, without the texts themselves."""
    table = result.to_dict()
    return {name: table[name] for name in table if name not in ("text", "original", "kind", "verbatim", "problem")}


def _key(table: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(table, sort_keys=True, default=str).encode("utf-8", "surrogatepass")).hexdigest()


def _version() -> str:
    from . import __version__

    return __version__

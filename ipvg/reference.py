"""A reference picture made to fit the caption (TPIGE's IE): of several candidates the most alike one is taken.

A maker is any callable (picture, sentence) -> a picture or a list of pictures; uint8 (H, W, 3). Built in:
`VaceReference` (one frame of the video model itself) and `EndpointReference` (an images endpoint). `describe()` and
`cancel()`, if a maker has them, tell what its pictures depend on and end a call that runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from . import _arguments
from .face import Embedder
from .guidance import PRESETS, Guidance

if TYPE_CHECKING:
    from .images import ImageEditor
    from .pipeline import Pipeline

Candidate = tuple[np.ndarray, dict[str, Any]]  # the picture, and what made it different from the others


class VaceReference:
    """One-frame VACE: the reference and the sentence give a still of the same person.

    candidates: how many, with seeds seed, seed + 1, ... size: (width, height), multiples of 16; None: the picture's
    shape with the checkpoint's area. steps, shift: None: the checkpoint's. guidance: None: cfg of the
    checkpoint's w (5, VACE's own, unless its ipvg.json names another).
    Not for several threads at once. Raises TypeError, ValueError.
    """

    def __init__(
        self,
        pipe: Pipeline,
        candidates: int = 4,
        *,
        seed: int = 2025,
        size: tuple[int, int] | None = None,
        steps: int | None = None,
        shift: float | None = None,
        guidance: Guidance | None = None,
    ):
        self.pipe, self.size, self.steps, self.shift = pipe, size, steps, shift
        self.candidates = _arguments.integer("candidates", candidates, 1, 64)
        self.seed = _arguments.integer("seed", seed, 0, 2**64 - 65)
        self.guidance = PRESETS["cfg"](pipe.defaults.w) if guidance is None else guidance
        self._run, self._stopped = None, False

    def describe(self) -> dict[str, Any]:
        defaults = self.pipe.defaults
        return {
            "by": "vace", "checkpoint": str(self.pipe.checkpoint.path.absolute()), "candidates": self.candidates,
            "seed": self.seed, "size": None if self.size is None else list(self.size),
            "steps": self.steps or defaults.steps, "shift": self.shift or defaults.shift,
            "guidance": self.guidance.to_dict(), "loras": [lora.to_dict() for lora in self.pipe.loras],
        }  # fmt: skip

    def cancel(self) -> None:
        """Ends a call that runs in another thread, within a block of the model."""
        self._stopped = True
        if self._run is not None:
            self._run.cancel()

    def __call__(self, picture: np.ndarray, sentence: str, progress=None) -> list[Candidate]:
        from ._core import Cancelled
        from .text import NEGATIVE

        pipe, self._stopped = self.pipe, False
        size = self.size or near_size(picture.shape[1::-1], pipe.defaults.size)
        known = {"cond": sentence, "negative": NEGATIVE, "null": ""}
        text = pipe.encode_text({name: known[name] for name in self.guidance.texts})
        source = pipe.encode_source([picture], size=size, frames=1)
        made = []
        for seed in range(self.seed, self.seed + self.candidates):
            if progress:
                progress("reference", seed - self.seed, self.candidates)
            if self._stopped:
                raise Cancelled("the reference's making was cancelled")
            self._run = pipe.sampler(text, source, self.guidance, steps=self.steps, shift=self.shift, seed=seed)
            self._run.run(progress=False)
            made.append((pipe.decode(self._run.latents_tensor).frames[0], {"seed": seed, "size": list(size)}))
        self._run = None
        if progress:
            progress("reference", self.candidates, self.candidates)
        return made


class EndpointReference:
    """An OpenAI-compatible images endpoint. editor: an ipvg.images.ImageEditor; size, n: see its `edit`."""

    def __init__(self, editor: ImageEditor, *, size: str | None = None, n: int = 1):
        self.editor, self.size, self.n = editor, size, _arguments.integer("n", n, 1, 10)

    def describe(self) -> dict[str, Any]:
        editor = self.editor
        return {"by": "endpoint", "service": editor.base_url, "model": editor.model, "options": dict(editor.options),
                "size": self.size, "candidates": self.n}  # fmt: skip

    def cancel(self) -> None:
        self.editor.cancel()

    def __call__(self, picture: np.ndarray, sentence: str) -> list[Candidate]:
        found = self.editor.edit(picture, sentence, size=self.size, n=self.n)
        return [(image, {**made, "provenance": found.provenance}) for image, made in
                zip(found.images, found.provenance["images"])]  # fmt: skip


def as_maker(value, pipe: Pipeline | None):
    """A callable as it is; "vace": VaceReference of the pipeline; an ImageEditor: EndpointReference."""
    if value is None:
        return None
    if isinstance(value, str) and value == "vace":
        if pipe is None:
            raise ValueError("reference_enhancer: 'vace' needs a pipeline")
        return VaceReference(pipe)
    if hasattr(value, "edit") and not callable(value):
        return EndpointReference(value)
    if callable(value):
        return value
    raise TypeError(
        "reference_enhancer: expected 'vace', an ImageEditor, a callable (picture, sentence) -> picture or pictures, "
        f"or None, got {_arguments.short(value)}"
    )


def candidates_of(maker, picture: np.ndarray, sentence: str, progress=None) -> list[Candidate]:
    """What a maker makes, checked: at least one picture, uint8 (H, W, 3)."""
    made = maker(picture, sentence, progress) if isinstance(maker, VaceReference) else maker(picture, sentence)
    listed = [made] if isinstance(made, np.ndarray) else made
    _arguments.instance("reference_enhancer's answer", listed, Sequence, "a picture or a list of pictures")
    out = [one if isinstance(one, tuple) else (one, {}) for one in listed]
    if not out:
        raise ValueError("reference_enhancer: gave no picture")
    for one, _ in out:
        if not isinstance(one, np.ndarray) or one.dtype != np.uint8 or one.ndim != 3 or one.shape[-1] != 3:
            raise TypeError(f"reference_enhancer: expected pictures uint8 (H, W, 3), got {_arguments.short(one)}")
    return out


@dataclass(frozen=True)
class Choice:
    """picture: what to use. chosen: number of the candidate, None: the original. similarity: of the picture to the
    original; None: not measured. record: plain data, every candidate's similarity among it. problem: "" or why the
    original stays."""

    picture: np.ndarray
    chosen: int | None
    similarity: float | None
    record: dict[str, Any]
    problem: str


def choose(
    original: np.ndarray, made: list[Candidate], embedder: Embedder | None, minimum: float | None = None
) -> Choice:
    """The candidate whose face is most like the original's. Without an embedder the first one.

    minimum: a best candidate below it is not used: the original stays. None: the embedder's `same`.
    """
    if embedder is None:
        rows = [{**about, "similarity": None} for _, about in made]
        return Choice(made[0][0], 0, None, {"candidates": rows, "chosen": 0, "embedder": None}, "")
    minimum = embedder.same if minimum is None else minimum
    scores = [embedder.similarity(original, picture) for picture, _ in made]
    rows = [{**about, "similarity": None if s is None else round(s, 4)} for (_, about), s in zip(made, scores)]
    record = {"candidates": rows, "embedder": embedder.name, "minimum": minimum}
    best = max(range(len(made)), key=lambda i: -2.0 if scores[i] is None else scores[i])
    if scores[best] is None:
        problem = "the original stays: no face was found in it, or in any candidate"
    elif minimum is not None and scores[best] < minimum:
        problem = f"the original stays: the best candidate's face is at {scores[best]:.2f}, below {minimum:.2f}"
    else:
        return Choice(made[best][0], best, scores[best], {**record, "chosen": best}, "")
    return Choice(original, None, None, {**record, "chosen": None}, problem)


def near_size(shape: tuple[int, int], area: tuple[int, int]) -> tuple[int, int]:
    """(width, height) in multiples of 16, of a picture's shape and about the area of another size."""
    width, height = shape
    side = (area[0] * area[1] / (width * height)) ** 0.5
    return max(16, round(width * side / 16) * 16), max(16, round(height * side / 16) * 16)

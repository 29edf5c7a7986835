"""How alike two faces are: an embedder turns a picture into numbers, their cosine is the similarity.

>>> embed = Embedder.bundled()                         # for pictures of the bundled world, through ONNX Runtime
>>> embed.similarity(reference, candidate), embed.same
(0.91, 0.63)
>>> Embedder("arcface.onnx")                           # yours, for photographs: aligned crops of a face, RGB
>>> Embedder(lambda picture: my_detector_and_embedder(picture))      # or any function; None where there is no face
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from . import _arguments
from .judge import Judge, folder
from .prepare import fit_video

#: Of the bundled embedder: at this cosine strangers are taken for the same as often as the same for strangers (0.02 %).
BUNDLED_SAME = 0.63


class Embedder:
    """source: an ONNX file whose input is (n, 3, S, S) RGB in [-1, 1], or a callable (uint8 (H, W, 3)) -> numbers, None
    for a picture without a face. A file sees the middle square of the picture: no face is looked for, so give it crops,
    or a callable that detects and aligns. same: the cosine from which two faces count as one person's; None: unknown.

    Raises TypeError, OSError, ipvg.FormatError, ipvg.UnsupportedError (no ONNX Runtime).
    """

    def __init__(self, source: str | os.PathLike | Callable, *, same: float | None = None):
        self.same = None if same is None else _arguments.number("same", same, -1, 1)
        if callable(source):
            self._call, self._judge = source, None
            self.name = getattr(source, "__name__", type(source).__name__)
        elif isinstance(source, str | os.PathLike):
            self._call, self._judge = None, Judge(source)
            self.name = Path(source).name
            side = self._judge.shape[-1] if len(self._judge.shape) == 4 else None
            if side is None:
                raise ValueError(f"source: {self.name} takes {self._judge.shape}, expected (n, 3, S, S) with a fixed S")
            self._side = side
        else:
            raise TypeError(f"source: expected an ONNX file or a callable, got {_arguments.short(source)}")

    @classmethod
    def bundled(cls) -> Embedder:
        """The embedder of the bundled world. It knows rendered faces alone: on photographs it means nothing."""
        return cls(folder() / "face.onnx", same=BUNDLED_SAME)

    def __repr__(self) -> str:
        return f"Embedder({self.name!r}, same={self.same})"

    def __call__(self, picture: np.ndarray) -> np.ndarray | None:
        """Unit-length float64 numbers of uint8 (H, W, 3); None: no face."""
        if self._judge is not None:
            small = fit_video(np.asarray(picture)[None], (self._side, self._side), 1)[0]
            found = self._judge(np.float32(small.transpose(2, 0, 1))[None] / 127.5 - 1)[0]
        else:
            found = self._call(picture)
        if found is None:
            return None
        found = np.asarray(found, np.float64).ravel()
        length = np.linalg.norm(found)
        if not np.isfinite(length) or length == 0:
            raise ValueError(f"{self.name}: expected finite numbers that are not all 0, got {_arguments.short(found)}")
        return found / length

    def similarity(self, a: np.ndarray, b: np.ndarray) -> float | None:
        """Cosine of two pictures' faces; None when one has no face."""
        first, second = self(a), self(b)
        if first is None or second is None:
            return None
        if first.shape != second.shape:
            raise ValueError(f"{self.name}: {len(first)} numbers for one picture, {len(second)} for another")
        return float(first @ second)

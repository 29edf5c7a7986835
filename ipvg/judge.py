"""ONNX files run by ONNX Runtime, which is optional: `pip install 'ipvg[local]'`.

>>> judge = Judge("models/tiny/judges/face.onnx")
>>> judge(pixels).shape                                # float32 in, float32 out
(1, 128)
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from ._core import FormatError, UnsupportedError


class Judge:
    """One input, one output that counts (the first). Threads may share one.

    Attributes: path, shape (the input's, None where it may vary). Raises OSError, ipvg.FormatError (a file that ONNX
    Runtime does not take), ipvg.UnsupportedError (ONNX Runtime is not installed).
    """

    def __init__(self, path: str | os.PathLike, threads: int = 1):
        self.path = Path(path)
        try:
            import onnxruntime
        except ImportError as error:
            raise UnsupportedError(
                f"{self.path.name}: reading faces needs ONNX Runtime, which is optional and not installed ({error}): "
                "pip install 'ipvg[local]', or pip install onnxruntime"
            ) from error
        data = self.path.read_bytes()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 4
        try:
            self._session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # it has exceptions of its own, without a common base
            raise FormatError(f"{self.path}: ONNX Runtime does not take it: {str(error).splitlines()[0]}") from None
        first = self._session.get_inputs()[0]
        self._input = first.name
        self.shape = tuple(size if isinstance(size, int) else None for size in first.shape)

    def __repr__(self) -> str:
        return f"Judge({str(self.path)!r})"

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """The first output of a float32 batch. Raises ValueError for a shape that the file does not take."""
        try:
            return self._session.run(None, {self._input: np.ascontiguousarray(x, np.float32)})[0]
        except Exception as error:
            raise ValueError(f"{self.path.name}: {x.shape}: {str(error).splitlines()[0]}") from None


def folder() -> Path:
    """Where the bundled world's judges are. FileNotFoundError when this installation has none."""
    for root in (Path(__file__).parent / "models", Path(__file__).parent.parent / "models"):
        if (root / "tiny" / "judges" / "judges.json").is_file():
            return root / "tiny" / "judges"
    raise FileNotFoundError(
        "the bundled world's judges (models/tiny/judges) are not installed with ipvg; run in a copy of the repository"
    )

"""Finished chunks of a long video in a folder, so that a job that was stopped makes only what is missing."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from ._core import FormatError
from .checkpoint.safetensors import read_header, read_metadata
from .checkpoint.write import save_safetensors

FORMAT = "ipvg chunk 1"


class Store:
    """One .safetensors file a chunk, whole or absent: its frames and, as metadata, its record and the job it is of.

    folder: made if it is not there (its parent must be). job: plain data; a chunk of another one is refused.
    Raises OSError.
    """

    def __init__(self, folder: str | os.PathLike, job: dict[str, Any]):
        if not isinstance(folder, str | os.PathLike):
            raise TypeError(f"resume: expected the name of a folder, got {folder!r}")
        self.folder, self.job = Path(folder), json.loads(json.dumps(job))
        self.folder.mkdir(exist_ok=True)

    def path(self, index: int) -> Path:
        return self.folder / f"chunk-{index:04}.safetensors"

    def load(self, index: int, shape: tuple[int, ...]) -> tuple[np.ndarray, dict[str, Any]] | None:
        """(frames uint8 of that shape, record), or None if the chunk is not there.

        Raises ValueError that names what differs in the chunk's job, ipvg.FormatError for what is no chunk, OSError.
        """
        path = self.path(index)
        if not path.exists():
            return None
        try:
            about = json.loads(read_metadata(path).get("ipvg", "null"))
        except ValueError as error:
            raise FormatError(f"{path}: {error}") from None
        if not isinstance(about, dict) or about.get("format") != FORMAT or not {"job", "record"} <= about.keys():
            raise FormatError(f"{path}: not a chunk of a long video; move it away, or name another folder")
        for name in (*self.job, *about["job"]):
            if self.job.get(name) != about["job"].get(name):
                raise ValueError(
                    f"{path}: of a job with another {name}; give the same settings again, or name another folder"
                )
        frames = read_header(path).get("frames")
        if frames is None or frames.shape != shape or frames.dtype != "uint8":
            raise FormatError(f"{path}: expected frames of {shape}")
        return frames.read(), {**about["record"], "resumed": True}

    def save(self, index: int, frames: np.ndarray, record: dict[str, Any]) -> None:
        about = json.dumps({"format": FORMAT, "job": self.job, "record": record})
        save_safetensors(self.path(index), {"frames": frames}, {"ipvg": about})

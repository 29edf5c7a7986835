"""What enhancement made of a caption and a picture, as JSON that a person may edit before `generate` takes it.

>>> found = pipe.enhance("alice.png", "A woman walks on the beach.", prompt_enhancer=chat, reference_enhancer="vace")
>>> found.save("alice.json")                           # and alice.reference.png beside it
>>> pipe.generate(Enhancement.load("alice.json"))      # or: ipvg generate --enhanced alice.json --out alice.mp4

The file ("ipvg enhancement 1"); paths are relative to its folder, or absolute:

    format       "ipvg enhancement 1"
    id           a name, "" for none
    caption      the sentence it began with
    image        the picture it began with
    prompt       what the video model is told: EDIT IT                   (the caption, if it was not enhanced)
    appearance   the sentence the reference was made with, "" for none   (editing it makes no new picture)
    reference    the picture the video model gets: EDIT IT               (the image, if none was made)
    flags        what a person should know; for reading
    provenance   who made what, with which settings, when; similarity; hashes of texts and pictures as they were made

What was changed by hand is found by the hashes in provenance: `edited` names it, and so does the video's manifest.
Whether the prompt holds the caption verbatim is looked at anew each time (`problem`).
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from . import verbatim
from ._core import FormatError
from .checkpoint.write import replace
from .manifest import sha256
from .video import read_image, write_png

FORMAT = "ipvg enhancement 1"
_TEXTS = ("id", "caption", "image", "prompt", "appearance", "reference")
_MAX_BYTES = 16 << 20


@dataclass
class Enhancement:
    """image and reference: absolute paths, "" while they are only in memory (`pictures`, which `save` writes)."""

    caption: str
    prompt: str
    image: str = ""
    reference: str = ""
    appearance: str = ""
    id: str = ""
    flags: list[str] = field(default_factory=list)
    provenance: dict[str, Any] = field(default_factory=dict)
    edited: tuple[str, ...] = ()
    pictures: dict[str, np.ndarray] = field(default_factory=dict, repr=False, compare=False)

    @property
    def problem(self) -> str:
        """"" if the prompt holds each word and mark of the caption, unchanged and in order; else what is missing."""
        return verbatim.check(self.caption, self.prompt) or ""

    def picture(self, name: str = "reference") -> np.ndarray:
        """The "reference" or the "image", uint8 (H, W, 3)."""
        if name in self.pictures:
            return self.pictures[name]
        path = getattr(self, name)
        if path:
            return read_image(path)
        if name == "reference":
            return self.picture("image")
        raise ValueError(f"{self.id or 'enhancement'}: it names no picture; put one into \"reference\"")

    def record(self) -> dict[str, Any]:
        """For a video's manifest."""
        return {"caption": self.caption, "edited": list(self.edited), "verbatim": not self.problem,
                "flags": self.flags, "provenance": self.provenance}  # fmt: skip

    def save(self, path: str | os.PathLike) -> Path:
        """Writes the JSON, whole or not at all, and beside it as NAME.image.png and NAME.reference.png the pictures
        that are only in memory."""
        path = Path(path).absolute()
        for name, picture in list(self.pictures.items()):
            target = path.with_name(f"{path.stem}.{name}.png")
            write_png(target, picture)
            setattr(self, name, str(target))
            del self.pictures[name]
        self.reference = self.reference or self.image
        made = self.provenance.get("as_made") or self.hashes()
        self.provenance = {**self.provenance, "as_made": made}
        table = {"format": FORMAT, **{name: getattr(self, name) for name in _TEXTS}}
        for name in ("image", "reference"):
            if table[name] and Path(table[name]).parent == path.parent:
                table[name] = Path(table[name]).name
        table |= {"flags": self.flags, "provenance": self.provenance}
        replace(path, [json.dumps(table, indent=1, ensure_ascii=False).encode() + b"\n"])
        return path

    @classmethod
    def load(cls, path: str | os.PathLike) -> Enhancement:
        """Raises FormatError, which names what is wrong (a hand has been at work here), and OSError."""
        path = Path(path).absolute()
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
        try:
            if len(data) > _MAX_BYTES:
                raise ValueError(f"more than {_MAX_BYTES} bytes")
            table = json.loads(data.decode("utf-8-sig"))
        except (ValueError, RecursionError) as error:
            raise FormatError(f"{path}: no JSON that can be used: {error}") from None
        if not isinstance(table, dict) or table.get("format") != FORMAT:
            raise FormatError(f"{path}: not an enhancement ({FORMAT!r})")
        kinds = {**dict.fromkeys(_TEXTS, str), "format": str, "flags": list, "provenance": dict}
        for name, value in table.items():
            if name not in kinds:
                raise FormatError(f"{path}: {name!r} is none of {', '.join(kinds)}")
            if not isinstance(value, kinds[name]):
                raise FormatError(f"{path}: {name}: expected {kinds[name].__name__}, got {type(value).__name__}")
        for name in ("caption", "prompt"):
            if name not in table:
                raise FormatError(f"{path}: {name} is missing")
        if not table["prompt"].strip():
            raise FormatError(f"{path}: prompt: is empty")
        del table["format"]
        for name in ("image", "reference"):
            if table.get(name):
                table[name] = str(path.parent / table[name])
                if not Path(table[name]).is_file():
                    raise FormatError(f"{path}: {name}: no file {table[name]}")
        found = cls(**table)
        made = found.provenance.get("as_made")
        if isinstance(made, dict):
            now = found.hashes()
            found.edited = tuple(name for name in now if name != "id" and now[name] != made.get(name))
        return found

    def hashes(self) -> dict[str, str]:
        """sha256 of each text and of each picture's file; "" where there is none."""
        out = {}
        for name in _TEXTS:
            value = getattr(self, name)
            if name in ("image", "reference"):
                out[name] = sha256(value, cached=False) if value else ""
            else:
                out[name] = hashlib.sha256(value.encode("utf-8", "surrogatepass")).hexdigest()
        return out

"""What a picture of the bundled world shows: hair, eyes, beard, ..., read by the judges in models/tiny/judges.

>>> reading = World().read(read_image("models/tiny/examples/person6.png"))
>>> reading.belongs, reading.likeness                  # of this world? dB of its autoencoder
(True, 34.9)
>>> reading.words["hair"], reading.sure["hair"]
('bob red hair', 0.99...)

The judges know this rendered world alone, and are as sure about a photograph as about anything. So each picture first
passes the bundled autoencoder, which knows this world alone too: 756 held-out renderings came back with 29.5 dB or more
(median 34), four photographs with 26.5 dB or less. What comes back worse than LIKENESS is not of this world, and is
told so. Four are few: a smooth, plain photograph may pass.
"""

from __future__ import annotations

import dataclasses
import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

from . import _arguments, _core
from .judge import Judge, folder
from .prepare import fit_video

SIDE = 128
LIKENESS = 28.5  # dB: see above
FRAMES = 5  # that the attribute probe takes; a picture stands still

#: Least confidence at which a word of the attribute probe is said; the traits' are in judges.json, measured.
SURE = 0.9


@dataclass(frozen=True)
class Reading:
    """words: topic -> phrase, those that are sure enough to be said, the telling ones first. sure: confidence of the
    best answer to each topic, said or not. likeness: dB. belongs: whether the picture is of the bundled world."""

    words: Mapping[str, str]
    sure: Mapping[str, float]
    likeness: float
    belongs: bool

    def to_dict(self) -> dict:
        return dataclasses.asdict(self)


class World:
    """The judges, loaded at first use. Threads may share one. Raises FileNotFoundError (no judges with this
    installation), ipvg.UnsupportedError (no ONNX Runtime)."""

    def __init__(self) -> None:
        self.folder = folder()
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"World({str(self.folder)!r})"

    @cached_property
    def about(self) -> dict:
        return json.loads((self.folder / "judges.json").read_text(encoding="utf-8"))

    @cached_property
    def _probe(self) -> Judge:
        return Judge(self.folder / "probe.onnx")

    @cached_property
    def _traits(self) -> Judge | None:
        return Judge(self.folder / "traits.onnx") if "trait_heads" in self.about else None

    @cached_property
    def _vae(self) -> _core.Vae:
        from .checkpoint.config import infer_vae
        from .checkpoint.index import read_tensors

        path = self.folder.parent.parent / "ipvg-tiny" / "Wan2.1_VAE.safetensors"
        entries = read_tensors([path])
        config = infer_vae({name: entry.shape for name, entry in entries.items()}, str(path))
        weights = _core.Weights({name: entry.source() for name, entry in entries.items()})
        return _core.Vae(_core.Device("cpu", 1), dataclasses.asdict(config), weights)

    def read(self, picture: np.ndarray) -> Reading:
        """What uint8 (H, W, 3) shows: its middle square, scaled to 128 x 128. Raises TypeError, ValueError."""
        x = pixels(picture)
        with self._lock:
            likeness = self._likeness(x)
            found = self._answers(x)
        said = {}
        for topic, phrase in _phrases(found).items():
            source, least = _SOURCES[topic]
            cut = self.about.get("trait_figures", {}).get(least, {"threshold": SURE})["threshold"]
            if phrase and cut is not None and all(found[head][1] >= cut for head in source):
                said[topic] = phrase
        sure = {head: round(confidence, 4) for head, (_, confidence) in found.items()}
        return Reading(said, sure, round(likeness, 2), likeness >= LIKENESS)

    def _likeness(self, x: np.ndarray) -> float:
        """PSNR (dB) of the picture after the bundled autoencoder. x: float32 (3, 128, 128) in [-1, 1]."""
        back = self._vae.decode(self._vae.encode(x[:, None]))[:, 0]
        return float(10 * np.log10(4 / max(np.mean((np.clip(back, -1, 1) - x) ** 2, dtype=np.float64), 1e-10)))

    def _answers(self, x: np.ndarray) -> dict[str, tuple[str, float]]:
        """Head -> (best word, confidence); a trait's are the mean over the picture and its mirror image."""
        views = np.stack([x, x[..., ::-1]])
        clip = np.repeat(views[:, None], FRAMES, 1)
        answers = _split(self._probe(clip), self.about["heads"])
        if self._traits is not None:
            answers |= _split(self._traits(views), self.about["trait_heads"])
        return answers


@lru_cache(1)
def shared() -> World:
    """One for the whole process."""
    return World()


def pixels(picture: np.ndarray) -> np.ndarray:
    """float32 (3, 128, 128) in [-1, 1] of a picture's middle square."""
    picture = np.asarray(picture)
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[-1] != 3:
        raise TypeError(f"picture: expected uint8 (H, W, 3), got {_arguments.short(picture)}")
    small = picture if picture.shape[:2] == (SIDE, SIDE) else fit_video(picture[None], (SIDE, SIDE), 1)[0]
    return np.ascontiguousarray(small.transpose(2, 0, 1), np.float32) / 127.5 - 1


def _split(logits: np.ndarray, heads: Mapping[str, list[str]]) -> dict[str, tuple[str, float]]:
    found, at = {}, 0
    for head, words in heads.items():
        z = logits[:, at : at + len(words)].astype(np.float64)
        at += len(words)
        e = np.exp(z - z.max(1, keepdims=True))
        p = (e / e.sum(1, keepdims=True)).mean(0)
        found[head] = words[int(p.argmax())], float(p.max())
    return found


# Topic -> (heads that must be sure, head whose measured threshold counts; the probe's have SURE).
_SOURCES = {
    "hair": (("hair_style", "hair_colour"), ""),
    "beard": (("beard",), "beard"),
    "freckles": (("freckles",), "freckles"),
    "eyes": (("eyes",), "eyes"),
    "mole": (("mole",), "mole"),
    "skin": (("skin",), "skin"),
    "glasses": (("accessory",), ""),
    "age": (("age",), "age"),
}


def _phrases(found: Mapping[str, tuple[str, float]]) -> dict[str, str]:
    """The world's captions' own words for each topic that was read; "" where there is nothing to say."""
    word = {head: answer for head, (answer, _) in found.items()}
    style, colour = word["hair_style"], word["hair_colour"]
    out = {"hair": f"{style.replace('buzz cut', 'buzz')} {colour} hair"}
    if style == "bald":
        out["hair"] = "a bald head"
    elif style in ("afro", "bun"):
        out["hair"] = f"a {colour} {style}"
    if "beard" in word:
        none, beard = word["beard"] == "no beard", word["beard"]
        out["beard"] = "" if none else beard if beard == "stubble" else f"a {beard}"
        out["freckles"] = "freckles" if word["freckles"] == "freckles" else ""
        out["eyes"] = f"{word['eyes']} eyes"
        out["mole"] = "a mole" if word["mole"] == "a mole" else ""
        out["skin"] = f"{word['skin']} skin"
        out["age"] = word["age"]
    out["glasses"] = "glasses" if word["accessory"] == "glasses" else ""
    return out

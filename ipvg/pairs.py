"""Lists of captions and pictures: CSV, JSON lines, JSON, the challenge's folders, the released enhanced prompts.

>>> read("pairs.csv")                                  # columns image, prompt and, if you like, id
[Pair(id='alice-1', image='/photos/alice.png', prompt='A woman walks on the beach.')]
>>> released("prompt_withfacedescription_all_new.json", "vip200k_test_track_Facial")
"""

from __future__ import annotations

import csv
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

from ._core import FormatError
from .enhancement import Enhancement
from .manifest import sha256

_PICTURES = ("image.png", "image.webp", "image.jpg", "image.jpeg")


@dataclass(frozen=True)
class Pair:
    """id: a file name without suffix, unique in its list. image: absolute path."""

    id: str
    image: str
    prompt: str


def read(path: str | os.PathLike) -> list[Pair]:
    """The pairs of a file, or of a folder in the challenge's layout (idNNN/image.png or .webp, prompt1.txt, ...).

    .csv with a header, .jsonl with an object a line, .json with a list of objects: image (or img), prompt (or caption),
    id. Paths are relative to the file. Raises FormatError, which names the line, and OSError.
    """
    path = Path(path)
    if path.is_dir():
        return _folder(path)
    text = path.read_text(encoding="utf-8-sig")
    try:
        if path.suffix.lower() == ".csv":
            rows = list(csv.DictReader(text.splitlines(keepends=True), strict=True))
        elif path.suffix.lower() == ".json":
            rows = json.loads(text)
        else:
            rows = [json.loads(line) for line in text.splitlines() if line.strip()]
    except (ValueError, csv.Error, RecursionError) as error:
        raise FormatError(f"{path}: {error}") from None
    if not isinstance(rows, list):
        raise FormatError(f"{path}: expected a list of objects with image and prompt")
    found, seen = [], set()
    for number, row in enumerate(rows, 1):
        where = f"{path}: entry {number}"
        if not isinstance(row, dict):
            raise FormatError(f"{where}: expected an object with image and prompt")
        image, prompt = row.get("image") or row.get("img"), row.get("prompt") or row.get("caption")
        for name, value in (("image", image), ("prompt", prompt)):
            if not isinstance(value, str) or not value.strip():
                raise FormatError(f"{where}: {name} is missing")
        name = row.get("id") or f"{Path(image).stem}-{number}"
        if not isinstance(name, str) or not re.fullmatch(r"[\w][\w.-]{0,150}", name):
            raise FormatError(f"{where}: id: expected letters, digits, - and _, got {name!r}")
        if name in seen:
            raise FormatError(f"{where}: id {name!r} is there twice")
        seen.add(name)
        found.append(Pair(name, str((path.parent / image).absolute()), prompt))
    return found


def _folder(root: Path) -> list[Pair]:
    found = []
    for folder in sorted(p for p in root.iterdir() if p.is_dir()):
        prompts = sorted(folder.glob("prompt*.txt"), key=lambda p: (len(p.stem), p.stem))
        picture = _picture(folder)
        if prompts and picture is None:
            raise FormatError(f"{folder}: expected one of {', '.join(_PICTURES)} beside its prompts")
        for prompt in prompts:
            text = prompt.read_text(encoding="utf-8-sig").strip()
            found.append(Pair(f"{folder.name}_{prompt.stem.removeprefix('prompt')}", str(picture.absolute()), text))
    if not found:
        raise FormatError(f"{root}: no folders with prompt1.txt, prompt2.txt, ... in it")
    return found


def released(
    path: str | os.PathLike, dataset: str | os.PathLike | None = None, references: str | os.PathLike | None = None
) -> list[Enhancement]:
    """The prompts that TPIGE's authors released, `prompt_withfacedescription*.json`: {"id001": {"1": text, ...}}, also
    {"id001": [text, ...]}.

    dataset: the challenge's folders, where captions and pictures are; without it neither is known and each is flagged.
    references: folder of enhanced pictures, id001_1.png. Raises FormatError, OSError.
    """
    path = Path(path)
    try:
        table = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path}: no JSON that can be used: {error}") from None
    if not isinstance(table, dict):
        raise FormatError(f'{path}: expected {{"id001": {{"1": text, ...}}, ...}}')
    digest, found = sha256(path, cached=False), []
    for name, prompts in table.items():
        if isinstance(prompts, list):
            prompts = {str(number): text for number, text in enumerate(prompts, 1)}
        if not re.fullmatch(r"[\w][\w-]{0,100}", name) or not isinstance(prompts, dict):
            raise FormatError(f"{path}: {name!r}: expected an id with an object or a list of prompts")
        for number, text in prompts.items():
            if not isinstance(text, str) or not text.strip() or not re.fullmatch(r"\w{1,20}", number):
                raise FormatError(f"{path}: {name}, {number!r}: expected a prompt")
            found.append(_released(name, number, text, dataset, references))
            found[-1].provenance["prompt"] = {"by": "imported", "file": path.name, "sha256": digest}
    return found


def _released(name: str, number: str, text: str, dataset, references) -> Enhancement:
    caption, image, reference = "", "", ""
    if dataset is not None:
        folder = Path(dataset) / name
        prompt, picture = folder / f"prompt{number}.txt", _picture(folder)
        if not prompt.is_file() or picture is None:
            raise FormatError(f"{folder}: expected {prompt.name} and one of {', '.join(_PICTURES)}")
        caption, image = prompt.read_text(encoding="utf-8-sig").strip(), str(picture.absolute())
    if references is not None:
        made = Path(references) / f"{name}_{number}.png"
        if not made.is_file():
            raise FormatError(f"{made}: no such picture")
        reference = str(made.absolute())
    found = Enhancement(caption, text.strip(), image, reference or image, id=f"{name}_{number}")
    if dataset is None:
        found.flags.append("the caption is not known: nothing to compare the prompt with")
    elif found.problem:
        found.flags.append(f"the prompt does not hold the caption verbatim: {found.problem}")
    return found


def _picture(folder: Path) -> Path | None:
    return next((folder / name for name in _PICTURES if (folder / name).is_file()), None)

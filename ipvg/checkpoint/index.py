"""From a folder or file to its tensors: one file, shards with an index, .safetensors or .pth; and which layout a
checkpoint folder has."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from .._core import FormatError
from . import strictjson
from .entry import Entry, printable
from .pth import read_pth
from .safetensors import MAX_HEADER, MAX_TENSORS, check_name, read_header

MAX_SHARDS = 1000
_SHARD = re.compile(r"-(\d{5})-of-(\d{5})\.safetensors$")


@dataclass(frozen=True)
class Layout:
    """Where the parts of a checkpoint are. A part that is not there is None."""

    name: str  # "official" or "diffusers"
    root: Path
    tensors: dict[str, list[Path] | None]  # component -> an index, a file, or shards
    configs: dict[str, Path | None]
    tokenizer: Path | None


def find_layout(path: Path) -> Layout:
    """Tells the layout of a checkpoint folder from its files. Raises FormatError (neither), OSError (no folder)."""
    if not path.is_dir():
        if path.exists():
            raise FormatError(f"{path}: a checkpoint is a folder (official or diffusers layout), this is a file")
        raise FileNotFoundError(2, "no such checkpoint folder", str(path))
    if (path / "model_index.json").is_file() or (path / "transformer").is_dir():
        return _diffusers(path)
    if (path / "config.json").is_file() or list(path.glob("diffusion_pytorch_model*.safetensors")):
        return _official(path)
    raise FormatError(
        f"{path}: not a checkpoint: found neither config.json with diffusion_pytorch_model*.safetensors (official "
        "layout) nor model_index.json or transformer/ (diffusers layout)"
    )


def _official(root: Path) -> Layout:
    return Layout(
        "official",
        root,
        {
            "dit": _find(root, ("diffusion_pytorch_model",)),
            "vae": _one(root, "*VAE.pth", "*VAE.safetensors"),
            "text": _one(root, "models_t5_*.pth", "models_t5_*.safetensors"),
        },
        {"dit": _file(root / "config.json"), "vae": None, "text": None},
        _file(root / "google" / "umt5-xxl" / "tokenizer.json"),
    )


def _diffusers(root: Path) -> Layout:
    folders = {"dit": root / "transformer", "vae": root / "vae", "text": root / "text_encoder"}
    return Layout(
        "diffusers",
        root,
        {name: _find(folder, ("diffusion_pytorch_model", "model")) for name, folder in folders.items()},
        {name: _file(folder / "config.json") for name, folder in folders.items()},
        _file(root / "tokenizer" / "tokenizer.json"),
    )


def _file(path: Path) -> Path | None:
    return path if path.is_file() else None


def _one(root: Path, *patterns: str) -> list[Path] | None:
    found = sorted(p for pattern in patterns for p in root.glob(pattern))
    if len(found) > 1:
        raise FormatError(f"{root}: {found[0].name} and {found[1].name}: keep one, ipvg does not choose")
    return found or None


def _find(folder: Path, stems: tuple[str, ...]) -> list[Path] | None:
    for stem in stems:
        index, single = folder / f"{stem}.safetensors.index.json", folder / f"{stem}.safetensors"
        shards = sorted(p for p in folder.glob(f"{stem}-*.safetensors") if _SHARD.search(p.name))
        if index.is_file():
            return [index]
        if single.is_file() and shards:
            raise FormatError(f"{folder}: {single.name} and {shards[0].name}: keep one set, ipvg does not choose")
        if single.is_file() or shards:
            return [single] if single.is_file() else shards
    return None


def read_tensors(paths: list[Path]) -> dict[str, Entry]:
    """The tensors of one component, from what Layout.tensors gives for it. Raises FormatError, OSError."""
    if len(paths) == 1 and paths[0].name.endswith(".index.json"):
        return read_index(paths[0])
    if len(paths) == 1 and paths[0].suffix == ".pth":
        return read_pth(paths[0])
    _check_complete(paths)
    return _merge(paths)


def read_index(path: Path) -> dict[str, Entry]:
    """The tensors that a *.safetensors.index.json lists, from its shards beside it. Every listed tensor must be in its
    shard, and every tensor of a shard listed. Raises FormatError, OSError."""
    table = strictjson.read(path, MAX_HEADER)
    places = table.get("weight_map")
    if not isinstance(places, dict) or not places:
        raise FormatError(f"{path}: no weight_map in it")
    if len(places) > MAX_TENSORS:
        raise FormatError(f"{path}: {len(places)} tensors, at most {MAX_TENSORS} make sense")
    for name, shard in places.items():
        check_name(name, f"{path}: tensor {printable(name)}")
        # A plain name in this folder: an index from the net must not make us read elsewhere.
        if not isinstance(shard, str) or not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,200}\.safetensors", shard):
            raise FormatError(f"{path}: tensor {printable(name)}: {printable(shard)} is no shard beside the index")
    shards = sorted(set(places.values()))
    if len(shards) > MAX_SHARDS:
        raise FormatError(f"{path}: {len(shards)} shards, at most {MAX_SHARDS} make sense")
    for shard in shards:
        if not (path.parent / shard).exists():
            raise FormatError(f"{path}: shard {shard} is not beside the index: is the download complete?")
    entries = _merge([path.parent / shard for shard in shards])
    for name, shard in places.items():
        if name not in entries or entries[name].file.name != shard:
            raise FormatError(f"{path}: tensor {printable(name)} is not in {shard}, where the index has it")
    for name, entry in entries.items():
        if name not in places:
            raise FormatError(f"{entry.file}: tensor {printable(name)} is not in the index {path.name}")
    return entries


def _merge(paths: list[Path]) -> dict[str, Entry]:
    entries: dict[str, Entry] = {}
    for path in paths:
        for name, entry in read_header(path).items():
            if name in entries:
                raise FormatError(f"{path}: tensor {printable(name)} is in {entries[name].file.name} too")
            entries[name] = entry
    return entries


def _check_complete(paths: list[Path]) -> None:
    """Shards without an index name their number: all of them must be there."""
    match = _SHARD.search(paths[0].name)
    if not match:
        return
    stem, total = paths[0].name[: match.start()], int(match[2])
    if total > MAX_SHARDS:
        raise FormatError(f"{paths[0]}: {total} shards, at most {MAX_SHARDS} make sense")
    names = {p.name for p in paths}
    wanted = [f"{stem}-{i:05d}-of-{total:05d}.safetensors" for i in range(1, total + 1)]
    for name in wanted:
        if name not in names:
            raise FormatError(f"{paths[0].parent}: shard {name} is missing: is the download complete?")
    for extra in sorted(names - set(wanted)):
        raise FormatError(f"{paths[0].parent}: {extra} belongs to another set of shards than {paths[0].name}")

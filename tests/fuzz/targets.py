"""What is fuzzed: each target takes any bytes, and nothing but FormatError may come out. What a parser accepts is used
as a model would use it, so that a wrong bound is a crash here."""

from __future__ import annotations

import dataclasses
import json
import struct
from pathlib import Path

import numpy as np

from ipvg import _core
from ipvg.cache import Cache, key_of
from ipvg.checkpoint import config, names, pth, shapes, strictjson, unpickle
from ipvg.checkpoint.entry import checked_shape
from ipvg.checkpoint.index import read_index
from ipvg.checkpoint.safetensors import parse, read_header
from ipvg.checkpoint.write import save_safetensors
from ipvg.checkpoint.ziprecords import Record

USED = ("float32", "bfloat16", "float16", "float64", "int64", "int32", "uint8")


def use(entries) -> None:
    """Maps and reads every tensor, in C and in Python: both must see the same bytes."""
    usable = {name: e for name, e in entries.items() if len(e.shape) <= 5 and e.dtype in USED}
    weights = _core.Weights({name: e.source() for name, e in usable.items()})
    for name, entry in usable.items():
        assert weights.array(name).tobytes() == entry.read().tobytes(), name


def put(path: Path, data: bytes) -> Path:
    with path.open("r+b" if path.exists() else "wb") as f:  # in place: emptying a file takes 50 times longer
        f.write(data)
        f.truncate()
    return path


def safetensors(data: bytes, folder: Path) -> None:
    """A header; the length in front and 64 bytes of data are made to fit."""
    parse(data, folder / "x", 8 + len(data) + 64)
    use(read_header(put(folder / "x.safetensors", struct.pack("<Q", len(data)) + data + bytes(range(64)))))


def safetensors_file(data: bytes, folder: Path) -> None:
    """A whole file."""
    use(read_header(put(folder / "x.safetensors", data)))


def index(data: bytes, folder: Path) -> None:
    """A sharded index beside two shards."""
    for shard, tensor in (("a", "x"), ("b", "y")):
        if not (folder / f"{shard}.safetensors").exists():
            save_safetensors(folder / f"{shard}.safetensors", {tensor: np.zeros(2, np.float32)})
    use(read_index(put(folder / "m.safetensors.index.json", data)))


def configs(data: bytes, folder: Path) -> None:
    """A config file of each component, whose tensors can then be listed; or shapes to infer a config from."""
    table = strictjson.parse(data, "x")
    sizes = {name: checked_shape(shape, "x") for name, shape in table.items() if isinstance(shape, list)}
    readers = (
        lambda: config.read_dit(table, "x", sizes),
        lambda: config.read_vae(table, "x"),
        lambda: config.read_text(table, "x"),
        lambda: config.infer_vae(sizes, "x"),
        lambda: config.infer_text(sizes, "x"),
    )
    refusals = []
    for reader in readers:
        try:
            read = reader()
            wanted = shapes.expected(read)
            json.dumps(dataclasses.asdict(read))
            assert len(wanted) < 100_000 and all(n > 0 for shape in wanted.values() for n in shape)
        except _core.FormatError as error:
            refusals.append(error)
    if len(refusals) == len(readers):
        raise refusals[0]


def pickle(data: bytes, folder: Path) -> None:
    """A data.pkl over one record of 192 bytes."""
    path = folder / "storage"
    if not path.exists():
        path.write_bytes(bytes(range(192)))
    root = unpickle.loads(data, "x")
    root = {"tensor": root} if isinstance(root, unpickle.Tensor) else root
    records = {"p/data/0": Record(0, 192)}
    if isinstance(root, dict):
        use({name: pth._entry(tensor, name, records, "p/", path) for name, tensor in root.items()})


def pth_file(data: bytes, folder: Path) -> None:
    """A whole .pth file."""
    use(pth.read_pth(put(folder / "x.pth", data)))


def tensor_names(data: bytes, folder: Path) -> None:
    """Names: a rule's result goes back to where it came from."""
    name = data.decode("utf-8", "replace")
    for component in ("dit", "vae", "text"):
        for blocks in (1, 2):
            official = names.to_official(component, name, blocks)
            if official is not None and name != names.TIED:
                assert names.to_diffusers(component, official, blocks) == name
            diffusers = names.to_diffusers(component, name, blocks)
            if diffusers is not None:
                assert names.to_official(component, diffusers, blocks) == name


def cache(data: bytes, folder: Path) -> None:
    """The JSON lines of an export: all of them or none are taken, and what is taken is exported as the same."""
    inputs = [data]
    try:  # a mutated request no longer fits its key; the right one lets what lies behind that check be reached
        line = json.loads(data)
        line["key"] = key_of(line["request"])
        inputs.insert(0, json.dumps(line).encode())
    except (ValueError, TypeError, KeyError, RecursionError):
        pass
    for i, text in enumerate(inputs):
        try:
            _load(text, folder)
        except _core.FormatError:
            if i == len(inputs) - 1:
                raise


def _load(data: bytes, folder: Path) -> None:
    store = _CACHES.setdefault(folder, Cache(folder / "cache.sqlite"))
    with store._open() as db, db:
        db.execute("DELETE FROM answers")
    try:
        added = store.load(put(folder / "x.jsonl", data))
    except _core.FormatError:
        assert len(store) == 0
        raise
    assert store.export(folder / "y.jsonl") == len(store) == added
    assert store.load(folder / "y.jsonl") == 0
    with store._open() as db:
        for (request,) in db.execute("SELECT request FROM answers"):
            assert store.get(json.loads(request)) is not None


_CACHES: dict[Path, Cache] = {}
_ALL = (safetensors, safetensors_file, index, configs, pickle, pth_file, tensor_names, cache)
TARGETS = {f.__name__: f for f in _ALL}


def run(target: str, data: bytes, folder: Path) -> bool:
    """Whether `data` was accepted. Any exception but FormatError is a bug and comes out."""
    try:
        TARGETS[target](data, folder)
        return True
    except _core.FormatError:
        return False

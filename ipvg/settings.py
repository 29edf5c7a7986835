"""The settings of a job: their names, types and defaults; config files; one setting by its dotted name.

>>> given = settings.load("run.yaml")                             # YAML or JSON, or the manifest beside a video
>>> settings.assign(given, "guidance.w=6")
>>> jobs.make(jobs.resolve(given))

A file is a mapping of the names in `SETTINGS`; paths in it are relative to its folder. Guidance is anything that
`guidance.read` takes.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from . import _arguments, manifest
from ._core import FormatError, UnsupportedError
from .guidance import PRESETS, read
from .guidance.spec import nearest
from .long import MATCHES
from .schedule import Convention, SolverName
from .source import check_size
from .text import NEGATIVE

Settings = dict[str, Any]

MAX_BYTES = 16 << 20  # of a config file; manifests hold arrays of weights
SYNONYMS = {"images": "references", "source": "video"}  #: other names that files and --set may use
SIDES = ("left", "right", "top", "bottom")


@dataclass(frozen=True)
class Setting:
    """default, and the function (name, value) -> value that checks one; text: a --set value is taken as it stands."""

    default: Any
    read: Callable[[str, Any], Any]
    text: bool = False


# ---- types ----


def _text(name: str, value: Any) -> str:
    return _arguments.instance(name, value, str, "text")


def _path(name: str, value: Any) -> str:
    if isinstance(value, Path):
        value = str(value)
    if not isinstance(value, str) or not value or "\0" in value:
        raise ValueError(f"{name}: expected the name of a file, got {_arguments.short(value)}")
    return str(Path(value).expanduser().absolute())


def _paths(name: str, value: Any) -> list[str]:
    values = [value] if isinstance(value, str | Path) else value
    return [_path(name, v) for v in _arguments.instance(name, values, list | tuple, "a list of files")]


def _integer(low: int, high: int):
    def read(name: str, value: Any) -> int:
        return _arguments.integer(name, _number(value, int), low, high)

    return read


def _float(low: float, high: float):
    def read(name: str, value: Any) -> float:
        return _arguments.number(name, _number(value, float), low, high)

    return read


def _number(value: Any, kind: type) -> Any:
    """Text that stands for a number is one; whatever else stays for the check."""
    try:
        return kind(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _bytes(name: str, value: Any) -> int:
    from .memory import parse

    return parse(_number(value, int))


def _choice(*options: str):
    def read(name: str, value: Any) -> str:
        if not isinstance(value, str) or value not in options:
            raise ValueError(f"{name}: got {_arguments.short(value)}{nearest(str(value), options)}")
        return value

    return read


def _size(name: str, value: Any) -> list[int]:
    if isinstance(value, str):
        value = [int(v) if v.isdigit() else v for v in value.lower().split("x")]
    try:
        check_size(value, 1)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}: expected WIDTHxHEIGHT in multiples of 16 ({error})") from None
    return [int(v) for v in value]


def _frames(name: str, value: Any) -> int:
    value = _number(value, int)
    check_size((16, 16), value)
    return int(value)


def _pad(name: str, value: Any) -> dict[str, float]:
    _arguments.instance(name, value, Mapping, "a mapping of sides to shares")
    for side in value:
        if side not in SIDES:
            raise ValueError(f"{name}: no side {side!r}{nearest(str(side), SIDES)}")
    return {side: _float(0, 4)(f"{name}.{side}", share) for side, share in value.items()}


def _loras(name: str, value: Any) -> list[list]:
    out, values = [], [value] if isinstance(value, str) else value
    for item in _arguments.instance(name, values, list | tuple, "a list of files"):
        pair = [item, 1.0] if isinstance(item, str) else item
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise ValueError(f"{name}: expected files or [file, strength], got {_arguments.short(item)}")
        out.append([_path(name, pair[0]), _float(-100, 100)(f"{name}: strength", pair[1])])
    return out


def _guidance(name: str, value: Any) -> dict[str, Any]:
    return read(value).to_dict()


#: Every setting. A default of None: the checkpoint's, or none.
SETTINGS: dict[str, Setting] = {
    "prompt": Setting("", _text, text=True),
    "enhanced": Setting(None, _path, text=True),
    "negative": Setting(NEGATIVE, _text, text=True),
    "task": Setting(None, _text, text=True),
    "references": Setting([], _paths),
    "alpha": Setting("drop", _choice("drop", "white"), text=True),
    "video": Setting(None, _path, text=True),
    "mask": Setting(None, _path, text=True),
    "first": Setting(None, _path, text=True),
    "last": Setting(None, _path, text=True),
    "pad": Setting({}, _pad),
    "keep": Setting(None, _integer(1, 1 << 16)),
    "checkpoint": Setting(None, _path, text=True),
    "lora": Setting([], _loras),
    "device": Setting("cpu", _text, text=True),
    "threads": Setting(None, _integer(1, 4096)),
    "dtype": Setting("float32", _choice("float32", "bfloat16", "fp8"), text=True),
    "memory_limit": Setting(None, _bytes),
    "size": Setting(None, _size),
    "frames": Setting(None, _frames),
    "chunk": Setting(None, _frames),
    "overlap": Setting(None, _integer(1, 1 << 16)),
    "match": Setting("gain", _choice(*MATCHES), text=True),
    "steps": Setting(None, _integer(1, 100_000)),
    "shift": Setting(None, _float(1e-6, 1e6)),
    "solver": Setting("unipc", _choice(*get_args(SolverName)), text=True),
    "sigmas_from": Setting("official", _choice(*get_args(Convention)), text=True),
    "seed": Setting(2025, _integer(0, 2**64 - 1)),
    "guidance": Setting(None, _guidance),
}

#: What a config file may hold as well, for the command line: where the results go.
OUTPUTS = ("out", "contact_sheet", "resume")
FILES = ("references", "video", "mask", "first", "last")


def check(given: Mapping[str, Any]) -> Settings:
    """All settings with their defaults, each of its type, paths absolute. ValueError or TypeError names what is wrong,
    for an unknown name the nearest known one."""
    out = {name: setting.default for name, setting in SETTINGS.items()}
    for key, value in given.items():
        name = known(key)
        if name in OUTPUTS:
            raise ValueError(f"settings: {name!r} is for the command line")
        if name != key and name in given:
            raise ValueError(f"settings: {key!r} and {name!r} are the same; give one")
        if value is not None:
            out[name] = SETTINGS[name].read(name, value)
    return out


def known(name: Any) -> str:
    """The setting of that name. ValueError with the nearest known one."""
    name = SYNONYMS.get(name, name)
    if isinstance(name, str) and (name in SETTINGS or name in OUTPUTS):
        return name
    raise ValueError(f"settings: {name!r} is unknown{nearest(str(name), [*SETTINGS, *OUTPUTS])}")


# ---- files ----


def load(path) -> Settings:
    """The settings of a .yaml, .yml or .json file, unchecked but for their names; relative paths are made absolute.

    A manifest is one as well: its settings. Raises OSError, ipvg.FormatError (not such a file), ValueError (an unknown
    name), ipvg.UnsupportedError (YAML without PyYAML).
    """
    path = Path(path)
    if path.suffix.lower() not in (".yaml", ".yml", ".json"):
        raise ValueError(f"{path}: expected a name that ends in .yaml, .yml or .json")
    with path.open("rb") as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise FormatError(f"{path}: more than {MAX_BYTES >> 20} MiB, so no config file")
    try:
        text = data.decode("utf-8")
        table = json.loads(text, object_pairs_hook=_once) if path.suffix.lower() == ".json" else _yaml(path, text)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path}: {error}") from None
    if isinstance(table, dict) and table.get("format") == manifest.FORMAT:
        if "settings" not in table:
            raise FormatError(f"{path}: made from arrays in Python, so it has no settings to go on from")
        table = table["settings"]
    if not isinstance(table, dict):
        raise FormatError(f"{path}: expected a mapping of settings, e.g. prompt: ...")
    out: Settings = {}
    for key, value in table.items():
        try:
            name = known(key)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
        if name in out:
            raise ValueError(f"{path}: {name!r} is given twice")
        out[name] = _anchored(name, value, path.parent)
    return out


def _anchored(name: str, value: Any, folder: Path) -> Any:
    """Relative paths from the file's folder."""

    def place(item):
        return str(folder.absolute() / Path(item).expanduser()) if isinstance(item, str) and item else item

    if name == "references" and isinstance(value, list):
        return [place(v) for v in value]
    if name == "lora" and isinstance(value, list):
        return [[place(v[0]), *v[1:]] if isinstance(v, list) and v else place(v) for v in value]
    if name == "guidance" and isinstance(value, str) and value.endswith(".json"):
        return place(value)
    return place(value) if name in (*FILES, *OUTPUTS, "lora", "checkpoint", "enhanced") else value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = {}
    for key, value in pairs:
        if key in out:
            raise ValueError(f"{key!r} is given twice")
        out[key] = value
    return out


def _yaml(path: Path, text: str) -> Any:
    try:
        import yaml
    except ImportError:
        raise UnsupportedError(
            f"{path}: YAML needs PyYAML: pip install pyyaml (or 'ipvg[yaml]'). The same as .json works without"
        ) from None
    from .yaml_loader import Loader

    try:
        return yaml.load(text, Loader)
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from None


# ---- one setting ----


def assign(given: Settings, text: str) -> None:
    """`name=value` or `name.part=value` into settings that `load` gave. The value is JSON where the setting is no text:
    steps=8, size=832x480, references=["a.png"], guidance.w=6, guidance.branches.weak.skip_blocks=[9], pad.left=0.5.

    ValueError names an unknown name, and the nearest known one.
    """
    name, equals, raw = text.partition("=")
    head, *parts = name.strip().split(".")
    if not equals or not head or not all(parts[:-1]):
        raise ValueError(f"expected NAME=VALUE, e.g. steps=8 or guidance.w=6, got {text!r}")
    try:
        head = known(head)
    except ValueError as error:
        raise ValueError(f"{error}{_inside(head, given)}") from None
    value = raw if head in OUTPUTS or SETTINGS[head].text else _json(raw)
    if not parts:
        given[head] = value
        return
    if head not in ("guidance", "pad"):
        raise ValueError(f"settings: {head!r} has no parts, so no {name.strip()!r}")
    if head == "guidance":
        given[head] = _open_guidance(given.get(head))
    else:
        given[head] = dict(given.get(head) or {})
    place = given[head]
    for part in parts[:-1]:
        inner = place.get(part)
        if not isinstance(inner, Mapping):
            raise ValueError(f"settings: {name.strip()!r}: no {part!r} there{nearest(part, place)}")
        place[part] = place = dict(inner)
    if head == "guidance":
        _check_part(name.strip(), parts, place)
    place[parts[-1]] = value


def weights_at(given: Settings) -> str:
    """Where the weights of the guidance are, below "guidance.": "" for the arguments of a preset, else "weights."."""
    return "" if "preset" in _open_guidance(given.get("guidance")) else "weights."


def _json(raw: str) -> Any:
    try:
        return json.loads(raw)
    except ValueError:
        return raw


def _open_guidance(value: Any) -> dict[str, Any]:
    """Guidance as a mapping whose parts have names."""
    if value is None:
        value = "tpige_code"
    if isinstance(value, str) and value in PRESETS:
        return {"preset": value}
    if isinstance(value, Mapping):
        return dict(value)
    return dict(read(value).to_dict())  # a sum or a file: its parts are branches, weights, operations


def _check_part(name: str, parts: list[str], place: dict[str, Any]) -> None:
    last = parts[-1]
    if len(parts) == 1 and "preset" in place:
        fine = ["preset", *_arguments_of(place["preset"])]
    elif len(parts) == 1:
        fine = ["preset", "branches", "combine", "weights", "operations"]
        if last in place.get("weights", {}):
            raise ValueError(f"settings: {name!r} is called 'guidance.weights.{last}' here")
    elif parts[0] == "weights" and len(parts) == 2:
        fine = list(place)
    else:
        return  # fields of a branch: Branch.from_dict knows them
    if last not in fine:
        raise ValueError(f"settings: {name!r} is unknown{nearest(last, fine)}")


def _arguments_of(preset: Any) -> list[str]:
    known = isinstance(preset, str) and preset in PRESETS
    return list(inspect.signature(PRESETS[preset]).parameters) if known else []


def _inside(word: str, given: Settings) -> str:
    """For an error's end: a part of another setting that has this name."""
    if word in SIDES:
        return f"; or 'pad.{word}'?"
    rule = _open_guidance(given.get("guidance"))
    if word in _arguments_of(rule.get("preset")):
        return f"; or 'guidance.{word}'?"
    return f"; or 'guidance.weights.{word}'?" if word in rule.get("weights", {}) else ""

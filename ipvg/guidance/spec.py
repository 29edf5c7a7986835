"""Guidance as one writes it in a config file or on a command line: `read("cfg(w=6) + stg_r(s=1, blocks=[9])")`."""

from __future__ import annotations

import ast
import difflib
import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .presets import PRESETS
from .rule import FORMAT, VERSION, Guidance


def read(value: Any, folder: str | Path = ".") -> Guidance:
    """Guidance from what stands for one:

    - a sum of presets with their arguments, as in Python: "tpige_aligned", "cfg(6) + stg_r(s=1, blocks=[9])"
    - a .json file of one (`Guidance.to_json`), relative to `folder`
    - {"preset": "cfg", "w": 6}
    - what `Guidance.to_dict` gives; format and version may be left out: {"branches", "combine", "weights"}
    - a Guidance

    Nothing is evaluated. Raises ValueError (names the preset or argument, and the nearest known one), TypeError,
    OSError.
    """
    if isinstance(value, Guidance):
        return value
    if isinstance(value, str) and value.endswith(".json"):
        path = Path(folder, value)
        try:
            return Guidance.from_json(path.read_text(encoding="utf-8"))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path}: {error}") from None
    if isinstance(value, str):
        return _sum(value)
    if isinstance(value, Mapping) and "preset" in value:
        return preset(value["preset"], **{str(k): v for k, v in value.items() if k != "preset"})
    if isinstance(value, Mapping):
        named = {str(k): v for k, v in value.items()}
        return Guidance.from_dict({"format": FORMAT, "version": VERSION, "weights": {}, **named})
    raise TypeError(f"guidance: expected a preset's name or a mapping, got {value!r}")


def preset(name: Any, *values: Any, **arguments: Any) -> Guidance:
    """PRESETS[name](*values, **arguments), with errors that name what is unknown."""
    if not isinstance(name, str) or name not in PRESETS:
        raise ValueError(f"guidance: no preset {name!r}{nearest(str(name), PRESETS)}")
    known = list(inspect.signature(PRESETS[name]).parameters)
    if len(values) > len(known):
        raise ValueError(f"guidance: {name} takes at most {len(known)} arguments: {', '.join(known)}")
    for argument in arguments:
        if argument not in known:
            raise ValueError(f"guidance: {name} has no argument {argument!r}{nearest(argument, known)}")
        if argument in known[: len(values)]:
            raise ValueError(f"guidance: {name}: {argument!r} is given twice")
    try:
        return PRESETS[name](*values, **arguments)
    except (TypeError, ValueError) as error:
        raise ValueError(f"guidance: {name}: {error}") from None


def nearest(word: str, known) -> str:
    """For an error's end: what was probably meant, else all that there is."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else f"; there are {', '.join(known) or 'none'}"


def _sum(text: str) -> Guidance:
    try:
        tree = ast.parse(text.strip(), mode="eval").body
        return _term(tree)
    except (SyntaxError, RecursionError, MemoryError):
        raise ValueError(f"guidance: {text!r} is no sum of presets such as 'cfg(w=6) + stg_r(s=1)'") from None


def _term(node: ast.AST) -> Guidance:
    match node:
        case ast.BinOp(op=ast.Add(), left=left, right=right):
            return _term(left) + _term(right)
        case ast.Name(id=name):
            return preset(name)
        case ast.Call(func=ast.Name(id=name), args=values, keywords=arguments) if all(a.arg for a in arguments):
            return preset(name, *map(_value, values), **{a.arg: _value(a.value) for a in arguments if a.arg})
    raise SyntaxError


def _value(node: ast.AST) -> Any:
    """A number, a text, a list or, as JSON would have it, a word."""
    if isinstance(node, ast.Name):  # inf, as blur_sigma may be; true and null would be words of JSON
        try:
            return {"inf": float("inf"), "true": True, "false": False}[node.id]
        except KeyError:
            raise SyntaxError from None
    try:
        value = ast.literal_eval(node)
        json.dumps(value)
    except (ValueError, TypeError):
        raise SyntaxError from None
    return value

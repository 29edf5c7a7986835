"""Checks of arguments: each gives the value back as the plain type it stands for, or raises a TypeError or ValueError
that names the argument, what was expected and what came."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import TypeVar

import numpy as np

T = TypeVar("T")


def integer(name: str, value: object, low: int, high: int) -> int:
    """A whole number from low to high, both included; NumPy's integers too, bool not."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name}: expected an integer, got {short(value)}")
    if not low <= value <= high:
        raise ValueError(f"{name}: expected {low} to {high}, got {short(value)}")
    return int(value)


def number(name: str, value: object, low: float = -math.inf, high: float = math.inf) -> float:
    """A finite number from low to high, both included; NumPy's scalars too, bool and text not."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        raise TypeError(f"{name}: expected a number, got {short(value)}")
    if not (math.isfinite(value) and low <= value <= high):
        limits = (
            f" from {low:g} to {high:g}" if math.isfinite(high) else f" of {low:g} or more" if low > -math.inf else ""
        )
        raise ValueError(f"{name}: expected a finite number{limits}, got {short(value)}")
    return float(value)


def choice(name: str, value: object, options: Collection[str]) -> str:
    """One of the words."""
    words = ", ".join(repr(option) for option in options)
    if not isinstance(value, str):
        raise TypeError(f"{name}: expected one of {words}, got {short(value)}")
    if value not in options:
        raise ValueError(f"{name}: expected one of {words}, got {short(value)}")
    return value


def instance(name: str, value: object, kind: type[T], word: str = "") -> T:
    """An object of that type; `word` says it better than the type's own name."""
    if not isinstance(value, kind):
        raise TypeError(f"{name}: expected {word or kind.__name__}, got {short(value)}")
    return value


def short(value: object) -> str:
    """A value for an error text: arrays by dtype and shape, the rest cut to 60 characters."""
    if isinstance(value, np.ndarray):
        return f"an array of {value.dtype} {value.shape}"
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."

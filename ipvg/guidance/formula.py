"""The formulas that combine branches: ``uncond + W*(cond - uncond)`` as data, checked and evaluated without `eval`.

A formula has names of branches, names of weights, numbers, + - * / and parentheses, and must be linear in the
branches, so that it stands for one coefficient per branch.
"""

from __future__ import annotations

import ast
from collections.abc import Collection, Mapping

import numpy as np

MAX_LENGTH = 2000

Number = float | np.ndarray  # arrays: one number for each element of the latent, or what broadcasts to them
Linear = dict[str, Number]  # branch -> coefficient


class FormulaError(ValueError):
    """A formula that cannot be used; the text names the spot."""


class Formula:
    """A parsed formula. Raises FormulaError where it is not linear in `branches`, or has a name that is in neither
    set.
    """

    def __init__(self, text: str, branches: Collection[str], weights: Collection[str]):
        if not isinstance(text, str):
            raise TypeError(f"combine: expected a string, got {type(text).__name__}")
        self.text = " ".join(text.split())
        self.branches, self.weights = frozenset(branches), frozenset(weights)
        self.used: set[str] = set()
        if len(self.text) > MAX_LENGTH:
            raise FormulaError(f"combine: longer than {MAX_LENGTH} characters")
        try:
            self._tree = ast.parse(self.text, mode="eval").body
        except SyntaxError as error:
            self._fail("not a formula", (error.offset or 1) - 1)
        except (ValueError, RecursionError, MemoryError) as error:
            raise FormulaError(f"combine: not a formula ({error})") from None
        try:
            linear = self._check(self._tree)
        except RecursionError:
            raise FormulaError("combine: too deeply nested") from None
        if not linear:
            self._fail("no branch in it: a velocity must come out", 0)

    def coefficients(self, weights: Mapping[str, Number]) -> Linear:
        """The coefficient of every branch in the formula. ValueError: a division by zero, or a result that is not
        finite.
        """
        value = self._evaluate(self._tree, weights)
        assert isinstance(value, dict)
        for name, coefficient in value.items():
            if not np.isfinite(coefficient).all():
                raise FormulaError(f"combine: the coefficient of {name!r} is {coefficient}")
        return value

    def _fail(self, problem: str, spot: ast.AST | int):
        if isinstance(spot, int):
            first, last = spot, spot + 1
        else:
            first, last = self._column(spot.col_offset), self._column(spot.end_col_offset)
        marks = " " * first + "^" * (last - first)
        raise FormulaError(f"combine: {problem}, at column {first + 1}:\n    {self.text}\n    {marks}") from None

    def _column(self, offset: int) -> int:
        """Characters from the start; `ast` counts bytes of UTF-8."""
        return len(self.text.encode()[:offset].decode(errors="ignore"))

    def _check(self, node: ast.AST) -> bool:
        """Is the value linear in the branches (True) or a number (False)? Anything else fails here, once, by its
        kind.
        """
        match node:
            case ast.Constant(value=int() | float()) if not isinstance(node.value, bool):
                if abs(node.value) > 1e30 or node.value != node.value:
                    self._fail("a number beyond 1e30", node)
                return False
            case ast.Name(id=name):
                self.used.add(name)
                if name not in self.branches and name not in self.weights:
                    known = ", ".join(sorted(self.branches | self.weights))
                    self._fail(f"{name!r} is neither a branch nor a weight (there are {known})", node)
                return name in self.branches
            case ast.UnaryOp(op=ast.USub() | ast.UAdd(), operand=operand):
                return self._check(operand)
            case ast.BinOp(op=ast.Add() | ast.Sub(), left=left, right=right):
                a, b = self._check(left), self._check(right)
                if a != b:
                    self._fail("a branch and a number cannot be added", node)
                return a
            case ast.BinOp(op=ast.Mult(), left=left, right=right):
                a, b = self._check(left), self._check(right)
                if a and b:
                    self._fail("a branch times a branch is not linear", node)
                return a or b
            case ast.BinOp(op=ast.Div(), left=left, right=right):
                a, b = self._check(left), self._check(right)
                if b:
                    self._fail("dividing by a branch is not linear", right)
                return a
        self._fail("only branches, weights, numbers, + - * / and parentheses are understood", node)

    def _evaluate(self, node: ast.AST, weights: Mapping[str, Number]) -> Number | Linear:
        match node:
            case ast.Constant(value=value):
                return float(value)
            case ast.Name(id=name):
                return {name: 1.0} if name in self.branches else weights[name]
            case ast.UnaryOp(op=op, operand=operand):
                return _times(self._evaluate(operand, weights), -1.0 if isinstance(op, ast.USub) else 1.0)
            case ast.BinOp(op=op, left=left, right=right):
                a, b = self._evaluate(left, weights), self._evaluate(right, weights)
                if isinstance(op, ast.Mult):
                    return _times(b, a) if isinstance(b, dict) else _times(a, b)
                if isinstance(op, ast.Div):
                    if np.any(b == 0):
                        self._fail("division by zero", right)
                    return {name: c / b for name, c in a.items()} if isinstance(a, dict) else a / b
                return _plus(a, b if isinstance(op, ast.Add) else _times(b, -1.0))
        raise AssertionError(node)


def _times(value: Number | Linear, factor: Number) -> Number | Linear:
    return {name: c * factor for name, c in value.items()} if isinstance(value, dict) else value * factor


def _plus(a: Number | Linear, b: Number | Linear) -> Number | Linear:
    if not isinstance(a, dict):
        return a + b
    return {name: a.get(name, 0.0) + b.get(name, 0.0) for name in (*a, *(n for n in b if n not in a))}

"""ERRORS.md, the table of errors, from the tests that provoke them: `python tests/errors.py` writes it anew.

Every `pytest.raises(TYPE, match=TEXT)` in tests/ is a row; types and texts that a parametrize decorator gives are
looked up there. The tests run in CI, so that the table is true; tests/test_errors.py keeps it up to date.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TABLE = ROOT / "ERRORS.md"
MEANING = {
    "ValueError": "a value, shape or range that cannot work; the text names the argument",
    "TypeError": "an argument of another type",
    "FormatError": "bytes of a file or a reply that are not what they claim to be (a ValueError)",
    "UnsupportedError": "valid, but not by this build or on this machine; the text says how to get it (a RuntimeError)",
    "BackendError": "a library below failed: oneDNN, FFmpeg, libcurl (a RuntimeError)",
    "RemoteError": "a service did not answer, or not as it should",
    "OfflineMiss": "offline, and the cache has no such answer",
    "Cancelled": "`cancel()`; the object stays usable (a RuntimeError)",
    "KeyboardInterrupt": "Ctrl-C, within one block of the model; the object stays usable",
    "OSError": "the system refused a file; its subclasses too",
    "MemoryError": "no memory: every allocation is tested to end here, tests/test_allocation.py",
    "RuntimeError": "an object used by two threads at once",
    "KeyError": "no such name",
    "IndexError": "no such place",
}

Row = tuple[str, str, str, str]  # type, text, call, test


def rows() -> list[Row]:
    found = {row for path in sorted((ROOT / "tests").glob("test_*.py")) for row in _of_file(path)}
    return sorted(found)


def _of_file(path: Path) -> Iterator[Row]:
    for function in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(function, ast.FunctionDef) or not function.name.startswith("test_"):
            continue
        given = list(_parameters(function))
        for block in ast.walk(function):
            if not isinstance(block, ast.With) or not isinstance(call := block.items[0].context_expr, ast.Call):
                continue
            if ast.unparse(call.func) != "pytest.raises" or not call.args:
                continue
            match = next((k.value for k in call.keywords if k.arg == "match"), None)
            what = ast.unparse(block.body[0]).split("\n")[0]
            for values in given or [{}]:
                kind, text = _value(call.args[0], values), _value(match, values) if match else ""
                for name in _names(kind):
                    if name in MEANING and isinstance(text, str) and text:
                        yield name, _text_of(text), what, f"{path.name}::{function.name}"


def _parameters(function: ast.FunctionDef) -> Iterator[dict[str, ast.expr]]:
    """Name -> expression, for each case of a parametrize decorator that lists them."""
    for decorator in function.decorator_list:
        if not isinstance(decorator, ast.Call) or not ast.unparse(decorator.func).endswith("parametrize"):
            continue
        names = ast.literal_eval(decorator.args[0]) if isinstance(decorator.args[0], ast.Constant | ast.Tuple) else ""
        names = [n.strip() for n in names.split(",")] if isinstance(names, str) else list(names)
        for case in getattr(decorator.args[1], "elts", ()):
            if len(names) > 1 and isinstance(case, ast.Tuple) and len(case.elts) == len(names):
                yield dict(zip(names, case.elts, strict=True))


def _value(node: ast.expr, values: dict[str, ast.expr]):
    """A text, or the expression that stands for a type."""
    if isinstance(node, ast.Name) and node.id in values:
        node = values[node.id]
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else "..." for part in node.values)
    return node


def _names(node) -> list[str]:
    parts = node.elts if isinstance(node, ast.Tuple) else [node]
    return [ast.unparse(part).rpartition(".")[2] for part in parts if isinstance(part, ast.expr)]


def _text_of(pattern: str) -> str:
    """A regular expression as a reader wants it."""
    for mark in ".()[]{}*+?|^$-":
        pattern = pattern.replace("\\" + mark, mark)
    return pattern.replace("\\d+", "N").replace("\\S+", "...").replace(".*", "...")


def table() -> str:
    lines = [
        "# Errors",
        "",
        "What the public calls raise, with a part of the text. Made by `python tests/errors.py` from the tests that",
        "provoke each one; `...` stands for anything, `|` for one or the other.",
    ]
    found = rows()
    for kind, meaning in MEANING.items():
        mine = [row for row in found if row[0] == kind]
        lines += ["", f"## {kind}", "", f"{meaning[0].upper()}{meaning[1:]}."]
        lines += ["", "| text | from | test |", "|---|---|---|"] if mine else []
        for _, text, what, test in mine:
            what = what if len(what) <= 90 else what[:87] + "..."
            lines.append("| " + " | ".join(_cell(cell) for cell in (text, what, test.replace("test_", "", 1))) + " |")
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return "`" + text.replace("|", "\\|").replace("`", "'").replace("\n", " ") + "`" if text else ""


if __name__ == "__main__":
    TABLE.write_text(table(), encoding="utf-8")
    print(f"{TABLE.name}: {len(rows())} errors")

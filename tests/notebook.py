"""Runs a notebook's cells without Jupyter: python -m tests.notebook FILE.ipynb [--write]

One namespace, from top to bottom; the value of a cell's last expression is shown as its PNG or its text. --write puts
the outputs into the file. Jupyter does the same with more; nothing but Python is needed here.
"""

from __future__ import annotations

import ast
import base64
import contextlib
import io
import json
import sys
from pathlib import Path


def execute(cells: list[dict]) -> None:
    """Fills in outputs and counts of the code cells. Raises what a cell raises."""
    space: dict = {"__name__": "__main__"}
    for count, cell in enumerate((c for c in cells if c["cell_type"] == "code"), start=1):
        tree = ast.parse("".join(cell["source"]))
        last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
        value, said = None, io.StringIO()
        with contextlib.redirect_stdout(said):
            exec(compile(tree, f"<cell {count}>", "exec"), space)
            if last is not None:
                value = eval(compile(ast.Expression(last.value), f"<cell {count}>", "eval"), space)
        cell["execution_count"], cell["outputs"] = count, []
        if said.getvalue():
            cell["outputs"].append({"name": "stdout", "output_type": "stream", "text": lines(said.getvalue())})
        if value is not None:
            data = {"text/plain": lines(repr(value))}
            if hasattr(value, "_repr_png_"):
                data["image/png"] = base64.b64encode(value._repr_png_()).decode()
            cell["outputs"].append(
                {"data": data, "execution_count": count, "metadata": {}, "output_type": "execute_result"}
            )


def lines(text: str) -> list[str]:
    return text.splitlines(keepends=True)


def main(argv: list[str]) -> int:
    path = Path(argv[0])
    notebook = json.loads(path.read_text(encoding="utf-8"))
    execute(notebook["cells"])
    if "--write" in argv:
        path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(json.dumps(notebook["cells"]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

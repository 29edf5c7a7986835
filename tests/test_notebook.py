"""notebooks/quickstart.ipynb runs from top to bottom, and what is committed with it is what it says now."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK = ROOT / "notebooks" / "quickstart.ipynb"


def said(cells):
    """Each cell's outputs: their kinds, and their text without the numbers, whose last digits differ by machine."""
    out = []
    for cell in cells:
        for output in cell.get("outputs", ()):
            text = "".join(output.get("text") or output["data"]["text/plain"])
            out.append((output["output_type"], sorted(output.get("data", ())), re.sub(r"-?\d+(\.\d+)?", "#", text)))
    return out


def test_the_quickstart_runs_and_says_what_was_committed(tmp_path):
    assert NOTEBOOK.stat().st_size < 300_000
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tests.notebook", str(NOTEBOOK)]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    fresh = said(json.loads(done.stdout))
    committed = said(json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"])
    assert [tuple(map(str, o)) for o in fresh] == [tuple(map(str, o)) for o in committed]
    assert sum("image/png" in kinds for _, kinds, _ in fresh) == 5

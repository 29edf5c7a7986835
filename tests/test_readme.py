"""README's examples are run as they stand: shell blocks line by line, Python blocks as one script, from top to bottom.

A block after `<!-- not run: reason -->` is left out, and the reason must be one that a test machine cannot help.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
BLOCK = re.compile(r"(?P<skip><!-- not run: (?P<why>[^>]+) -->\n+)?```(?P<kind>\w+)\n(?P<code>.*?)^```$", re.S | re.M)
REASONS = ("needs a real checkpoint", "needs a chat service and its key", "set-up, which ran before this test")


def blocks(kind: str) -> list[str]:
    found = list(BLOCK.finditer(README.read_text(encoding="utf-8")))
    for match in found:
        assert match["why"] is None or match["why"] in REASONS, match["why"]
    return [match["code"] for match in found if match["kind"] == kind and not match["skip"]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder that looks like the repository to the examples, where what they write stays."""
    folder = tmp_path_factory.mktemp("readme")
    for name in ("models", "tests", "benchmarks"):
        if (ROOT / name).exists():
            (folder / name).symlink_to(ROOT / name)
    return folder


@pytest.fixture
def environment():
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)}


def test_shell_examples(folder, environment):
    scripts = blocks("sh")
    assert scripts
    for script in scripts:
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script], cwd=folder, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{script}\n{done.stdout}\n{done.stderr}"


def test_python_examples(folder, environment):
    scripts = blocks("python")
    assert scripts
    (folder / "readme.py").write_text("\n\n".join(scripts), encoding="utf-8")
    done = subprocess.run([sys.executable, "readme.py"], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"


def test_links_lead_somewhere():
    text = README.read_text(encoding="utf-8") + (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", text):
        assert (ROOT / target).exists(), target

"""Fuzzes one target with atheris (libFuzzer for Python): python tests/fuzz/one.py TARGET [libFuzzer's arguments]."""

from __future__ import annotations

import sys
from pathlib import Path

import atheris

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path[:0] = [str(HERE), str(ROOT)]
with atheris.instrument_imports(include=["ipvg.checkpoint", "ipvg.cache"]):
    import targets

if __name__ == "__main__":
    name = sys.argv.pop(1)
    folder = ROOT / "build" / "fuzz" / f"{name}.files"
    folder.mkdir(parents=True, exist_ok=True)
    atheris.Setup(sys.argv, lambda data: targets.run(name, bytes(data), folder))
    atheris.Fuzz()

"""ipvg info"""

from __future__ import annotations

import json

from .parts import FAILED, OK, command


def add(commands) -> None:
    sub = command(
        commands, "info", run, "What a checkpoint folder holds, and the memory that it needs.",
        "  ipvg info ~/Wan2.1-VACE-1.3B\n"
        "  ipvg info ~/Wan2.1-VACE-1.3B --sha256 --check      # hash the files, test the tokenizer\n"
        "  ipvg info ~/Wan2.1-VACE-14B-diffusers --json",
    )  # fmt: skip
    sub.add_argument("path", nargs="?", metavar="PATH", help="checkpoint folder (default: the bundled one)")
    sub.add_argument("--sha256", action="store_true", help="hash every file (reads them whole)")
    sub.add_argument("--check", action="store_true", help="compare the tokenizer with the published ids")


def run(args) -> int:
    from .. import info
    from ..memory import estimate
    from ..pipeline import bundled

    found = info.describe(args.path or bundled(), sha256=args.sha256, check=args.check, estimate=estimate)
    if args.json:
        print(json.dumps(found, indent=1))
    else:
        print(info.render(found), end="")
    return OK if found["ok"] else FAILED

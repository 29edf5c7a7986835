"""ipvg parity"""

from __future__ import annotations

import json
import os

from .parts import FAILED, OK, command


def add(commands) -> None:
    sub = command(
        commands, "parity", run, "Compares every stage of this build with golden tensors of the original code.",
        "  ipvg parity tests/golden\n"
        "  ipvg parity tests/golden --stage dit --verbose",
    )  # fmt: skip
    golden = os.environ.get("IPVG_GOLDEN") or "tests/golden"
    device = os.environ.get("IPVG_DEVICE") or "cpu"
    sub.add_argument("golden", nargs="?", default=golden, metavar="FOLDER", help="default: $IPVG_GOLDEN, tests/golden")
    sub.add_argument("--stage", action="append", metavar="NAME", help="only this stage; may be repeated")
    sub.add_argument("--device", default=device, help="default: $IPVG_DEVICE or cpu")
    sub.add_argument("--verbose", action="store_true", help="every comparison, not only the table")


def run(args) -> int:
    from .. import parity

    results = parity.run(args.golden, args.stage, args.device)
    if args.json:
        print(json.dumps([parity.as_dict(result) for result in results], indent=1))
    else:
        print(parity.report(results, verbose=args.verbose))
    return OK if all(result.ok for result in results) else FAILED

"""python -m ipvg.parity [FOLDER] [--stage NAME]... [--device cpu] [--json] [--verbose]"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import sys

from . import STAGES, first_divergence, run, table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "golden",
        nargs="?",
        metavar="FOLDER",
        default=os.environ.get("IPVG_GOLDEN") or "tests/golden",
        help="folder of golden tensors (default: $IPVG_GOLDEN, else tests/golden)",
    )
    parser.add_argument("--stage", action="append", choices=list(STAGES), help="only this stage; may be repeated")
    parser.add_argument(
        "--device", default=os.environ.get("IPVG_DEVICE") or "cpu", help="default: $IPVG_DEVICE, else cpu"
    )
    parser.add_argument("--json", action="store_true", help="every result as JSON")
    parser.add_argument("--verbose", action="store_true", help="every comparison, not only the table")


def main(args: argparse.Namespace) -> int:
    """0: all agree, 1: something differs."""
    results = run(args.golden, args.stage, args.device)
    ok = all(result.ok for result in results)
    if args.json:
        print(json.dumps([_plain(result) for result in results], indent=1))
        return 0 if ok else 1
    if args.verbose:
        for r in results:
            mark = "ok  " if r.ok else "FAIL"
            note = "" if r.ok else r.note
            print(f"{mark} {r.error:.2e} <= {r.bound:.0e}  {r.stage} {r.case} {r.tensor}  {note}".rstrip())
        print()
    print(table(results))
    if not ok:
        by_stage = {}
        for result in results:
            by_stage.setdefault(result.stage, []).append(result)
        for group in by_stage.values():
            divergence = first_divergence(group)
            if divergence:
                print(f"\n{divergence}")
    return 0 if ok else 1


def _plain(result) -> dict:
    entry = dataclasses.asdict(result)
    entry["error"] = result.error if math.isfinite(result.error) else None  # JSON has no infinity
    return entry


if __name__ == "__main__":
    parser = argparse.ArgumentParser("python -m ipvg.parity", description="Compare every stage with golden tensors.")
    add_arguments(parser)
    try:
        sys.exit(main(parser.parse_args()))
    except FileNotFoundError as error:
        parser.error(str(error))

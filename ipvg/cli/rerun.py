"""ipvg rerun"""

from __future__ import annotations

import sys

from .parts import FAILED, OK, check_outputs, command, report


def add(commands) -> None:
    sub = command(
        commands, "rerun", run, "The video of a manifest again: the same bytes, or what has changed since.",
        "  ipvg rerun alice.mp4.json\n"
        "  ipvg rerun alice.mp4.json --out again.mp4 --anyway     # although something changed",
        quiet=True,
    )  # fmt: skip
    sub.add_argument("manifest", metavar="FILE.json", help="what `ipvg generate` wrote beside its video")
    sub.add_argument("--out", metavar="FILE", help="default: the old name with -rerun, beside the manifest")
    sub.add_argument("--anyway", action="store_true", help="go on although versions, checkpoint or inputs changed")


def run(args) -> int:
    from .. import jobs
    from ..progress import Progress

    check_outputs(args.out)
    with Progress(quiet=args.quiet) as progress:
        done = jobs.rerun(args.manifest, args.out, anyway=args.anyway, progress=progress)
    for difference in done.differences:
        print(f"ipvg: {difference}", file=sys.stderr)
    report(args, done.files, {"differences": done.differences, "same": done.same})
    if not args.json:
        print("the same bytes" if done.same else "NOT the same bytes")
    return OK if done.same else FAILED

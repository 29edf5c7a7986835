"""ipvg seams"""

from __future__ import annotations

import json
from pathlib import Path

from .parts import OK, UsageError, command, count


def add(commands) -> None:
    sub = command(
        commands, "seams", run, "How visible the seams of a long video are.",
        "  ipvg seams alice.mp4                    # where they are: from alice.mp4.json\n"
        "  ipvg seams alice.mp4 --at 81 --at 145",
    )  # fmt: skip
    sub.add_argument("video", metavar="FILE", help="video, as it was written")
    sub.add_argument("--at", type=count, action="append", metavar="FRAME", help="first frame after a seam, from 0")


def run(args) -> int:
    from .. import manifest
    from ..seams import measure
    from ..video import read_video

    at = args.at
    if at is None:
        path = Path(args.video + ".json")
        if not path.is_file():
            raise UsageError(f"--at is needed: there is no {path} that says where the seams are")
        at = [chunk["start"] + chunk["kept"] for chunk in manifest.read(path).get("chunks", ())[1:]]
        if not at:
            raise UsageError(f"{path}: not a video in several chunks")
    found = measure(read_video(args.video), at)
    print(json.dumps(found.to_dict(), indent=1) if args.json else found)
    return OK

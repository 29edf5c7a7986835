"""ipvg demo"""

from __future__ import annotations

from pathlib import Path

from .parts import OK, command, report


def add(commands) -> None:
    sub = command(
        commands, "demo", run, "A picture and a sentence, through all three enhancements, become demo.mp4.",
        "  ipvg demo\n"
        "  ipvg demo --image me.jpg --prompt 'A man in a red t-shirt laughs on a sandy beach.'\n"
        "  ipvg demo --out /tmp/demo --smallest",
        work=True, quiet=True,
    )  # fmt: skip
    sub.add_argument("--image", metavar="FILE", help="of a person (default: a bundled one)")
    sub.add_argument("--prompt", metavar="TEXT", help="of what happens (default: a bundled one)")
    sub.add_argument("--out", default="out", metavar="FOLDER", help="made if it is not there (default: out)")
    sub.add_argument("--smallest", action="store_true", help="the least size and steps that use every stage")


def run(args) -> int:
    from .. import demo
    from ..progress import Progress

    with Progress(quiet=args.quiet) as progress:
        files, record = demo.run(
            Path(args.out), picture=args.image, prompt=args.prompt, smallest=args.smallest, threads=args.threads,
            progress=progress,
        )  # fmt: skip
    if record["noise"] and not args.json:
        print("\nThe trained checkpoint is not in models/ yet: these weights are untrained, so the video is NOISE.")
        print("It shows that every stage runs, not what the method can do.\n")
    if not args.json:
        print(f"prompt: {record['prompt']}")
        for flag in record["flags"]:
            print(flag)
    report(args, files, record)
    return OK

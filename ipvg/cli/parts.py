"""What several commands share: exit statuses, options, types of arguments, the report at the end."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Collection
from pathlib import Path

OK, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130


class UsageError(Exception):
    """An argument that cannot work: exit status 2 and the command's usage."""


def command(commands, name, run, help, examples, *, work=False, quiet=False) -> argparse.ArgumentParser:
    """A subcommand with the options that all have. work: also --threads and --device; quiet: also --quiet."""
    sub = commands.add_parser(
        name, help=help, description=help, epilog=f"examples:\n{examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    sub.set_defaults(run=run, parser=sub)
    if work:
        sub.add_argument("--threads", type=count, help="threads (default: all cores)")
        sub.add_argument("--device", default="cpu", help="default: cpu")
    if quiet:
        sub.add_argument("--quiet", action="store_true", help="no progress")
    sub.add_argument("--json", action="store_true", help="the result as JSON on stdout")
    sub.add_argument("--debug", action="store_true", help="with an error, also Python's traceback")
    return sub


def check_outputs(out: str | None, contact_sheet: str | None = None, inputs: Collection[str] = ()) -> None:
    """What cannot be written is said before the work, not after it. inputs: files that are not to be written over."""
    from ..video import ENDINGS

    for option, name, suffixes in (("--out", out, ENDINGS), ("--contact-sheet", contact_sheet, (".png",))):
        if name is None:
            continue
        path = Path(name)
        if path.suffix.lower() not in suffixes:
            raise UsageError(f"{option}: expected a name that ends in {', '.join(suffixes)}, got {name!r}")
        folder = path.parent
        if not folder.is_dir():
            raise UsageError(f"{option}: no folder {str(folder)!r}")
        if not os.access(folder, os.W_OK) or path.is_dir():
            raise UsageError(f"{option}: cannot write {name!r}")
        if path.resolve() in {Path(file).resolve() for file in inputs}:
            raise UsageError(f"{option}: {name!r} is read as well; give the result a name of its own")
        pictures = path.with_suffix("")
        if option == "--out" and path.suffix.lower() == ".png" and pictures.exists():
            if not pictures.is_dir() or any(pictures.iterdir()):
                raise UsageError(f"{option}: the pictures' folder {str(pictures)!r} is there already, and not empty")


def report(args, files: dict[str, str], record: dict) -> None:
    if args.json:
        print(json.dumps({**record, **files}, indent=1))  # "video" is the one made, not the source
    else:
        for what, path in files.items():
            print(f"{what.replace('_', ' ')}: {path}")


def size(text: str) -> tuple[int, int]:
    width, x, height = text.lower().partition("x")
    if not (x and width.isdigit() and height.isdigit()):
        raise argparse.ArgumentTypeError(f"expected WIDTHxHEIGHT, e.g. 832x480, got {text!r}")
    size = int(width), int(height)
    if min(size) < 16 or any(side % 16 for side in size):
        raise argparse.ArgumentTypeError(f"width and height must be multiples of 16, got {text}")
    return size


def frames(text: str) -> int:
    if not text.isdigit() or int(text) % 4 != 1:
        raise argparse.ArgumentTypeError(f"expected 4n + 1 frames (1, 5, ..., 81), got {text!r}")
    return int(text)


def lora(text: str) -> tuple[str, float]:
    name, equals, strength = text.rpartition("=")
    if not equals:
        return text, 1.0
    try:
        return name, float(strength)
    except ValueError:
        return text, 1.0  # a name with "=" in it


def count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected an integer of at least 1, got {text!r}")
    return int(text)


def seed(text: str) -> int:
    if not text.isdigit() or int(text) >= 2**64:
        raise argparse.ArgumentTypeError(f"expected an integer from 0 to 2**64 - 1, got {text!r}")
    return int(text)


def named_weight(text: str) -> tuple[str, float]:
    name, _, value = text.partition("=")
    try:
        return name.strip(), float(value)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected NAME=NUMBER, e.g. w=5, got {text!r}") from None

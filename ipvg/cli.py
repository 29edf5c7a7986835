"""The `ipvg` command: generate, rerun, info, demo, parity.

Exit status: 0 done, 1 it failed (one line on stderr says why), 2 wrong usage, 130 stopped with Ctrl-C. Results go to
stdout, progress and errors to stderr.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import traceback
from pathlib import Path

OK, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; its exit status. --help and wrong usage leave through SystemExit, as argparse does."""
    args = _parser().parse_args(argv)
    try:
        status = args.run(args)
        sys.stdout.flush()  # here, where a failure has an answer, not when the interpreter ends
        return status
    except KeyboardInterrupt:
        print("\nipvg: stopped", file=sys.stderr)
        return INTERRUPTED
    except UsageError as error:
        args.parser.error(str(error))
    except BrokenPipeError:  # the reader of our output has gone; say nothing, and let Python's own flush not complain
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except ImportError as error:
        if args.debug:
            traceback.print_exc()
        print(f"ipvg: {error}. Build it first: `make build` here, or `pip install .`", file=sys.stderr)
        return FAILED
    except Exception as error:
        if args.debug:
            traceback.print_exc()
        print(_explain(error), file=sys.stderr)
        return FAILED


class UsageError(Exception):
    """An argument that cannot work: exit status 2 and the command's usage."""


def _explain(error: Exception) -> str:
    """One line for an expected error; for an unexpected one also where it happened and how to report it."""
    from . import _core

    expected = (OSError, ValueError, MemoryError)
    expected += tuple(getattr(_core, name) for name in ("FormatError", "UnsupportedError", "BackendError", "Cancelled"))
    text = str(error) or type(error).__name__
    if isinstance(error, OSError) and error.filename and error.strerror:
        text = f"{os.fsdecode(error.filename)}: {error.strerror}"
    if isinstance(error, expected):
        return f"ipvg: {text}"
    where = traceback.extract_tb(error.__traceback__)[-1]
    return (
        f"ipvg: internal error: {type(error).__name__}: {text} ({Path(where.filename).name}:{where.lineno})\n"
        "      This is a bug in ipvg. Please report it with what the same command prints with --debug."
    )


# ---- the commands ----


def _generate(args) -> int:
    from . import jobs
    from .progress import Progress

    _check_outputs(args)
    settings = _settings(args)
    began = time.monotonic()
    with Progress(quiet=args.quiet) as progress:
        video, pipe = jobs.make(settings, progress, opened=None if args.quiet else _note)
    files = jobs.save(video, args.out, pipe)
    if args.contact_sheet:
        files["contact_sheet"] = str(video.save_contact_sheet(args.contact_sheet))
    _report(args, files, {**settings, "seconds": round(time.monotonic() - began, 3)})
    return OK


def _settings(args) -> dict:
    from . import jobs

    given = {name: value for name, value in vars(args).items() if name in jobs.DEFAULTS and value is not None}
    pads = dict(args.pad)
    given |= {"images": args.image, "pad": pads, "guidance": _guidance(args).to_dict()}
    try:
        return jobs.resolve(given)
    except ValueError as error:
        raise UsageError(str(error)) from None


def _note(pipe) -> None:
    if pipe.defaults.note:
        print(f"ipvg: {pipe.checkpoint.path.name}: {pipe.defaults.note}", file=sys.stderr)


def _rerun(args) -> int:
    from . import jobs
    from .progress import Progress

    with Progress(quiet=args.quiet) as progress:
        done = jobs.rerun(args.manifest, args.out, anyway=args.anyway, progress=progress)
    for difference in done.differences:
        print(f"ipvg: {difference}", file=sys.stderr)
    _report(args, done.files, {"differences": done.differences, "same": done.same})
    if not args.json:
        print("the same bytes" if done.same else "NOT the same bytes")
    return OK if done.same else FAILED


def _demo(args) -> int:
    from . import demo
    from .progress import Progress

    with Progress(quiet=args.quiet) as progress:
        files, record = demo.run(Path(args.out), smallest=args.smallest, threads=args.threads, progress=progress)
    if record["noise"] and not args.json:
        print("\nThe trained checkpoint is not in models/ yet: these weights are untrained, so the video is NOISE.")
        print("It shows that every stage runs, not what the method can do.\n")
    _report(args, files, record)
    return OK


def _info(args) -> int:
    from . import info
    from .memory import estimate
    from .pipeline import bundled

    found = info.describe(args.path or bundled(), sha256=args.sha256, check=args.check, estimate=estimate)
    if args.json:
        print(json.dumps(found, indent=1))
    else:
        print(info.render(found), end="")
    return OK if found["ok"] else FAILED


def _parity(args) -> int:
    from . import parity

    results = parity.run(args.golden, args.stage, args.device)
    if args.json:
        print(json.dumps([parity.as_dict(result) for result in results], indent=1))
    else:
        print(parity.report(results, verbose=args.verbose))
    return OK if all(result.ok for result in results) else FAILED


# ---- parts ----


def _check_outputs(args) -> None:
    """What cannot be written is said before the work, not after it."""
    from .video import ENDINGS

    for option, name, suffixes in (("--out", args.out, ENDINGS), ("--contact-sheet", args.contact_sheet, (".png",))):
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


def _guidance(args):
    from . import guidance

    name = args.guidance
    if name.endswith(".json"):
        if args.weight:
            raise UsageError("--weight goes with a preset; a JSON file holds its own weights")
        return guidance.Guidance.from_json(Path(name).read_text(encoding="utf-8"))
    if name not in guidance.PRESETS:
        raise UsageError(f"--guidance: expected {', '.join(guidance.PRESETS)} or a .json file, got {name!r}")
    return guidance.PRESETS[name](**dict(args.weight))


def _report(args, files: dict[str, str], record: dict) -> None:
    if args.json:
        print(json.dumps({**record, **files}, indent=1))  # "video" is the one made, not the source
    else:
        for what, path in files.items():
            print(f"{what.replace('_', ' ')}: {path}")


# ---- arguments ----


def _size(text: str) -> tuple[int, int]:
    width, x, height = text.lower().partition("x")
    if not (x and width.isdigit() and height.isdigit()):
        raise argparse.ArgumentTypeError(f"expected WIDTHxHEIGHT, e.g. 832x480, got {text!r}")
    size = int(width), int(height)
    if min(size) < 16 or any(side % 16 for side in size):
        raise argparse.ArgumentTypeError(f"width and height must be multiples of 16, got {text}")
    return size


def _frames(text: str) -> int:
    if not text.isdigit() or int(text) % 4 != 1:
        raise argparse.ArgumentTypeError(f"expected 4n + 1 frames (1, 5, ..., 81), got {text!r}")
    return int(text)


def _lora(text: str) -> tuple[str, float]:
    name, equals, strength = text.rpartition("=")
    if not equals:
        return text, 1.0
    try:
        return name, float(strength)
    except ValueError:
        return text, 1.0  # a name with "=" in it


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected an integer of at least 1, got {text!r}")
    return int(text)


def _seed(text: str) -> int:
    if not text.isdigit() or int(text) >= 2**64:
        raise argparse.ArgumentTypeError(f"expected an integer from 0 to 2**64 - 1, got {text!r}")
    return int(text)


def _named_weight(text: str) -> tuple[str, float]:
    name, _, value = text.partition("=")
    try:
        return name.strip(), float(value)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected NAME=NUMBER, e.g. w=5, got {text!r}") from None


class _Help(argparse.RawDescriptionHelpFormatter):
    pass


def _parser() -> argparse.ArgumentParser:
    from . import __version__

    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--json", action="store_true", help="the result as JSON on stdout")
    common.add_argument("--debug", action="store_true", help="with an error, also Python's traceback")
    work = argparse.ArgumentParser(add_help=False)
    work.add_argument("--threads", type=_count, help="threads (default: all cores)")
    work.add_argument("--device", default="cpu", help="default: cpu")
    quiet = argparse.ArgumentParser(add_help=False)
    quiet.add_argument("--quiet", action="store_true", help="no progress")

    parser = argparse.ArgumentParser(
        prog="ipvg",
        description="Identity-preserving text-to-video: Wan2.1-VACE with TPIGE guidance.",
        epilog="`ipvg COMMAND --help` shows examples. Exit status: 0 done, 1 failed, 2 wrong usage, 130 Ctrl-C.",
    )
    parser.add_argument("--version", action="version", version=f"ipvg {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def command(name, run, help, examples, *parents):
        sub = commands.add_parser(
            name, help=help, description=help, epilog=f"examples:\n{examples}", parents=[*parents, common],
            formatter_class=_Help,
        )  # fmt: skip
        sub.set_defaults(run=run, parser=sub)
        return sub

    sub = command(
        "generate", _generate, "A sentence, and a photo if you like, become an mp4.",
        "  ipvg generate --image alice.png --prompt 'A woman walks on the beach.' --out alice.mp4\n"
        "  ipvg generate --prompt 'Rain on a window.' --frames 17 --size 320x192 --steps 20 --out rain.mp4\n"
        "  ipvg generate --checkpoint ~/Wan2.1-VACE-1.3B --image a.png --prompt '...' --guidance tpige_aligned \\\n"
        "                --weight w=5 --weight s=0.5 --out a.mp4\n"
        "  ipvg generate --task first-frame --first photo.png --prompt '...' --lora style.safetensors=0.8 --out a.mp4\n"
        "  ipvg generate --task outpaint --video in.mp4 --pad left=0.5 --pad right=0.5 --prompt '...' --out wide.mp4\n"
        "  ipvg generate --video in.mp4 --mask mask.mp4 --prompt '...' --guidance my_guidance.json --out out.mp4",
        work, quiet,
    )  # fmt: skip
    sub.add_argument("--prompt", required=True, help="what the video shows")
    sub.add_argument("--negative", help="what it does not (default: Wan2.1's own negative prompt)")
    sub.add_argument(
        "--task", metavar="NAME",
        help="text, image, references, control, inpaint, outpaint, first-frame, last-frame, first-last, extend-after, "
        "extend-before (default: images, video and mask as they are)",
    )  # fmt: skip
    sub.add_argument("--image", action="append", default=[], metavar="FILE", help="reference picture; may be repeated")
    sub.add_argument("--first", metavar="FILE", help="picture that the video begins with")
    sub.add_argument("--last", metavar="FILE", help="picture that it ends with")
    sub.add_argument(
        "--pad", action="append", type=_named_weight, default=[], metavar="SIDE=X",
        help="for outpaint: left, right, top or bottom gets X times the video's width or height",
    )  # fmt: skip
    sub.add_argument("--keep", type=_count, metavar="N", help="for extend-*: frames of the video that are shown again")
    sub.add_argument(
        "--lora", action="append", type=_lora, default=[], metavar="FILE[=STRENGTH]", help="may be repeated"
    )
    sub.add_argument("--video", metavar="FILE", help="source video to edit or extend")
    sub.add_argument("--mask", metavar="FILE", help="video or picture; of --video: white is made anew, black kept")
    sub.add_argument("--checkpoint", metavar="FOLDER", help="official or diffusers layout (default: the bundled one)")
    sub.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"], help="default: float32")
    sub.add_argument("--size", type=_size, metavar="WxH", help="multiples of 16 (default: the checkpoint's)")
    sub.add_argument("--frames", type=_frames, metavar="N", help="4n + 1 (default: the checkpoint's); 16 a second")
    sub.add_argument("--steps", type=_count, metavar="N", help="denoising steps (default: the checkpoint's, mostly 50)")
    sub.add_argument("--shift", type=float, help="of the noise schedule (default: the checkpoint's, mostly 16)")
    sub.add_argument("--solver", default="unipc", choices=["unipc", "dpmpp", "euler"], help="default: unipc")
    sub.add_argument("--guidance", default="tpige_code", metavar="NAME|FILE.json", help="default: tpige_code")
    sub.add_argument(
        "--weight", action="append", type=_named_weight, default=[], metavar="NAME=X", help="of the preset, e.g. w=5"
    )
    sub.add_argument("--seed", type=_seed, default=2025, help="of the noise (default: 2025)")
    sub.add_argument(
        "--out", required=True, metavar="FILE.mp4", help="or .webm, .mkv (lossless), .png (a folder of pictures)"
    )
    sub.add_argument("--contact-sheet", metavar="FILE.png", help="also eight frames on one picture")

    sub = command(
        "rerun", _rerun, "The video of a manifest again: the same bytes, or what has changed since.",
        "  ipvg rerun alice.mp4.json\n"
        "  ipvg rerun alice.mp4.json --out again.mp4 --anyway     # although something changed",
        quiet,
    )  # fmt: skip
    sub.add_argument("manifest", metavar="FILE.json", help="what `ipvg generate` wrote beside its video")
    sub.add_argument("--out", metavar="FILE", help="default: the old name with -rerun, beside the manifest")
    sub.add_argument("--anyway", action="store_true", help="go on although versions, checkpoint or inputs changed")

    sub = command(
        "info", _info, "What a checkpoint folder holds, and the memory that it needs.",
        "  ipvg info ~/Wan2.1-VACE-1.3B\n"
        "  ipvg info ~/Wan2.1-VACE-1.3B --sha256 --check      # hash the files, test the tokenizer\n"
        "  ipvg info ~/Wan2.1-VACE-14B-diffusers --json",
    )  # fmt: skip
    sub.add_argument("path", nargs="?", metavar="PATH", help="checkpoint folder (default: the bundled one)")
    sub.add_argument("--sha256", action="store_true", help="hash every file (reads them whole)")
    sub.add_argument("--check", action="store_true", help="compare the tokenizer with the published ids")

    sub = command(
        "demo", _demo, "A bundled photo and a sentence become demo.mp4 and a contact sheet.",
        "  ipvg demo\n"
        "  ipvg demo --out /tmp/demo --smallest",
        work, quiet,
    )  # fmt: skip
    sub.add_argument("--out", default="out", metavar="FOLDER", help="made if it is not there (default: out)")
    sub.add_argument("--smallest", action="store_true", help="the least size and steps that use every stage")

    sub = command(
        "parity", _parity, "Compares every stage of this build with golden tensors of the original implementation.",
        "  ipvg parity tests/golden\n"
        "  ipvg parity tests/golden --stage dit --verbose",
    )  # fmt: skip
    golden = os.environ.get("IPVG_GOLDEN") or "tests/golden"
    device = os.environ.get("IPVG_DEVICE") or "cpu"
    sub.add_argument("golden", nargs="?", default=golden, metavar="FOLDER", help="default: $IPVG_GOLDEN, tests/golden")
    sub.add_argument("--stage", action="append", metavar="NAME", help="only this stage; may be repeated")
    sub.add_argument("--device", default=device, help="default: $IPVG_DEVICE or cpu")
    sub.add_argument("--verbose", action="store_true", help="every comparison, not only the table")
    return parser

"""ipvg generate"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from .parts import OK, UsageError, check_outputs, command, count, frames, lora, named_weight, report, seed, size


def add(commands) -> None:
    sub = command(
        commands, "generate", run, "A sentence, and a photo if you like, become an mp4.",
        "  ipvg generate --image alice.png --prompt 'A woman walks on the beach.' --out alice.mp4\n"
        "  ipvg generate --prompt 'Rain on a window.' --frames 17 --size 320x192 --steps 20 --out rain.mp4\n"
        "  ipvg generate --checkpoint ~/Wan2.1-VACE-1.3B --image a.png --prompt '...' --guidance tpige_aligned \\\n"
        "                --weight w=5 --weight s=0.5 --out a.mp4\n"
        "  ipvg generate --task first-frame --first photo.png --prompt '...' --lora style.safetensors=0.8 --out a.mp4\n"
        "  ipvg generate --task outpaint --video in.mp4 --pad left=0.5 --pad right=0.5 --prompt '...' --out wide.mp4\n"
        "  ipvg generate --video in.mp4 --mask mask.mp4 --prompt '...' --guidance my_guidance.json --out out.mp4",
        work=True, quiet=True,
    )  # fmt: skip
    sub.add_argument("--prompt", help="what the video shows")
    sub.add_argument("--enhanced", metavar="FILE.json", help="prompt and picture that `ipvg enhance` wrote")
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
        "--pad", action="append", type=named_weight, default=[], metavar="SIDE=X",
        help="for outpaint: left, right, top or bottom gets X times the video's width or height",
    )  # fmt: skip
    sub.add_argument("--keep", type=count, metavar="N", help="for extend-*: frames of the video that are shown again")
    sub.add_argument(
        "--lora", action="append", type=lora, default=[], metavar="FILE[=STRENGTH]", help="may be repeated"
    )
    sub.add_argument("--video", metavar="FILE", help="source video to edit or extend")
    sub.add_argument("--mask", metavar="FILE", help="video or picture; of --video: white is made anew, black kept")
    sub.add_argument("--checkpoint", metavar="FOLDER", help="official or diffusers layout (default: the bundled one)")
    sub.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"], help="default: float32")
    sub.add_argument("--size", type=size, metavar="WxH", help="multiples of 16 (default: the checkpoint's)")
    sub.add_argument("--frames", type=frames, metavar="N", help="4n + 1 (default: the checkpoint's); 16 a second")
    sub.add_argument("--steps", type=count, metavar="N", help="denoising steps (default: the checkpoint's, mostly 50)")
    sub.add_argument("--shift", type=float, help="of the noise schedule (default: the checkpoint's, mostly 16)")
    sub.add_argument("--solver", default="unipc", choices=["unipc", "dpmpp", "euler"], help="default: unipc")
    sub.add_argument("--guidance", default="tpige_code", metavar="NAME|FILE.json", help="default: tpige_code")
    sub.add_argument(
        "--weight", action="append", type=named_weight, default=[], metavar="NAME=X", help="of the preset, e.g. w=5"
    )
    sub.add_argument("--seed", type=seed, default=2025, help="of the noise (default: 2025)")
    sub.add_argument(
        "--out", required=True, metavar="FILE.mp4", help="or .webm, .mkv (lossless), .png (a folder of pictures)"
    )
    sub.add_argument("--contact-sheet", metavar="FILE.png", help="also eight frames on one picture")


def run(args) -> int:
    from .. import jobs
    from ..progress import Progress

    check_outputs(args)
    settings = _settings(args)
    began = time.monotonic()
    with Progress(quiet=args.quiet) as progress:
        video, pipe = jobs.make(settings, progress, opened=None if args.quiet else _note)
    files = jobs.save(video, args.out, pipe)
    if args.contact_sheet:
        files["contact_sheet"] = str(video.save_contact_sheet(args.contact_sheet))
    report(args, files, {**settings, "seconds": round(time.monotonic() - began, 3)})
    return OK


def _settings(args) -> dict:
    from .. import jobs

    if bool(args.prompt) == bool(args.enhanced):
        raise UsageError("give either --prompt or --enhanced")
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


def _guidance(args):
    from .. import guidance

    name = args.guidance
    if name.endswith(".json"):
        if args.weight:
            raise UsageError("--weight goes with a preset; a JSON file holds its own weights")
        return guidance.Guidance.from_json(Path(name).read_text(encoding="utf-8"))
    if name not in guidance.PRESETS:
        raise UsageError(f"--guidance: expected {', '.join(guidance.PRESETS)} or a .json file, got {name!r}")
    return guidance.PRESETS[name](**dict(args.weight))

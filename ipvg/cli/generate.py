"""ipvg generate"""

from __future__ import annotations

import sys
import time

from .parts import OK, UsageError, check_outputs, command, count, frames, lora, named_weight, report, seed, size

TASKS = (
    "text", "image", "references", "control", "inpaint", "outpaint", "first-frame", "last-frame", "first-last",
    "extend-after", "extend-before",
)  # fmt: skip


def add(commands) -> None:
    sub = command(
        commands, "generate", run, "A sentence, and a photo if you like, become an mp4.",
        "  ipvg generate --reference alice.png --prompt 'A woman walks on the beach.' --out alice.mp4\n"
        "  ipvg generate --prompt 'Rain on a window.' --frames 17 --size 320x192 --steps 20 --out rain.mp4\n"
        "  ipvg generate --checkpoint ~/Wan2.1-VACE-1.3B --reference a.png --prompt '...' --guidance tpige_aligned \\\n"
        "                --weight w=5 --weight s=0.5 --out a.mp4\n"
        "  ipvg generate --guidance 'cfg(w=6) + stg_r(s=1, blocks=[9])' --prompt '...' --out a.mp4\n"
        "  ipvg generate --task first-frame --first photo.png --prompt '...' --lora style.safetensors=0.8 --out a.mp4\n"
        "  ipvg generate --distilled --lora lightning.safetensors --reference a.png --prompt '...' --out a.mp4\n"
        "  ipvg generate --task outpaint --source in.mp4 --pad left=0.5 --pad right=0.5 --prompt '...' --out wide.mp4\n"
        "  ipvg generate --source in.mp4 --mask mask.mp4 --prompt '...' --guidance my_guidance.json --out out.mp4\n"
        "  ipvg generate --reference a.png --prompt '...' --frames 241 --chunk 81 --resume parts --out long.mp4\n"
        "  ipvg generate --config run.yaml --seed 7 --set guidance.w=6 --set out=b.mp4\n"
        "  ipvg generate --config alice.mp4.json --set seed=7 --out other.mp4      # a manifest is a config too\n\n"
        "settings come from the config file, then the options, then --set: what comes later wins.",
        work=True, quiet=True,
    )  # fmt: skip
    sub.add_argument(
        "--config", metavar="FILE", help=".yaml or .json of settings, or a manifest; paths in it are from its folder"
    )
    sub.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", dest="assign",
        help="any setting by its dotted name, e.g. steps=8, guidance.w=6, pad.left=0.5; may be repeated",
    )  # fmt: skip
    sub.add_argument("--prompt", help="what the video shows")
    sub.add_argument("--enhanced", metavar="FILE.json", help="prompt and picture that `ipvg enhance` wrote")
    sub.add_argument("--negative", help="what it does not (default: Wan2.1's own negative prompt)")
    sub.add_argument(
        "--task", metavar="NAME",
        help=f"{', '.join(TASKS)} (default: references, source and mask as they are)",
    ).complete = ("words", TASKS)  # fmt: skip
    sub.add_argument(
        "--reference", "--image", action="append", dest="references", metavar="FILE",
        help="picture of who or what the video shows; may be repeated",
    )  # fmt: skip
    sub.add_argument(
        "--alpha", choices=["drop", "white"],
        help="a picture's transparent pixels: the colour stored there, as the official code has it, or white",
    )  # fmt: skip
    sub.add_argument("--first", metavar="FILE", help="picture that the video begins with")
    sub.add_argument("--last", metavar="FILE", help="picture that it ends with")
    sub.add_argument("--source", "--video", dest="video", metavar="FILE", help="source video to edit or extend")
    sub.add_argument("--mask", metavar="FILE", help="video or picture; of --source: white is made anew, black kept")
    sub.add_argument(
        "--pad", action="append", type=named_weight, metavar="SIDE=X",
        help="for outpaint: left, right, top or bottom gets X times the source's width or height",
    )  # fmt: skip
    sub.add_argument("--keep", type=count, metavar="N", help="for extend-*: frames of the source that are shown again")
    sub.add_argument("--lora", action="append", type=lora, metavar="FILE[=STRENGTH]", help="may be repeated")
    sub.add_argument(
        "--distilled", action="store_true",
        help="for step-distilled LoRAs and models: 4 steps, shift 5, no guidance; what else is given wins",
    )  # fmt: skip
    sub.add_argument("--checkpoint", metavar="FOLDER", help="official or diffusers layout (default: the bundled one)")
    sub.add_argument("--dtype", choices=["float32", "bfloat16", "fp8"], help="default: float32; fp8: Hopper GPUs")
    sub.add_argument("--memory-limit", metavar="SIZE", help="of a GPU's memory, as 24GB: streams what does not fit")
    sub.add_argument("--size", type=size, metavar="WxH", help="multiples of 16 (default: the checkpoint's)")
    sub.add_argument(
        "--frames", type=frames, metavar="N",
        help="4n + 1 (default: the checkpoint's, no more than --source has); 16 a second",
    )  # fmt: skip
    sub.add_argument("--chunk", type=frames, metavar="N", help="long video: at most so many frames at once, 4n + 1")
    sub.add_argument(
        "--overlap", type=count, metavar="N", help="frames that a chunk has from the one before (default: 17)"
    )
    sub.add_argument(
        "--match", choices=["none", "mean", "gain"], help="colours of a chunk, to its overlap (default: gain)"
    )
    sub.add_argument("--resume", metavar="FOLDER", help="keeps finished chunks there; the same command goes on")
    sub.add_argument("--steps", type=count, metavar="N", help="denoising steps (default: the checkpoint's, mostly 50)")
    sub.add_argument("--shift", type=float, help="of the noise schedule (default: the checkpoint's, mostly 16)")
    sub.add_argument("--solver", choices=["unipc", "dpmpp", "euler"], help="default: unipc")
    sub.add_argument(
        "--guidance", metavar="PRESET|FILE.json",
        help="a preset, a sum of them with arguments, or a file (default: tpige_code with the checkpoint's weights); "
        "see `ipvg guidance list`",
    ).complete = ("presets",)  # fmt: skip
    sub.add_argument(
        "--weight", action="append", type=named_weight, default=[], metavar="NAME=X", help="of the guidance, e.g. w=5"
    )
    sub.add_argument("--seed", type=seed, help="of the noise (default: 2025)")
    sub.add_argument("--out", metavar="FILE.mp4", help="or .webm, .gif, .mkv (lossless), .png (a folder of pictures)")
    sub.add_argument("--contact-sheet", metavar="FILE.png", help="also eight frames on one picture")


def run(args) -> int:
    from .. import jobs
    from ..progress import Progress
    from ..settings import FILES

    settings, where = _settings(args)
    for name, value in where.items():
        setattr(args, name, value)
    read = [settings[name] for name in (*FILES, "enhanced") if name != "references" and settings[name]]
    check_outputs(args.out, args.contact_sheet, [*read, *settings["references"]])
    began = time.monotonic()
    with Progress(quiet=args.quiet) as progress:
        video, pipe = jobs.make(settings, progress, opened=None if args.quiet else _note, resume=args.resume)
    files = jobs.save(video, args.out, pipe)
    if args.contact_sheet:
        files["contact_sheet"] = str(video.save_contact_sheet(args.contact_sheet))
    report(args, files, {**settings, "seconds": round(time.monotonic() - began, 3)})
    if video.manifest.get("seams") and not args.quiet:
        from ..seams import Seams

        print(Seams.from_dict(video.manifest["seams"]), file=sys.stderr)
    return OK


def _settings(args) -> tuple[dict, dict]:
    """(settings of the job, where its results go): from the file, then the options, then --set."""
    from .. import jobs
    from .. import settings as table
    from ..lora import distilled

    if args.prompt and args.enhanced:
        raise UsageError("give either --prompt or --enhanced")
    given = table.load(args.config) if args.config else {}
    for one, other in (("prompt", "enhanced"), ("enhanced", "prompt")):
        if getattr(args, one):
            given.pop(other, None)  # of the file
    given |= distilled() if args.distilled else {}
    options = {**vars(args), "pad": dict(args.pad) if args.pad else None}
    given |= {name: options[name] for name in (*table.SETTINGS, *table.OUTPUTS) if options.get(name) is not None}
    try:
        for name, value in args.weight:
            table.assign(given, f"guidance.{table.weights_at(given)}{name}={value}")
        for text in args.assign:
            table.assign(given, text)
        where = {name: given.pop(name, None) for name in table.OUTPUTS}
        for name, value in where.items():
            if value is not None and not isinstance(value, str):
                raise ValueError(f"{name}: expected a name, got {value!r}")
        if not where["out"]:
            raise ValueError("--out is required: where the video goes")
        if not (given.get("prompt") or given.get("enhanced")):
            raise ValueError("--prompt or --enhanced is required: what the video shows")
        return jobs.resolve(given), where
    except (ValueError, TypeError) as error:
        raise UsageError(str(error)) from None


def _note(pipe) -> None:
    if pipe.defaults.note:
        print(f"ipvg: {pipe.checkpoint.path.name}: {pipe.defaults.note}", file=sys.stderr)

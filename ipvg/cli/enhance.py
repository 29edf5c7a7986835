"""ipvg enhance"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from .parts import FAILED, OK, UsageError, command, count, report, seed, size


def add(commands) -> None:
    sub = command(
        commands, "enhance", run, "A caption and a photo are made to fit each other; JSON that you may edit.",
        "  ipvg enhance --image alice.png --prompt 'A woman walks on the beach.' --by gpt-4o --out alice.json\n"
        "  ipvg enhance --image alice.png --prompt '...' --by gpt-4o --reference vace --out alice.json\n"
        "  ipvg generate --enhanced alice.json --out alice.mp4\n"
        "  ipvg enhance --list pairs.csv --by gpt-4o --cache answers --out enhanced     # resumes; ID.json each\n"
        "  ipvg enhance --released prompt_withfacedescription_all_new.json --dataset vip200k_test_track_Facial \\\n"
        "               --out enhanced",
        work=True, quiet=True,
    )  # fmt: skip
    sub.add_argument("--image", metavar="FILE", help="reference picture")
    sub.add_argument("--prompt", help="what the video shows")
    sub.add_argument(
        "--list", metavar="FILE",
        help="many: .csv, .jsonl or .json with image, prompt (and id), or a folder in the challenge's layout",
    )  # fmt: skip
    sub.add_argument("--released", metavar="FILE.json", help="import prompts that TPIGE's authors released")
    sub.add_argument("--dataset", metavar="FOLDER", help="for --released: captions and pictures")
    sub.add_argument("--references", metavar="FOLDER", help="for --released: enhanced pictures")
    sub.add_argument(
        "--by", default="local", metavar="MODEL",
        help="a chat model's name; local: the bundled world's judges and a grammar, without a service; none "
        "(default: local)",
    )  # fmt: skip
    sub.add_argument("--base-url", metavar="URL", help="of the services (default: $OPENAI_BASE_URL, else OpenAI)")
    sub.add_argument("--cache", metavar="PATH", help="keeps the services' answers: texts and pictures")
    sub.add_argument("--offline", action="store_true", help="answers from --cache alone")
    sub.add_argument(
        "--reference", default="none", metavar="MAKER",
        help="also enhance the picture: vace (one frame of the video model) or endpoint:MODEL (default: none)",
    )  # fmt: skip
    sub.add_argument("--candidates", type=count, default=4, metavar="N", help="pictures to choose from (default: 4)")
    sub.add_argument("--embedder", default="auto", metavar="FILE.onnx", help="of faces; auto or none (default: auto)")
    sub.add_argument("--minimum", type=float, metavar="X", help="similarity below which the picture stays as it is")
    sub.add_argument("--checkpoint", metavar="FOLDER", help="for vace (default: the bundled one)")
    sub.add_argument("--size", type=size, metavar="WxH", help="for vace (default: the picture's shape)")
    sub.add_argument("--steps", type=count, metavar="N", help="for vace (default: the checkpoint's)")
    sub.add_argument("--seed", type=seed, default=2025, help="for vace: of the first candidate (default: 2025)")
    sub.add_argument("--concurrency", type=count, metavar="N", help="of --list: calls at once (default: 8, local 1)")
    sub.add_argument("--out", required=True, metavar="FILE.json|FOLDER", help="a folder for --list and --released")


def run(args) -> int:
    from ..progress import Progress

    ways = [name for name in ("image", "list", "released") if getattr(args, name)]
    if len(ways) != 1:
        raise UsageError("give one of --image (with --prompt), --list, --released")
    if args.released:
        return _released(args)
    if args.image and not args.prompt:
        raise UsageError("--image needs --prompt")
    _check_out(args)
    enhancer, pipe, maker, embedder = _parts(args)
    options = {"pipe": pipe, "prompt_enhancer": enhancer, "reference_enhancer": maker, "embedder": embedder}
    with Progress(quiet=args.quiet) as progress:
        if args.list:
            return _many(args, {**options, "minimum": args.minimum}, progress)
        from ..enhancing import enhance

        found = enhance(args.image, args.prompt, minimum=args.minimum, progress=progress, **options)
    path = found.save(args.out)
    for flag in found.flags:
        print(f"ipvg: {flag}", file=sys.stderr)
    texts = {"prompt": found.prompt, **({"appearance": found.appearance} if found.appearance else {})}
    similarity = found.provenance.get("reference", {}).get("similarity")
    shown = {} if similarity is None else {"similarity": similarity}
    report(args, {"enhancement": str(path), "reference": found.reference, **texts, **shown}, {"flags": found.flags})
    return OK


def _parts(args):
    """(prompt enhancer, pipeline, maker of references, embedder)."""
    enhancer = pipe = maker = None
    remote = args.by not in ("local", "none") or args.reference.startswith("endpoint:")
    if (args.cache or args.offline) and not remote:
        raise UsageError("--cache and --offline go with a service: a chat model (--by) or --reference endpoint:MODEL")
    if args.by == "local":
        enhancer = "local"
    elif args.by != "none":
        from ..enhance import PromptEnhancer

        try:
            enhancer = PromptEnhancer(
                args.by, args.base_url, cache=args.cache, offline=args.offline, concurrency=args.concurrency or 8
            )
        except ValueError as error:
            raise UsageError(str(error)) from None
    if args.reference == "vace":
        from ..pipeline import Pipeline
        from ..reference import VaceReference

        pipe = Pipeline.load(args.checkpoint, device=args.device, threads=args.threads)
        maker = VaceReference(pipe, args.candidates, seed=args.seed, size=args.size, steps=args.steps)
    elif args.reference.startswith("endpoint:"):
        from ..images import ImageEditor
        from ..reference import EndpointReference

        model = args.reference.removeprefix("endpoint:")
        try:
            editor = ImageEditor(model, args.base_url, cache=args.cache, offline=args.offline)
        except ValueError as error:
            raise UsageError(str(error)) from None
        maker = EndpointReference(editor, n=min(args.candidates, 10))
    elif args.reference != "none":
        raise UsageError(f"--reference: expected none, vace or endpoint:MODEL, got {args.reference!r}")
    if enhancer is None and maker is None:
        raise UsageError("--by none and --reference none: nothing to do")
    embedder = args.embedder
    if embedder == "none":
        embedder = None
    elif embedder != "auto":
        from ..face import Embedder

        embedder = Embedder(embedder)
    return enhancer, pipe, maker, embedder


def _check_out(args) -> None:
    """What cannot be written is said before the work."""
    out = Path(args.out)
    if args.list:
        return
    if out.suffix != ".json" or out.is_dir():
        raise UsageError(f"--out: expected a name that ends in .json, got {args.out!r}")
    if not out.absolute().parent.is_dir() or not os.access(out.absolute().parent, os.W_OK):
        raise UsageError(f"--out: cannot write into {str(out.parent)!r}")


def _many(args, options: dict, progress) -> int:
    from .. import pairs
    from ..enhancing import enhance_many

    items = enhance_many(pairs.read(args.list), args.out, concurrency=args.concurrency, progress=progress, **options)
    progress.close()
    for item in items:
        if item.error is not None:
            print(f"ipvg: {item.id}: {item.error}", file=sys.stderr)
    counts = {done: sum(item.done == done for item in items) for done in ("made", "kept", "failed")}
    report(args, {name: str(n) for name, n in counts.items() if n} | {"folder": args.out},
           {"items": [{"id": item.id, "done": item.done, "path": str(item.path)} for item in items]})  # fmt: skip
    return FAILED if counts["failed"] else OK


def _released(args) -> int:
    from .. import pairs

    found = pairs.released(args.released, args.dataset, args.references)
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    there = [one.id for one in found if (out / f"{one.id}.json").exists()]
    if there:
        raise UsageError(f"--out: {there[0]}.json is there already; choose an empty folder")
    for one in found:
        one.save(out / f"{one.id}.json")
    changed = sum(bool(one.caption and one.problem) for one in found)
    report(args, {"imported": str(len(found)), "not verbatim": str(changed), "folder": args.out}, {})
    return OK

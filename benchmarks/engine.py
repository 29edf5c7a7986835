"""ipvg's CUDA engine against diffusers and against the card itself: one table, one run, one GPU.

    python benchmarks/engine.py --out out                                  # everything, about 25 minutes
    python benchmarks/engine.py --rows forward13,vae_decode --out out      # some rows, in that order
    python benchmarks/engine.py --floors                                   # what there is to do, without a GPU
    python benchmarks/engine.py --device cpu --tiny --out out              # tries the benchmark itself, without a GPU

Three sides on the same random weights and inputs of full size: ours (device "cuda", bfloat16), diffusers eager, and
diffusers in the fastest exact settings known (compiled blocks, cuDNN's attention; VAE compiled, or float16 with
channels last). The floor is the same work at the ceilings of this card, measured in this run under the same sustained
load: matrix products, attention and convolutions of these shapes and nothing else (gpu/work.py counts, gpu/ceilings.py
measures). "x floor": ours / floor. "faster": the peer's fastest / ours. "apart": relative L2 between both results.

Every time is wall clock from call to result; ours with its arguments and results in the host's memory, the peer's on
the GPU. Ours has prompts and context prepared, since a sampler prepares them once; the peer's forward embeds them.
A row is printed as soon as it is known and written to OUT/engine.json. A row or side that fails says why; the others go
on; the exit status is 1. What came out: NOTES.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
import traceback
from pathlib import Path

sys.path[:0] = [str(path) for path in Path(__file__).resolve().parents[:2]]  # gpu/, and ipvg as it is built in place

SIDES = ("ours", "eager", "compiled", "floor")
ROWS = ("forward13", "step13", "vae_decode", "vae_encode", "umt5", "load13", "accuracy", "forward14", "forward14_720",
        "accuracy14", "forward13_fp8", "accuracy13_fp8", "video", "scaling", "stream13",
        "stream14", "stream14_720", "whole14_720")  # fmt: skip


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default=",".join(ROWS), help=f"of {','.join(ROWS)}")
    parser.add_argument("--sides", default=",".join(SIDES), help=f"of {','.join(SIDES)}")
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder of engine.json")
    parser.add_argument("--warm", type=float, default=2.0, help="seconds that a load is kept on before it is timed")
    parser.add_argument("--timed", type=float, default=1.5, help="seconds that it is timed for, at least two calls")
    parser.add_argument("--steps", type=int, default=4, help="steps of the whole video that are timed; 50 are all")
    parser.add_argument("--mode", help="torch.compile's, as max-autotune-no-cudagraphs")
    parser.add_argument("--compile-vae", action="store_true", help="the peer's too: two to three minutes a direction")
    parser.add_argument("--budget", type=float, default=1e9, help="seconds after which no further row is begun")
    parser.add_argument("--no-profile", dest="profile", action="store_false", help="no time per part")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--ours", help="ipvg's device where it is another, as the emulated one")
    parser.add_argument(
        "--floors", action="store_true", help="print operations and bytes of every row, measure nothing"
    )
    parser.add_argument("--tiny", action="store_true", help="small models: to try the benchmark, not to measure")
    args = parser.parse_args()
    args.rows, args.sides = args.rows.split(","), args.sides.split(",")
    for what, known in (("rows", ROWS), ("sides", SIDES)):
        if unknown := set(getattr(args, what)) - set(known):
            parser.error(f"--{what}: {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    args.ours = args.ours or args.device
    return args


def machine(device: str) -> dict:
    import torch

    import ipvg

    out = {"python": platform.python_version(), "torch": torch.__version__, "ipvg": ipvg.__version__,
           "cores": len(os.sched_getaffinity(0))}  # fmt: skip
    if device == "cuda":
        card = torch.cuda.get_device_properties(0)
        out |= {"gpu": card.name, "gib": card.total_memory / 2**30, "cuda": torch.version.cuda,
                "cudnn": torch.backends.cudnn.version()}  # fmt: skip
    for name in ("diffusers", "transformers"):
        try:
            out[name] = __import__(name).__version__
        except ImportError as error:
            out[name] = str(error)
    return out


def main() -> int:
    args = arguments()
    if args.floors:
        from gpu import floors

        print(floors.table())
        return 0
    try:
        import torch
        from gpu import accuracy_rows, dit_rows, stage_rows
        from gpu.bench import Bench
        from gpu.row import HEAD
    except ImportError as error:
        print(f"engine: {error}. It needs torch, diffusers and transformers beside a built ipvg")
        return 0 if "torch" in str(error) else 1
    if args.device == "cuda" and not torch.cuda.is_available():
        print("engine: no GPU here. --device cpu --tiny tries the benchmark out")
        return 0
    args.out.mkdir(parents=True, exist_ok=True)
    began, rows, bench = time.perf_counter(), [], Bench(args)
    about = machine(args.device) | {"arguments": {k: str(v) for k, v in vars(args).items()}}
    print(", ".join(f"{key} {value}" for key, value in about.items() if key != "arguments"), flush=True)

    def save() -> None:
        record = {"about": about, "rows": [row.record() for row in rows], "ceilings": bench.ceilings.record()}
        temporary = args.out / "engine.json.part"
        temporary.write_text(json.dumps(record, indent=1))
        temporary.replace(args.out / "engine.json")

    failed = False
    try:
        for name in args.rows:
            if time.perf_counter() - began > args.budget:
                print(f"{name}: not begun, the budget of {args.budget:.0f} s is spent", flush=True)
                continue
            module = next(m for m in (dit_rows, stage_rows, accuracy_rows) if hasattr(m, name))
            try:
                for row in getattr(module, name)(bench):
                    rows.append(row)
                    failed = failed or bool(row.errors) or row.more.get("ok") is False
                    print(HEAD, row.line(), *row.part_lines(), sep="\n", flush=True)
                    save()
            except Exception as error:
                failed = True
                print(f"{name}: {type(error).__name__}: {error}", flush=True)
                traceback.print_exc()
            bench.meter.empty()
            print(f"    {time.perf_counter() - began:.0f} s so far", flush=True)
        save()
    finally:
        bench.close()
    print("", HEAD, *(row.line() for row in rows), sep="\n")
    for found in bench.ceilings.record():
        print("   ", ", ".join(f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
                               for key, value in found.items()))  # fmt: skip
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())

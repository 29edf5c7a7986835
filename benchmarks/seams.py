"""How visible the seams of a long video are on the bundled checkpoint, and whether the face lasts.

    python benchmarks/seams.py                          # people 2, 4, 6; 33 frames in chunks of 17
    python benchmarks/seams.py --overlaps 1 5 9 --matches none mean gain --people person2

A line is the mean over people and seams. colour, motion: how many times the usual change inside a chunk (1: not to be
seen); psnr: dB below the usual one; drift: distance of the last chunk's mean colour from the first one's, grey levels.
face: cosine to the reference, by the first and by the last chunk's frames. Needs ONNX Runtime.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from ipvg import Embedder, Pipeline, guidance, long, read_image, seams  # noqa: E402

EXAMPLES = ROOT / "models" / "tiny" / "examples"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--people", nargs="+", default=["person2", "person4", "person6"])
    parser.add_argument("--frames", type=int, default=33)
    parser.add_argument("--chunk", type=int, default=17)
    parser.add_argument("--overlaps", nargs="+", type=int, default=[1, 5, 9])
    parser.add_argument("--matches", nargs="+", default=list(long.MATCHES), choices=long.MATCHES)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--w", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=7)
    args = parser.parse_args()
    pipe, embed = Pipeline.load(ROOT / "models" / "ipvg-tiny"), Embedder.bundled()
    captions = json.loads((EXAMPLES / "examples.json").read_text(encoding="utf-8"))["people"]
    print(f"{'overlap':>7} {'match':>5}  colour    psnr  motion   drift    face: first    last")
    for overlap in args.overlaps:
        for match in args.matches:
            rows = []
            for name in args.people:
                photo = read_image(EXAMPLES / f"{name}.png")
                video = pipe.generate(
                    captions[name]["caption"], [photo], frames=args.frames, chunk=args.chunk, overlap=overlap,
                    match=match, steps=args.steps, seed=args.seed, guidance=guidance.cfg(args.w),
                )  # fmt: skip
                plan = long.spans(args.frames, args.chunk, overlap)
                found = seams.measure(video, [span.seam for span in plan[1:]]).seams
                faces = [embed.similarity(photo, frame) for frame in video.frames]
                ends = plan[1].seam, plan[-1].seam
                rows.append([
                    np.mean([s.colour_ratio for s in found]), np.mean([s.psnr_drop for s in found]),
                    np.mean([s.motion_ratio for s in found]), np.linalg.norm(found[-1].drift),
                    np.mean(faces[: ends[0]]), np.mean(faces[ends[1] :]),
                ])  # fmt: skip
            colour, psnr, motion, drift, first, last = np.mean(rows, 0)
            seam = f"{colour:7.2f} {psnr:7.2f} {motion:7.2f} {drift:7.1f}"
            print(f"{overlap:7} {match:>5} {seam} {first:14.2f} {last:7.2f}", flush=True)


if __name__ == "__main__":
    main()

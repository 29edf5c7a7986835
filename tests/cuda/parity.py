"""Golden cases on the emulated device: python -m tests.cuda.parity stage [case ...] [--dtype bfloat16] [--device cuda]

Prints a line a comparison that fails, then the worst. float32: the bounds of `ipvg parity`. bfloat16: nothing is held
to them, but it must be finite; errors against the float32 reference are printed for the caller to judge. --device cuda:
a GPU instead of the emulated device, which is for the 1 to 3 cases that are named. No case: all of them.
"""

from __future__ import annotations

import argparse
import importlib
import math
import sys

from . import emulated


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("stage")
    parser.add_argument("cases", nargs="*")
    parser.add_argument("--golden", default="tests/golden")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", choices=("emulated", "cuda"), default="emulated")
    args = parser.parse_args()
    if args.device == "emulated":
        emulated.load()
    from ipvg import _core
    from ipvg.parity.golden import Golden

    device = _core.Device
    if args.dtype != "float32":
        _core.Device = lambda name: device(name, dtype=args.dtype)
    golden = Golden(args.golden, args.stage)
    golden.cases = {name: golden.cases[name] for name in args.cases or golden.cases}
    results = list(importlib.import_module(f"ipvg.parity.{args.stage}").check(golden, "cuda"))
    for result in results:
        if args.dtype != "float32" or not result.ok:
            print(f"{result.case} {result.tensor} {result.error:.3e} (bound {result.bound:.0e}) {result.note}")
    worst = max(results, key=lambda r: r.error / r.bound if r.bound else r.error)
    print(f"{len(results)} comparisons, worst {worst.case} {worst.tensor}: {worst.error:.2e} of {worst.bound:.0e}")
    if args.dtype != "float32":
        return not all(math.isfinite(r.error) for r in results)
    return not all(r.ok for r in results)


if __name__ == "__main__":
    sys.exit(main())

"""Golden cases on the emulated device: python -m tests.cuda.parity stage [case ...] [--dtype bfloat16] [--device cuda]

Prints a line a comparison that fails, then the worst. float32: the bounds of `ipvg parity`. bfloat16: those of
tests/bfloat16.py, 1.5 times PyTorch's own error; every output is printed. fp8: errors are printed, all must be finite.
--device cuda: a GPU instead of the emulated device, which is for the 1 to 3 cases that are named. No case: all of them.
IPVG_GOLDEN: another folder.
"""

from __future__ import annotations

import argparse
import importlib
import math
import os
import sys
from dataclasses import replace

from tests.bfloat16 import judge

from . import emulated


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("stage")
    parser.add_argument("cases", nargs="*")
    parser.add_argument("--golden", default=os.environ.get("IPVG_GOLDEN") or "tests/golden")
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
    if args.dtype == "bfloat16":
        results = judge(golden, results)
    elif args.dtype != "float32":
        results = [replace(r, bound=math.inf, ok=math.isfinite(r.error)) for r in results]
    for result in results:
        judged = args.dtype == "bfloat16" and math.isfinite(result.bound)
        if not result.ok or judged or args.dtype == "fp8":
            verdict = "ok" if result.ok else "FAIL"
            print(f"{verdict} {result.case} {result.tensor} {result.error:.3e} <= {result.bound:.1e} {result.note}")
    held = [result for result in results if math.isfinite(result.bound)] or results
    worst = max(held, key=lambda r: (not r.ok, r.error / r.bound if 0 < r.bound < math.inf else r.error))
    bad = sum(not result.ok for result in results)
    text = f"worst {worst.case} {worst.tensor}: {worst.error:.2e} of {worst.bound:.1e}"
    print(f"{len(results)} comparisons, {bad} fail, {text}")
    return bad > 0


if __name__ == "__main__":
    sys.exit(main())

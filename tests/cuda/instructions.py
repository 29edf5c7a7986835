"""Instructions, registers and spilled bytes of our kernels as compiled for one GPU, without one.

    python tests/cuda/instructions.py norm video        # kernels/norm.cu and video.cu; none: all
    python tests/cuda/instructions.py norm --only 'gate.*1536' --arch 90a

Needs nvcc, and nvdisasm: on PATH, or what `pip install nvidia-cuda-nvdisasm` brings. Instructions are counted as they
stand: of a loop once, of both sides of a branch. A kernel that moves memory hides them while all of its warps together
issue fewer than the SMs can in the time that the memory takes: 4 a clock and SM. At its power limit an H200's clock is
1.5 GHz and a little more (`clock_mhz` of benchmarks/engine.py), not the 2 GHz of a burst.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

KERNELS = Path(__file__).resolve().parent.parent.parent / "kernels"
INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+ )?([A-Z][A-Z0-9]*)")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="files of kernels/, without .cu")
    parser.add_argument("--only", default="", help="a regular expression for the kernel and its template's numbers")
    parser.add_argument("--arch", default="90a")
    args = parser.parse_args()
    nvcc = shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")
    disassembler = shutil.which("nvdisasm") or next(map(str, Path(sys.prefix).rglob("nvidia/*/bin/nvdisasm")), None)
    if not nvcc or not disassembler:
        print(f"{'nvcc' if not nvcc else 'nvdisasm'} is not here; see --help")
        return 1
    print(f"{'kernel':44} {'instructions':>12} {'registers':>9} {'spilled':>7}  most of them")
    for name in args.names or sorted(path.stem for path in KERNELS.glob("*.cu")):
        with tempfile.TemporaryDirectory() as folder:
            binary = f"{folder}/kernels.cubin"
            command = [nvcc, "-std=c++17", "-O3", f"-arch=sm_{args.arch}", "-cubin", "-Xptxas", "-v", "-o", binary]
            told = subprocess.run([*command, KERNELS / f"{name}.cu"], capture_output=True, text=True)
            if told.returncode:
                print(told.stderr)
                return 1
            text = subprocess.run([disassembler, binary], capture_output=True, text=True, check=True).stdout
        resources = registers(told.stderr)
        for kernel, kinds in instructions(text).items():
            if re.search(args.only, short(kernel)):
                most = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(5))
                used, spilled = resources[kernel]
                print(f"{short(kernel):44} {kinds.total():12} {used:9} {spilled:7}  {most}")
    return 0


def instructions(disassembly: str) -> dict[str, Counter]:
    found: dict[str, Counter] = {}
    for line in disassembly.splitlines():
        if start := re.match(r"\.text\.(\w+):", line):
            kinds = found.setdefault(start[1], Counter())
        elif (one := INSTRUCTION.match(line)) and found and one[1] != "NOP":
            kinds[one[1]] += 1
    return found


def registers(told: str) -> dict[str, tuple[int, int]]:
    """Of what ptxas says: kernel -> (registers a thread, bytes of stores that spill)."""
    pattern = r"Compiling entry function '(\w+)'.*?(\d+) bytes spill stores.*?Used (\d+) registers"
    return {name: (int(used), int(spilled)) for name, spilled, used in re.findall(pattern, told, re.DOTALL)}


def short(mangled: str) -> str:
    """A mangled name's own name and its template's numbers."""
    length = re.match(r"_Z(\d+)", mangled)
    begin = length.end() if length else 0
    end = begin + int(length[1]) if length else len(mangled)
    numbers = re.findall(r"L[ib](\d+)E", mangled[end:].split("EEv")[0] + "E")
    return mangled[begin:end] + (f"<{', '.join(numbers)}>" if numbers else "")


if __name__ == "__main__":
    sys.exit(main())

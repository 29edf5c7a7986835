"""The CUDA engine on an emulated device: the same host code and the same kernels, compiled for the CPU, in place of
ipvg._cuda. Products, fused attention and convolutions are plain loops (blas.c, dnn.c): cuBLASLt and cuDNN need a GPU.

    python -m tests.cuda.emulated ipvg.parity --device cuda      # runs a module with it
"""

from __future__ import annotations

import importlib.util
import os
import runpy
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
OUT = ROOT / "build" / "emulated"
COMMON = [
    "-O3",
    "-g",
    "-fPIC",
    "-fvisibility=hidden",
    "-fopenmp",
    "-ffp-contract=off",
    "-Wall",
    "-Wextra",
    "-Wno-unknown-pragmas",
    "-Wno-maybe-uninitialized",  # of arrays of registers: filled and read under one condition
]
COMMON += ["-Itests/cuda/fake", "-Itests/cuda", "-Ikernels", f"-I{sysconfig.get_path('include')}"]
C = ["gcc", "-std=c11", "-D_GNU_SOURCE", *COMMON]
CPP = ["g++", "-std=c++17", *COMMON, "-x", "c++"]
HOST = ["backend", "memory", "copy", "planes", "linear", "attention", "rows", "conv", "share", "graph"]


def build() -> Path:
    """The extension, compiled if a source is newer."""
    sources = {f"csrc/ops/cuda/{name}.c": C for name in HOST}
    sources |= {str(path.relative_to(ROOT)): C for path in sorted((ROOT / "csrc/base").glob("*.c"))}
    sources |= {"csrc/ops/ops.c": C, "csrc/python/cuda.c": C, "tests/cuda/blas.c": C, "tests/cuda/dnn.c": C}
    sources["tests/cuda/consumer.c"] = C
    sources |= {str(path.relative_to(ROOT)): CPP for path in sorted((ROOT / "kernels").glob("*.cu"))}
    sources |= {f"tests/cuda/{name}.cc": CPP for name in ("block", "memory", "stream")}
    headers = [
        p for f in ("csrc", "kernels", "tests/cuda") for p in (ROOT / f).rglob("*") if p.suffix in (".h", ".cuh")
    ]
    newest = max(path.stat().st_mtime for path in headers)
    OUT.mkdir(parents=True, exist_ok=True)
    objects = {source: OUT / (source.replace("/", "-") + ".o") for source in sources}

    def compile_one(source: str) -> None:
        target = objects[source]
        if not target.exists() or target.stat().st_mtime < max(newest, (ROOT / source).stat().st_mtime):
            subprocess.run([*sources[source], "-c", source, "-o", str(target)], check=True, cwd=ROOT)

    with ThreadPoolExecutor(int(os.environ.get("IPVG_JOBS") or len(os.sched_getaffinity(0)))) as pool:
        list(pool.map(compile_one, sources))
    library = OUT / "_cuda.so"
    if not library.exists() or library.stat().st_mtime < max(path.stat().st_mtime for path in objects.values()):
        subprocess.run(
            ["g++", "-shared", "-fopenmp", *map(str, objects.values()), "-lm", "-o", str(library)], check=True
        )
    return library


def load() -> None:
    """Puts it where ipvg looks for ipvg._cuda."""
    if "ipvg._cuda" in sys.modules:
        return
    spec = importlib.util.spec_from_file_location("ipvg._cuda", build())
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.modules["ipvg._cuda"] = module


if __name__ == "__main__":
    load()
    sys.argv = sys.argv[1:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)

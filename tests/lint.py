"""make lint: formatting, ruff, one-way includes, headers that compile alone, no warnings, no long files.

Prints each complaint as file:line and ends with 1 if there was any.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy

ROOT = Path(__file__).resolve().parent.parent
MAX_LINES = 500  # usual files stay below 400; one noun each
MAX_TEST_LINES = 700

# Who may include whom. kernels/ knows CUDA alone, and only csrc/ops/cuda includes it.
BELOW = {
    "base": {"base"},
    "ops": {"base", "ops"},
    "model": {"base", "ops", "model"},
    "sample": {"base", "ops", "model", "sample"},
    "io": {"base", "io"},
    "remote": {"base", "remote"},
    "python": {"base", "ops", "model", "sample", "io", "remote", "python"},
}
# Libraries stay behind one layer each.
LIBRARIES = {
    "python": re.compile(r"Python\.h|numpy/"),
    "ops/cpu": re.compile(r"(oneapi/)?dnnl|oneapi/"),
    "io": re.compile(r"libav|libsw"),
    "remote": re.compile(r"curl/|(cjson/)?cJSON|cjson/"),
}
# The core reports through its context; a library neither ends the process nor prints.
FORBIDDEN = re.compile(
    r"\b(exit|abort|_exit|printf|puts|perror|strcpy|strcat|sprintf|gets|rand|system)\s*\(|\bstderr\b"
)
COMMENT_OR_STRING = re.compile(r'/\*.*?\*/|//[^\n]*|"(?:\\.|[^"\\\n])*"', re.S)

C_FILES = sorted([*ROOT.glob("csrc/**/*.[ch]"), *ROOT.glob("tests/c/*.[ch]"), *ROOT.glob("tests/fuzz/*.[ch]")])
CUDA_FILES = sorted([*ROOT.glob("kernels/*"), *ROOT.glob("tests/cuda/**/*.[ch]*")])  # `make kernels` compiles them
CORE = [path for path in C_FILES if path.is_relative_to(ROOT / "csrc")]


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def layer(path: Path) -> str | None:
    parts = path.relative_to(ROOT / "csrc").parts
    return parts[0] if len(parts) > 1 else None  # csrc/ipvg.h, the public header, may include every layer


def check_includes():
    for path in CORE:
        own = layer(path)
        for number, line in enumerate(path.read_text().splitlines(), 1):
            match = re.match(r'\s*#\s*include\s+(["<])([^">]+)[">]', line)
            if not match or own is None:
                continue
            kind, target = match.groups()
            if kind == "<":
                folder = name(path.parent).removeprefix("csrc/")
                for home, library in LIBRARIES.items():
                    if library.match(target) and not folder.startswith(home):
                        yield f"{name(path)}:{number}: <{target}> is for csrc/{home} alone"
                continue
            found = (path.parent / target).resolve()
            if not found.is_relative_to(ROOT / "csrc"):
                if "kernels" in found.parts and "cuda" in path.parts:
                    continue
                yield f"{name(path)}:{number}: {target} lies outside csrc"
            elif not found.exists():
                yield f"{name(path)}:{number}: {target}: no such file beside it (write the path relative to the file)"
            elif layer(found) not in BELOW.get(own, set()):
                yield f"{name(path)}:{number}: {own} must not include {layer(found) or found.name}"


def check_text():
    python = [*ROOT.glob("ipvg/**/*.py"), *ROOT.glob("tests/**/*.py"), *ROOT.glob("benchmarks/*.py")]
    for path in [*C_FILES, *CUDA_FILES, *python]:
        text = path.read_text()
        lines, most = text.count("\n"), MAX_TEST_LINES if name(path).startswith("tests/") else MAX_LINES
        if lines > most:
            yield f"{name(path)}: {lines} lines; split it by noun (at most {most})"
    for path in CORE:
        # Blank out comments and strings, keeping the line numbers.
        code = COMMENT_OR_STRING.sub(lambda m: re.sub(r"[^\n]", " ", m.group()), path.read_text())
        for number, line in enumerate(code.splitlines(), 1):
            match = FORBIDDEN.search(line)
            if match:
                yield f"{name(path)}:{number}: {match.group().rstrip('( ')} has no place in the core"


def check_compilers():
    """Each header alone, each source without a warning, by every compiler that is here."""
    include = [sysconfig.get_path("include"), numpy.get_include()]
    flags = ["-std=c11", "-fsyntax-only", "-fopenmp", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Werror", "-Icsrc"]
    flags += [f"-isystem{path}" for path in include]
    compilers = [cc for cc in ("gcc", "clang") if shutil.which(cc)]
    if not compilers:
        yield "neither gcc nor clang is here"

    def one(job):
        compiler, path = job
        if path.suffix == ".h":
            # Through a file that includes it: a header as main file warns about its own guards and pragmas.
            text, command = f'#include "{path}"\n', [compiler, *flags, "-x", "c", "-"]
        else:
            text, command = None, [compiler, *flags, str(path)]
        done = subprocess.run(command, input=text, capture_output=True, text=True, cwd=ROOT)
        if done.returncode:
            return f"{name(path)} ({compiler}):\n{done.stderr.strip()[:1500]}"
        return None

    skip = _without_libraries(compilers[:1])
    # A header without a guard is a template, included several times with different macros: not meant to stand alone.
    alone = [path for path in C_FILES if path.suffix == ".c" or "#ifndef IPVG_" in path.read_text()]
    jobs = [(cc, path) for cc in compilers for path in alone if not name(path).startswith(skip)]
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        yield from filter(None, pool.map(one, jobs))
    print(f"lint: {len(jobs)} compilations by {' and '.join(compilers)}")


def _without_libraries(compiler: list[str]) -> tuple[str, ...]:
    """Folders and files whose optional libraries are not installed here."""
    skip = []
    headers = "".join(f"#include <{h}>\n" for h in ("cuda_runtime_api.h", "cublasLt.h", "cudnn.h"))
    if subprocess.run([*compiler, "-E", "-"], input=headers, capture_output=True, text=True).returncode:
        print("lint: no CUDA here: csrc/ops/cuda is not compiled")
        skip += ["csrc/ops/cuda/", "csrc/python/cuda."]
    for what, package in (("io", "libavformat"), ("remote", "libcurl")):
        try:
            missing = subprocess.run(["pkg-config", "--exists", package]).returncode
        except OSError:
            missing = True
        if missing:
            glue = {"io": "media", "remote": "remote"}[what]
            skip += [f"csrc/{what}/", f"csrc/python/{glue}", f"tests/c/test_{what}", f"tests/c/test_{glue}"]
            remote = ["tests/fuzz/fuzz_chat", "tests/fuzz/fuzz_images"]
            skip += remote if what == "remote" else ["tests/fuzz/fuzz_image.", "tests/fuzz/fuzz_video"]
    return tuple(skip) or ("no such file",)


def check_tools():
    tool = Path(sys.executable).parent
    formatter = tool / "clang-format"
    if not formatter.exists():
        yield f"{formatter} is missing: pip install -r .ci/requirements.txt"
    elif C_FILES:
        command = [formatter, "--dry-run", "-Werror", *C_FILES, *CUDA_FILES]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
        places = re.findall(r"^(\S+?):(\d+):\d+: error: ", done.stderr, re.M)
        first = dict(reversed(places))
        for path, line in sorted(first.items()):
            yield f"{name(Path(path))}:{line}: not formatted; run make format"
    done = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--quiet", "--output-format=concise", "."],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    yield from done.stdout.splitlines()
    if done.returncode and not done.stdout:
        yield done.stderr.strip()


def main() -> int:
    complaints = [c for check in (check_includes, check_text, check_tools, check_compilers) for c in check()]
    for complaint in complaints:
        print(complaint)
    print(f"lint: {len(complaints)} complaints" if complaints else "lint: clean")
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main())

"""make fuzz: every parser of untrusted bytes for some minutes each, two at a time.

    python -m tests.fuzz --minutes 10 [--target pickle]

Needs atheris (pip install atheris) and, for the C targets, clang. Inputs with a new outcome are added to
tests/fuzz/corpus, which tests/test_fuzz_corpus.py and tests/c/test_*_fuzz.c replay. A crash leaves its input in
build/fuzz and ends with 1."""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
BUILD = ROOT / "build" / "fuzz"
PYTHON = ("safetensors", "safetensors_file", "index", "configs", "pickle", "pth_file", "tensor_names", "cache")
FFMPEG = ["-lavfilter", "-lavformat", "-lavcodec", "-lavutil", "-lswscale", "-lm"]
REMOTE = [f"csrc/remote/{name}.c" for name in ("base64", "chat", "images", "json", "picture", "reply")]
# Target: (what is compiled beside csrc/base, libraries and flags)
C = {
    "image": (["csrc/io/*.c"], ["-DIPVG_MAX_PIXELS=65536", *FFMPEG]),
    "video": (["csrc/io/*.c"], ["-DIPVG_MAX_PIXELS=65536", *FFMPEG]),
    "weights": (["csrc/model/weights.c"], ["-lm"]),
    "chat": (REMOTE, ["-lcjson", "-lm"]),
    "images": (REMOTE, ["-lcjson", "-lm"]),
}
WORDS = {"image": "media.dict", "video": "media.dict"}
MAX_LENGTH = {"weights": 512, "tensor_names": 128, "cache": 1024}
MAX_LENGTH |= dict.fromkeys(("pth_file", "chat", "images", "image", "video"), 4096)


def command(target: str) -> list[str]:
    if target not in C:
        return [sys.executable, str(HERE / "one.py"), target]
    program, (files, libraries) = BUILD / f"fuzz_{target}", C[target]
    sources = [HERE / f"fuzz_{target}.c"]
    sources += [path for pattern in (*files, "csrc/base/*.c") for path in sorted(ROOT.glob(pattern))]
    flags = ["-std=c11", "-D_GNU_SOURCE", "-g", "-O1", "-fsanitize=fuzzer,address,undefined"]
    flags += ["-fno-sanitize-recover=undefined"]
    compiler = shutil.which("clang") or shutil.which("clang-14") or "clang"
    subprocess.run([compiler, *flags, *map(str, sources), "-o", str(program), *libraries], check=True)
    return [str(program)]


def fuzz(target: str, minutes: float) -> tuple[str, int, str]:
    """(target, exit status, libFuzzer's closing lines)."""
    work, corpus = BUILD / target, HERE / "corpus" / target
    for folder in (work, corpus):
        folder.mkdir(parents=True, exist_ok=True)
    run = command(target)
    limits = [f"-max_len={MAX_LENGTH.get(target, 2048)}", "-rss_limit_mb=2048", "-timeout=20"]
    limits += [f"-artifact_prefix={BUILD}/{target}-"]
    words = HERE / WORDS.get(target, "words.dict")
    time = [f"-max_total_time={int(minutes * 60)}", "-print_final_stats=1", f"-dict={words}"]
    log = BUILD / f"{target}.log"
    with log.open("wb") as out:
        status = subprocess.run([*run, *limits, *time, str(work), str(corpus)], stdout=out, stderr=out).returncode
        if status == 0 and target in C:
            merge = [*run, *limits, "-merge=1", str(corpus), str(work)]
            status = subprocess.run(merge, stdout=out, stderr=out).returncode
    if status == 0 and target not in C:  # atheris cannot merge
        keep(target, corpus, work)
    lines = log.read_text(errors="replace").splitlines()
    return target, status, "\n".join(line for line in lines if line.startswith(("stat::number_of", "SUMMARY", "Done")))


def keep(target: str, corpus: Path, work: Path) -> None:
    """Adds to the corpus the smallest input for each new outcome: an error's text without its numbers and names."""
    sys.path.insert(0, str(HERE))
    import targets

    folder = BUILD / f"{target}.files"
    folder.mkdir(exist_ok=True)
    seen: set[str] = set()
    for path in [*sorted(corpus.iterdir()), *sorted(work.iterdir(), key=lambda p: p.stat().st_size)]:
        data = path.read_bytes()
        try:
            targets.TARGETS[target](data, folder)
            outcome = "accepted"
        except targets._core.FormatError as error:
            outcome = re.sub(r"'[^']*'|\"[^\"]*\"|\d+", "_", str(error).replace(str(folder), ""))
        if outcome not in seen and path.parent == work:
            (corpus / hashlib.sha1(data).hexdigest()).write_bytes(data)
        seen.add(outcome)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Fuzzes the parsers of untrusted bytes.")
    parser.add_argument("--minutes", type=float, default=10, help="for each target (default 10)")
    parser.add_argument("--target", action="append", choices=[*PYTHON, *C], help="default: all")
    args = parser.parse_args()
    chosen = args.target or [*PYTHON, *C]
    if set(chosen) - set(C) and importlib.util.find_spec("atheris") is None:
        print(f"fuzz: atheris is missing: {sys.executable} -m pip install atheris", file=sys.stderr)
        return 2
    BUILD.mkdir(parents=True, exist_ok=True)
    os.nice(15)
    failed = 0
    with ThreadPoolExecutor(2) as pool:
        for target, status, text in pool.map(lambda t: fuzz(t, args.minutes), chosen):
            verdict = "ok" if status == 0 else f"FAILED ({status}), see build/fuzz/{target}.log"
            print(f"fuzz: {target}: {verdict}\n{text}", flush=True)
            failed |= status != 0
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())

"""Does identity-aware guidance raise identity over classifier-free guidance of equal weight, and at what cost?

    python models/tiny/pairs.py --out pairs.npz         # once, with torch: held-out people, captions, rendered clips
    python benchmarks/identity.py run --data pairs.npz --workers 32
    python benchmarks/identity.py report --data pairs.npz

`run` makes the clips of every arm (benchmarks/evidence/arms.py) with ipvg and keeps what the judges saw of them in
--work, one file an arm; a second call does what is missing, so it may be stopped at any time, or with --seconds.
`report` writes benchmarks/results/identity.{json,md,jpg}; of arms that have no file it keeps what an earlier report of
the same weights, pairs and settings says. Without a command: what the last report says.

Needs ONNX Runtime besides ipvg. On CPUs a worker is a process with one thread: as many as there are cores are fastest.
With --device cuda workers are threads that share the GPU. `run --list` tells the arms and their model forwards.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import hashlib
import json
import multiprocessing
import os
import re
import signal
import sys
import time
from collections import Counter
from concurrent.futures import FIRST_COMPLETED, Executor, ProcessPoolExecutor, ThreadPoolExecutor, wait
from pathlib import Path

os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # before anything is loaded: a worker has one core
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from evidence import arms as arms_  # noqa: E402
from evidence import work  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", nargs="?", choices=("show", "run", "report"), default="show")
    parser.add_argument("--data", default=str(ROOT / "build" / "pairs.npz"), help="what models/tiny/pairs.py wrote")
    parser.add_argument("--work", default=str(ROOT / "build" / "identity"), help="folder of the arms' results")
    parser.add_argument("--out", default=str(RESULTS), help="folder of the report")
    parser.add_argument("--checkpoint", default=str(ROOT / "models" / "ipvg-tiny"))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--pairs", type=int, default=128, help="of the main set; conflicts: half as many")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--sweep-steps", type=int, default=10, help="of the sweep over blocks")
    parser.add_argument("--w", type=float, default=1.0, help="the CFG weight of ablations and sweeps; 1: no CFG")
    parser.add_argument("--arms", default="", help="a regular expression: only arms whose name or table it finds")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no further clip after so long")
    parser.add_argument("--list", action="store_true")
    args = parser.parse_args()
    if args.command == "show":
        return show()
    setting = work.Setting(args.data, args.checkpoint, args.device, args.dtype, args.steps)
    layers = json.loads(Path(args.checkpoint, "config.json").read_text())["num_layers"]
    arms = arms_.listed(args.w, layers, args.sweep_steps)
    if args.command == "report":
        from evidence import report

        return report.write(arms, setting, Path(args.work), Path(args.out), args.w)
    arms = [a for a in arms if re.search(args.arms, a.name) or re.search(args.arms, a.table)]
    if args.list:
        for arm in arms:
            against = f" against {arm.control}" if arm.control else ""
            print(f"{forwards(arm, setting):4} forwards  {arm.table:9} {arm.name}{against}")
        return 0
    return run(arms, setting, args)


def show() -> int:
    path = RESULTS / "identity.json"
    if not path.is_file():
        print(f"{path} is not there: see --help for how it is made")
        return 0
    print(*json.loads(path.read_text(encoding="utf-8"))["answer"], f"All of it: {path.with_suffix('.md')}", sep="\n")
    return 0


def forwards(arm: arms_.Arm, setting: work.Setting) -> int:
    from ipvg.guidance.cost import forwards as count
    from ipvg.schedule import Schedule

    return sum(count(arm.rule, Schedule(arm.steps or setting.steps, setting.shift))) if arm.kind == "clip" else 0


# ---- what is stored ----


def describe(arm: arms_.Arm, setting: work.Setting, prints: dict[str, str]) -> str:
    """What an arm's results depend on, as text: a file that says something else is of another run. In float32 every
    device computes the same, to 1e-4 of an embedding (tests/test_evidence.py -k each_kind): a row says which it was."""
    fields = dataclasses.asdict(dataclasses.replace(arm, rule=None, control="", table=""))
    rule = arm.rule and arm.rule.to_dict()
    places = ("data", "checkpoint", *(("device",) if setting.dtype == "float32" else ()))
    run = {k: v for k, v in dataclasses.asdict(setting).items() if k not in places}
    return json.dumps({**fields, **run, "rule": rule, "seed": work.SEED, **prints}, sort_keys=True)


def fingerprints(setting: work.Setting) -> dict[str, str]:
    """Of the checkpoint's tensors, of the pairs and of the judges. Of the pairs, what they say: pictures rendered on
    another device have another grey level here and there."""
    found = hashlib.sha256()
    for path in sorted(Path(setting.checkpoint).glob("*.safetensors")):
        found.update(path.read_bytes())
    with np.load(setting.data) as data:
        said = (f"{pairs}_{what}" for pairs in ("main", "conflict") for what in ("caption", "scene", "person"))
        pairs = hashlib.sha256(b"".join(np.ascontiguousarray(data[k]).tobytes() for k in said))
    judges = hashlib.sha256(b"".join(p.read_bytes() for p in sorted(work.folder_of_judges().glob("*.onnx"))))
    return {k: v.hexdigest()[:16] for k, v in (("weights", found), ("pairs_sha256", pairs), ("judges", judges))}


def load(path: Path, about: str | None = None) -> dict[str, np.ndarray]:
    """An arm's arrays, one row a pair; {} where there is no file. SystemExit for a file of other settings."""
    if not path.is_file():
        return {}
    with np.load(path) as data:
        found = {k: data[k] for k in data.files}
    if about is not None and str(found["about"]) != about:
        raise SystemExit(f"{path} is of other weights, pairs or settings: give another --work, or remove it")
    return found


def save(path: Path, rows: dict[int, dict[str, np.ndarray]], about: str) -> None:
    """Rows of pairs, with those that the file has already, whole or not at all."""
    old = load(path, about)
    every: dict[int, dict[str, np.ndarray]] = {}
    shown = dict(zip(old["shown_pairs"], old["shown"])) if len(old.get("shown_pairs", ())) else {}
    plain = [k for k in old if k not in ("about", "pairs", "shown", "shown_pairs")]
    for i, pair in enumerate(old.get("pairs", ())):
        every[int(pair)] = {k: old[k][i] for k in plain}
    for pair, row in rows.items():
        if "shown" in row:
            shown[pair] = row["shown"]
        every[pair] = {k: v for k, v in row.items() if k != "shown"}
    order = sorted(every)
    table = {k: np.stack([every[p][k] for p in order]) for k in every[order[0]]}
    table |= {"pairs": np.array(order), "about": np.array(about), "shown_pairs": np.array(sorted(shown), int)}
    if shown:
        table["shown"] = np.stack([shown[p] for p in sorted(shown)])
    part = path.with_name(path.name + ".part")
    with open(part, "wb") as f:
        np.savez_compressed(f, **table)
    part.replace(path)


# ---- running ----


def run(arms: list[arms_.Arm], setting: work.Setting, args) -> int:
    store = Store(Path(args.work), setting)
    enhanced = str(store.path(next(a for a in arms_.conflicts(args.w) if a.kind == "enhanced")))
    jobs = []
    for arm in arms:
        have = {int(pair) for pair in load(store.path(arm), store.about(arm)).get("pairs", ())}
        jobs += [(arm, pair, enhanced) for pair in range(count(arm, setting, args)) if pair not in have]
    total = sum(forwards(arm, setting) for arm, _, _ in jobs)
    print(f"{len(arms)} arms, {len(jobs)} clips to make, {total} model forwards, {args.workers} workers", flush=True)
    store.expect(jobs)
    began, waiting = time.monotonic(), {}
    for number in (signal.SIGINT, signal.SIGTERM):  # `timeout` and a background job end a run as Ctrl-C does
        signal.signal(number, signal.default_int_handler)
    try:
        with workers(setting, args.workers) as pool:
            with contextlib.suppress(KeyboardInterrupt):
                for late in (False, True):  # what is made from enhanced pairs comes when they are there
                    for job in (job for job in jobs if job[0].enhanced == late):
                        if time.monotonic() - began > args.seconds:
                            break
                        waiting[pool.submit(work.one, job)] = job
                        if len(waiting) >= 2 * args.workers:
                            store.take(waiting)
                    store.take(waiting, everything=True)
            pool.shutdown(cancel_futures=True)
    finally:
        store.finish()
    print(f"{store.done} of {len(jobs)} clips in {time.monotonic() - began:.0f} s", flush=True)
    return 0


def workers(setting: work.Setting, count: int) -> Executor:
    """Processes; on a GPU threads, whose kernels run beside each other: processes would take turns on it."""
    if setting.device.startswith("cuda"):
        return ThreadPoolExecutor(count, "worker", work.begin, (setting,))
    return ProcessPoolExecutor(count, multiprocessing.get_context("spawn"), work.begin, (setting,))


def count(arm: arms_.Arm, setting: work.Setting, args) -> int:
    """How many pairs an arm has."""
    key = f"{arm.pairs}_{'clip' if arm.kind in ('rendered', 'codec') else 'caption'}"
    with np.load(work.where(setting.data, key)) as data:
        there = len(data[key])
    wanted = args.pairs // 2 if arm.pairs == "conflict" else args.pairs
    wanted = work.RATIO_PAIRS if arm.kind == "ratios" else wanted
    if wanted > there:
        print(f"{arm.name}: {there} pairs, not {wanted}: {setting.data} has no more")
    return min(wanted, there)


class Store:
    """Rows that came back, an arm's written when its last one is there."""

    def __init__(self, folder: Path, setting: work.Setting):
        self.folder, self.setting, self.prints = folder, setting, fingerprints(setting)
        self.rows: dict[arms_.Arm, dict] = {}
        self.left: Counter[arms_.Arm] = Counter()
        self.began, self.done = time.monotonic(), 0
        folder.mkdir(parents=True, exist_ok=True)

    def path(self, arm: arms_.Arm) -> Path:
        return self.folder / arm.file

    def about(self, arm: arms_.Arm) -> str:
        return describe(arm, self.setting, self.prints)

    def expect(self, jobs: list[tuple]) -> None:
        self.left.update(arm for arm, _, _ in jobs)

    def take(self, waiting: dict, everything: bool = False) -> None:
        """Waits for a result, or for all, and keeps what came. Raises what a worker raised."""
        while waiting:
            for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                arm, pair, _ = waiting.pop(future)
                self.rows.setdefault(arm, {})[pair] = future.result()
                self.left[arm] -= 1
                self.done += 1
                if not self.left[arm]:
                    self.write(arm)
            if not everything:
                break

    def write(self, arm: arms_.Arm) -> None:
        rows = self.rows.pop(arm)
        save(self.path(arm), rows, self.about(arm))
        cpu = sum(float(r["seconds"][1]) for r in rows.values()) / len(rows)
        now = time.monotonic() - self.began
        print(f"{now:6.0f} s  {arm.name}: {len(rows)} pairs, {cpu:.2f} s of CPU each", flush=True)

    def finish(self) -> None:
        """What is there of arms that were not finished."""
        for arm in list(self.rows):
            self.write(arm)


if __name__ == "__main__":
    sys.exit(main())

"""What made a video, as JSON beside it: settings, versions, hashes, times, memory. `video.manifest`, `ipvg rerun FILE`.

>>> video = pipe.generate("A woman walks on the beach.", [photo])
>>> video.manifest["job"]["seed"], video.manifest["stages"]
>>> manifest.write(video.manifest, "alice.mp4", checkpoint=pipe.checkpoint)      # alice.mp4.json

The same manifest gives the same bytes on the same machine with the same versions; `differences` names what has changed.
Hashes of large files are kept in ~/.cache/ipvg (XDG_CACHE_HOME) by path, size and time of change.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import os
import platform
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ._core import FormatError
from .checkpoint.write import replace

if TYPE_CHECKING:
    from .guidance import Guidance
    from .pipeline import Pipeline
    from .schedule import Schedule

FORMAT = "ipvg manifest 1"


class Stages:
    """Seconds and peak memory of a job's stages, in their order.

    peak_bytes: the process's largest resident memory during the stage, mapped weights included; on systems that cannot
    forget an older peak, the largest so far.
    """

    def __init__(self) -> None:
        self.list: list[dict[str, Any]] = []

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # Linux: forget the peak
        began = time.perf_counter()
        yield
        seconds = time.perf_counter() - began
        self.list.append({"name": name, "seconds": round(seconds, 6), "peak_bytes": _peak_bytes()})


def _peak_bytes() -> int:
    with contextlib.suppress(OSError, StopIteration, ValueError):
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM:")).split()[1]) * 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def describe(
    pipe: Pipeline,
    *,
    schedule: Schedule,
    guidance: Guidance,
    seed: int | None,
    size: tuple[int, int],
    frames: int,
    texts: Mapping[str, str],
    inputs: Mapping[str, Any],
    stages: Stages,
    hooks: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The manifest of a run. guidance: resolved, without functions. texts: prompt name -> text. inputs: name -> array,
    list of arrays or None; told by shape and hash. hooks: name -> function or None; told by name. Plain data, ready for
    JSON; checkpoint hashes come with `write`."""
    return {
        "format": FORMAT,
        "versions": versions(),
        "machine": machine(),
        "device": {"name": pipe.device.name, "threads": pipe.device.threads, "dtype": pipe.device.dtype},
        "checkpoint": {"path": str(pipe.checkpoint.path.absolute()), "layout": pipe.checkpoint.layout},
        "loras": lora_hashes(pipe.loras),
        "job": {
            "texts": dict(texts),
            "size": list(size),
            "frames": frames,
            "references": len(inputs["references"]),
            "steps": schedule.steps,
            "shift": schedule.shift,
            "solver": schedule.solver,
            "sigmas_from": schedule.sigmas_from,
            "begin": schedule.begin,
            "seed": seed,
            "hooks": [name for name in ("edit_velocity", "edit_combined") if hooks and hooks.get(name)],
            "guidance": guidance.to_dict(),
        },
        "inputs": {name: fingerprint(value) for name, value in inputs.items()},
        "stages": stages.list,
    }


def versions() -> dict[str, str]:
    """Of everything that a result's bytes depend on."""
    from . import __version__

    out = {"ipvg": __version__, "python": platform.python_version()}
    for name in ("numpy", "tokenizers", "ftfy"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            out[name] = importlib.metadata.version(name)
    with contextlib.suppress(ImportError):
        from . import _media

        out["ffmpeg"] = _media.version()
    return out


def machine() -> dict[str, str]:
    """The processor decides which vector code runs, and with it the last bits."""
    cpu = platform.processor()
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next(line for line in lines if line.startswith("model name")).partition(":")[2].strip()
    return {"cpu": cpu, "system": f"{platform.system()} {platform.machine()}"}


def fingerprint(value) -> Any:
    """Of an array or Video: shape, dtype and hash; of a list of them, a list."""
    if value is None:
        return None
    if isinstance(value, list | tuple):
        return [fingerprint(item) for item in value]
    array = np.ascontiguousarray(getattr(value, "frames", value))
    digest = hashlib.sha256(memoryview(array).cast("B") if array.size else b"").hexdigest()
    return {"shape": list(array.shape), "dtype": str(array.dtype), "sha256": digest}


# ---- files ----


def write(manifest: Mapping[str, Any], output: str | os.PathLike, checkpoint=None) -> Path:
    """Writes the manifest beside `output` (its name + ".json"), with the output's hash and the checkpoint's: whole or
    not at all. Returns its path. Hashing a checkpoint takes a moment the first time."""
    output = Path(output)
    full = dict(manifest)
    if checkpoint is not None:
        full["checkpoint"] = {**full["checkpoint"], "files": checkpoint_hashes(checkpoint)}
    if output.is_dir():
        hashes = {path.name: sha256(path, cached=False) for path in sorted(output.glob("*.png"))}
        full["output"] = {"path": str(output.absolute()), "files": hashes}
    else:
        full["output"] = {"path": str(output.absolute()), "sha256": sha256(output, cached=False)}
    path = output.with_name(output.name + ".json")
    replace(path, [json.dumps(full, indent=1).encode() + b"\n"])
    return path


def read(path: str | os.PathLike) -> dict[str, Any]:
    """Raises FormatError for a file that is no manifest; OSError."""
    try:
        table = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise FormatError(f"{path}: no JSON: {error}") from None
    if not isinstance(table, dict) or table.get("format") != FORMAT:
        raise FormatError(f"{path}: no manifest of ipvg ({FORMAT!r})")
    return table


def lora_hashes(loras) -> list[dict[str, Any]]:
    return [{**lora.to_dict(), "sha256": sha256(lora.path)} for lora in loras]


def checkpoint_hashes(checkpoint) -> dict[str, str]:
    """File name (relative) -> sha256, the tokenizer's and the configurations' too."""
    files = {file for component in checkpoint.components.values() for file in component.files}
    files |= {checkpoint.tokenizer_path} if checkpoint.tokenizer_path else set()
    files.update(checkpoint.path.glob("*.json"), checkpoint.path.glob("*/config.json"))
    return {str(file.relative_to(checkpoint.path)): sha256(file) for file in sorted(files)}


def differences(manifest: Mapping[str, Any], checkpoint) -> list[str]:
    """What is not as it was when the manifest was made: versions, machine, checkpoint, LoRA and input files. Empty: the
    same bytes are to be expected."""
    out = []
    for what, then, now in (("version", manifest["versions"], versions()), ("machine", manifest["machine"], machine())):
        for name in sorted({*then, *now}):
            if then.get(name) != now.get(name):
                out.append(f"{what} of {name}: was {then.get(name, 'absent')}, is {now.get(name, 'absent')}")
    hashes = checkpoint_hashes(checkpoint)
    before = manifest["checkpoint"].get("files") or {}
    for name in sorted({*before, *hashes}):
        if before.get(name) != hashes.get(name):
            gone, new = name not in hashes, name not in before
            out.append(f"checkpoint: {checkpoint.path / name} {'is gone' if gone else 'is new' if new else 'changed'}")
    for entry in (*manifest.get("loras", ()), *manifest.get("files", ())):
        path = Path(entry["path"])
        if not path.exists():
            out.append(f"file: {path} is gone")
        elif sha256(path) != entry["sha256"]:
            out.append(f"file: {path} changed")
    return out


# ---- hashes ----


def sha256(path: str | os.PathLike, cached: bool = True) -> str:
    """Of a file, in hex. cached: trust an earlier result if path, size and time of change are the same."""
    path = Path(path).absolute()
    stat = path.stat()
    key, stamp = str(path), [stat.st_size, stat.st_mtime_ns]
    store = _cache_file()
    known = _cache(store) if cached else {}
    if known.get(key, [])[:2] == stamp:
        return known[key][2]
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(16 << 20):
            digest.update(block)
    if cached and stat.st_size >= 1 << 20:  # small ones are quicker read than looked up
        with contextlib.suppress(OSError):
            store.parent.mkdir(parents=True, exist_ok=True)
            replace(store, [json.dumps({**_cache(store), key: [*stamp, digest.hexdigest()]}).encode()])
    return digest.hexdigest()


def _cache_file() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ipvg" / "sha256.json"


def _cache(path: Path) -> dict[str, list]:
    with contextlib.suppress(OSError, ValueError):
        table = json.loads(path.read_text())
        return table if isinstance(table, dict) else {}
    return {}

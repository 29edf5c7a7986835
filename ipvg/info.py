"""What `ipvg info PATH` shows: components, sizes, dtypes, hashes, the memory that a job needs, the tokenizer's check.

describe() gives plain data (it goes into JSON as it is), render() the text for people."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from ._core import FormatError
from .checkpoint.checkpoint import COMPONENTS, Checkpoint, Component

if TYPE_CHECKING:
    from pathlib import Path

#: sha256 of files as they were released, to tell a real one from a changed one.
PUBLISHED = {
    "c46a6f5f7d32c453c3983bbc59761ea41cd02ad584fb55d1a7ee2b76145847a2": "Wan2.1-VACE-1.3B diffusion_pytorch_model",
    "38071ab59bd94681c686fa51d75a1968f64e470262043be31f7a094e442fd981": "Wan2.1_VAE.pth",
    "d6e524b3fffede1787a74e81b30976dce5400c4439ba64222168e607ed19e793": "Wan2.1 VAE of the diffusers layout",
    "20a46ac256746594ed7e1e3ef733b83fbc5a6f0922aa7480eda961743de080ef": "umT5-XXL tokenizer.json",
}

#: (width, height, frames) of the memory table's rows.
SIZES = ((832, 480, 1), (832, 480, 81), (1280, 720, 81))

#: estimate(checkpoint, width=, height=, frames=, dtype=, device=) -> bytes by part, e.g. {"weights": n, "scratch": n}.
Estimate = Callable[..., Mapping[str, int]]


def describe(
    path: str | os.PathLike,
    *,
    sha256: bool = False,
    check: bool = False,
    estimate: Estimate | None = None,
    sizes: Iterable[tuple[int, int, int]] = SIZES,
    dtypes: Iterable[str] = ("float32", "bfloat16"),
    devices: Iterable[str] = ("cpu",),
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """A checkpoint folder as plain data. A component that is missing or damaged is told under its "error", and "ok" is
    false then; the others are described all the same.

    sha256: hash the components' files (reads them whole; `progress` as in Checkpoint.sha256). check: compare the
    tokenizer with what is published of umT5's. estimate: gives the rows of "memory"; without it there are none.
    Raises FormatError when the folder is no checkpoint at all, OSError."""
    ckpt = Checkpoint.open(path, components=())
    out: dict[str, Any] = {"path": str(ckpt.path), "layout": ckpt.layout, "ok": True, "components": {}}
    for name in COMPONENTS:
        try:
            one = Checkpoint.open(path, components=(name,))
            out["components"][name] = _component(one, name, sha256, progress)
            ckpt.components[name] = one.components[name]
        except (FormatError, OSError) as error:
            out["components"][name] = {"error": str(error)}
            out["ok"] = False
    out["tokenizer"] = _tokenizer(ckpt.tokenizer_path, check)
    out["ok"] = out["ok"] and "error" not in out["tokenizer"] and out["tokenizer"].get("check", {}).get("ok", True)
    if estimate and len(ckpt.components) == len(COMPONENTS):
        out["memory"] = memory_table(ckpt, estimate, sizes, dtypes, devices)
    return out


def memory_table(
    ckpt: Checkpoint,
    estimate: Estimate,
    sizes: Iterable[tuple[int, int, int]] = SIZES,
    dtypes: Iterable[str] = ("float32", "bfloat16"),
    devices: Iterable[str] = ("cpu",),
) -> list[dict[str, Any]]:
    """A row for every (device, dtype, size, frames): the bytes of each of the "parts" that `estimate` names, and their
    "total". A combination that cannot work (ValueError, RuntimeError) says why under "error" instead."""
    devices, dtypes, sizes = tuple(devices), tuple(dtypes), tuple(sizes)
    rows = []
    for device in devices:
        for dtype in dtypes:
            for width, height, frames in sizes:
                row: dict[str, Any] = {"device": device, "dtype": dtype}
                row |= {"width": width, "height": height, "frames": frames}
                try:
                    row["parts"] = {k: int(v) for k, v in estimate(ckpt, **row).items()}
                    row["total"] = sum(row["parts"].values())
                except (ValueError, RuntimeError) as error:
                    row["error"] = str(error)
                rows.append(row)
    return rows


def _component(ckpt: Checkpoint, name: str, sha256: bool, progress) -> dict[str, Any]:
    component: Component = ckpt.components[name]
    dtypes: dict[str, dict[str, int]] = {}
    for entry in component.entries.values():
        of = dtypes.setdefault(entry.dtype, {"tensors": 0, "parameters": 0, "bytes": 0})
        of["tensors"] += 1
        of["parameters"] += entry.count
        of["bytes"] += entry.nbytes
    files = [{"name": str(f.relative_to(ckpt.path)), "bytes": f.stat().st_size} for f in component.files]
    if sha256:
        hashes = ckpt.sha256(name, progress)
        for file in files:
            file["sha256"] = hashes[file["name"]]
            file["published"] = PUBLISHED.get(file["sha256"])
    return {
        "config": {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(component.config).items()},
        "tensors": len(component.entries),
        "parameters": sum(entry.count for entry in component.entries.values()),
        "bytes": component.nbytes,
        "dtypes": dict(sorted(dtypes.items())),
        "files": files,
    }


def _tokenizer(path: Path | None, check: bool) -> dict[str, Any]:
    if path is None:
        return {"error": "tokenizer.json is missing: google/umt5-xxl/ (official) or tokenizer/ (diffusers) holds it"}
    out: dict[str, Any] = {"path": str(path), "bytes": path.stat().st_size}
    if check:
        from . import text  # the tokenizers library: only when asked for

        try:
            out["check"] = text.check_published(text.Tokenizer(path))
        except (FormatError, OSError) as error:
            out["error"] = str(error)
    return out


# ---- text ----

_TITLES = {"dit": "transformer", "vae": "VAE", "text": "text encoder"}


def render(info: Mapping[str, Any]) -> str:
    """The text of a description, ending in a newline. GB are 10^9 bytes."""
    lines = [f"{info['path']}  ({info['layout']} layout)"]
    for name, part in info["components"].items():
        lines += ["", *_render_component(_TITLES[name], part)]
    lines += ["", *_render_tokenizer(info["tokenizer"])]
    if info.get("memory"):
        lines += ["", *_render_memory(info["memory"])]
    return "\n".join(lines) + "\n"


def _render_component(title: str, part: Mapping[str, Any]) -> list[str]:
    if "error" in part:
        return [f"{title}: {part['error']}"]
    kinds = ", ".join(f"{d} {gigabytes(v['bytes'])} in {v['tensors']}" for d, v in part["dtypes"].items())
    lines = [f"{title}: {part['parameters'] / 1e6:,.1f} M parameters, {part['tensors']} tensors: {kinds}"]
    lines.append("    " + ", ".join(f"{k} {_value(v)}" for k, v in part["config"].items() if k not in ("mean", "std")))
    for file in part["files"]:
        lines.append(f"    {file['name']}  {gigabytes(file['bytes'])}")
        if "sha256" in file:
            known = f"as released: {file['published']}" if file["published"] else "not a file whose hash ipvg knows"
            lines.append(f"        sha256 {file['sha256']}  ({known})")
    return lines


def _render_tokenizer(part: Mapping[str, Any]) -> list[str]:
    if "error" in part:
        return [f"tokenizer: {part['error']}"]
    lines = [f"tokenizer: {part['path']}  {gigabytes(part['bytes'])}"]
    check = part.get("check")
    if check:
        verdict = "equal to" if check["ok"] else f"differs in {len(check['failed'])} places from"
        release = "" if check["sha256_known"] else "; the file itself is not the released one"
        lines.append(f"    {verdict} what is published of umT5's ({check['texts']} texts){release}")
        for failure in check["failed"][:5]:
            lines.append(f"    {failure['what']}: expected {failure['expected']!r:.80}, found {failure['found']!r:.80}")
    return lines


def _render_memory(rows: list[Mapping[str, Any]]) -> list[str]:
    parts = list(dict.fromkeys(part for row in rows for part in row.get("parts", ())))
    table = [["device", "dtype", "size", "frames", *parts, "total"]]
    for row in rows:
        head = [row["device"], row["dtype"], f"{row['width']}x{row['height']}", str(row["frames"])]
        if "error" in row:
            table.append([*head, row["error"]])
        else:
            of = row["parts"]
            table.append([*head, *(gigabytes(of[k]) if k in of else "-" for k in parts), gigabytes(row["total"])])
    columns = len(table[0])
    widths = [max(len(line[i]) for line in table if len(line) == columns) for i in range(columns)]
    return ["memory needed", *("    " + "  ".join(t.ljust(w) for t, w in zip(line, widths)).rstrip() for line in table)]


def gigabytes(n: int) -> str:
    """Bytes as text with three digits: "7.15 GB", "41.2 kB"."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if n >= size * 0.9995:
            return f"{n / size:.{2 if n < 9.995 * size else 1 if n < 99.95 * size else 0}f} {unit}"
    return f"{n} B"


def _value(v: object) -> str:
    if isinstance(v, (list, tuple)):
        return "[" + ",".join(map(str, v)) + "]"
    return f"{v:g}" if isinstance(v, float) else str(v)

"""A job: plain settings, as the command line gives them and a manifest keeps them, become a video.

>>> settings = jobs.resolve({"prompt": "A woman smiles.", "references": ["alice.png"]})
>>> video, pipe = jobs.make(settings)
>>> jobs.save(video, "alice.mp4", pipe)                    # and alice.mp4.json
>>> jobs.rerun("alice.mp4.json", "again.mp4").same         # True: the same bytes
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from . import manifest, tasks
from . import settings as settings_
from ._core import FormatError
from .enhancement import Enhancement
from .guidance import Guidance
from .pipeline import Pipeline, Progress
from .settings import FILES, Settings
from .video import Video, read_image, read_video

#: Task -> (settings that it needs, settings that it takes as well). All take references but text.
NEEDS: dict[str | None, tuple[tuple[str, ...], tuple[str, ...]]] = {
    None: ((), ("references", "video", "mask")),
    "text": ((), ()),
    "image": ((), ("references",)),
    "references": (("references",), ()),
    "control": (("video",), ("references",)),
    "inpaint": (("video", "mask"), ("references",)),
    "outpaint": (("video", "pad"), ("references",)),
    "first-frame": (("first",), ("references",)),
    "last-frame": (("last",), ("references",)),
    "first-last": (("first", "last"), ("references",)),
    "extend-after": (("video",), ("references", "keep")),
    "extend-before": (("video",), ("references", "keep")),
}
_INPUTS = (*FILES, "pad", "keep")


def resolve(settings: Mapping[str, Any]) -> Settings:
    """All settings, checked, the defaults filled in, paths absolute. ValueError and TypeError name what is unknown,
    wrong, missing or of no use. What there is: `settings.SETTINGS`."""
    out = settings_.check(settings)
    if out["task"] not in NEEDS:
        raise ValueError(f"task: expected one of {', '.join(name for name in NEEDS if name)}, got {out['task']!r}")
    if out["enhanced"] and not out["prompt"]:
        found = Enhancement.load(out["enhanced"])
        out["prompt"] = found.prompt
        pictures = [str(Path(path).absolute()) for path in [found.reference or found.image] if path]
        out["references"] = out["references"] or pictures
    needed, taken = NEEDS[out["task"]]
    for name in needed:
        if not out[name]:
            raise ValueError(f"task {out['task']} needs {name}")
    for name in _INPUTS:
        if out[name] and name not in (*needed, *taken):
            raise ValueError(f"task {out['task'] or '(none given)'} does not take {name}")
    if out["chunk"] is None and out["overlap"] is not None:
        raise ValueError("overlap: is for long videos; give chunk as well")
    return out


def make(
    settings: Settings, progress: Progress | None = None, opened=None, resume: str | None = None
) -> tuple[Video, Pipeline]:
    """A video from `resolve`d settings; what was left open is filled in there: checkpoint, threads, size, frames,
    steps, shift, guidance. opened: called with the pipeline before the work. resume: a folder for the chunks of a long
    video. Raises what the stages raise."""
    pipe = Pipeline.load(
        settings["checkpoint"], device=settings["device"], threads=settings["threads"], dtype=settings["dtype"],
        memory_limit=settings["memory_limit"],
    )
    settings["checkpoint"], settings["threads"] = str(pipe.checkpoint.path.absolute()), pipe.device.threads
    for name in ("steps", "shift"):
        settings[name] = getattr(pipe.defaults, name) if settings[name] is None else settings[name]
    if settings["guidance"] is None:
        settings["guidance"] = pipe.defaults.guidance.to_dict()
    if opened:
        opened(pipe)
    for path, strength in settings["lora"]:
        pipe.load_lora(path, strength)
    inputs = _inputs(settings, pipe)
    settings["size"], settings["frames"] = list(inputs["size"]), inputs["frames"]
    sampling = {name: settings[name] for name in ("steps", "shift", "solver", "sigmas_from", "seed")}
    sampling |= {name: settings[name] for name in ("chunk", "overlap", "match")}
    video = pipe.generate(
        settings["prompt"], negative=settings["negative"], guidance=Guidance.from_dict(settings["guidance"]),
        progress=progress, resume=resume, **inputs, **sampling,
    )  # fmt: skip
    video.manifest["settings"] = settings
    if settings["enhanced"] and Path(settings["enhanced"]).is_file():
        record = Enhancement.load(settings["enhanced"]).record()
        video.manifest["enhancement"] = {"path": settings["enhanced"], **record}
    video.manifest["files"] = [
        {"role": name, "path": path, "sha256": manifest.sha256(path)}
        for name in FILES
        for path in (settings[name] if name == "references" else [settings[name]])
        if path
    ]
    return video, pipe


def _inputs(settings: Settings, pipe: Pipeline) -> dict[str, Any]:
    """The keyword arguments of `Pipeline.encode_source`."""
    picture = partial(read_image, alpha=settings["alpha"])
    task, references = settings["task"], [picture(path) for path in settings["references"]]
    video, frames = read_video(settings["video"]) if settings["video"] else None, pipe.defaults.frames
    if video is not None and task not in ("extend-after", "extend-before"):
        frames = min(frames, (len(video.resampled()) - 1) // 4 * 4 + 1)  # a short clip is not shown in slow motion
    given = {
        "size": tuple(settings["size"] or pipe.defaults.size),
        "frames": settings["frames"] or frames,
        "references": references,
    }
    mask = _mask(settings["mask"]) if settings["mask"] else None
    first, last = (picture(settings[name]) if settings[name] else None for name in ("first", "last"))
    if task is None:
        return {**given, "video": video, "mask": mask}
    if task == "text":
        return tasks.text(size=given["size"], frames=given["frames"])
    if task == "image":
        return tasks.image(references, size=given["size"])
    if task == "references":
        return tasks.references(references, size=given["size"], frames=given["frames"])
    if task == "control":
        return tasks.control(video, **given)
    if task == "inpaint":
        return tasks.inpaint(video, mask, **given)
    if task == "outpaint":
        return tasks.outpaint(video, **settings["pad"], **given)
    if task == "first-last":
        return tasks.first_last(first, last, **given)
    if task in ("extend-after", "extend-before"):
        return tasks.TASKS[task](video, keep=settings["keep"], **given)
    return tasks.TASKS[task](first if task == "first-frame" else last, **given)


def _mask(path: str) -> Video:
    """A mask's frames; a picture is one frame, which stands for all."""
    try:
        return read_video(path)
    except FormatError as error:
        try:
            return Video(read_image(path)[None])
        except FormatError:
            raise error from None


def save(video: Video, path, pipe: Pipeline) -> dict[str, str]:
    """Writes the video and its manifest; what -> path."""
    out = video.save(path)
    return {"video": str(out), "manifest": str(manifest.write(video.manifest, out, pipe.checkpoint))}


@dataclass(frozen=True)
class Rerun:
    """files: what -> path. differences: what has changed since (manifest.differences). same: the video's bytes are."""

    files: dict[str, str]
    differences: list[str]
    same: bool


def rerun(path, out=None, *, anyway: bool = False, progress: Progress | None = None) -> Rerun:
    """Makes a manifest's video again, as `out` (None: its name + "-rerun", beside the manifest).

    anyway: go on although something has changed, which is an error otherwise.
    Raises ValueError that lists the differences, or for a manifest of the Python API, whose inputs were arrays.
    """
    old = manifest.read(path)
    if "settings" not in old:
        raise ValueError(f"{path}: made from arrays in Python, so there are no files to make it from again")
    settings = resolve(old["settings"])
    pipe = Pipeline.load(settings["checkpoint"], threads=settings["threads"])
    found = manifest.differences(old, pipe.checkpoint)
    if found and not anyway:
        raise ValueError(f"{path}: no longer as it was: {'; '.join(found)}")
    name = Path(old["output"]["path"])
    stem, ending = (name.name, ".png") if "files" in old["output"] else (name.stem, name.suffix)
    target = Path(path).parent / f"{stem}-rerun{ending}" if out is None else Path(out)
    video, pipe = make(settings, progress)
    files = save(video, target, pipe)
    new = manifest.read(files["manifest"])["output"]
    same = all(new.get(key) == old["output"].get(key) for key in ("sha256", "files"))
    return Rerun(files, found, same)

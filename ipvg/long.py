"""Long videos: chunks that overlap. Each goes on from the last frames of the one before, through VACE's clip extension.

>>> pipe.generate("She walks along the beach.", [photo], frames=241, chunk=81, overlap=17)
>>> pipe.generate(..., frames=241, chunk=81, resume="parts")      # killed? the same call again does what is missing

What keeps a long video together: every chunk gets the references and the same texts; its first `overlap` frames are the
finished frames of the one before, kept by a black mask (`tasks.extend_after`); and where these frames come back with
other colours, the chunk is corrected by what they differ (`match`), or colours would drift from chunk to chunk. What
does not: motion and things out of sight for longer than the overlap. `seams.measure` says what a seam looks like.

At any time there is one chunk in memory besides the result.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from . import _arguments, manifest, seams
from .guidance import Guidance
from .prepare import fit_mask, fit_video, resampled
from .resume import Store
from .schedule import Schedule
from .source import check_size
from .tasks import GREY
from .video import Video

if TYPE_CHECKING:
    from .pipeline import Pipeline, Progress

#: How a chunk is corrected, by colour channel, to what its kept frames were: not at all; by an offset; also by a gain.
MATCHES = ("none", "mean", "gain")


@dataclasses.dataclass(frozen=True)
class Span:
    """A chunk's place: frames [start, start + frames) of the video, of which the first `kept` are there already."""

    index: int
    start: int
    frames: int
    kept: int

    @property
    def seam(self) -> int:
        """Its first new frame."""
        return self.start + self.kept


def spans(frames: int, chunk: int, overlap: int | None = None) -> list[Span]:
    """The chunks of a video: as few as do, all of one length but for the last, which may be shorter.

    frames, chunk: 4n + 1. overlap: 1 to chunk - 4; None: 17, less for short chunks. 4n + 1 (1, 5, ..., 17) is best: the
    frames of a latent then lie on one side of the seam. Raises ValueError, TypeError.
    """
    check_size((16, 16), frames)
    try:
        check_size((16, 16), chunk)
    except (TypeError, ValueError) as error:
        raise type(error)(str(error).replace("frames:", "chunk:", 1)) from None
    if frames <= chunk:
        return [Span(0, 0, frames, 0)]
    if chunk < 5:
        raise ValueError(f"chunk: expected 5 or more frames, got {chunk}")
    if overlap is None:
        overlap = min(4 * max(1, min(4, (chunk - 1) // 16)) + 1, chunk - 4)
    overlap = _arguments.integer("overlap", overlap, 1, chunk - 4)
    count = -(-(frames - overlap) // (chunk - overlap))
    length = up(-(-(frames - overlap) // count) + overlap)
    starts = range(0, count * (length - overlap), length - overlap)
    return [Span(i, s, min(length, up(frames - s)), overlap if i else 0) for i, s in enumerate(starts)]


def up(frames: int) -> int:
    """To the next 4n + 1."""
    return -(-(frames - 1) // 4) * 4 + 1


def chunk_seed(seed: int, index: int) -> int:
    """The seed of a chunk's noise: the first chunk's is the video's own, so that its frames are those of a short video;
    the others come from SHA-256. The same noise each time would have every chunk begin alike."""
    if index == 0:
        return seed
    return int.from_bytes(hashlib.sha256(f"ipvg chunk {index} of seed {seed}".encode()).digest()[:8], "little")


def correction(made: np.ndarray, wanted: np.ndarray, match: str = "gain") -> tuple[np.ndarray, np.ndarray]:
    """(gain, offset) by channel, float64 (3,): gain * made + offset has wanted's mean and, with "gain", its deviation.

    made, wanted: the same frames as a chunk gave them and as they were, uint8 (F, H, W, 3). A gain stays within 0.8 to
    1.25: beyond that the chunk shows something else, and no correction of colours would mend it.
    """
    _arguments.choice("match", match, MATCHES)
    gain, offset = np.ones(3), np.zeros(3)
    if match == "none":
        return gain, offset
    a, b = (x.reshape(-1, 3) for x in (made, wanted))
    if match == "gain":
        gain = np.clip(b.std(0, dtype=np.float64) / np.maximum(a.std(0, dtype=np.float64), 1e-3), 0.8, 1.25)
    return gain, b.mean(0, dtype=np.float64) - gain * a.mean(0, dtype=np.float64)


def corrected(frames: np.ndarray, gain: np.ndarray, offset: np.ndarray) -> np.ndarray:
    """uint8 frames times gain plus offset, rounded and clipped: a table of 256 values a channel."""
    if (gain == 1).all() and (offset == 0).all():
        return frames
    table = np.rint(np.clip(np.arange(256)[:, None] * gain + offset, 0, 255)).astype(np.uint8)
    out = np.empty_like(frames)
    for c in range(3):
        out[..., c] = table[:, c][frames[..., c]]
    return out


# ---- making one ----


@dataclasses.dataclass
class Job:
    """What all chunks share. video: uint8 (frames, H, W, 3) of the target's size, or None; mask: what `fit_mask` gives.

    guidance: without functions (`Guidance.resolve`). hooks: edit_velocity and edit_combined of `Sampler`.
    """

    pipe: Pipeline
    prompts: Mapping[str, str]
    references: Sequence[np.ndarray]
    video: np.ndarray | None
    mask: np.ndarray | None
    size: tuple[int, int]
    guidance: Guidance
    schedule: Schedule
    seed: int
    match: str
    hooks: Mapping[str, Any]
    progress: Progress | None = None

    @cached_property
    def text(self) -> dict[str, np.ndarray]:
        return self.pipe.encode_text(self.prompts, self.progress)

    @property
    def schedule_arguments(self) -> dict[str, Any]:
        return {name: getattr(self.schedule, name) for name in ("steps", "shift", "solver", "sigmas_from")}

    def inputs(self, span: Span, before: np.ndarray) -> tuple[np.ndarray | None, np.ndarray | None]:
        """(video, mask) of a chunk. before: its kept frames. Past the end of a given video its last frame stays."""
        if self.video is None and not span.kept:
            return None, None
        ids, shape = np.arange(span.start, span.start + span.frames), (span.frames, self.size[1], self.size[0])
        if self.video is not None:
            ids = np.minimum(ids, len(self.video) - 1)
        video = np.full((*shape, 3), GREY, np.uint8) if self.video is None else self.video[ids]
        mask = np.ones(shape, np.float32) if self.mask is None else self.mask[ids]
        video[: span.kept], mask[: span.kept] = before, 0
        return video, mask

    def described(self) -> dict[str, Any]:
        """All that decides what a chunk's frames are, as plain data: who takes up a job must have the same."""
        pipe = self.pipe
        return {
            "checkpoint": manifest.checkpoint_hashes(pipe.checkpoint),
            "dtype": pipe.device.dtype,
            "loras": manifest.lora_hashes(pipe.loras),
            "texts": dict(self.prompts),
            "size": list(self.size),
            "guidance": self.guidance.to_dict(),
            "schedule": self.schedule_arguments,
            "seed": self.seed,
            "match": self.match,
            **{name: manifest.fingerprint(getattr(self, name)) for name in ("references", "video", "mask")},
        }

    def make(self, span: Span, before: np.ndarray, label: str) -> tuple[np.ndarray, dict[str, Any]]:
        """(its frames, colours matched; its part of the manifest)."""
        tell = self.progress and (lambda stage, *counts: self.progress(label + stage, *counts))
        stages, seed = manifest.Stages(), chunk_seed(self.seed, span.index)
        with stages.stage("text"):
            text = self.text
        with stages.stage("source"):
            video, mask = self.inputs(span, before)
            source = self.pipe.encode_source(
                self.references, video=video, mask=mask, size=self.size, frames=span.frames
            )
        with stages.stage("denoising"):
            run = self.pipe.sampler(text, source, self.guidance, seed=seed, **self.schedule_arguments, **self.hooks)
            run.run(progress=(lambda p: tell("denoising", p.done, p.total)) if tell else False)
        with stages.stage("decoding"):
            made = self.pipe.decode(run.latents_tensor, tell).frames
        gain, offset = correction(made[: span.kept], before, self.match if span.kept else "none")
        record = {
            **dataclasses.asdict(span),
            "seed": seed,
            "gain": gain.tolist(),
            "offset": offset.tolist(),
            "stages": stages.list,
        }
        return corrected(made, gain, offset), record


def generate(
    pipe: Pipeline,
    prompts: Mapping[str, str],
    references: Sequence[np.ndarray] = (),
    *,
    chunk: int,
    overlap: int | None = None,
    match: str = "gain",
    resume: str | os.PathLike | None = None,
    video: Video | np.ndarray | None = None,
    mask: Video | np.ndarray | None = None,
    size: tuple[int, int] | None = None,
    frames: int | None = None,
    guidance: Guidance,
    progress: Progress | None = None,
    steps: int | None = None,
    shift: float | None = None,
    solver: str = "unipc",
    sigmas_from: str = "official",
    seed: int = 2025,
    **hooks: Any,
) -> Video:
    """`Pipeline.generate` with chunk=; see there. prompts: name -> text. hooks: edit_velocity, edit_combined.

    Raises ValueError, TypeError that name the argument; what `Store` and the stages raise.
    """
    if wrong := [name for name in hooks if name not in ("edit_velocity", "edit_combined")]:
        raise ValueError(f"{wrong[0]}: not for a video in chunks; see tasks.extend_after to join chunks of your own")
    size, frames = pipe.defaults.size if size is None else size, pipe.defaults.frames if frames is None else frames
    check_size(size, frames)
    plan = spans(frames, chunk, overlap)
    seed = _arguments.integer("seed", seed, 0, 2**64 - 1)
    schedule = Schedule(
        pipe.defaults.steps if steps is None else steps, pipe.defaults.shift if shift is None else shift, solver,
        sigmas_from,
    )  # fmt: skip
    guidance = guidance.resolve(schedule)
    about = {"chunk": chunk, "overlap": plan[-1].kept, "match": _arguments.choice("match", match, MATCHES)}
    told = manifest.describe(
        pipe, schedule=schedule, guidance=guidance, seed=seed, size=size, frames=frames, texts=prompts,
        inputs={"references": list(references), "video": video, "mask": mask, "noise": None}, stages=manifest.Stages(),
        hooks=hooks,
    )  # fmt: skip
    told["job"] |= about
    if video is not None:
        pixels, mask = resampled(video, mask)
        video = fit_video(pixels, size, frames)
        if mask is not None:
            mask = fit_mask(mask, size, frames, like=pixels.shape[:3])
    elif mask is not None:
        raise ValueError("mask: it needs a source video that it is the mask of")
    job = Job(pipe, prompts, list(references), video, mask, size, guidance, schedule, seed, match, hooks, progress)
    store = None if resume is None else Store(resume, {"frames": frames, **about, **job.described()})

    out = np.empty((frames, size[1], size[0], 3), np.uint8)
    records = []
    for span in plan:
        found = store.load(span.index, (span.frames, *out.shape[1:])) if store else None
        if found is None:
            found = job.make(span, out[span.start : span.seam], f"chunk {span.index + 1} of {len(plan)}: ")
            if store:
                store.save(span.index, *found)
        end = min(span.start + span.frames, frames)
        out[span.seam : end] = found[0][span.kept : end - span.start]
        records.append(found[1])
    result = Video(out)
    told["chunks"] = records
    told["seams"] = seams.measure(out, [span.seam for span in plan[1:]]).to_dict() if len(plan) > 1 else None
    told["stages"] = [dict(s, chunk=r["index"]) for r in records for s in r["stages"]]
    result.manifest = told
    return result

"""What VACE can be asked for: each function makes the inputs of one task from plain pictures and video.

>>> from ipvg import tasks
>>> job = tasks.first_frame(picture, size=(832, 480), frames=81)
>>> pipe.generate("The woman turns to the camera and smiles.", **job)     # or pipe.encode_source(**job)

A job is a dict of keyword arguments for `Pipeline.encode_source` and `generate`: references, video, mask, size, frames.
Nothing is hidden in it: look at job["video"], change job["mask"], add job["references"].

**The mask: white is generated, black is kept.** Keep the left half, make the right half anew:

    mask        #####.....          # black, 0    the video's own pixels stay
                #####.....          . white, 1    made from the prompt; the video there is grey by default
                #####.....

Sizes are (width, height), multiples of 16, any orientation; frames are 4n + 1. A Video comes at 16 frames a second,
its mask with it (an array counts as 16 a second). Video and mask go through one resize:
scaled to cover, the middle kept (`prepare.fit_video`). The model sees mask and frames in cells of 8 x 8 pixels and 4
frames; borders on these are cleanest. What is kept comes back close, not equal: all frames pass the VAE. The grey and
the order of frames are those of the official preparation scripts.

Video means an `ipvg.Video` or uint8 (F, H, W, 3); a picture is uint8 (H, W, 3). TypeError and ValueError name the
argument.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from . import _arguments
from .prepare import fit_mask, fit_video, mask_frames, resampled, source_size
from .source import check_size

GREY = 127  #: of frames and regions that are to be made, where there is nothing to show

Size = tuple[int, int]
Pictures = Sequence[np.ndarray]
Job = dict[str, Any]


def text(*, size: Size, frames: int) -> Job:
    """A sentence alone becomes a video.

    >>> pipe.generate("Rain on a window.", **tasks.text(size=(832, 480), frames=81), guidance=guidance.cfg())
    """
    return _job((), None, None, size, frames)


def image(references: Pictures = (), *, size: Size) -> Job:
    """One picture: a video of one frame.

    >>> pipe.generate("A portrait of the woman in a garden.", **tasks.image([photo], size=(480, 832))).frames[0]
    """
    return _job(references, None, None, size, 1)


def references(pictures: Pictures, *, size: Size, frames: int) -> Job:
    """Pictures of who or what the video shows, in the official order: people first, things and places after them.

    >>> pipe.generate("She waters the plant.", **tasks.references([woman, plant], size=(832, 480), frames=81))
    """
    if len(pictures) == 0:
        raise ValueError("pictures: expected at least one; without any the task is text()")
    return _job(pictures, None, None, size, frames)


def control(video, *, size: Size | None = None, frames: int | None = None, references: Pictures = ()) -> Job:
    """A video of depth, pose, edges, grey or flow frames steers; everything is generated.

    size, frames: None = what the official code gives such a source (`prepare.source_size`).

    >>> pipe.generate("The woman dances on a roof.", **tasks.control(poses, references=[photo]))
    """
    pixels, _ = resampled(video)
    size, frames = _target(pixels, size, frames)
    return _job(references, fit_video(pixels, size, frames), None, size, frames)


def inpaint(
    video,
    mask,
    *,
    size: Size | None = None,
    frames: int | None = None,
    references: Pictures = (),
    fill: int | None = GREY,
    soft: bool = False,
) -> Job:
    """The white region of a video is made anew, the rest kept.

    mask: as `Pipeline.encode_source` takes it; one frame stands for all.
    fill: the region's grey level in the source, as in the official scripts; None leaves its pixels, so that what is
        there steers what becomes of it.
    soft: keep the mask's greys, as the official reader does; else it is cut at one half.

    >>> pipe.generate("A woman in a red coat.", **tasks.inpaint(clip, coat_mask, references=[photo]))
    """
    pixels, mask = resampled(video, mask)
    size, frames = _target(pixels, size, frames)
    weights = mask_frames(fit_mask(mask, size, frames, like=pixels.shape[:3]), frames, size)
    fitted = fit_video(pixels, size, frames)
    if fill is not None:
        fitted = np.where((weights > 0.5)[..., None], np.uint8(_arguments.integer("fill", fill, 0, 255)), fitted)
    return _job(references, fitted, weights if soft else _binary(weights), size, frames)


def outpaint(
    video,
    *,
    left: float = 0.0,
    right: float = 0.0,
    top: float = 0.0,
    bottom: float = 0.0,
    size: Size | None = None,
    frames: int | None = None,
    references: Pictures = (),
) -> Job:
    """A video gets more room: the new borders are made, the middle kept.

    left, right, top, bottom: new width or height as a share of the video's own, 0 to 4; not all 0. The padded
    video goes through the usual fit: a `size` of another shape crops it; None keeps its shape, to multiples of 16.
    Raises ValueError where that leaves nothing to make, as a `size` of the unpadded video's shape does.

    >>> pipe.generate("A woman in a wide street.", **tasks.outpaint(portrait, left=1, right=1, size=(832, 480)))
    """
    pixels, _ = resampled(video)
    sides = {"left": left, "right": right, "top": top, "bottom": bottom}
    shares = {name: _arguments.number(name, share, 0, 4) for name, share in sides.items()}
    h, w = pixels.shape[1:3]
    px = {name: round(share * (w if name in ("left", "right") else h)) for name, share in shares.items()}
    if not any(px.values()):
        raise ValueError("left, right, top, bottom: at least one must add a pixel")
    pads = ((0, 0), (px["top"], px["bottom"]), (px["left"], px["right"]))
    padded = np.pad(pixels, (*pads, (0, 0)), constant_values=GREY)
    mask = np.pad(np.zeros((1, h, w), np.float32), pads, constant_values=1)
    own, _ = source_size(*padded.shape[:3])
    given, (size, frames) = size, _target(padded, size, frames)
    weights = _binary(mask_frames(fit_mask(mask, size, frames), frames, size))
    if not weights.any() and given is None:
        raise ValueError(f"{', '.join(name for name in px if px[name])}: cropped away by the fit to {own[0]}x{own[1]}, "
                         "so that nothing is left to make; ask for more")  # fmt: skip
    if not weights.any():
        raise ValueError(f"size: {size[0]}x{size[1]} crops the new borders away, so that nothing is left to make; the "
                         f"padded video has the shape of {own[0]}x{own[1]} (None)")  # fmt: skip
    return _job(references, fit_video(padded, size, frames), weights, size, frames)


def first_frame(picture, *, size: Size, frames: int, references: Pictures = ()) -> Job:
    """The video begins with the picture.

    >>> pipe.generate("The woman turns and smiles.", **tasks.first_frame(photo, size=(832, 480), frames=81))
    """
    return _between(_picture("picture", picture, size), None, size, frames, references)


def last_frame(picture, *, size: Size, frames: int, references: Pictures = ()) -> Job:
    """The video ends with the picture.

    >>> pipe.generate("The woman sits down.", **tasks.last_frame(photo, size=(832, 480), frames=81))
    """
    return _between(None, _picture("picture", picture, size), size, frames, references)


def first_last(first, last, *, size: Size, frames: int, references: Pictures = ()) -> Job:
    """The video begins with one picture and ends with another.

    >>> pipe.generate("The day goes by.", **tasks.first_last(morning, evening, size=(832, 480), frames=81))
    """
    return _between(_picture("first", first, size), _picture("last", last, size), size, frames, references)


def extend_after(video, *, size: Size, frames: int, keep: int | None = None, references: Pictures = ()) -> Job:
    """A clip goes on: the result begins with the clip's last `keep` frames (None: all), and frames - keep are new.

    To join: the clip at 16 frames a second (`Video.resampled`), without its last `keep` frames, then the result.

    >>> more = pipe.generate("She walks on.", **tasks.extend_after(clip, size=(832, 480), frames=81, keep=17))
    >>> Video(np.concatenate([clip.resampled().frames[:-17], more.frames]))
    """
    return _between(_kept(video, size, frames, keep, last=True), None, size, frames, references)


def extend_before(video, *, size: Size, frames: int, keep: int | None = None, references: Pictures = ()) -> Job:
    """What came before a clip: the result ends with the clip's first `keep` frames (None: all).

    >>> before = pipe.generate("She enters.", **tasks.extend_before(clip, size=(832, 480), frames=81, keep=17))
    """
    return _between(None, _kept(video, size, frames, keep, last=False), size, frames, references)


#: Name -> function; the command line's --task.
TASKS = {
    f.__name__.replace("_", "-"): f
    for f in (
        text, image, references, control, inpaint, outpaint, first_frame, last_frame, first_last, extend_after,
        extend_before,
    )
}  # fmt: skip


# ---- parts ----


def _job(references: Pictures, video, mask, size: Size, frames: int) -> Job:
    check_size(size, frames)
    return {
        "references": list(_arguments.instance("references", references, Sequence, "a list of pictures")),
        "video": video,
        "mask": mask,
        "size": (int(size[0]), int(size[1])),
        "frames": int(frames),
    }


def _between(first, last, size: Size, frames: int, references: Pictures) -> Job:
    """Frames kept at either end, uint8 (n, H, W, 3) of the target's size; between them grey, to be made."""
    check_size(size, frames)
    video = np.full((frames, size[1], size[0], 3), GREY, np.uint8)
    mask = np.ones((frames, size[1], size[0]), np.float32)
    count = sum(len(kept) for kept in (first, last) if kept is not None)
    if count >= frames:
        raise ValueError(f"frames: {count} of {frames} are kept, so none is left to make")
    if first is not None:
        video[: len(first)], mask[: len(first)] = first, 0
    if last is not None:
        video[-len(last) :], mask[-len(last) :] = last, 0
    return _job(references, video, mask, size, frames)


def _picture(name: str, picture, size: Size) -> np.ndarray:
    """A picture as the one frame (1, H, W, 3) of a video, fitted like one."""
    picture = np.asarray(picture)
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[-1] != 3:
        raise TypeError(f"{name}: expected a picture, uint8 (H, W, 3), got {_arguments.short(picture)}")
    return fit_video(picture[None], size, 1)


def _kept(video, size: Size, frames: int, keep: int | None, last: bool) -> np.ndarray:
    """The first or last frames of a clip at the target's size."""
    check_size(size, frames)
    pixels, _ = resampled(video)
    count = len(pixels) if keep is None else _arguments.integer("keep", keep, 1, min(len(pixels), frames - 1))
    return fit_video(pixels[-count:] if last else pixels[:count], size, count)


def _target(pixels: np.ndarray, size: Size | None, frames: int | None) -> tuple[Size, int]:
    if size is None or frames is None:
        near_size, near_frames = source_size(*pixels.shape[:3])
        size, frames = near_size if size is None else size, near_frames if frames is None else frames
    check_size(size, frames)
    return size, frames


def _binary(weights: np.ndarray) -> np.ndarray:
    return (weights > 0.5).astype(np.float32)

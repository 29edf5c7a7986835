"""From pictures to the VACE context: what the diffusion model is conditioned on besides text.

Sizes are (width, height). The heavy loops are in csrc/model/prepare.c. Everything follows the official code
(``WanVace.prepare_source``, ``vace_encode_frames``, ``vace_encode_masks`` and its video reader): golden stage
``context``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, MutableMapping, Sequence

import numpy as np

from . import _arguments, _core
from .source import check_size
from .video import Video, to_float

#: float32 (3, T, H, W) in [-1, 1] -> float32 (16, (T + 3) // 4, H / 8, W / 8), normalised: the VAE's encoder.
Encode = Callable[[np.ndarray], np.ndarray]
ZEROS = 4  # encodings of zeros that a cache keeps: 8 MB each at 832x480, 81 frames


def fit_reference(image: np.ndarray, size: tuple[int, int], *, antialias: bool = False) -> np.ndarray:
    """A picture scaled to fit, centred on a white canvas: float32 (3, H, W) in [-1, 1].

    image: uint8 (h, w, 3). Bilinear; the new size is truncated, so some sizes leave a white line of one pixel, as in
    the reference implementation. antialias: weigh every pixel when shrinking. The reference implementation does not: it
    samples a large photo at few points, which looks rough, and that is what the released results were made with.

    Raises TypeError (not uint8) and ValueError (shape; a picture too long and thin to fit).
    """
    _pixels("image", image, 3)
    width, height = _size(size)
    return _core.fit_reference(np.ascontiguousarray(image), height, width, antialias)


def fit_video(frames: np.ndarray, size: tuple[int, int], count: int | None = None) -> np.ndarray:
    """Frames scaled to cover a size, the middle kept: uint8 (count, H, W, 3). For a source video and for its mask.

    frames: uint8 (F, h, w, 3). Bicubic with antialias in fixed point, bit-equal to the reference implementation.
    count: frames wanted, taken at even distances (`frame_ids`); None: F if that is 4n + 1, else the next 4n + 1 below.
    """
    _pixels("frames", frames, 4)
    width, height = _size(size)
    total = len(frames)
    if count is not None:
        _arguments.integer("count", count, 1, 1 << 16)
    ids = frame_ids(total, (total - 1) // 4 * 4 + 1 if count is None else count)
    if ids != list(range(total)):
        frames = frames[ids]
    return _core.cover_frames(np.ascontiguousarray(frames), height, width)


def resampled(video, mask=None) -> tuple[np.ndarray, np.ndarray | None]:
    """(frames, mask) at the model's 16 frames a second, by one rule: frame i is the one shown at i / 16 seconds.

    video: a Video, whose rate decides, or an array, which counts as 16 a second. mask: Video, array or None. One of as
    many frames as the video goes with it frame by frame, whatever rate it has itself; another stays as it is.
    Raises TypeError and ValueError for a video that is none.
    """
    ids = video.shown_at() if isinstance(video, Video) else None
    frames, mask = (x.frames if isinstance(x, Video) else x for x in (video, mask))
    frames = np.asarray(frames)
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or 0 in frames.shape:
        kind = ValueError if frames.dtype == np.uint8 else TypeError
        got = _arguments.short(video)
        raise kind(f"video: expected a Video or uint8 (F, H, W, 3), got {got}; read_video opens a file")
    if mask is None or ids is None:
        return (frames if ids is None else frames[ids]), mask
    mask = np.asarray(mask)
    return frames[ids], mask[ids] if mask.ndim > 2 and len(mask) == len(frames) else mask


def frame_ids(total: int, count: int) -> list[int]:
    """Which of `total` frames a video of `count` shows: at evenly spaced times from 0 to the middle of the last frame.

    Frame i lasts from i to i + 1; a time on the border belongs to the earlier one. For a constant rate; in integers.
    """
    if total < 1 or count < 1:
        raise ValueError(f"frames: expected at least 1, got {total} to choose {count} from")
    if count == 1:
        return [0]
    # Time k is k (total - 1/2) / (count - 1); its frame is ceil(time) - 1.
    return [max(-(-k * (2 * total - 1) // (2 * (count - 1))) - 1, 0) for k in range(count)]


def source_size(
    frames: int, height: int, width: int, *, area: int = 832 * 480, tokens: int = 32760
) -> tuple[tuple[int, int], int]:
    """The (size, frames) that the official code gives a source video: its shape kept, within an area and a token count.

    area: of the output, in pixels. tokens: the longest sequence, one per 16 x 16 pixels and 4 frames: 32760 for 480p,
    75600 for 720p. Use it with `fit_video(video, *source_size(...))`. Raises ValueError for a video below 16 x 16.
    """
    if min(frames, height // 16, width // 16) < 1:
        raise ValueError(f"source video: at least 1 frame of 16 x 16 is needed, got {frames} of {width} x {height}")
    patches = min(tokens, area / 256, (height // 16) * (width // 16))
    latents = min((frames - 1) // 4 + 1, int(tokens / patches))
    patches = min(patches, tokens // latents)
    rows = round(math.sqrt(patches * (height / width)))
    return (int(patches / rows) * 16, rows * 16), (latents - 1) * 4 + 1


def fit_mask(
    mask: np.ndarray, size: tuple[int, int], count: int, like: tuple[int, int, int] | None = None
) -> np.ndarray:
    """A mask fitted as `fit_video` fits its video, by the same rule and the same frames: what `mask_frames` takes.

    mask: (F, h, w) floating point or bool in [0, 1], uint8 (F, h, w) or (F, h, w, 3), whose first channel counts; one
        frame, or (h, w), stands for all. White generates, black keeps. Of the target's size: its values stay as they
        are. Of another: resized as bytes, hence grey at its edges, as in the reference implementation.
    like: (F, h, w) of its video, to refuse a mask that would not lie on it. Raises TypeError, ValueError.
    """
    mask = np.asarray(mask)
    if mask.ndim == 4 and mask.shape[3] == 3:
        mask = mask[..., 0]
    if mask.ndim == 2:
        mask = mask[None]
    if mask.ndim != 3 or 0 in mask.shape:
        raise ValueError(f"mask: expected shape (F, H, W), (H, W) or uint8 (F, H, W, 3), got {mask.shape}")
    width, height = _size(size)
    if mask.shape == (count, height, width):
        return mask
    total, h, w = mask.shape
    if like is not None and total not in (1, like[0]):
        raise ValueError(f"mask: it has {total} frames and its video {like[0]}; as many, or one for all, are needed")
    ids = [0] * count if total == 1 else frame_ids(total, count)
    if (h, w) == (height, width):
        return mask[ids]
    apart = 0 if like is None else abs(w * like[1] - like[2] * h) / max(like[1], like[2])
    if like is not None and (apart > 1 or (h == like[1]) != (w == like[2])):  # half as large may be a pixel off
        raise ValueError(
            f"mask: {w}x{h} has not the shape of its video's {like[2]}x{like[1]}: cut to {width}x{height} it would not "
            "lie on it"
        )
    grey = np.rint(mask_frames(mask, total, (w, h)) * np.float32(255)).astype(np.uint8)
    return _core.cover_frames(np.repeat(grey[ids][..., None], 3, axis=3), height, width)[..., 0]


def mask_frames(mask: np.ndarray, frames: int, size: tuple[int, int]) -> np.ndarray:
    """A mask as float32 (F, H, W), 0 = keep, 1 = generate, grey values as they are.

    mask: floating point or bool (F, H, W) in [0, 1], or uint8 (F, H, W) or (F, H, W, 3), whose first channel counts.
    Raises TypeError (dtype) and ValueError (shape, range, NaN).
    """
    width, height = size
    mask = np.asarray(mask)
    if mask.ndim == 4 and mask.shape[3] == 3 and mask.dtype == np.uint8:
        mask = mask[..., 0]
    if mask.shape != (frames, height, width):
        raise ValueError(f"mask: expected shape {(frames, height, width)}, got {mask.shape}")
    if mask.dtype == np.uint8:
        x = mask.astype(np.float32) / np.float32(127.5) - np.float32(1)  # the way round that the reference goes
        return np.clip((x + np.float32(1)) / np.float32(2), 0, 1)
    if mask.dtype.kind not in "fb":
        raise TypeError(f"mask: expected floating point, bool or uint8, got {mask.dtype}")
    mask = mask.astype(np.float32)
    if not ((mask >= 0) & (mask <= 1)).all():  # false for NaN
        raise ValueError("mask: expected values from 0 (keep) to 1 (generate)")
    return mask


def fold_mask(mask: np.ndarray) -> np.ndarray:
    """(F, H, W) float32 -> (64, (F + 3) // 4, H / 8, W / 8): channel 8 (y % 8) + x % 8, the values as they are.

    In time nearest-exact: latent frame i shows mask frame floor((i + 1/2) F / F'), so frame 0's mask is never looked at
    unless it is the only one.
    """
    if mask.ndim != 3 or mask.shape[0] < 1 or mask.shape[1] % 8 or mask.shape[2] % 8:
        raise ValueError(f"mask: expected shape (F, H, W) with H and W multiples of 8, got {mask.shape}")
    total, height, width = mask.shape
    count = (total + 3) // 4
    picked = mask[[(2 * i + 1) * total // (2 * count) for i in range(count)]]
    cells = picked.reshape(count, height // 8, 8, width // 8, 8)
    return np.ascontiguousarray(cells.transpose(2, 4, 0, 1, 3)).reshape(64, count, height // 8, width // 8)


def split(frames: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(inactive, reactive) from frames (3, F, H, W) and a mask (F, H, W): each keeps its pixels and is 0 elsewhere.

    Reactive is where the mask is above 0.5.
    """
    generate = (mask > 0.5).astype(np.float32)
    return frames * (1 - generate), frames * generate


def vace_context(
    encode: Encode,
    *,
    size: tuple[int, int],
    frames: int,
    references: Sequence[np.ndarray] = (),
    video: np.ndarray | None = None,
    mask: np.ndarray | None = None,
    cache: MutableMapping | None = None,
) -> np.ndarray:
    """The VACE context: float32 (96, references + (frames + 3) // 4, H / 8, W / 8).

    Channels: 16 inactive latents, 16 reactive latents, 64 of the folded mask. In time: reference 0, 1, ..., video. A
    reference's slot holds its latents, zeros, zeros. `ipvg.Source.variant` derives what a branch without them sees.

    encode: the VAE's encoder. references: uint8 (h, w, 3), fitted here, or float (3, H, W) canvases in [-1, 1].
    video: uint8 (F, H, W, 3) or float (3, F, H, W) in [-1, 1], of this size and count (`fit_video`); None: exact zeros,
        not grey.
    mask: see `mask_frames`; None: all ones, everything is generated. It needs a video.
    cache: a dict of the caller's, one per VAE, for the encoding of all-zero frames: a constant per size and count. It
        keeps the 4 that were used last.

    Raises TypeError and ValueError for wrong dtypes, shapes, ranges and NaN; whatever `encode` raises.
    """
    check_size(size, frames)
    width, height = size
    if mask is not None and video is None:
        raise ValueError("mask: it needs a source video that it is the mask of")
    source = None if video is None else _video(video, frames, size)
    slots = [_reference(image, size, i) for i, image in enumerate(references)]
    weights = None if mask is None else mask_frames(mask, frames, size)

    latents = ((frames + 3) // 4, height // 8, width // 8)
    context = np.zeros((96, len(slots) + latents[0], *latents[1:]), np.float32)
    for i, canvas in enumerate(slots):  # encoded one by one: each is a one-frame video of its own
        context[:16, i] = _encoded(encode, canvas[:, None], (1, *latents[1:]))[:, 0]
    control = context[:, len(slots) :]
    cache = {} if cache is None else cache
    parts = (None, source) if weights is None else split(source, weights)  # without a mask all is generated
    for channels, part in zip((control[:16], control[16:32]), parts, strict=True):
        empty = part is None or not part.any()
        channels[:] = _zeros(encode, frames, latents, cache) if empty else _encoded(encode, part, latents)
    control[32:] = 1 if weights is None else fold_mask(weights)
    return context


def _encoded(encode: Encode, pixels: np.ndarray, latents: tuple[int, int, int]) -> np.ndarray:
    out = np.asarray(encode(pixels), np.float32)
    if out.shape != (16, *latents):
        raise ValueError(f"encode: expected {(16, *latents)} for frames of {pixels.shape}, got {out.shape}")
    return out


def _zeros(encode: Encode, frames: int, latents: tuple[int, int, int], cache: MutableMapping) -> np.ndarray:
    out = cache.pop(latents, None)
    if out is None:
        out = _encoded(encode, np.zeros((3, frames, latents[1] * 8, latents[2] * 8), np.float32), latents)
    cache[latents] = out  # the newest comes last
    while len(cache) > ZEROS:
        cache.pop(next(iter(cache)), None)  # another thread may have been first
    return out


def _reference(image: np.ndarray, size: tuple[int, int], i: int) -> np.ndarray:
    given, image = image, np.asarray(image)
    if image.dtype == np.uint8 and image.ndim == 3 and image.shape[-1] == 3 and image.size:
        return fit_reference(image, size)
    if image.dtype.kind != "f":
        kind = ValueError if image.dtype == np.uint8 else TypeError
        got = _arguments.short(given)
        raise kind(f"references[{i}]: expected a picture, uint8 (H, W, 3), got {got}; read_image opens a file")
    return _unit_range(f"references[{i}]", image, (3, size[1], size[0]))


def _video(video: np.ndarray, frames: int, size: tuple[int, int]) -> np.ndarray:
    video = np.asarray(video)
    width, height = size
    if video.dtype != np.uint8:
        return _unit_range("video", video, (3, frames, height, width))
    if video.shape != (frames, height, width, 3):
        raise ValueError(f"video: expected shape {(frames, height, width, 3)}, got {video.shape}: use fit_video")
    return to_float(video)


def _unit_range(what: str, array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    if array.dtype.kind != "f":
        raise TypeError(f"{what}: expected uint8 or floating point, got {array.dtype}")
    if array.shape != shape:
        raise ValueError(f"{what}: expected shape {shape}, got {array.shape}")
    array = array.astype(np.float32)
    if not (np.abs(array) <= 1.001).all():  # false for NaN; a resize may overshoot by its rounding
        raise ValueError(f"{what}: expected values in [-1, 1]")
    return array


def _pixels(what: str, array: np.ndarray, ndim: int) -> None:
    if not isinstance(array, np.ndarray) or array.dtype != np.uint8:
        raise TypeError(f"{what}: expected a uint8 array, got {getattr(array, 'dtype', type(array).__name__)}")
    if array.ndim != ndim or array.shape[-1] != 3 or 0 in array.shape:
        expected = "(H, W, 3)" if ndim == 3 else "(F, H, W, 3)"
        raise ValueError(f"{what}: expected shape {expected}, got {array.shape}")


def _size(size: tuple[int, int]) -> tuple[int, int]:
    try:
        width, height = size
    except (TypeError, ValueError):
        raise TypeError(f"size: expected (width, height), got {size!r}") from None
    return _arguments.integer("width of size", width, 1, 1 << 16), _arguments.integer(
        "height of size", height, 1, 1 << 16
    )

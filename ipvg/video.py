"""Pictures and video: from files to NumPy and back. Needs the optional extension module ``ipvg._media`` (FFmpeg).

Pixels are uint8 RGB everywhere: a picture is (H, W, 3), a video (F, H, W, 3). A size is (width, height).
"""

from __future__ import annotations

import base64
import errno
import html
import os
import shutil
import tempfile
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from . import _arguments

FPS = 16.0  #: frames a second of Wan2.1's video
CRF = 10  #: x264's quality of a saved video: what imageio's "quality 8" of the official scripts means

#: x264's, from fast to small.
PRESETS = (
    "ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower", "veryslow", "placebo",
)  # fmt: skip

ENDINGS = (".mp4", ".webm", ".mkv", ".gif", ".png")  #: of the names that a video is saved under

_MAX_BYTES = 4 << 30


def _media():
    """The extension module, imported at its first use: loading FFmpeg's libraries takes a moment."""
    try:
        from . import _media as module
    except ImportError as error:
        from ._core import UnsupportedError

        raise UnsupportedError(
            f"pictures and video need FFmpeg's libraries, and ipvg._media cannot be loaded ({error}). On Debian and "
            "Ubuntu: apt-get install pkg-config libavfilter-dev libavformat-dev libavcodec-dev libavutil-dev "
            "libswscale-dev, then install ipvg again from its source. NumPy arrays work without."
        ) from error
    return module


def _source(what: str, source) -> tuple[bytes | None, object]:
    """(path, None) or (None, bytes) for _media."""
    if isinstance(source, (bytes, bytearray, memoryview)):
        return None, source
    if isinstance(source, (str, os.PathLike)):
        return os.fsencode(source), None
    raise TypeError(f"{what}: expected a path, bytes or an array, got {type(source).__name__}")


def read_image(source, *, alpha: str = "drop") -> np.ndarray:
    """A picture as uint8 (H, W, 3).

    source: a path, a file's bytes, or an array (also a PIL image): uint8 (H, W, 3) or, with alpha, (H, W, 4).
        PNG, JPEG, WebP, GIF, BMP, TIFF and AVIF; the content decides, not the name. The EXIF orientation of JPEG and
        WebP is applied; that of other formats is not known to FFmpeg before version 8.
    alpha: "drop" keeps the colour stored under transparent pixels, as PIL's convert("RGB") and with it the official
        code does; "white" blends onto white, the colour of the canvas that references are fitted on.

    Raises OSError (the file cannot be read), ipvg.FormatError (not a picture, damaged or cut short; a video),
    TypeError and ValueError (a wrong array), ipvg.UnsupportedError (no FFmpeg, or no decoder in it).
    """
    if alpha not in ("drop", "white"):
        raise ValueError(f"alpha: expected 'drop' or 'white', got {alpha!r}")
    if hasattr(source, "__array__") or hasattr(source, "__array_interface__"):
        return _image_from_array(np.asarray(source), alpha)
    path, data = _source("read_image", source)
    rgb, height, width = _media().read_image(path, data, alpha == "white")
    return np.frombuffer(rgb, np.uint8).reshape(height, width, 3)


def _image_from_array(array: np.ndarray, alpha: str) -> np.ndarray:
    if array.dtype != np.uint8:
        raise TypeError(f"image: expected uint8 values 0 to 255, got {array.dtype}")
    if array.ndim != 3 or array.shape[2] not in (3, 4) or 0 in array.shape:
        raise ValueError(f"image: expected shape (H, W, 3) or (H, W, 4), got {array.shape}")
    if array.shape[2] == 3:
        return np.ascontiguousarray(array)
    rgb = array[..., :3]
    if alpha == "drop":
        return np.ascontiguousarray(rgb)
    a = array[..., 3:].astype(np.int32)
    return ((rgb * a + 255 * (255 - a) + 127) // 255).astype(np.uint8)


def read_video(
    source, *, start: int = 0, frames: int | None = None, fps: float | None = None, alpha: str = "drop"
) -> Video:
    """The frames of a video and its frame rate.

    source: a path or a file's bytes: mp4, mov, mkv, webm, avi, MPEG-TS and -PS, flv, y4m, GIF, APNG; H.264, HEVC, AV1,
        VP8, VP9, MPEG-1, -2 and -4, H.263, MJPEG, ProRes, DNxHD, QuickTime Animation, FFV1, HuffYUV, PNG, raw. The
        content decides, not the name. A rotation tag is applied.
    start, frames: skip that many stored frames, then read at most so many (None: to the end).
    fps: what rate the frames have, whatever the file says: they come as they are stored. None: the file's rate. Where
        its frames are not evenly spaced in time, they come evenly: each is repeated or left out so that the picture at
        i / fps seconds is the one that a player shows then.
    alpha: as in `read_image`.

    Colours follow the file's tags; an untagged video counts as bt601, as in FFmpeg. Pixels count as square, fields stay
    woven, HDR is not mapped to a smaller range. Raises what `read_image` does, and MemoryError beyond 4 GiB of pixels.
    """
    _arguments.choice("alpha", alpha, ("drop", "white"))
    path, data = _source("read_video", source)
    name = os.fsdecode(path) if path is not None else "the bytes given"
    start = _arguments.integer("start", start, 0, 2**31)
    frames = None if frames is None else _arguments.integer("frames", frames, 1, 2**31)
    reader = _media().Reader(path, data, alpha == "white")
    times = []
    try:
        height, width, num, den, grid_num, grid_den, announced = reader.info
        room = max(announced - start, 1)  # a hint: some containers announce nothing
        limit = max(_MAX_BYTES // (height * width * 3), 1)
        out = np.empty((min(room, limit, frames or limit), height, width, 3), np.uint8)
        for _ in range(start):
            if not reader.next(None):
                raise ValueError(f"{name}: start is {start}, but it has fewer frames")
        count = 0
        while frames is None or count < frames:
            if count == len(out) < limit:
                out = np.concatenate([out, np.empty_like(out[: limit - count])])
            if not reader.next(out[count] if count < len(out) else None):
                break
            count += 1
            times.append(reader.time)
            if count > limit:
                raise MemoryError(f"{name}: more than {_MAX_BYTES >> 30} GiB of pixels; read a part: start=, frames=")
    finally:
        reader.close()
    if count == 0:
        raise ValueError(f"{name}: start is {start}, and it has no more frames than that")
    if fps is None and num == 0:
        raise ValueError(f"{name}: the file does not say its frame rate; pass fps=")
    out = out if count == len(out) else out[:count].copy()
    if fps is not None:
        return Video(out, fps)
    rate, shown = _evenly(np.array(times), num / den, grid_num / grid_den)
    if shown is not None:
        if len(shown) > limit:
            raise MemoryError(f"{name}: more than {_MAX_BYTES >> 30} GiB of pixels at even times; pass fps=")
        out = out[shown]
    return Video(out, rate)


def _evenly(times: np.ndarray, average: float, grid: float) -> tuple[float, np.ndarray | None]:
    """(rate, which stored frame each frame at that rate shows); None: they are evenly spaced as they are.

    times: seconds, of each stored frame. The rate is the grid that all times lie on, such as that of a steady camera
    which lost frames, unless it is much finer than the average."""
    times = times - times[0]
    even = np.arange(len(times)) / average
    # Half a frame: a container's clock may be as coarse as that of a GIF or of FLV, whose tick is a millisecond.
    if not np.isfinite(times).all() or (np.diff(times) < 0).any() or np.abs(times - even).max() < 0.5 / average:
        return average, None
    rate = grid if average < grid <= 2 * average else average
    last = times[-1] + 1 / rate
    at = np.arange(max(round(last * rate), 1)) / rate
    return rate, np.searchsorted(times, at + 0.25 / rate, side="right") - 1


class Video:
    """Frames and their rate; shows itself in a notebook.

    frames: uint8 (F, H, W, 3), RGB, taken as it is when contiguous. fps: frames a second.
    manifest: what made it (manifest.py); None for a video that was read or put together.
    ``len(video)``, ``video[3]`` (a frame), ``video[10:20]`` (a Video), ``for frame in video`` and ``np.asarray(video)``
    work.

    Raises TypeError (not uint8) and ValueError (shape, no frames, rate).
    """

    def __init__(self, frames, fps: float = FPS):
        frames = np.asarray(frames)
        if frames.dtype != np.uint8:
            raise TypeError(f"frames: expected uint8, got {frames.dtype}; Video.from_float takes values in [-1, 1]")
        if frames.ndim != 4 or frames.shape[3] != 3 or 0 in frames.shape:
            raise ValueError(f"frames: expected shape (F, H, W, 3) with F, H, W >= 1, got {frames.shape}")
        if not _arguments.number("fps", fps, 0, 1000):
            raise ValueError("fps: expected more than 0")
        self.frames = np.ascontiguousarray(frames)
        self.fps = float(fps)
        self.manifest: dict[str, Any] | None = None

    @classmethod
    def from_float(cls, frames, fps: float = FPS) -> Video:
        """From what the VAE decodes: float (3, F, H, W), nominally in [-1, 1]; overshoot is clipped.

        uint8 = rint((clip(x, -1, 1) + 1) * 127.5) in float32, ties to even. (The official scripts truncate.)
        Raises TypeError (not floating point) and ValueError (shape, NaN or infinity).
        """
        frames = np.asarray(frames)
        if frames.dtype.kind != "f":
            raise TypeError(f"frames: expected floating point, got {frames.dtype}")
        if frames.ndim != 4 or frames.shape[0] != 3 or 0 in frames.shape:
            raise ValueError(f"frames: expected shape (3, F, H, W) with F, H, W >= 1, got {frames.shape}")
        out = np.empty((*frames.shape[1:], 3), np.uint8)
        for f in range(len(out)):  # one at a time: a float copy of the whole video is large
            x = np.asarray(frames[:, f], np.float32)
            if not np.isfinite(x).all():
                raise ValueError(f"frames: NaN or infinity in frame {f}")
            x = np.clip(x, -1, 1)
            x += 1
            x *= np.float32(127.5)
            out[f] = np.rint(x, out=x).transpose(1, 2, 0)
        return cls(out, fps)

    def to_float(self) -> np.ndarray:
        """float32 (3, F, H, W): u8 / 127.5 - 1, what the VAE encodes."""
        return to_float(self.frames)

    @property
    def size(self) -> tuple[int, int]:
        """(width, height)"""
        return self.frames.shape[2], self.frames.shape[1]

    @property
    def duration(self) -> float:
        """Seconds."""
        return len(self) / self.fps

    def resampled(self, fps: float = FPS) -> Video:
        """The same time at another rate: frame i is the one that a player shows at i / fps seconds."""
        ids = self.shown_at(fps)
        return self if ids is None else Video(self.frames[ids], fps)

    def shown_at(self, fps: float = FPS) -> list[int] | None:
        """The frames that `resampled` takes; None: all, since the rates are the same. In integers."""
        if not _arguments.number("fps", fps, 0, 1000):
            raise ValueError("fps: expected more than 0")
        ratio = Fraction(self.fps).limit_denominator(1001) / Fraction(float(fps)).limit_denominator(1001)
        return None if ratio == 1 else [int(i * ratio) for i in range(max(round(len(self) / ratio), 1))]

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index):
        return Video(self.frames[index], self.fps) if isinstance(index, slice) else self.frames[index]

    def __iter__(self) -> Iterator[np.ndarray]:
        return iter(self.frames)

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return np.array(self.frames, dtype=dtype, copy=copy)

    def __repr__(self) -> str:
        width, height = self.size
        return f"<ipvg.Video {len(self)} frames, {width} x {height}, {self.fps:g} fps, {self.duration:.2f} s>"

    def save(self, path, *, crf: int = CRF, preset: str = "medium") -> Path:
        """Writes the video; the name's ending chooses how. Returns its path.

        .mp4: H.264, yuv420p, tagged bt709 limited range, index at the front. .webm: VP9, else the same.
        .mkv: FFV1, RGB: lossless. .png: a folder of that name without the ending, 0001.png and so on, lossless; it must
        not exist or be empty. .gif: 255 colours chosen for the whole video, dithered; at most 50 frames a second, and
        a GIF counts time in 1/100 s: at 16 frames a second they last 0.06 or 0.07 s, the mean being right.
        crf: quality, 1 (best) to 51, of mp4 and webm. preset: x264's speed, "ultrafast" to "placebo".
        The file appears whole or not at all: any failure, and Ctrl-C, leaves what was there before. The same frames and
        settings give the same bytes with the same FFmpeg and x264.

        Raises ValueError (another ending, odd width or height in mp4 and webm, range), OSError (folder, permission,
        disk full), ipvg.UnsupportedError (FFmpeg missing, or without libx264).
        """
        path = Path(path)
        if path.suffix.lower() not in ENDINGS:
            better = path.with_suffix(".mp4").name
            raise ValueError(f"{path}: video is written as mp4, webm, mkv, gif or png; name it {better}")
        if path.suffix.lower() == ".png":
            return self._save_pictures(path.with_suffix(""))
        crf = _arguments.integer("crf", crf, 1, 51)
        _arguments.choice("preset", preset, PRESETS)
        rate = Fraction(self.fps).limit_denominator(1001)  # 23.976... is 24000 / 1001
        height, width = self.frames.shape[1:3]
        writer = _media().Writer(os.fsencode(path), height, width, rate.numerator, rate.denominator, crf, preset)
        try:
            for frame in self.frames:
                writer.write(frame)
            writer.finish()
        finally:
            writer.close()
        return path

    def _save_pictures(self, folder: Path) -> Path:
        """All or nothing: a new folder beside it, renamed at the end."""
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise FileExistsError(errno.EEXIST, "is there already, and not empty", str(folder))
        try:
            making = Path(tempfile.mkdtemp(prefix=f".{folder.name[:40]}.", dir=folder.parent))
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(folder)) from None
        try:
            for i, frame in enumerate(self.frames, start=1):
                write_png(making / f"{i:04}.png", frame)
            making.chmod(0o755)
            making.rename(folder)  # over an empty folder, not over a full one
        except BaseException:
            shutil.rmtree(making, ignore_errors=True)
            raise
        return folder

    def to_bytes(self, kind: str = "mp4", **options) -> bytes:
        """A file's bytes instead of a file: "mp4", "webm", "mkv" or "gif". options and errors: `save`."""
        _arguments.choice("kind", kind, ("mp4", "webm", "mkv", "gif"))
        with tempfile.TemporaryDirectory() as folder:
            return self.save(Path(folder, f"video.{kind}"), **options).read_bytes()

    def save_contact_sheet(self, path, **options) -> Path:
        """Writes `contact_sheet(**options)` as PNG. Returns its path. Raises what `save` does."""
        path = Path(path)
        if path.suffix.lower() != ".png":
            raise ValueError(f"{path}: a contact sheet is written as PNG; name it {path.with_suffix('.png').name}")
        return write_png(path, self.contact_sheet(**options))

    def contact_sheet(self, *, columns: int = 4, count: int = 8, gap: int = 4) -> np.ndarray:
        """uint8 (H', W', 3): `count` frames (or all, if fewer), evenly spaced from first to last, row by row on white.

        columns: tiles in a row. gap: white pixels around each tile.
        """
        columns = _arguments.integer("columns", columns, 1, 10_000)
        count = _arguments.integer("count", count, 1, 10_000)
        gap = _arguments.integer("gap", gap, 0, 1000)
        count = min(count, len(self))
        columns = min(columns, count)
        rows = -(-count // columns)
        height, width = self.frames.shape[1:3]
        sheet = np.full((rows * (height + gap) + gap, columns * (width + gap) + gap, 3), 255, np.uint8)
        for tile, f in enumerate(np.linspace(0, len(self) - 1, count).round().astype(int)):
            y, x = gap + (tile // columns) * (height + gap), gap + (tile % columns) * (width + gap)
            sheet[y : y + height, x : x + width] = self.frames[f]
        return sheet

    def _repr_html_(self) -> str:
        width, height = self.size
        try:
            # H.264 takes even sizes; what is shown may have its last column and row twice.
            even = np.pad(self.frames, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), "edge")
            data = Video(even, self.fps).to_bytes("mp4", crf=18, preset="veryfast")
        except (RuntimeError, ValueError, OSError) as error:  # a notebook shows the words instead of a traceback
            return f"<p>{html.escape(repr(self))}: {html.escape(str(error))}</p>"
        source = base64.b64encode(data).decode()
        return (
            f'<video controls loop muted width="{width}" height="{height}" style="max-width: 100%; height: auto" '
            f'title="{html.escape(repr(self))}" src="data:video/mp4;base64,{source}"></video>'
        )


def to_float(frames: np.ndarray) -> np.ndarray:
    """uint8 (F, H, W, 3) -> float32 (3, F, H, W): u8 / 127.5 - 1."""
    count, height, width, channels = frames.shape
    out = np.empty((channels, count, height, width), np.float32)
    for f in range(count):  # in place and one at a time: ten times faster than on whole videos
        x = out[:, f]
        x[...] = frames[f].transpose(2, 0, 1)
        x /= np.float32(127.5)
        x -= 1
    return out


def write_png(path, image) -> Path:
    """Writes uint8 (H, W, 3) as PNG, whole or not at all. Returns its path. Raises TypeError, ValueError, OSError."""
    image = _image_from_array(np.asarray(image), "drop")
    _media().write_png(os.fsencode(path), image, image.shape[0], image.shape[1])
    return Path(path)


def encode_jpeg(image, *, max_side: int = 1024, quality: int = 90) -> bytes:
    """uint8 (H, W, 3) as a JPEG file's bytes, scaled down where a side is longer than max_side (16 to 16384 pixels).

    quality: 1 to 100. Only pixels go in: no EXIF, hence no place or camera. Raises TypeError, ValueError,
    ipvg.UnsupportedError.
    """
    image = _image_from_array(np.asarray(image), "drop")
    max_side = _arguments.integer("max_side", max_side, 16, 16384)
    quality = _arguments.integer("quality", quality, 1, 100)
    return _media().encode_jpeg(image, image.shape[0], image.shape[1], max_side, quality)

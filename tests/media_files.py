"""Pictures and videos for tests: made here, by hand or by the ffmpeg command."""

import shutil
import struct
import subprocess
import zlib
from pathlib import Path

import numpy as np
import pytest

from ipvg.parity import recipe
from ipvg.video import Video

ROOT = Path(__file__).parent.parent
ASTRONAUT = ROOT / "models" / "examples" / "astronaut.png"
needs_ffmpeg = pytest.mark.skipif(
    not (shutil.which("ffmpeg") and shutil.which("ffprobe")), reason="needs the ffmpeg tools"
)


def clip(frames=9, height=48, width=64):
    return Video(recipe.pixels("media/clip", (frames, height, width, 3)))


def ffmpeg(*arguments, data=None):
    return subprocess.run(
        ["ffmpeg", "-v", "error", "-y", *map(str, arguments)], input=data, check=True, capture_output=True
    ).stdout


def png(array, colour_type, depth=8, *chunks):
    """A PNG file made by hand. array: (H, W, samples) of the depth's dtype."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    height, width = array.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2" if depth == 16 else "u1").tobytes() for row in array)
    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    body = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*c) for c in body)


def jfif_planes(rgb):
    """The planes of a 4:2:0 JPEG of a picture, as raw yuvj420p: colour is the mean of two by two pixels.

    Made here, since the ffmpeg command's own conversion stretches the colour of an odd size."""
    bt601 = np.array([[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]])
    y, u, v = np.moveaxis(rgb @ bt601.T, 2, 0)
    height, width = y.shape
    out = [y]
    for plane in (u, v):
        whole = np.pad(plane, ((0, height % 2), (0, width % 2)), "edge")
        out.append(whole.reshape(-(-height // 2), 2, -(-width // 2), 2).mean((1, 3)) + 128)
    return b"".join(np.rint(plane).clip(0, 255).astype(np.uint8).tobytes() for plane in out)

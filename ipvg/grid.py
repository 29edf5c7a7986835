"""Videos side by side, with labels: side_by_side([a, b], ["cfg", "tpige"]).save("compare.mp4").

The letters are drawn here (capitals, digits, a few marks, 5 x 7 pixels): no font file is needed.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from . import _arguments
from .video import Video

# A row of a letter is 5 bits, the left pixel the highest; rows from top to bottom.
_TABLE = """
A 0e11111f111111 B 1e11111e11111e C 0e11101010110e D 1e11111111111e E 1f10101e10101f F 1f10101e101010
G 0e11101713110e H 1111111f111111 I 0e04040404040e J 0702020202120c K 11121418141211 L 1010101010101f
M 111b1515111111 N 11191513111111 O 0e11111111110e P 1e11111e101010 Q 0e11111115120d R 1e11111e141211
S 0f10100e01011e T 1f040404040404 U 1111111111110e V 11111111110a04 W 11111115151b11 X 11110a040a1111
Y 11110a04040404 Z 1f01020408101f 0 0e11131519110e 1 040c040404040e 2 0e11010204081f 3 1f02040201110e
4 02060a121f0202 5 1f101e0101110e 6 0608101e11110e 7 1f010204080808 8 0e11110e11110e 9 0e11110f01020c
. 00000000000606 , 00000000060408 : 00060600060600 - 0000001f000000 _ 0000000000001f + 0004041f040400
= 00001f001f0000 * 00150e1f0e1500 / 01010204081010 ( 02040808080402 ) 08040202020408 % 18190204081303
' 04040800000000 ! 04040404000004 ? 0e110102040004 # 0a0a1f0a1f0a0a < 02040810080402 > 08040201020408
"""
_LETTERS = {
    mark: np.array([[row >> bit & 1 for bit in (4, 3, 2, 1, 0)] for row in bytes.fromhex(code)], bool)
    for mark, code in zip(_TABLE.split()[::2], _TABLE.split()[1::2], strict=True)
}
_UNKNOWN = np.ones((7, 5), bool)


def label(text: str, width: int, scale: int = 2, lines: int = 1) -> np.ndarray:
    """Text, black on white, wrapped to the width: uint8 (9 scale L, width, 3), L being `lines` or as many as it takes.

    Small letters become capitals; a mark that is not known is a block. scale: pixels of a dot."""
    scale = _arguments.integer("scale", scale, 1, 64)
    most = max((width // scale - 1) // 6, 1)  # marks in a line
    rows = _wrapped(_arguments.instance("text", text, str).upper(), most)
    dots = np.zeros((9 * max(len(rows), lines), 6 * most + 1), bool)
    for y, row in enumerate(rows):
        for x, mark in enumerate(row):
            if mark != " ":
                dots[9 * y + 1 : 9 * y + 8, 6 * x + 1 : 6 * x + 6] = _LETTERS.get(mark, _UNKNOWN)
    ink = dots.repeat(scale, 0).repeat(scale, 1)[:, :width]
    out = np.full((len(ink), width, 3), 255, np.uint8)
    out[:, : ink.shape[1]][ink] = 0
    return out


def _wrapped(text: str, most: int) -> list[str]:
    """Lines of at most so many marks, broken at spaces, and within a word that is longer."""
    lines = [""]
    for word in text.split():
        if lines[-1] and len(lines[-1]) + 1 + len(word) > most:
            lines.append("")
        lines[-1] += f" {word}" if lines[-1] else word
        while len(lines[-1]) > most:
            lines[-1:] = [lines[-1][:most], lines[-1][most:]]
    return lines


def side_by_side(
    videos: Sequence[Video], labels: Sequence[str] = (), *, columns: int | None = None, gap: int = 4
) -> Video:
    """One Video of several of the same size and rate, row by row on white, each with its label above it.

    labels: one each, or none; long ones are wrapped, and larger on large videos. columns: None = all in one row. gap:
    white pixels around each. A shorter video stays at its last frame. The result's width and height are even, as mp4
    needs. Raises TypeError, ValueError.
    """
    videos = list(videos)
    if not videos:
        raise ValueError("videos: expected at least one")
    for i, video in enumerate(videos):
        _arguments.instance(f"videos[{i}]", video, Video)
        if video.size != videos[0].size or video.fps != videos[0].fps:
            raise ValueError(
                f"videos[{i}]: {video.size} at {video.fps:g} fps; the first is {videos[0].size} at {videos[0].fps:g}"
            )
    if labels and len(labels) != len(videos):
        raise ValueError(f"labels: expected {len(videos)}, one for each video, got {len(labels)}")
    columns = len(videos) if columns is None else _arguments.integer("columns", columns, 1, 1000)
    gap = _arguments.integer("gap", gap, 0, 1000)
    columns = min(columns, len(videos))
    (width, height), count = videos[0].size, max(len(video) for video in videos)
    scale = min(max(width // 200, 1), 4)
    lines = max((len(label(text, width, scale)) // (9 * scale) for text in labels), default=0)
    titles = [label(text, width, scale, lines) for text in labels]
    head = 9 * scale * lines + scale if titles else 0  # a row of dots between the letters and the picture
    rows = -(-len(videos) // columns)
    out_height, out_width = rows * (head + height + gap) + gap, columns * (width + gap) + gap
    frames = np.full((count, out_height + out_height % 2, out_width + out_width % 2, 3), 255, np.uint8)
    for i, video in enumerate(videos):
        y, x = gap + i // columns * (head + height + gap), gap + i % columns * (width + gap)
        if titles:
            frames[:, y : y + len(titles[i]), x : x + width] = titles[i]
        tile = frames[:, y + head : y + head + height, x : x + width]
        tile[: len(video)], tile[len(video) :] = video.frames, video.frames[-1]
    return Video(frames, videos[0].fps)

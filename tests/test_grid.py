"""Side by side: every tile where it belongs, labels that read."""

import numpy as np
import pytest

from ipvg import grid
from ipvg.video import Video


def video(value, frames=2, size=(40, 30), fps=16):
    return Video(np.full((frames, size[1], size[0], 3), value, np.uint8), fps)


def test_tiles_lie_row_by_row_and_the_shorter_waits():
    a, b, c = video(10, 3), Video(np.stack([np.full((30, 40, 3), v, np.uint8) for v in (20, 21)])), video(30)
    made = grid.side_by_side([a, b, c], columns=2, gap=4)
    assert made.frames.shape == (3, 2 * 34 + 4, 2 * 44 + 4, 3)
    for f, expected in enumerate((20, 21, 21)):
        assert (made.frames[f, 4:34, 4:44] == 10).all() and (made.frames[f, 4:34, 48:88] == expected).all()
        assert (made.frames[f, 38:68, 4:44] == 30).all() and (made.frames[f, 38:68, 48:88] == 255).all()


def test_labels_lie_above_their_tiles():
    made = grid.side_by_side([video(9), video(8)], ["a", "b"], gap=0)
    assert made.frames.shape == (2, 10 + 30, 80, 3)
    assert np.array_equal(made.frames[1, :9, :40], grid.label("A", 40, 1))
    assert np.array_equal(made.frames[0, :9, 40:], grid.label("b", 40, 1)) and (made.frames[:, 10:, 40:] == 8).all()


def test_a_long_label_is_wrapped_and_all_pictures_stay_in_line():
    made = grid.side_by_side([video(9), video(8)], ["cfg", "tpige w=5 s=0.5"], gap=0)
    assert made.frames.shape == (2, 3 * 9 + 1 + 30, 80, 3), "TPIGE, W=5, S=0.5: six marks of 6 dots fit into 40"
    expected = [grid.label(text, 40, 1) for text in ("tpige", "w=5", "s=0.5")]
    assert np.array_equal(made.frames[0, :27, 40:], np.concatenate(expected))
    assert (made.frames[:, 28:, :40] == 9).all() and (made.frames[:, 28:, 40:] == 8).all()
    assert grid.label("incomprehensibilities", 100, 1).shape[0] == 18, "a word longer than a line is broken"
    wide = grid.side_by_side([video(1, size=(800, 30))], ["a"], gap=0)
    assert np.array_equal(wide.frames[0, :36], grid.label("a", 800, 4))


def test_a_letter_reads():
    rows = ["".join("#" if p else "." for p in row) for row in grid.label("T1", 13, scale=1)[..., 0] == 0]
    assert rows == [
        ".............",
        ".#####...#...",
        "...#....##...",
        "...#.....#...",
        "...#.....#...",
        "...#.....#...",
        "...#.....#...",
        "...#....###..",
        ".............",
    ]
    assert (grid.label("\N{SNOWMAN}", 7, scale=1)[1:8, 1:6] == 0).all()
    shapes = {mark: bits.tobytes() for mark, bits in grid._LETTERS.items()}
    assert len(set(shapes.values())) == len(shapes) >= 50, "no two letters look the same"


@pytest.mark.parametrize(
    ("error", "words", "arguments"),
    [
        (ValueError, "at least one", ([],)),
        (TypeError, r"videos\[1\]", ([video(1), 3],)),
        (ValueError, r"videos\[1\]", ([video(1), video(1, size=(20, 30))],)),
        (ValueError, r"videos\[1\]", ([video(1), video(1, fps=8)],)),
        (ValueError, "labels", ([video(1), video(1)], ["a"])),
    ],
)
def test_wrong_arguments_are_named(error, words, arguments):
    with pytest.raises(error, match=words):
        grid.side_by_side(*arguments)

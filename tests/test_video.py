"""Video through FFmpeg: what is read is what was written, colours included; the Video type."""

import os
import struct
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from media_files import ASTRONAUT, clip, ffmpeg, needs_ffmpeg

from ipvg import _core
from ipvg.video import Video, read_image, read_video

pytest.importorskip("ipvg._media", reason="built without FFmpeg")

# ---- writing video ----


def probe(path):
    fields = subprocess.run(
        ["ffprobe", "-v", "error", "-count_frames", "-show_streams", "-of", "default=noprint_wrappers=1", str(path)],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    return dict(line.split("=", 1) for line in fields.splitlines() if "=" in line)


@needs_ffmpeg
@pytest.mark.parametrize(
    ("frames", "fps", "rate"),
    [(1, 16, "16/1"), (2, 16, "16/1"), (81, 16, "16/1"), (10, 24000 / 1001, "24000/1001"), (7, 29.97, "2997/100")],
)
def test_an_mp4_has_the_frames_the_rate_and_the_tags(tmp_path, frames, fps, rate):
    video = clip(frames)
    video.fps = fps
    about = probe(video.save(tmp_path / "clip.mp4"))
    assert about["nb_read_frames"] == about["nb_frames"] == str(frames)
    assert about["r_frame_rate"] == about["avg_frame_rate"] == rate
    assert abs(float(about["duration"]) - frames / fps) < 1e-3
    assert (about["codec_name"], about["pix_fmt"], about["profile"]) == ("h264", "yuv420p", "High")
    assert (about["width"], about["height"], about["sample_aspect_ratio"]) == ("64", "48", "1:1")
    tags = ("color_range", "color_space", "color_transfer", "color_primaries", "chroma_location")
    assert [about[tag] for tag in tags] == ["tv", "bt709", "bt709", "bt709", "left"]
    back = read_video(tmp_path / "clip.mp4")
    assert len(back) == frames and abs(back.fps - fps) < 1e-9 * fps


def test_the_index_is_at_the_front(tmp_path):
    data = clip().save(tmp_path / "clip.mp4").read_bytes()
    assert 0 < data.index(b"moov") < data.index(b"mdat")


def card():
    """A test card: 24 flat colours, the primaries among them; and the colours."""
    colours = [
        [0, 0, 0],
        [255, 255, 255],
        [255, 0, 0],
        [0, 255, 0],
        [0, 0, 255],
        [255, 255, 0],
        [0, 255, 255],
        [255, 0, 255],
    ]
    colours = np.concatenate([colours, np.random.default_rng(0).integers(0, 256, (16, 3))])
    return np.repeat(np.repeat(colours.reshape(4, 6, 3), 64, 0), 64, 1).astype(np.uint8), colours


@needs_ffmpeg
def test_colours_are_bt709_to_the_rounding(tmp_path):
    """The stored planes against the standard's formula, and back through our reader."""
    picture, colours = card()
    path = Video(np.stack([picture] * 3)).save(tmp_path / "card.mp4", crf=1)
    height, width = picture.shape[:2]
    raw = np.frombuffer(ffmpeg("-i", path, "-f", "rawvideo", "-pix_fmt", "yuv420p", "-"), np.uint8).reshape(3, -1)[1]
    y, u, v = np.split(raw, [height * width, height * width * 5 // 4])
    planes = y.reshape(height, width), u.reshape(height // 2, -1), v.reshape(height // 2, -1)
    back = read_video(path).frames[1].astype(int)
    for i, (r, g, b) in enumerate(colours / 255):
        luma = 0.2126 * r + 0.7152 * g + 0.0722 * b
        exact = 16 + 219 * luma, 128 + 224 * (b - luma) / 1.8556, 128 + 224 * (r - luma) / 1.5748
        row, column = divmod(i, 6)
        for plane, value, cell in zip(planes, exact, (64, 32, 32), strict=True):
            middle = plane[row * cell + 8 : (row + 1) * cell - 8, column * cell + 8 : (column + 1) * cell - 8]
            assert np.abs(middle - value).max() < 0.75, (colours[i], value)  # 0.5 is the rounding itself
        middle = back[row * 64 + 16 : row * 64 + 48, column * 64 + 16 : column * 64 + 48]
        assert np.abs(middle - colours[i]).max() <= 2  # a level of Y, U and V each is up to 2.1 of R, G and B


def test_a_photo_survives_without_a_cast(tmp_path):
    photo = read_image(ASTRONAUT)
    photo = photo[: photo.shape[0] // 2 * 2, : photo.shape[1] // 2 * 2]
    back = read_video(Video(np.stack([photo] * 3)).save(tmp_path / "photo.mp4")).frames
    difference = back.astype(float) - photo
    assert np.abs(difference.mean((0, 1, 2))).max() < 0.3
    assert 10 * np.log10(255**2 / (difference**2).mean()) > 35  # most of it is the halved colour resolution


@needs_ffmpeg
def test_chroma_does_not_shift(tmp_path):
    """A red bar on grey: its colour stays in place in the stored planes, whose samples lie at even x, and when read."""
    picture = np.full((64, 96, 3), 128, np.uint8)
    picture[:, 30:50] = (200, 40, 40)
    path = Video(np.stack([picture] * 2)).save(tmp_path / "a.mp4", crf=1)

    def centre(weight, x):
        return (weight * x).sum() / weight.sum()

    v = np.frombuffer(ffmpeg("-i", path, "-f", "rawvideo", "-pix_fmt", "yuv420p", "-"), np.uint8).reshape(2, -1)[0]
    stored = v[64 * 96 * 5 // 4 :].reshape(32, 48).mean(0) - 128
    assert abs(centre(stored, np.arange(0, 96, 2)) - 39.5) < 0.1  # centred samples would make it 39
    red = read_video(path).frames[0].astype(float)
    assert abs(centre((red[..., 0] - red[..., 2]).mean(0), np.arange(96)) - 39.5) < 0.1


def test_the_same_frames_make_the_same_bytes(tmp_path):
    a, b = (clip(20).save(tmp_path / name).read_bytes() for name in ("a.mp4", "b.mp4"))
    assert a == b


PERTURBED = """
import hashlib, os, sys, numpy as np
from ipvg.video import Video
if sys.argv[1] == "one":
    os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
KINDS = ("mp4", "webm", "gif")
for side, frames, kinds in ((32, 5, KINDS), (96, 5, KINDS), (240, 9, KINDS[:1])):
    for seed in (2, 3):
        steps = np.random.default_rng(seed).normal(0, 2, (frames, side, side, 3))
        smooth = (128 + steps.cumsum(2).cumsum(1)).clip(0, 255).astype(np.uint8)
        print([hashlib.sha256(Video(smooth).to_bytes(kind)).hexdigest()[:8] for kind in kinds])
"""


def test_neither_memory_that_was_never_set_nor_cores_show_in_the_bytes():
    """glibc fills what malloc gives with MALLOC_PERTURB_: x264's mbtree made of it a file of its own each time."""
    said = set()
    for fill, cores in (("0", "all"), ("1", "one"), ("85", "all")):
        done = subprocess.run(
            [sys.executable, "-c", PERTURBED, cores], env={**os.environ, "MALLOC_PERTURB_": fill},
            capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        said.add(done.stdout)
    assert len(said) == 1, said


def test_nothing_is_printed(tmp_path, capfd):
    clip().save(tmp_path / "a.mp4")
    read_video(tmp_path / "a.mp4")
    for broken in (ASTRONAUT.read_bytes()[:5000], (tmp_path / "a.mp4").read_bytes()[:3000]):
        for read in (read_image, read_video):
            with pytest.raises(_core.FormatError):
                read(broken)
    with pytest.raises(ValueError, match=r"preset: .*'fastest'"):
        clip().save(tmp_path / "a.mp4", preset="fastest")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("words", "height", "width", "name", "options"),
    [
        ("even width and height: crop or pad them to 64 x 46", 47, 64, "a.mp4", {}),
        ("even width and height: crop or pad them to 62 x 48", 48, 63, "a.mp4", {}),
        ("16 x 16 to 16384", 8, 64, "a.mp4", {}),
        ("name it a.mp4", 48, 64, "a.avi", {}),
        (r"crf: .* got 0", 48, 64, "a.mp4", {"crf": 0}),
        (r"crf: .* got 52", 48, 64, "a.mp4", {"crf": 52}),
    ],
)
def test_what_cannot_be_written_is_named(tmp_path, words, height, width, name, options):
    with pytest.raises(ValueError, match=words):
        clip(2, height, width).save(tmp_path / name, **options)
    assert os.listdir(tmp_path) == []


# ---- reading video ----


def test_a_part_of_a_video(tmp_path):
    whole = read_video(clip(30).save(tmp_path / "a.mp4"))
    assert len(whole) == 30 and whole.size == (64, 48) and whole.fps == 16
    part = read_video(tmp_path / "a.mp4", start=7, frames=5)
    assert np.array_equal(part.frames, whole.frames[7:12])
    assert np.array_equal(read_video((tmp_path / "a.mp4").read_bytes(), start=20).frames, whole.frames[20:])
    assert len(read_video(tmp_path / "a.mp4", start=28, frames=100)) == 2
    assert read_video(tmp_path / "a.mp4", fps=8).fps == 8
    for start in (30, 31):
        with pytest.raises(ValueError, match=f"start is {start}"):
            read_video(tmp_path / "a.mp4", start=start)
    with pytest.raises(ValueError, match="frames: expected 1"):
        read_video(tmp_path / "a.mp4", frames=0)


def test_a_video_cut_short_or_damaged_is_refused(tmp_path):
    noise = Video(np.random.default_rng(0).integers(0, 256, (20, 48, 64, 3), np.uint8))
    data = noise.save(tmp_path / "a.mp4").read_bytes()
    for broken in (data[:100], data[:3000], data[: len(data) // 2], data[:-10]):
        with pytest.raises(_core.FormatError):
            read_video(broken)
    hole = len(data) // 2
    with pytest.raises(_core.FormatError, match="damaged"):
        read_video(data[:hole] + bytes(4000) + data[hole + 4000 :])


def test_a_phone_s_rotation_is_applied(tmp_path):
    data = bytearray(clip(2).save(tmp_path / "a.mp4").read_bytes())
    at = data.index(b"tkhd") + 4 + 40  # version 0: the matrix comes after 40 bytes
    assert data[at : at + 36] == struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    data[at : at + 36] = struct.pack(">9i", 0, 1 << 16, 0, -(1 << 16), 0, 0, 48 << 16, 0, 1 << 30)
    turned = read_video(bytes(data))
    assert turned.size == (48, 64)
    assert np.array_equal(turned.frames, np.rot90(read_video(tmp_path / "a.mp4").frames, -1, (1, 2)))


def test_two_threads_on_one_reader_do_not_crash(tmp_path):
    from ipvg import _media

    path = os.fsencode(clip(200).save(tmp_path / "a.mp4"))
    reader, count, refused = _media.Reader(path, None, False), [0], []

    def read():
        buffer = np.empty((48, 64, 3), np.uint8)
        while True:
            try:
                if not reader.next(buffer):
                    return
                count[0] += 1
            except RuntimeError as error:
                refused.append(str(error))
                time.sleep(0)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert count[0] == 200 and set(refused) <= {"another thread is using this video"}
    reader.close()
    with pytest.raises(ValueError, match="closed"):
        reader.next(np.empty((48, 64, 3), np.uint8))


# ---- Video ----


def test_from_float_rounds_and_clips():
    levels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, 3)
    assert np.array_equal(Video.from_float(Video(levels).to_float()).frames, levels)
    x = np.array([-9, -1, -0.0001, 0, 0.9, 1, 9], np.float32)
    video = Video.from_float(np.broadcast_to(x, (3, 1, 1, 7)))
    # (0 + 1) * 127.5 is a tie: it goes to 128, the even one. The others are not; truncation would give 242.
    assert video.frames[0, 0, :, 0].tolist() == [0, 0, 127, 128, 242, 255, 255]
    assert Video.from_float(np.full((3, 1, 1, 1), 100.9 / 127.5 - 1)).frames.item(0) == 101
    assert np.array_equal(Video.from_float(Video(levels).to_float().astype(np.float64)).frames, levels)


def test_video_is_a_sequence_and_an_array():
    video = clip()
    assert len(video) == 9 and video.size == (64, 48) and video.duration == 9 / 16
    assert np.array_equal(video[3], video.frames[3]) and len(video[2:5]) == 3 and isinstance(video[2:5], Video)
    assert sum(1 for _ in video) == 9 and np.asarray(video) is not None and np.asarray(video).shape == (9, 48, 64, 3)
    assert np.array_equal(Video(video).frames, video.frames)
    assert video.to_float().shape == (3, 9, 48, 64) and video.to_float().dtype == np.float32
    assert repr(video) == "<ipvg.Video 9 frames, 64 x 48, 16 fps, 0.56 s>"


@pytest.mark.parametrize(
    ("error", "words", "make"),
    [
        (TypeError, "from_float", lambda: Video(np.zeros((1, 2, 2, 3)))),
        (ValueError, r"\(F, H, W, 3\)", lambda: Video(np.zeros((2, 2, 3), np.uint8))),
        (ValueError, "F, H, W >= 1", lambda: Video(np.zeros((0, 2, 2, 3), np.uint8))),
        (ValueError, "fps", lambda: Video(np.zeros((1, 2, 2, 3), np.uint8), fps=0)),
        (ValueError, "fps", lambda: Video(np.zeros((1, 2, 2, 3), np.uint8), fps=float("nan"))),
        (TypeError, "floating point, got uint8", lambda: Video.from_float(np.zeros((3, 1, 2, 2), np.uint8))),
        (ValueError, r"\(3, F, H, W\)", lambda: Video.from_float(np.zeros((1, 2, 2, 3)))),
        (
            ValueError,
            "NaN or infinity in frame 1",
            lambda: Video.from_float(np.full((3, 2, 2, 2), [[[0]], [[np.nan]]])),
        ),
        (ValueError, "columns", lambda: clip().contact_sheet(columns=0)),
        (ValueError, "name it a.png", lambda: clip().save_contact_sheet("a.jpg")),
    ],
)
def test_wrong_arguments_are_named(error, words, make):
    with pytest.raises(error, match=words):
        make()


def test_contact_sheet(tmp_path):
    video = clip(81)
    sheet = video.contact_sheet(columns=3, count=5, gap=2)
    assert sheet.shape == (2 * 50 + 2, 3 * 66 + 2, 3)
    for tile, frame in enumerate((0, 20, 40, 60, 80)):
        y, x = 2 + tile // 3 * 50, 2 + tile % 3 * 66
        assert np.array_equal(sheet[y : y + 48, x : x + 64], video[frame])
    assert (sheet[52:, 134:] == 255).all() and (sheet[:2] == 255).all()
    path = video.save_contact_sheet(tmp_path / "sheet.png", columns=3, count=5, gap=2)
    assert np.array_equal(read_image(path), sheet)
    assert clip(2).contact_sheet().shape[1] == 2 * 68 + 4


def test_notebook_shows_the_video_or_the_reason(monkeypatch):
    shown = clip()._repr_html_()
    assert shown.startswith("<video controls") and 'src="data:video/mp4;base64,AAAA' in shown
    assert clip(2, 47, 63)._repr_html_().startswith("<video controls"), "an odd size is padded, not refused"
    assert "16 x 16 to 16384" in clip(2, 8, 8)._repr_html_()
    monkeypatch.setitem(sys.modules, "ipvg._media", None)
    monkeypatch.delattr("ipvg._media", raising=False)
    assert "apt-get install" in clip()._repr_html_()

"""Pictures through FFmpeg: read exactly, or refused with the reason."""

import os
import struct
import sys

import numpy as np
import pytest
from media_files import ASTRONAUT, clip, ffmpeg, needs_ffmpeg, png

import ipvg.video
from ipvg import _core
from ipvg.parity import recipe
from ipvg.video import read_image, read_video, write_png

pytest.importorskip("ipvg._media", reason="built without FFmpeg")

# ---- reading pictures ----

RNG = np.random.default_rng(0)
RGBA = RNG.integers(0, 256, (21, 35, 4), np.uint8)


def test_png_is_read_exactly_whatever_its_colour_type():
    rgb = RGBA[..., :3]
    assert np.array_equal(read_image(png(rgb, 2)), rgb)
    grey = RGBA[..., :1]
    assert np.array_equal(read_image(png(grey, 0)), np.repeat(grey, 3, 2))
    assert np.array_equal(read_image(png(RGBA[..., :2], 4)), np.repeat(grey, 3, 2))
    palette = RNG.integers(0, 256, (256, 3), np.uint8)
    chunks = (b"PLTE", palette.tobytes()), (b"tRNS", RNG.integers(0, 256, 256, np.uint8).tobytes())
    assert np.array_equal(read_image(png(grey, 3, 8, chunks[0])), palette[grey[..., 0]])
    assert np.array_equal(read_image(png(grey, 3, 8, *chunks)), palette[grey[..., 0]])
    wide = RNG.integers(0, 65536, (21, 35, 4)).astype(np.uint16)
    level = ((wide.astype(int) * 255 + 32767) // 65535).astype(np.uint8)
    assert np.array_equal(read_image(png(wide[..., :3], 2, 16)), level[..., :3])
    assert np.array_equal(read_image(png(wide, 6, 16)), level[..., :3])
    assert np.array_equal(read_image(png(wide[..., :1], 0, 16)), np.repeat(level[..., :1], 3, 2))
    a = level[..., 1:2].astype(int)
    grey = (np.repeat(level[..., :1], 3, 2) * a + 255 * (255 - a) + 127) // 255
    assert np.array_equal(read_image(png(wide[..., :2], 4, 16), alpha="white"), grey)


def test_alpha_is_dropped_or_blended_onto_white():
    data = png(RGBA, 6)
    assert np.array_equal(read_image(data), RGBA[..., :3])
    a = RGBA[..., 3:] / 255
    white = read_image(data, alpha="white")
    assert np.abs(white - (RGBA[..., :3] * a + 255 * (1 - a))).max() <= 0.5 + 1e-9
    assert np.array_equal(read_image(RGBA, alpha="white"), white)
    with pytest.raises(ValueError, match="alpha"):
        read_image(data, alpha="black")


def test_path_bytes_array_and_a_wrong_extension_are_the_same_picture(tmp_path):
    rgb = RGBA[..., :3]
    data = png(rgb, 2)
    for name in ("a.png", "a.jpg", "no extension", "p%03d.png", "http:x", "ümlaut.png"):
        (tmp_path / name).write_bytes(data)
        assert np.array_equal(read_image(tmp_path / name), rgb)
        assert np.array_equal(read_image(str(tmp_path / name)), rgb)
    for source in (data, bytearray(data), memoryview(data), rgb, np.asfortranarray(rgb), RGBA):
        out = read_image(source)
        assert np.array_equal(out, rgb) and out.flags.c_contiguous


@needs_ffmpeg
@pytest.mark.parametrize("codec", ["mjpeg", "libwebp", "bmp", "tiff", "png"])
def test_other_formats(codec):
    rgb = read_image(ASTRONAUT)
    height, width = rgb.shape[:2]
    raw = ("-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-i", "-", "-frames:v", "1")
    lossy = {"mjpeg": ("-q:v", "1", "-pix_fmt", "yuvj444p"), "libwebp": ("-quality", "100")}.get(codec, ())
    out = read_image(ffmpeg(*raw, "-c:v", codec, *lossy, "-f", "image2pipe", "-", data=rgb.tobytes()))
    difference = np.abs(out.astype(int) - rgb)
    assert out.shape == rgb.shape
    # Lossless ones exactly; JPEG's best quality within two levels on average; WebP keeps a quarter of the colour.
    assert difference.mean() <= {"mjpeg": 2.5, "libwebp": 4}.get(codec, 0)


def exif(orientation):
    """A JPEG APP1 segment that holds nothing but an orientation."""
    tiff = b"II*\0" + struct.pack("<IHHHIHHI", 8, 1, 0x112, 3, 1, orientation, 0, 0)
    return b"\xff\xe1" + struct.pack(">H", len(tiff) + 8) + b"Exif\0\0" + tiff


@needs_ffmpeg
def test_exif_orientation_is_applied():
    rgb = recipe.pixels("media/upright", (24, 40, 3))
    raw = ("-f", "rawvideo", "-pix_fmt", "rgb24", "-s", "40x24", "-i", "-", "-frames:v", "1")
    jpeg = ffmpeg(
        *raw, "-c:v", "mjpeg", "-q:v", "1", "-pix_fmt", "yuvj444p", "-f", "image2pipe", "-", data=rgb.tobytes()
    )
    stored = read_image(jpeg)
    upright = {  # what undoes each of EXIF's eight orientations
        1: stored,
        2: stored[:, ::-1],
        3: stored[::-1, ::-1],
        4: stored[::-1],
        5: stored.transpose(1, 0, 2),
        6: np.rot90(stored, -1),
        7: stored[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(stored),
    }
    for orientation, expected in upright.items():
        assert np.array_equal(read_image(jpeg[:2] + exif(orientation) + jpeg[2:]), expected), orientation


def test_a_real_photo():
    photo = read_image(ASTRONAUT)
    assert photo.dtype == np.uint8 and photo.ndim == 3 and photo.shape[2] == 3 and min(photo.shape[:2]) >= 200
    assert 40 < photo.mean() < 200 and photo.std() > 40


# ---- pictures that are none ----


def test_broken_pictures_say_what_is_wrong(tmp_path):
    data = ASTRONAUT.read_bytes()
    flipped = bytearray(data)
    flipped[len(data) // 2] ^= 0x10
    for broken in (data[:20], data[:1000], data[: len(data) // 2], data[:-20], bytes(flipped)):
        with pytest.raises(_core.FormatError, match=r"bytes given: (damaged|not a picture|cannot|no complete)"):
            read_image(broken)
    with pytest.raises(_core.FormatError, match=r"empty \(0 bytes\)"):
        read_image(b"")
    (tmp_path / "empty.png").touch()
    with pytest.raises(_core.FormatError, match=r"empty.png: empty"):
        read_image(tmp_path / "empty.png")
    (tmp_path / "text.jpg").write_text("this is no picture\n" * 100)
    with pytest.raises(_core.FormatError, match=r"text.jpg: not a picture or video"):
        read_image(tmp_path / "text.jpg")


@needs_ffmpeg
def test_a_jpeg_cut_short_is_refused():
    rgb = read_image(ASTRONAUT)
    size = f"{rgb.shape[1]}x{rgb.shape[0]}"
    jpeg = ffmpeg(
        "-f",
        "rawvideo",
        "-pix_fmt",
        "rgb24",
        "-s",
        size,
        "-i",
        "-",
        "-frames:v",
        "1",
        "-f",
        "mjpeg",
        "-",
        data=rgb.tobytes(),
    )
    assert read_image(jpeg).shape == rgb.shape
    for part in (0.1, 0.5, 0.95):
        with pytest.raises(_core.FormatError, match="cut short"):
            read_image(jpeg[: int(len(jpeg) * part)])


def test_random_damage_is_an_error_or_a_picture_but_no_crash():
    data = bytearray(png(RGBA, 6))
    rng = np.random.default_rng(3)
    seen = set()
    for _ in range(300):
        broken = bytearray(data)
        for at in rng.integers(0, len(data), rng.integers(1, 6)):
            broken[at] = rng.integers(0, 256)
        try:
            out = read_image(bytes(broken))
            assert out.ndim == 3
            seen.add("picture")
        except (_core.FormatError, _core.UnsupportedError, _core.BackendError, MemoryError, OSError) as error:
            assert "bytes given" in str(error)
            seen.add("error")
    assert "error" in seen


def test_the_wrong_kind_of_file(tmp_path):
    video = clip().save(tmp_path / "clip.mp4")
    with pytest.raises(_core.FormatError, match=r"a video .*read_video"):
        read_image(video)
    with pytest.raises(_core.FormatError, match=r"a picture \(png\).*read_image"):
        read_video(ASTRONAUT)
    with pytest.raises(FileNotFoundError, match=r"nothing.png: cannot be opened: No such file"):
        read_image(tmp_path / "nothing.png")
    with pytest.raises(ValueError, match="is a folder"):
        read_image(tmp_path)
    with pytest.raises(ValueError, match="zero byte"):
        read_image("a\0b.png")
    with pytest.raises(TypeError, match="path, bytes or an array, got int"):
        read_image(7)
    with pytest.raises(TypeError, match="float64"):
        read_image(np.zeros((4, 4, 3)))
    with pytest.raises(ValueError, match=r"\(H, W, 3\)"):
        read_image(np.zeros((4, 4), np.uint8))


@needs_ffmpeg
def test_sound_without_pictures(tmp_path):
    for name in ("tone.m4a", "tone.mp4"):
        ffmpeg("-f", "lavfi", "-i", "sine=duration=0.2", tmp_path / name)
        for read in (read_image, read_video):
            with pytest.raises(_core.FormatError, match=f"{name}: a file of type .* without pictures, only sound"):
                read(tmp_path / name)


def test_a_playlist_does_not_make_it_open_another_file(tmp_path):
    secret = clip().save(tmp_path / "secret.mp4")
    playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\n{secret}\n#EXT-X-ENDLIST\n"
    (tmp_path / "list.m3u8").write_text(playlist)
    (tmp_path / "list.txt").write_text(f"ffconcat version 1.0\nfile {secret}\n")
    for name in ("list.m3u8", "list.txt"):
        with pytest.raises(_core.FormatError, match=r"a playlist|not a picture or video"):
            read_video(tmp_path / name)


# ---- writing ----


def test_write_png(tmp_path):
    odd = RGBA[:, :, :3]
    assert np.array_equal(read_image(write_png(tmp_path / "a.png", odd)), odd)
    with pytest.raises(TypeError):
        write_png(tmp_path / "b.png", odd.astype(float))
    assert os.listdir(tmp_path) == ["a.png"]


def test_without_ffmpeg_the_error_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "ipvg._media", None)  # as if it had not been built
    monkeypatch.delattr("ipvg._media", raising=False)
    for call in (lambda: read_image(ASTRONAUT), lambda: read_video("a.mp4"), lambda: clip().save("a.mp4")):
        with pytest.raises(_core.UnsupportedError, match=r"apt-get install .*libavformat-dev"):
            call()
    assert ipvg.video.read_image(RGBA).shape == (21, 35, 3), "arrays work without"

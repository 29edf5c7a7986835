"""Pictures and video through FFmpeg: what is read is what was written; what fails says why and leaves nothing."""

import os
import shutil
import signal
import struct
import subprocess
import sys
import textwrap
import threading
import time
import zlib
from pathlib import Path

import numpy as np
import pytest

import ipvg.video
from ipvg import _core
from ipvg.parity import recipe
from ipvg.video import Video, read_image, read_video, write_png

pytest.importorskip("ipvg._media", reason="built without FFmpeg", exc_type=ImportError)

ROOT = Path(__file__).parent.parent
ASTRONAUT = ROOT / "examples" / "astronaut.png"
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
    wide = read_image(png(rgb.astype(np.uint16) * 257, 2, 16)).astype(int)
    assert np.abs(wide - rgb).max() <= 1  # swscale goes from 16 bits to 8 by way of YUV


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
    with pytest.raises(ValueError, match="not a regular file"):
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
    for name in ("tone.wav", "tone.mp4"):
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
        with pytest.raises(_core.FormatError, match="a playlist"):
            read_video(tmp_path / name)


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
    colours = np.concatenate([colours, RNG.integers(0, 256, (16, 3))])
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


def test_nothing_is_printed(tmp_path, capfd):
    clip().save(tmp_path / "a.mp4")
    read_video(tmp_path / "a.mp4")
    for broken in (ASTRONAUT.read_bytes()[:5000], (tmp_path / "a.mp4").read_bytes()[:3000]):
        for read in (read_image, read_video):
            with pytest.raises(_core.FormatError):
                read(broken)
    with pytest.raises(ValueError, match="preset 'fastest'"):
        clip().save(tmp_path / "a.mp4", preset="fastest")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("words", "height", "width", "name", "options"),
    [
        ("even width and height: crop or pad them to 64 x 46", 47, 64, "a.mp4", {}),
        ("even width and height: crop or pad them to 62 x 48", 48, 63, "a.mp4", {}),
        ("16 x 16 to 16384", 8, 64, "a.mp4", {}),
        ("name it a.mp4", 48, 64, "a.avi", {}),
        ("crf is 0", 48, 64, "a.mp4", {"crf": 0}),
        ("crf is 52", 48, 64, "a.mp4", {"crf": 52}),
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
    with pytest.raises(ValueError, match="frames >= 1"):
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
    reader, count, refused = _media.Reader(path, None), [0], []

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


# ---- whole or not at all ----


def test_a_failed_save_keeps_the_old_file_and_leaves_no_other(tmp_path):
    target = tmp_path / "a.mp4"
    target.write_bytes(b"the old one")
    code = f"""
        import resource, signal, numpy as np
        from ipvg.video import Video
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (30000, 30000))
        noise = np.random.default_rng(0).integers(0, 256, (30, 64, 64, 3), np.uint8)
        for path in ({str(target)!r}, {str(tmp_path / "new.mp4")!r}):
            try:
                Video(noise).save(path)
            except OSError as error:
                print(error.errno, error)
        try:
            Video(noise).save_contact_sheet({str(tmp_path / "sheet.png")!r})
        except OSError as error:
            print(error.errno, error)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.count("File too large") == 3 and done.stderr == "", done
    assert os.listdir(tmp_path) == ["a.mp4"] and target.read_bytes() == b"the old one"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small file system")
def test_disk_full(tmp_path):
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", tmp_path], capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        noise = Video(np.random.default_rng(0).integers(0, 256, (60, 64, 64, 3), np.uint8))
        for save, name in ((noise.save, "a.mp4"), (noise.save_contact_sheet, "a.png")):
            with pytest.raises(OSError, match=rf"{name}.*No space left on device"):
                save(tmp_path / name)
            assert os.listdir(tmp_path) == []
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_unwritable_places(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none/a.mp4: cannot be written: No such file"):
        clip().save(tmp_path / "none" / "a.mp4")
    with pytest.raises(ValueError, match="is a folder"):
        (tmp_path / "folder.mp4").mkdir()
        clip().save(tmp_path / "folder.mp4")
    (tmp_path / "device.mp4").symlink_to("/dev/full")
    with pytest.raises(ValueError, match="not a regular file"):
        clip().save(tmp_path / "device.mp4")
    assert Path("/dev/full").is_char_device()
    if os.geteuid() == 0:
        return  # root may write anywhere
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    with pytest.raises(PermissionError, match=r"a.mp4: cannot be written: Permission denied"):
        clip().save(closed / "a.mp4")


def test_a_link_stays_and_its_target_changes(tmp_path):
    (tmp_path / "real.mp4").write_bytes(b"old")
    (tmp_path / "link.mp4").symlink_to(tmp_path / "real.mp4")
    clip().save(tmp_path / "link.mp4")
    assert (tmp_path / "link.mp4").is_symlink() and len(read_video(tmp_path / "real.mp4")) == 9
    assert sorted(os.listdir(tmp_path)) == ["link.mp4", "real.mp4"]


def test_the_file_s_permissions_follow_the_umask(tmp_path):
    old = os.umask(0o027)
    try:
        assert clip().save(tmp_path / "a.mp4").stat().st_mode & 0o777 == 0o640
    finally:
        os.umask(old)


def test_ctrl_c_leaves_nothing_half_written(tmp_path):
    code = f"""
        import numpy as np
        from ipvg.video import Video
        noise = np.random.default_rng(0).integers(0, 256, (3000, 64, 64, 3), np.uint8)
        print("go", flush=True)
        Video(noise).save({str(tmp_path / "a.mp4")!r}, preset="veryslow")
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "go\n"
        deadline = time.monotonic() + 60
        while not os.listdir(tmp_path) and time.monotonic() < deadline:
            time.sleep(0.01)
        (partial,) = os.listdir(tmp_path)
        assert partial.startswith(".a.mp4.") and partial.endswith(".part")
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=60)
    assert process.returncode != 0 and error.strip().endswith("KeyboardInterrupt")
    assert os.listdir(tmp_path) == []


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


def test_write_png(tmp_path):
    odd = RGBA[:, :, :3]
    assert np.array_equal(read_image(write_png(tmp_path / "a.png", odd)), odd)
    with pytest.raises(TypeError):
        write_png(tmp_path / "b.png", odd.astype(float))
    assert os.listdir(tmp_path) == ["a.png"]


def test_notebook_shows_the_video_or_the_reason(monkeypatch):
    shown = clip()._repr_html_()
    assert shown.startswith("<video controls") and 'src="data:video/mp4;base64,AAAA' in shown
    assert "even width" in clip(2, 48, 63)._repr_html_()
    monkeypatch.setitem(sys.modules, "ipvg._media", None)
    monkeypatch.delattr("ipvg._media", raising=False)
    assert "apt-get install" in clip()._repr_html_()


def test_without_ffmpeg_the_error_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "ipvg._media", None)  # as if it had not been built
    monkeypatch.delattr("ipvg._media", raising=False)
    for call in (lambda: read_image(ASTRONAUT), lambda: read_video("a.mp4"), lambda: clip().save("a.mp4")):
        with pytest.raises(_core.UnsupportedError, match=r"apt-get install .*libavformat-dev"):
            call()
    assert ipvg.video.read_image(RGBA).shape == (21, 35, 3), "arrays work without"

"""Odd files, each made here: the right picture, or an error that says what is wrong."""

import os
import struct
import tempfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from media_files import clip, ffmpeg, jfif_planes, needs_ffmpeg, png

from ipvg import _core
from ipvg.video import Video, read_image, read_video

pytest.importorskip("ipvg._media", reason="built without FFmpeg")
pytestmark = needs_ffmpeg

Bad, Unsupported = _core.FormatError, _core.UnsupportedError

# ---- what goes into them ----


def blocks(frames=1, height=48, width=64, seed=0):
    """uint8 (F, H, W, 3): cells of 16 x 16 of moderate colours, so that a lossy codec at its best keeps them."""
    cells = np.random.default_rng(seed).integers(40, 216, (frames, -(-height // 16), -(-width // 16), 3))
    return cells.repeat(16, 1).repeat(16, 2)[:, :height, :width].astype(np.uint8)


CARD, CLIP = blocks()[0], blocks(10)


def made(kind, *arguments, data=None):
    """The bytes of the file that the ffmpeg command makes: not through a pipe, since an mp4 goes back to its start."""
    with tempfile.TemporaryDirectory() as folder:
        ffmpeg(*arguments, "-bitexact", f"{folder}/made.{kind}", data=data)
        return Path(folder, f"made.{kind}").read_bytes()


def encode(frames, kind, *options, rate=10, pix_fmt="rgb24", size=None):
    """A file's bytes: frames, uint8 (F, H, W, 3) or raw bytes, through the ffmpeg command."""
    height, width = size or frames.shape[1:3]
    raw = ["-f", "rawvideo", "-pix_fmt", pix_fmt, "-s", f"{width}x{height}", "-r", rate, "-i", "-"]
    data = frames if isinstance(frames, bytes) else frames.tobytes()
    return made(kind, *raw, *options, data=data)


def h264(frames, *options, pixels="yuv420p", kind="mp4", **more):
    return encode(frames, kind, "-c:v", "libx264", "-crf", "1", "-pix_fmt", pixels, *options, **more)


def matrix(name):
    """swscale's matrix and the tags that go with it."""
    return [
        *("-vf", f"scale=out_color_matrix={name}:flags=accurate_rnd+full_chroma_int"),
        *("-colorspace", {"bt601": "smpte170m", "bt709": "bt709", "bt2020": "bt2020nc"}[name]),
    ]


BEST_JPEG = ("-c:v", "mjpeg", "-qmin", "1", "-q:v", "1")


def jpeg(frame=CARD, pixels="yuvj444p"):
    return encode(frame[None], "jpg", *BEST_JPEG, "-pix_fmt", pixels)


def halved_jpeg(frame):
    return encode(jfif_planes(frame), "jpg", *BEST_JPEG, pix_fmt="yuvj420p", size=frame.shape[:2])


def exif(data, orientation):
    tiff = b"II*\0" + struct.pack("<IHHHIHHI", 8, 1, 0x112, 3, 1, orientation, 0, 0)
    return data[:2] + b"\xff\xe1" + struct.pack(">H", len(tiff) + 8) + b"Exif\0\0" + tiff + data[2:]


def cmyk_jpeg(cmyk, transform):
    """One flat 8 x 8 picture of four components, as Adobe writes it; all it holds is four DC values."""
    segment = lambda mark, body: b"\xff" + bytes([mark]) + struct.pack(">H", len(body) + 2) + body  # noqa: E731
    out = b"\xff\xd8" + segment(0xEE, b"Adobe" + struct.pack(">HHHB", 100, 0, 0, transform))
    out += segment(0xDB, b"\0" + b"\1" * 64)
    out += segment(0xC0, struct.pack(">BHHB", 8, 8, 8, 4) + b"".join(bytes([i, 0x11, 0]) for i in (1, 2, 3, 4)))
    out += segment(0xC4, b"\0" + bytes([0, 0, 0, 12, *[0] * 12]) + bytes(range(12)))  # DC: a code of 4 bits a length
    out += segment(0xC4, b"\x10" + bytes([1, *[0] * 15]) + b"\0")  # AC: one code of 1 bit, the block's end
    out += segment(0xDA, b"\4" + b"".join(bytes([i, 0]) for i in (1, 2, 3, 4)) + b"\0\x3f\0")
    bits = ""
    for value in cmyk:
        dc = 8 * (int(value) - 128)  # the transform's scale; the quantiser is 1
        length = abs(dc).bit_length()
        bits += f"{length:04b}" + (f"{dc if dc > 0 else dc + (1 << length) - 1:0{length}b}" if length else "") + "0"
    bits += "1" * (-len(bits) % 8)
    body = int(bits, 2).to_bytes(len(bits) // 8, "big").replace(b"\xff", b"\xff\0")
    return out + body + b"\xff\xd9"


def adam7(rgb):
    """An interlaced PNG."""
    passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
    rows = b"".join(b"\0" + row.tobytes() for y, x, dy, dx in passes for row in rgb[y::dy, x::dx] if row.size)
    plain = bytearray(png(rgb, 2))
    chunk = lambda name, body: struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))  # noqa: E731
    head = bytes(plain[16:28]) + b"\1"
    return bytes(plain[:8]) + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def declared_png(width, height):
    data = bytearray(png(np.zeros((1, 1, 3), np.uint8), 2))
    data[16:24] = struct.pack(">II", width, height)
    data[29:33] = struct.pack(">I", zlib.crc32(bytes(data[12:29])))
    return bytes(data)


def moving_gif(frames=5):
    """A red square on nothing, moving right: an animated GIF with transparency, and what white paper shows of it."""
    rgba = np.zeros((frames, 16, 32, 4), np.uint8)
    white = np.full((frames, 16, 32, 3), 255, np.uint8)
    for i in range(frames):
        rgba[i, 4:12, 4 * i : 4 * i + 8] = (255, 0, 0, 255)
        white[i, 4:12, 4 * i : 4 * i + 8] = (255, 0, 0)
    return encode(rgba.tobytes(), "gif", "-vf", "split[a][b];[a]palettegen[p];[b][p]paletteuse", pix_fmt="rgba",
                  size=(16, 32)), white  # fmt: skip


def check(found, expected, tolerance):
    """Equal; or, after a lossy codec with halved colour, each cell's middle within so many levels."""
    assert found.shape == expected.shape
    difference = np.abs(found.astype(int) - expected)
    if tolerance:
        y, x = (np.arange(n) % 16 // 4 % 3 != 0 for n in found.shape[-3:-1])
        difference = difference[..., y, :, :][..., x, :]
    assert difference.max() <= tolerance


GIF, GIF_ON_WHITE = moving_gif()
RGBA = np.random.default_rng(4).integers(0, 256, (21, 35, 4), np.uint8)
ON_WHITE = np.rint(RGBA[..., :3] * (RGBA[..., 3:] / 255) + 255 * (1 - RGBA[..., 3:] / 255)).astype(np.uint8)
DEEP = np.random.default_rng(5).integers(0, 65536, (21, 35, 3)).astype(np.uint16)
DEEP_LEVELS = ((DEEP * 255.0 + 32767) // 65535).astype(np.uint8)
PALETTE = np.random.default_rng(6).integers(0, 256, (256, 3), np.uint8)
INDEX = np.random.default_rng(7).integers(0, 256, (21, 35, 1), np.uint8)
WIDE = np.random.default_rng(8).integers(0, 256, (1, 16384, 3), np.uint8)
UPRIGHT = {
    1: lambda x: x,
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.transpose(1, 0, 2),
    6: lambda x: np.rot90(x, -1),
    7: lambda x: x[::-1, ::-1].transpose(1, 0, 2),
    8: lambda x: np.rot90(x),
}
INK = np.array([200, 120, 60, 180], np.uint8)  # as Adobe stores it: 255 is no ink
INK_RGB = np.full((8, 8, 3), np.rint(INK[:3] * (INK[3] / 255)), np.uint8)

# ---- pictures: name, (bytes, expected picture or (error, its words), mean level that it may be off, options) ----

PICTURES = {
    "png, 1 x 1": (lambda: png(CARD[:1, :1], 2), CARD[:1, :1], 0),
    "png, 16384 x 1": (lambda: png(WIDE, 2), WIDE, 0),
    "png, 1 x 16384": (lambda: png(WIDE.transpose(1, 0, 2), 2), WIDE.transpose(1, 0, 2), 0),
    "png, interlaced": (lambda: adam7(RGBA[..., :3].copy()), RGBA[..., :3], 0),
    "png, palette": (lambda: png(INDEX, 3, 8, (b"PLTE", PALETTE.tobytes())), PALETTE[INDEX[..., 0]], 0),
    "png, 16 bits": (lambda: png(DEEP, 2, 16), DEEP_LEVELS, 0),
    "png, alpha dropped": (lambda: png(RGBA, 6), RGBA[..., :3], 0),
    "png, alpha on white": (lambda: png(RGBA, 6), ON_WHITE, 0, {"alpha": "white"}),
    "png, grey": (lambda: png(INDEX, 0), INDEX.repeat(3, 2), 0),
    "png, cut short": (lambda: png(RGBA, 6)[:1500], (Bad, "damaged|no complete")),
    "png, cut in its header": (lambda: png(RGBA, 6)[:20], (Bad, "not a picture|damaged")),
    "png, says 2^31-1 x 2^31-1": (lambda: declared_png(2**31 - 1, 2**31 - 1), (Bad, "damaged|not a picture|cannot")),
    "png, says 60000 x 60000": (lambda: declared_png(60000, 60000), (Bad, "damaged|not a picture|cannot|no complete")),
    "jpeg": (jpeg, CARD, 2),
    "jpeg, odd size, 4:2:0": (lambda: halved_jpeg(CARD[:21, :35]), CARD[:21, :35], 3),
    "jpeg, grey": (lambda: jpeg(CARD[..., :1].repeat(3, 2), "gray"), CARD[..., :1].repeat(3, 2), 2),
    "jpeg, cmyk": (lambda: cmyk_jpeg(INK, 0), INK_RGB, 1),
    "jpeg, cut short": (lambda: jpeg()[:-60], (Bad, "cut short")),
    **{f"jpeg, orientation {n}": (lambda n=n: exif(jpeg(), n), f(CARD), 2) for n, f in UPRIGHT.items()},
    "jpeg, orientation 9": (lambda: exif(jpeg(), 9), CARD, 2),
    "webp, alpha on white": (
        lambda: encode(RGBA.tobytes(), "webp", "-lossless", "1", pix_fmt="rgba", size=(21, 35)), ON_WHITE, 0,
        {"alpha": "white"},
    ),
    "avif": (lambda: encode(CARD[None], "avif", "-c:v", "libaom-av1", "-crf", "1", "-still-picture", "1"), CARD, 3),
    "gif, animated: the first": (lambda: GIF, GIF_ON_WHITE[0], 0, {"alpha": "white"}),
    "apng: the first": (lambda: encode(CLIP, "apng", "-f", "apng", "-pix_fmt", "rgb24"), CLIP[0], 0),
    "tiff, 16 bits": (
        lambda: encode(DEEP.tobytes(), "tiff", "-pix_fmt", "rgb48le", pix_fmt="rgb48le", size=(21, 35)),
        DEEP_LEVELS, 0,
    ),
    "empty": (lambda: b"", (Bad, r"empty \(0 bytes\)")),
    "one byte": (lambda: b"\x89", (Bad, "not a picture")),
    "text": (lambda: b"dear diary,\n" * 50, (Bad, "not a picture")),
    "html": (lambda: b"<!doctype html><html><body>404 not found</body></html>\n", (Bad, "not a picture")),
    "svg": (lambda: b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>", (Bad, "not a picture or video")),
    "a video": (lambda: clip(2).to_bytes(), (Bad, "a video .*read_video")),
    "animated webp": (lambda: encode(CLIP, "webp", "-c:v", "libwebp_anim", "-lossless", "1"), "first or error"),
}  # fmt: skip


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture(name, tmp_path):
    make, expected, *rest = PICTURES[name]
    data, options = make(), rest[1] if len(rest) > 1 else {}
    (tmp_path / "misnamed.mp4").write_bytes(data)  # the content decides
    for source in (data, tmp_path / "misnamed.mp4"):
        if isinstance(expected, str):  # FFmpeg before version 8 has no animated WebP
            try:
                assert np.abs(read_image(source).astype(int) - CLIP[0]).mean() < 3
            except (Bad, Unsupported) as error:
                assert "damaged" in str(error) or "decoder" in str(error)
        elif isinstance(expected, tuple):
            with pytest.raises(expected[0], match=f"(misnamed.mp4|the bytes given): .*({expected[1]})"):
                read_image(source, **options)
        else:
            check(read_image(source, **options), expected, rest[0])


@pytest.mark.parametrize("size", [(96, 192), (95, 191), (96, 191), (95, 192)])
def test_colour_lies_where_it_is_in_an_odd_size_too(size):
    """Waves of colour to the far side: a pixel's shift there would be 20 levels."""
    y, x = np.mgrid[: size[0], : size[1]] * (2 * np.pi / 24)
    picture = 128 + np.stack([80 * np.sin(x), -40 * np.sin(x), 60 * np.sin(y)], 2)
    planes = jfif_planes(picture)
    y4m = b"YUV4MPEG2 W%d H%d F10:1 C420jpeg XCOLORRANGE=FULL\nFRAME\n" % size[::-1] + planes
    photo = read_image(encode(planes, "jpg", *BEST_JPEG, pix_fmt="yuvj420p", size=size))
    for found in (photo, read_video(y4m)[0]):
        off = np.abs(found - picture)[2:-2, 2:-2]
        assert off.mean() < 1 and off[-24:].mean() < 1 and off[:, -24:].mean() < 1 and off.max() < 6


# ---- videos: the same; expected may also be (frames, rate) ----


def turned(degrees):
    """An mp4 whose track header says: turn it clockwise to show it."""
    cos, sin = {90: (0, 1), 180: (-1, 0), 270: (0, -1)}[degrees]
    data = bytearray(h264(CLIP))
    at = data.index(b"tkhd") + 44
    one = 1 << 16
    data[at : at + 36] = struct.pack(">9i", cos * one, sin * one, 0, -sin * one, cos * one, 0, 0, 0, 1 << 30)
    return bytes(data)


def uneven(times, kind="mkv"):
    """CLIP's frames shown at these times, in tenths of a second."""
    choice = "+".join(f"eq(N,{n})*{t}" for n, t in enumerate(times))
    return encode(CLIP[: len(times)], kind, "-vf", f"settb=1/10,setpts='{choice}'", "-fps_mode", "passthrough",
                  "-c:v", "ffv1", "-pix_fmt", "bgr0")  # fmt: skip


def lossless(*options, frames=CLIP, pixels="bgr0", **more):
    return encode(frames, "mkv", *options, "-c:v", "ffv1", "-pix_fmt", pixels, **more)


def remuxed(data, kind, *options, before=()):
    return made(kind, *before, "-i", "-", "-c", "copy", *options, data=data)


def two_streams():
    second = ("-filter_complex", "[0:v]split[a][b];[b]negate[c]", "-map", "[a]", "-map", "[c]")
    return lossless(*second, "-disposition:v:0", "default")


def sound(kind, *options, data=None):
    return made(kind, "-f", "lavfi", "-i", "sine=duration=0.2", *options, data=data)


def cover_art():
    cover = ("-f", "mjpeg", "-i", "-", "-map", "0", "-map", "1", "-c:v", "copy", "-disposition:v", "attached_pic")
    return sound("m4a", *cover, data=jpeg())


def without_frames():
    """An mp4 whose tables list no frame."""
    data = bytearray(h264(CLIP[:1]))
    for table, skip in ((b"stsz", 8), (b"stts", 4), (b"stsc", 4), (b"stco", 4)):
        at = data.index(table) + 4 + skip
        data[at : at + 4] = bytes(4)
    return bytes(data)


def declared_mp4():
    """Its sample table says 2^31 frames of 1 GB each."""
    data = bytearray(h264(CLIP[:1]))
    at = data.index(b"stsz") + 8
    data[at : at + 8] = struct.pack(">II", 1 << 30, 0x7FFFFFFF)
    return bytes(data)


def growing():
    """A stream of JPEG pictures of one size, then of another."""
    return b"".join(jpeg(frame) for frame in (*CLIP[:2], *blocks(2, 64, 96)))


def grey_of(frames):
    return frames[..., :1].repeat(3, -1)


VIDEOS = {
    **{f"turned by {d}": (lambda d=d: turned(d), np.rot90(CLIP, -d // 90, (1, 2)), 2) for d in (90, 180, 270)},
    "untagged, as bt601": (lambda: h264(CLIP, *matrix("bt601")[:2]), CLIP, 2),
    **{f"tagged {m}": (lambda m=m: h264(CLIP, *matrix(m)), CLIP, 2) for m in ("bt601", "bt709", "bt2020")},
    "full range": (lambda: h264(CLIP, "-color_range", "pc", pixels="yuvj420p"), CLIP, 2),
    "10 bits": (lambda: h264(CLIP, *matrix("bt709"), pixels="yuv420p10le"), CLIP, 2),
    "10 bits, full range, 4:4:4": (
        lambda: h264(CLIP, "-vf", "scale=out_color_matrix=bt709:out_range=pc", "-colorspace", "bt709", "-color_range",
                     "pc", pixels="yuv444p10le"), CLIP, 2,
    ),
    "grey": (lambda: lossless(frames=grey_of(CLIP), pixels="gray"), grey_of(CLIP), 0),
    "interlaced": (lambda: h264(CLIP, "-flags", "+ildct+ilme", "-x264-params", "tff=1"), CLIP, 3),
    "odd size": (lambda: lossless(frames=blocks(10, 21, 35)), blocks(10, 21, 35), 0),
    "odd size, h264 4:4:4": (lambda: h264(blocks(10, 21, 35), pixels="yuv444p"), blocks(10, 21, 35), 2),
    "1 x 1": (lambda: lossless(frames=CLIP[:, :1, :1]), CLIP[:, :1, :1], 0),
    "16384 x 2": (lambda: lossless(frames=blocks(2, 2, 16384)), blocks(2, 2, 16384), 0),
    "one frame": (lambda: h264(CLIP[:1]), CLIP[:1], 2),
    "gif, transparent": (lambda: GIF, (GIF_ON_WHITE, 10), 0, {"alpha": "white"}),
    "apng": (lambda: encode(CLIP, "apng", "-f", "apng", "-pix_fmt", "rgb24"), CLIP, 0),
    "alpha dropped": (
        lambda: lossless(frames=RGBA.tobytes() * 3, pixels="bgra", pix_fmt="rgba", size=(21, 35)),
        np.stack([RGBA[..., :3]] * 3), 0,
    ),
    "alpha on white": (
        lambda: lossless(frames=RGBA.tobytes() * 3, pixels="bgra", pix_fmt="rgba", size=(21, 35)),
        np.stack([ON_WHITE] * 3), 0, {"alpha": "white"},
    ),
    "uneven in time": (lambda: uneven([0, 1, 2, 6, 7]), (CLIP[[0, 1, 2, 2, 2, 2, 3, 4]], 10), 0),
    "uneven, as stored": (lambda: uneven([0, 1, 2, 6, 7]), (CLIP[:5], 25), 0, {"fps": 25}),
    "negative times": (
        lambda: remuxed(lossless(), "mkv", "-avoid_negative_ts", "disabled", "-output_ts_offset", "-0.5"), CLIP, 0,
    ),
    "starts at 5 s": (lambda: remuxed(lossless(), "mkv", "-output_ts_offset", "5"), (CLIP, 10), 0),
    "an edit list hides the start": (
        lambda: remuxed(h264(CLIP, "-g", "10", "-bf", "0", kind="mkv"), "mp4", before=("-ss", "0.4")), CLIP[4:], 2,
    ),
    "two video streams: the default": (two_streams, CLIP, 0),
    "mov, its index at the end": (lambda: h264(CLIP, kind="mov"), CLIP, 2),
    "mp4, cut short": (lambda: h264(CLIP, "-movflags", "+faststart")[:-200], (Bad, "damaged or cut short")),
    "mp4, index missing": (lambda: h264(CLIP)[:-200], (Bad, "not a picture or video.*damaged")),
    "mkv, cut short": (lambda: lossless()[:-200], (Bad, "cut short")),
    "gif, cut short": (lambda: GIF[:-20], (Bad, "cut short")),
    "mp4 without frames": (without_frames, (Bad, "no frames|not a picture|damaged|cannot be read")),
    "mp4, says 2^31 frames of 1 GB": (declared_mp4, (Bad, "damaged|no frames|cannot be read")),
    "changes its size": (growing, (Unsupported, "frame 2 is 96 x 64, the first is 64 x 48")),
    "only sound": (lambda: sound("m4a"), (Bad, "without pictures, only sound")),
    "sound with a cover": (cover_art, (Bad, "without pictures, only sound")),
    "text": (lambda: b"dear diary,\n" * 50, (Bad, "not a picture or video")),
    "empty": (lambda: b"", (Bad, r"empty \(0 bytes\)")),
    "zeros": (lambda: bytes(10000), (Bad, "not a picture or video")),
    "a picture": (lambda: png(CARD, 2), (Bad, r"a picture \(png\).*read_image")),
}  # fmt: skip


@pytest.mark.parametrize("name", VIDEOS)
def test_a_video(name, tmp_path):
    make, expected, *rest = VIDEOS[name]
    data, options = make(), rest[1] if len(rest) > 1 else {}
    (tmp_path / "misnamed.jpg").write_bytes(data)
    for source in (data, tmp_path / "misnamed.jpg"):
        if isinstance(expected, tuple) and isinstance(expected[0], type):
            with pytest.raises(expected[0], match=f"(misnamed.jpg|the bytes given): .*({expected[1]})"):
                read_video(source, **options)
            continue
        video = read_video(source, **options)
        frames, rate = expected if isinstance(expected, tuple) else (expected, 10)
        check(video.frames, frames, rest[0])
        assert len(frames) == 1 or abs(video.fps - rate) < 1e-3 * rate


# ---- what is no file ----


@pytest.mark.parametrize("read", [read_image, read_video])
def test_no_regular_file(read, tmp_path):
    os.mkfifo(tmp_path / "fifo.mp4")  # must not wait for a writer
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    for name, error, words in (
        ("", ValueError, "is a folder: name a file in it"),
        ("fifo.mp4", ValueError, "not a regular file"),
        ("/dev/null", ValueError, "not a regular file"),
        ("nothing.mp4", FileNotFoundError, "nothing.mp4: cannot be opened"),
        ("loop.png", OSError, "loop.png: cannot be opened"),
        ("n" * 300, OSError, "cannot be opened"),
    ):
        with pytest.raises(error, match=words):
            read(tmp_path / name)


def test_what_a_browser_saves_as_png_is_named_for_what_it_is(tmp_path):
    """A wrong ending is no error: the picture is read."""
    (tmp_path / "photo.png").write_bytes(jpeg())
    assert read_image(tmp_path / "photo.png").shape == CARD.shape
    assert len(read_video(Video(CLIP).save(tmp_path / "clip.mkv").rename(tmp_path / "clip.txt"))) == 10

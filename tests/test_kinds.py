"""The kinds of file and the codecs that are read: each of them, and no other that this FFmpeg could read."""

import re
import struct
import subprocess

import pytest
from media_files import ROOT, needs_ffmpeg
from test_odd_files import CLIP, blocks, check, encode, made, matrix

from ipvg import _core
from ipvg.video import read_image, read_video

pytest.importorskip("ipvg._media", reason="built without FFmpeg")
pytestmark = needs_ffmpeg

LARGE, SMALL = blocks(5, 128, 256), blocks(5, 96, 128)  # the least that DNxHD takes; the least of H.263's sizes
DNXHR = ("-c:v", "dnxhd", "-profile:v", "dnxhr_hqx", *matrix("bt709"), "-pix_fmt", "yuv422p10le")

#: name: (FFmpeg's name of the container, of the decoder, the file's ending, options, level that a cell's middle may be
#: off: what the encoder at its best loses; a wrong matrix or range is off by 10 and more)
VIDEOS = {
    "h264 in mp4": ("mov", "h264", "mp4", ("-c:v", "libx264", "-crf", "1", "-pix_fmt", "yuv420p"), 2),
    "hevc in mov": ("mov", "hevc", "mov", ("-c:v", "libx265", "-crf", "1", "-x265-params", "log-level=none"), 2),
    "hevc in mpeg-ts": ("mpegts", "hevc", "ts", ("-c:v", "libx265", "-crf", "1", "-x265-params", "log-level=none"), 2),
    "av1 in webm": ("matroska", "libdav1d", "webm", ("-c:v", "libaom-av1", "-crf", "1", "-cpu-used", "8"), 3),
    "vp8 in webm": ("matroska", "vp8", "webm", ("-c:v", "libvpx", "-b:v", "9M", "-qmin", "0", "-qmax", "1"), 5),
    "vp9 in mkv": ("matroska", "vp9", "mkv", ("-c:v", "libvpx-vp9", "-crf", "1", "-b:v", "0"), 3),
    "mpeg1 in mpeg-ps": ("mpeg", "mpeg1video", "mpg", ("-c:v", "mpeg1video", "-qmin", "1", "-q:v", "1", "-g", "1"), 5),
    "mpeg2 in mpeg-ts": ("mpegts", "mpeg2video", "ts", ("-c:v", "mpeg2video", "-qmin", "1", "-q:v", "1", "-g", "1"), 5),
    "mpeg4 in avi": ("avi", "mpeg4", "avi", ("-c:v", "mpeg4", "-q:v", "1"), 4),
    "h263 in 3gp": ("mov", "h263", "3gp", ("-c:v", "h263", "-q:v", "1"), 4),
    "h263 in flv": ("flv", "flv", "flv", ("-c:v", "flv", "-q:v", "1"), 4),
    "mjpeg in avi": ("avi", "mjpeg", "avi", ("-c:v", "mjpeg", "-q:v", "1", "-pix_fmt", "yuvj444p"), 2),
    "mjpeg alone": ("mjpeg", "mjpeg", "mjpeg", ("-c:v", "mjpeg", "-q:v", "1", "-pix_fmt", "yuvj444p"), 2),
    "prores in mov": ("mov", "prores", "mov", ("-c:v", "prores_ks", "-q:v", "1", "-pix_fmt", "yuv444p10le"), 2),
    "dnxhr in mov": ("mov", "dnxhd", "mov", DNXHR, 3),
    "animation in mov": ("mov", "qtrle", "mov", ("-c:v", "qtrle"), 0),
    "png in mov": ("mov", "png", "mov", ("-c:v", "png"), 0),
    "ffv1 in mkv": ("matroska", "ffv1", "mkv", ("-c:v", "ffv1", "-pix_fmt", "bgr0"), 0),
    "ffvhuff in avi": ("avi", "ffvhuff", "avi", ("-c:v", "ffvhuff", "-pix_fmt", "rgb24"), 0),
    "huffyuv in avi": ("avi", "huffyuv", "avi", ("-c:v", "huffyuv", "-pix_fmt", "rgb24"), 0),
    "raw in avi": ("avi", "rawvideo", "avi", ("-c:v", "rawvideo", "-pix_fmt", "bgr24"), 0),
    "y4m": ("yuv4mpegpipe", "rawvideo", "y4m", ("-pix_fmt", "yuv444p"), 2),
    "gif": ("gif", "gif", "gif", ("-vf", "split[a][b];[a]palettegen[p];[b][p]paletteuse"), 1),
    "apng": ("apng", "apng", "apng", ("-f", "apng", "-pix_fmt", "rgb24"), 0),
}

PICTURES = {
    "png": ("png_pipe", "png", "png", (), 0),
    "jpeg": ("jpeg_pipe", "mjpeg", "jpg", ("-c:v", "mjpeg", "-q:v", "1", "-pix_fmt", "yuvj444p"), 2),
    "webp": ("webp_pipe", "webp", "webp", ("-c:v", "libwebp", "-lossless", "1", "-pix_fmt", "bgra"), 0),
    "bmp": ("bmp_pipe", "bmp", "bmp", ("-pix_fmt", "bgr24"), 0),
    "tiff": ("tiff_pipe", "tiff", "tiff", ("-pix_fmt", "rgb24"), 0),
    "avif": ("mov", "libdav1d", "avif", ("-c:v", "libaom-av1", "-crf", "1", "-still-picture", "1"), 3),
}

#: Two that stand in where FFmpeg was built without dav1d.
INSTEAD = {"libaom-av1", "av1"}


def names(which):
    """A list of csrc/io/source.c."""
    (text,) = re.findall(rf'char {which}\[\] =((?:\s*"[^"]*")+);', (ROOT / "csrc/io/source.c").read_text())
    return set("".join(re.findall('"(.*)"', text)).split(","))


def probed(data, path):
    """(container, codec) of a file, in ffprobe's words."""
    path.write_bytes(data)
    probe = ["ffprobe", "-v", "error", "-show_entries", "format=format_name:stream=codec_name", "-of", "flat", path]
    out = subprocess.run(probe, check=True, capture_output=True, text=True).stdout
    return re.search(r'format_name="([^"]*)"', out)[1], re.search(r'codec_name="([^"]*)"', out)[1]


@pytest.mark.parametrize("name", VIDEOS)
def test_a_video(name, tmp_path):
    container, codec, kind, options, off = VIDEOS[name]
    frames = LARGE if codec == "dnxhd" else SMALL
    data = encode(frames, kind, *options, rate=25)
    assert container in probed(data, tmp_path / "a")[0].split(",")
    video = read_video(data)
    check(video.frames, frames, off)
    assert video.fps == pytest.approx(25)


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture(name, tmp_path):
    container, _, kind, options, off = PICTURES[name]
    data = encode(CLIP[:1], kind, *options)
    assert container in probed(data, tmp_path / "a")[0].split(",")
    check(read_image(data), CLIP[0], off)


def test_every_name_of_the_lists_is_tested():
    rows = [*VIDEOS.values(), *PICTURES.values()]
    assert {row[0] for row in rows} == names("demuxers")
    assert {row[1] for row in rows} == names("decoders") - INSTEAD


# ---- what FFmpeg reads, or would with more libraries, and we do not ----

SVG = b"<?xml version='1.0'?><svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'><image href='/x.png'/></svg>"
OTHERS = {
    "svg": lambda: SVG,
    "svg without its first line": lambda: SVG[21:],
    **{kind: lambda kind=kind: encode(CLIP[:1], kind) for kind in ("ppm", "qoi", "jp2", "sgi", "jxl")},
    "wav": lambda: made("wav", "-f", "lavfi", "-i", "sine=duration=0.2"),
    "subtitles": lambda: b"1\n00:00:00,000 --> 00:00:01,000\nwords\n\n" * 3,
    "ogg": lambda: encode(CLIP, "ogv", "-c:v", "libtheora"),
    "heic": lambda: struct.pack(">I", 24) + b"ftypheic\0\0\0\0mif1heic" + bytes(100),
    "asf": lambda: encode(CLIP, "asf", "-c:v", "wmv2"),
}


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("read", [read_image, read_video])
def test_another_kind_is_refused_by_its_name(name, read):
    try:
        data = OTHERS[name]()
    except subprocess.CalledProcessError:
        pytest.skip("this ffmpeg cannot write it")
    with pytest.raises(_core.FormatError, match=r"the bytes given: not a picture or video that .*read"):
        read(data)


@pytest.mark.parametrize(("codec", "kind"), [("theora", "mkv"), ("wmv2", "avi"), ("jpeg2000", "mov"), ("svq1", "mov")])
def test_another_codec_is_refused_by_its_name(codec, kind):
    data = encode(CLIP, kind, "-c:v", {"theora": "libtheora"}.get(codec, codec))
    with pytest.raises(_core.UnsupportedError, match=f"the codec '{codec}' is not read: convert it first"):
        read_video(data)

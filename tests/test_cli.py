"""The `ipvg` command as its users meet it: exit status, what goes where, files whole or absent, no tracebacks."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ipvg import cli
from ipvg.progress import Progress, clock
from ipvg.video import Video

ROOT = Path(__file__).resolve().parent.parent
PICTURE = str(ROOT / "models" / "examples" / "astronaut.png")
TINY = ["--size", "64x48", "--frames", "5", "--steps", "2", "--threads", "2"]


def ipvg(*args, **options) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "ipvg", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, env=environment(), **options)


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "120"}


@pytest.fixture(scope="module")
def generate(small_checkpoint):
    return ["generate", "--checkpoint", small_checkpoint, "--prompt", "A woman smiles.", "--image", PICTURE]


@pytest.mark.parametrize("command", [c.__name__.rpartition(".")[2] for c in cli.COMMANDS])
def test_help_has_examples(command):
    done = ipvg(command, "--help")
    assert done.returncode == 0 and re.search(rf"examples:\n.*ipvg {command}", done.stdout) and not done.stderr


def test_generate_writes_a_video_that_players_accept(generate, tmp_path):
    out, sheet = tmp_path / "a.mp4", tmp_path / "a.png"
    done = ipvg(*generate, *TINY, "--out", out, "--contact-sheet", sheet, "--json")
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert record["video"] == str(out) and record["contact_sheet"] == str(sheet)
    assert record["size"] == [64, 48] and record["frames"] == 5 and record["seed"] == 2025
    assert record["guidance"]["branches"]["weak"]["reference"] == "drop"
    assert sheet.read_bytes().startswith(b"\x89PNG")
    assert [stage for stage in ("text", "source", "denoising", "decoding") if stage in done.stderr] == [
        "text", "source", "denoising", "decoding",
    ]  # fmt: skip
    if shutil.which("ffprobe") is None:
        pytest.skip("ffprobe is not installed")
    probe = ["ffprobe", "-v", "error", "-count_frames", "-show_streams", "-of", "json", str(out)]
    (stream,) = json.loads(subprocess.run(probe, check=True, capture_output=True, text=True).stdout)["streams"]
    expected = {"codec_name": "h264", "pix_fmt": "yuv420p", "width": 64, "height": 48, "r_frame_rate": "16/1"}
    expected |= {"nb_read_frames": "5", "color_space": "bt709", "color_range": "tv"}
    assert {key: stream.get(key) for key in expected} == expected


def test_the_same_command_gives_the_same_bytes(generate, tmp_path):
    guidance = ["--guidance", "cfg", "--weight", "w=3", "--seed", "7", "--quiet"]
    for name in ("a.mp4", "b.mp4"):
        done = ipvg(*generate, *TINY, *guidance, "--out", tmp_path / name)
        assert done.returncode == 0 and not done.stderr, done.stderr
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()


def test_guidance_may_be_a_file_of_ones_own(generate, tmp_path):
    from ipvg.guidance import Branch, Guidance

    mine = Guidance({"a": Branch(text="cond"), "b": Branch(text="null")}, "b + w*(a - b)", w=2.0)
    (tmp_path / "mine.json").write_text(mine.to_json())
    out = tmp_path / "a.mp4"
    done = ipvg(*generate, *TINY, "--guidance", tmp_path / "mine.json", "--out", out, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["guidance"] == mine.to_dict()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--out", "a.avi"], "ends in .mp4"),
        (["--out", "nowhere/a.mp4"], "no folder 'nowhere'"),
        (["--out", "a.mp4", "--contact-sheet", "a.jpg"], "ends in .png"),
        (["--out", "a.mp4", "--frames", "6"], "4n + 1"),
        (["--out", "a.mp4", "--size", "100x100"], "multiples of 16"),
        (["--out", "a.mp4", "--size", "big"], "WIDTHxHEIGHT"),
        (["--out", "a.mp4", "--steps", "0"], "at least 1"),
        (["--out", "a.mp4", "--seed", "-1"], "from 0 to 2**64 - 1"),
        (["--out", "a.mp4", "--guidance", "magic"], "tpige_aligned"),
        (["--out", "a.mp4", "--weight", "w"], "NAME=NUMBER"),
        ([], "--out"),
    ],
)
def test_wrong_usage_is_2_and_says_what_is_expected(generate, tmp_path, arguments, says):
    done = ipvg(*generate, *arguments, cwd=tmp_path)
    assert done.returncode == 2 and says in done.stderr and "usage: ipvg generate" in done.stderr
    assert not list(tmp_path.iterdir())


def test_what_is_read_or_there_is_not_written_over(generate, tmp_path):
    """And said before the work: a checkpoint that is not there would be the work's own error."""
    (tmp_path / "shots").mkdir()
    (tmp_path / "shots" / "mine.txt").touch()
    Video(np.zeros((5, 48, 64, 3), np.uint8)).save(tmp_path / "in.mp4")
    before = (tmp_path / "in.mp4").read_bytes()
    for arguments, says in (
        (["--out", "shots.png"], "folder 'shots' is there already, and not empty"),
        (["--source", "in.mp4", "--out", "./in.mp4"], "'./in.mp4' is read as well"),
    ):
        done = ipvg("generate", "--prompt", "x", "--checkpoint", "none", *arguments, cwd=tmp_path)
        assert done.returncode == 2 and says in done.stderr, done.stderr
    assert (tmp_path / "in.mp4").read_bytes() == before


def test_failures_are_1_in_one_line(generate, tmp_path):
    missing = ["generate", "--prompt", "x", "--out", tmp_path / "a.mp4", "--checkpoint", tmp_path / "none"]
    damaged = tmp_path / "damaged.png"
    damaged.write_bytes(Path(PICTURE).read_bytes()[:5000])
    unreadable = [*generate, *TINY, "--image", damaged, "--out", tmp_path / "a.mp4"]
    for arguments, says in ((missing, "none"), (unreadable, "damaged.png"), (["info", tmp_path], str(tmp_path))):
        done = ipvg(*arguments)
        lines = done.stderr.splitlines()
        assert done.returncode == 1 and lines[-1].startswith("ipvg: ") and says in lines[-1], done.stderr
        assert "Traceback" not in done.stderr
    assert not (tmp_path / "a.mp4").exists()


def test_an_unexpected_error_asks_for_a_report_and_debug_shows_it(monkeypatch, capsys):
    def broken(args):
        raise KeyError("a bug")

    monkeypatch.setattr(cli.info, "run", broken)
    assert cli.main(["info", "."]) == 1
    plain = capsys.readouterr().err
    assert "internal error" in plain and "--debug" in plain and "Traceback" not in plain
    assert cli.main(["info", ".", "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_ctrl_c_stops_within_a_step_and_leaves_no_file(generate, tmp_path):
    arguments = [*generate, *TINY, "--steps", "5000", "--out", tmp_path / "a.mp4"]
    command = [sys.executable, "-m", "ipvg", *map(str, arguments)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment()) as process:
        for line in process.stderr:
            if line.startswith("source"):  # the next stage, which has begun or is about to, is the long one
                break
        process.send_signal(signal.SIGINT)
        try:
            _, rest = process.communicate(timeout=60)
        finally:
            process.kill()
        assert process.returncode == 130, rest
    assert "ipvg: stopped" in rest and "Traceback" not in rest
    assert not list(tmp_path.iterdir())


def test_info_describes_a_checkpoint(small_checkpoint):
    done = ipvg("info", small_checkpoint, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["ok"] and found["layout"] == "official" and set(found["components"]) == {"dit", "vae", "text"}
    assert {(row["width"], row["height"], row["frames"]) for row in found["memory"]} >= {(832, 480, 81)}
    text = ipvg("info", small_checkpoint)
    assert text.returncode == 0 and "official layout" in text.stdout and "memory needed" in text.stdout


def test_a_closed_pipe_is_silent(small_checkpoint):
    command = f"{sys.executable} -m ipvg info {small_checkpoint} | true"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, env=environment())
    assert "Traceback" not in done.stderr and "BrokenPipe" not in done.stderr


def test_the_demo_at_its_smallest(tmp_path):
    done = ipvg("demo", "--smallest", "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "demo.mp4").stat().st_size > 0 and (tmp_path / "out" / "demo.png").stat().st_size > 0
    assert str(tmp_path / "out" / "demo.mp4") in done.stdout
    enhanced = json.loads((tmp_path / "out" / "demo.json").read_text())
    assert enhanced["prompt"].startswith("A woman with bob red hair and") and enhanced["appearance"]
    assert len(enhanced["provenance"]["reference"]["candidates"]) == 2
    if not (ROOT / "models" / "ipvg-tiny" / "config.json").is_file():
        assert "NOISE" in done.stdout


# ---- progress ----


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_on_a_terminal_rewrites_one_line_and_says_what_is_left(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    stream = Terminal()
    with Progress(stream) as progress:
        progress("denoising", 0, 50)
        now[0] += 40.0
        progress("denoising", 10, 50)
        assert progress.text() == "denoising  10/50  20 %  4 s each, 2:40 left"
        now[0] += 160.0
        progress("denoising", 50, 50)
    assert stream.getvalue().count("\n") == 1 and stream.getvalue().endswith("denoising  50/50  100 %  200 s\n")


def test_progress_elsewhere_is_a_line_a_stage():
    stream = io.StringIO()
    with Progress(stream) as progress:
        for done in range(4):
            progress("text", done, 3)
        progress("decoding", 1, 1)
    lines = stream.getvalue().splitlines()
    assert [line.split()[0] for line in lines] == ["text", "decoding"] and "\x1b" not in stream.getvalue()


def test_clock():
    assert [clock(s) for s in (6.6, 193, 3760)] == ["0:07", "3:13", "1:02:40"]

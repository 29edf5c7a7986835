"""A file appears whole or not at all: full disks, forbidden places and Ctrl-C leave nothing behind."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
from media_files import ROOT, clip

from ipvg.video import Video, read_video

pytest.importorskip("ipvg._media", reason="built without FFmpeg")

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

"""A disk that is really full: a small file system in memory. Nothing is lost, nothing half-written stays."""

from __future__ import annotations

import subprocess

import numpy as np
import pytest

from ipvg.cache import Cache, CacheWarning

ANSWER = {"content": "small", "finish_reason": "stop", "model": "m", "prompt_tokens": 1, "completion_tokens": 1}


@pytest.fixture
def disk(tmp_path):
    """A folder with 512 KiB of space."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(folder)]
    try:
        done = subprocess.run(mount, capture_output=True, text=True, timeout=30)
    except OSError as error:
        pytest.skip(f"no mount: {error}")
    if done.returncode:
        pytest.skip(f"no small file system may be mounted here (root may): {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True, timeout=30)


def test_cache(disk):
    cache = Cache(disk / "c.sqlite")
    cache.put({"n": 0}, ANSWER)
    large = {**ANSWER, "content": "x" * 2_000_000}
    with pytest.warns(CacheWarning, match="full|disk"):
        assert cache.put({"n": 1}, large) == large
    with pytest.warns(CacheWarning, match="full|disk"):
        cache.put({"n": 2}, ANSWER, [bytes(2_000_000)])
    assert cache.get({"n": 0}) == ANSWER and cache.get({"n": 1}) is None and cache.get({"n": 2}) is None
    cache.close()
    again = Cache(disk / "c.sqlite")
    with again._open() as db:
        assert len(again) == 1 and db.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
    assert again.put({"n": 3}, ANSWER) == ANSWER and len(again) == 2, "there is space again"
    again.close()


def test_new_cache_on_a_full_disk(disk):
    fill(disk)
    cache = Cache(disk / "c.sqlite")
    with pytest.warns(CacheWarning, match="full|disk|unable"):
        assert cache.put({"n": 1}, ANSWER) == ANSWER


def test_export(disk, tmp_path):
    cache = Cache(tmp_path / "c.sqlite")
    cache.put({"n": 1}, {**ANSWER, "content": "x" * 2_000_000})
    with pytest.raises(OSError, match="No space left"):
        cache.export(disk / "all.jsonl")
    assert list(disk.iterdir()) == []


def test_video_picture_and_enhancement(disk):
    video = pytest.importorskip("ipvg.video")
    pytest.importorskip("ipvg._media")
    from ipvg.enhancement import Enhancement

    noise = np.random.default_rng(1).integers(0, 256, (9, 256, 256, 3), np.uint8)
    with pytest.raises((OSError, RuntimeError), match="No space left"):
        video.Video(noise).save(disk / "a.mp4", crf=1)
    with pytest.raises((OSError, RuntimeError), match="No space left"):
        video.write_png(disk / "a.png", np.tile(noise[0], (3, 3, 1)))
    fill(disk)
    with pytest.raises((OSError, RuntimeError), match="No space left"):
        Enhancement("A woman.", "A woman.", image="", reference="").save(disk / "a.json")
    assert [path.name for path in disk.iterdir()] == ["rest"]


def fill(disk) -> None:
    with (disk / "rest").open("wb", buffering=0) as rest, pytest.raises(OSError, match="No space left"):
        while True:
            rest.write(bytes(4096))

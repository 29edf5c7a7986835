"""Manifests: what they hold, the same bytes from them, and what has changed since is named."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from test_lora import FORMATS, save

from ipvg import FormatError, Pipeline, guidance, jobs, manifest
from ipvg.checkpoint import Checkpoint, expected, to_bfloat16
from ipvg.cli import main
from ipvg.parity import recipe
from ipvg.video import Video, write_png

pytest.importorskip("ipvg._media", reason="built without FFmpeg")

TINY = {"size": (32, 32), "frames": 5, "steps": 2, "threads": 1}


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder / "ipvg" / "sha256.json"


@pytest.fixture
def checkpoint(small_checkpoint, tmp_path):
    """A copy that a test may change."""
    return Path(shutil.copytree(small_checkpoint, tmp_path / "checkpoint"))


@pytest.fixture
def photo(tmp_path):
    return str(write_png(tmp_path / "photo.png", recipe.pixels("manifest/photo", (40, 30, 3))))


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_a_video_tells_what_made_it(small_checkpoint):
    pipe = Pipeline.load(small_checkpoint, threads=1)
    picture = recipe.pixels("manifest/photo", (40, 30, 3))
    video = pipe.generate("A woman.", [picture], guidance=guidance.cfg(w=3), size=(32, 32), frames=5, steps=2, seed=7)
    told = video.manifest
    assert told["job"]["seed"] == 7 and told["job"]["steps"] == 2 and told["job"]["shift"] == pipe.defaults.shift
    assert told["job"]["size"] == [32, 32] and told["job"]["frames"] == 5 and told["job"]["solver"] == "unipc"
    assert told["job"]["texts"]["cond"] == "A woman." and set(told["job"]["texts"]) == {"cond", "negative"}
    assert guidance.Guidance.from_dict(told["job"]["guidance"]) == guidance.cfg(w=3)
    assert told["inputs"]["references"] == [{"shape": [40, 30, 3], "dtype": "uint8", "sha256": sha(picture.tobytes())}]
    assert told["inputs"]["video"] is None and told["device"] == {"name": "cpu", "threads": 1, "dtype": "float32"}
    assert [stage["name"] for stage in told["stages"]] == ["text", "source", "denoising", "decoding"]
    assert all(stage["seconds"] > 0 and stage["peak_bytes"] > 1 << 20 for stage in told["stages"])
    assert told["versions"]["numpy"] == np.__version__ and "ffmpeg" in told["versions"]
    assert json.loads(json.dumps(told)) == told
    assert Video(video.frames).manifest is None


def test_a_start_and_hooks_are_told(small_checkpoint):
    pipe, clean = Pipeline.load(small_checkpoint, threads=1), np.ones((16, 2, 4, 4), np.float32)
    settings = {"guidance": guidance.none(), "size": (32, 32), "frames": 5, "steps": 4}
    told = pipe.generate("A woman.", **settings, start=(clean, 3), edit_combined=lambda p: None).manifest
    assert told["job"]["begin"] == 3 and told["job"]["hooks"] == ["edit_combined"]
    assert told["inputs"]["start"]["sha256"] == sha(clean.tobytes())


def test_what_cannot_work_is_said_before_the_work(small_checkpoint, monkeypatch):
    pipe = Pipeline.load(small_checkpoint, threads=1)
    monkeypatch.setattr(pipe, "encode_text", lambda *_: pytest.fail("the text was encoded first"))
    for wrong in ({"steps": 0}, {"shift": -1.0}, {"solver": "magic"}, {"size": (33, 32)}, {"frames": 4}, {"stepz": 3}):
        with pytest.raises((ValueError, TypeError), match=next(iter(wrong))):
            pipe.generate("A woman.", **wrong)


def test_the_peak_of_a_stage_is_its_own():
    stages = manifest.Stages()
    with stages.stage("large"):
        np.ones(200 << 20, np.uint8)
    with stages.stage("small"):
        pass
    large, small = (stage["peak_bytes"] for stage in stages.list)
    assert large > 200 << 20 and (small < large - (150 << 20) or not Path("/proc/self/clear_refs").exists())


def made(checkpoint, photo, out, **settings):
    settings = jobs.resolve({"prompt": "A woman.", "images": [photo], "checkpoint": checkpoint, **TINY, **settings})
    video, pipe = jobs.make(settings)
    return jobs.save(video, out, pipe)


def test_a_rerun_gives_the_same_bytes(checkpoint, photo, tmp_path):
    dit = Checkpoint.open(checkpoint, components=["dit"]).components["dit"]
    rows, columns = expected(dit.config)["blocks.0.ffn.0.weight"]
    rng = np.random.default_rng(0)
    parts = {"blocks.0.ffn.0": (rng.random((2, columns), np.float32), rng.random((rows, 2), np.float32))}
    lora = save(tmp_path / "lora.safetensors", parts, *FORMATS["kohya"])
    files = made(checkpoint, photo, tmp_path / "a.mp4", lora=[[lora, 0.1]], task="first-frame", first=photo, seed=5)
    assert files["manifest"] == str(tmp_path / "a.mp4.json")
    told = manifest.read(files["manifest"])
    assert told["output"]["sha256"] == sha((tmp_path / "a.mp4").read_bytes())
    weights = "diffusion_pytorch_model.safetensors"
    assert told["checkpoint"]["files"][weights] == sha((checkpoint / weights).read_bytes())
    assert "google/umt5-xxl/tokenizer.json" in told["checkpoint"]["files"]
    assert told["loras"] == [{"path": str(lora), "strength": 0.1, "sha256": sha(lora.read_bytes())}]
    assert {(f["role"], f["path"]) for f in told["files"]} == {("references", photo), ("first", photo)}

    done = jobs.rerun(files["manifest"])
    assert done.same and done.differences == [] and done.files["video"] == str(tmp_path / "a-rerun.mp4")
    assert (tmp_path / "a-rerun.mp4").read_bytes() == (tmp_path / "a.mp4").read_bytes()
    other = made(checkpoint, photo, tmp_path / "b.mp4", seed=6)
    assert Path(other["video"]).read_bytes() != (tmp_path / "a.mp4").read_bytes()


def test_the_command_reruns(checkpoint, photo, tmp_path, capsys):
    files = made(checkpoint, photo, tmp_path / "a.mp4")
    assert main(["rerun", files["manifest"], "--out", str(tmp_path / "b.mp4"), "--quiet"]) == 0
    assert "the same bytes" in capsys.readouterr().out
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()


def test_a_folder_of_pictures_is_made_again(checkpoint, photo, tmp_path):
    files = made(checkpoint, photo, tmp_path / "shots.v2.png")
    done = jobs.rerun(files["manifest"])
    assert done.same and done.files["video"] == str(tmp_path / "shots.v2-rerun")
    with pytest.raises(SystemExit):
        main(["rerun", files["manifest"], "--out", str(tmp_path / "b.avi")])


def test_what_has_changed_is_named(checkpoint, photo, tmp_path, capsys):
    files = made(checkpoint, photo, tmp_path / "a.mp4")
    path = Path(files["manifest"])

    def found():
        with pytest.raises(ValueError, match="no longer as it was") as caught:
            jobs.rerun(path, tmp_path / "b.mp4")
        return str(caught.value)

    told = json.loads(path.read_text())
    path.write_text(json.dumps({**told, "versions": {**told["versions"], "ipvg": "0.0.1"}}))
    assert "version of ipvg: was 0.0.1" in found()
    path.write_text(json.dumps({**told, "machine": {**told["machine"], "cpu": "another"}}))
    assert "machine of cpu: was another" in found()
    path.write_text(json.dumps(told))

    write_png(photo, recipe.pixels("manifest/other", (40, 30, 3)))
    assert f"file: {photo} changed" in found()
    Path(photo).unlink()
    assert f"file: {photo} is gone" in found()
    write_png(photo, recipe.pixels("manifest/photo", (40, 30, 3)))

    weights = checkpoint / "diffusion_pytorch_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-5:-1] = to_bfloat16(np.array([3.0, -2.0], np.float32)).tobytes()
    weights.write_bytes(data)
    assert f"checkpoint: {weights} changed" in found()
    assert main(["rerun", str(path), "--out", str(tmp_path / "b.mp4"), "--quiet"]) == 1
    assert str(weights) in capsys.readouterr().err and not (tmp_path / "b.mp4").exists()
    assert main(["rerun", str(path), "--out", str(tmp_path / "b.mp4"), "--quiet", "--anyway"]) == 1
    assert "NOT the same bytes" in capsys.readouterr().out


def test_hashes_are_kept_until_a_file_changes(tmp_path, cache, monkeypatch):
    path = tmp_path / "large"
    path.write_bytes(bytes(2 << 20))
    assert manifest.sha256(path) == sha(bytes(2 << 20))
    table = json.loads(cache.read_text())
    table[str(path)][2] = "kept"
    cache.write_text(json.dumps(table))
    assert manifest.sha256(path) == "kept" and manifest.sha256(path, cached=False) == sha(bytes(2 << 20))
    path.write_bytes(bytes((2 << 20) + 1))
    assert manifest.sha256(path) == sha(bytes((2 << 20) + 1))
    cache.write_text("damaged")
    assert manifest.sha256(path) == sha(bytes((2 << 20) + 1))


def test_other_files_are_no_manifest(tmp_path, small_checkpoint):
    for text in ("{", "[]", '{"format": "another"}'):
        (tmp_path / "x.json").write_text(text)
        with pytest.raises(FormatError, match=r"x\.json"):
            manifest.read(tmp_path / "x.json")
    video = Pipeline.load(small_checkpoint, threads=1).generate(
        "A woman.", size=(32, 32), frames=1, steps=1, guidance=guidance.none()
    )
    path = manifest.write(video.manifest, video.save(tmp_path / "a.mp4"))
    with pytest.raises(ValueError, match="arrays"):
        jobs.rerun(path)


# ---- jobs ----


def test_every_task_has_its_settings():
    from ipvg.tasks import TASKS

    assert set(jobs.NEEDS) == {None, *TASKS}


@pytest.mark.parametrize(
    ("words", "settings"),
    [
        ("'promt' is unknown; did you mean 'prompt'", {"promt": "x"}),
        ("task: expected one of text", {"task": "magic"}),
        ("task inpaint needs mask", {"task": "inpaint", "video": "a.mp4"}),
        ("task text does not take references", {"task": "text", "images": ["a.png"]}),
        (r"task \(none given\) does not take first", {"first": "a.png"}),
        ("task outpaint needs pad", {"task": "outpaint", "video": "a.mp4"}),
    ],
)
def test_settings_that_cannot_work_are_named(words, settings):
    with pytest.raises(ValueError, match=words):
        jobs.resolve(settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"task": "text", "images": []},
        {"task": "image"},
        {"task": "references"},
        {"task": "control", "video": "clip.mp4"},
        {"task": "inpaint", "video": "clip.mp4", "mask": "mask.png"},
        {"task": "outpaint", "video": "clip.mp4", "pad": {"left": 0.5}},
        {"task": "last-frame", "last": "photo.png"},
        {"task": "first-last", "first": "photo.png", "last": "photo.png"},
        {"task": "extend-after", "video": "clip.mp4", "keep": 2},
        {"task": "extend-before", "video": "clip.mp4", "images": []},
        {"video": "clip.mp4", "mask": "mask.png"},
    ],
    ids=lambda s: s.get("task", "none"),
)
def test_every_task_from_files(small_checkpoint, photo, tmp_path, monkeypatch, settings):
    monkeypatch.chdir(tmp_path)
    Video(recipe.pixels("manifest/clip", (4, 32, 48, 3))).save("clip.mp4")
    mask = np.zeros((32, 48, 3), np.uint8)
    mask[:, 24:] = 255
    write_png("mask.png", mask)
    files = made(small_checkpoint, photo, "out.mp4", **{**settings, "guidance": guidance.none().to_dict(), "steps": 1})
    told = manifest.read(files["manifest"])
    assert told["settings"]["task"] == settings.get("task")
    assert told["job"]["frames"] == (1 if settings.get("task") == "image" else 5)


def test_a_short_clip_is_not_shown_in_slow_motion(small_checkpoint, photo, tmp_path):
    """11 pictures at 30 a second are 6 at 16: without frames= a video of 5, not the checkpoint's 81 of the same."""
    Video(recipe.pixels("manifest/clip", (11, 32, 48, 3)), 30).save(tmp_path / "clip.mkv")
    settings = {"video": str(tmp_path / "clip.mkv"), "guidance": guidance.none().to_dict(), "steps": 1, "frames": None}
    for task in ("control", None):
        files = made(small_checkpoint, photo, tmp_path / "out.mkv", task=task, **settings)
        assert manifest.read(files["manifest"])["job"]["frames"] == 5

"""Long videos: where chunks lie, that each goes on from the one before, resuming, colours, memory; seams measured."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ipvg import FormatError, Pipeline, guidance, long, seams, tasks
from ipvg.long import corrected, correction, spans
from ipvg.parity import recipe
from ipvg.video import Video

SIZE = (32, 32)
PHOTO = recipe.pixels("long/photo", (40, 30, 3))
JOB = {"size": SIZE, "frames": 25, "chunk": 13, "overlap": 5, "steps": 2, "guidance": guidance.cfg(2), "seed": 7}


@pytest.fixture(scope="module")
def pipe(small_checkpoint):
    return Pipeline.load(small_checkpoint, threads=1)


@pytest.fixture(scope="module")
def made(pipe):
    return pipe.generate("A woman walks.", [PHOTO], **JOB)


# ---- where chunks lie ----


@pytest.mark.parametrize("overlap", [None, 1, 3, 5, 9, 12, 17])
@pytest.mark.parametrize("chunk", [5, 9, 17, 21, 81])
def test_chunks_cover_every_length(chunk, overlap):
    if overlap is not None and overlap > chunk - 4:
        with pytest.raises(ValueError, match="overlap: expected 1 to"):
            spans(chunk + 4, chunk, overlap)
        return
    for frames in range(1, 6 * chunk, 4):
        plan = spans(frames, chunk, overlap)
        covered = []
        for before, span in zip([None, *plan], plan):
            assert span.frames % 4 == 1 and span.frames <= chunk and span.kept < span.frames
            assert span.start + span.kept == (before.start + before.frames if before else 0), "no frame made twice"
            assert span.kept == (0 if before is None else overlap or span.kept) and (before is None) == (span.kept == 0)
            covered += range(span.seam, min(span.start + span.frames, frames))
        assert covered == list(range(frames))
        kept = plan[-1].kept
        assert len(plan) == max(1, -(-(frames - kept) // (chunk - kept))), "as few as do"
        assert all(span.frames == plan[0].frames for span in plan[:-1]) and plan[-1].frames <= plan[0].frames
        if kept % 4 == 1:
            assert plan[-1].start + plan[-1].frames == frames, "nothing is made in vain"


def test_the_usual_lengths():
    plan = [(s.start, s.frames, s.kept) for s in spans(241, 81, 17)]
    assert plan == [(0, 73, 0), (56, 73, 17), (112, 73, 17), (168, 73, 17)]
    assert spans(81, 81) == spans(81, 161) == [long.Span(0, 0, 81, 0)]
    assert spans(85, 81)[1].kept == 17 and spans(13, 9)[1].kept == 5 and spans(9, 5)[1].kept == 1


def test_seeds_differ_and_are_told():
    seeds = [long.chunk_seed(7, k) for k in range(100)]
    assert seeds[0] == 7 and len(set(seeds)) == 100 and all(0 <= s < 2**64 for s in seeds)
    # Of SHA-256, so that they are the same for ever: printf 'ipvg chunk 1 of seed 7' | sha256sum
    assert long.chunk_seed(7, 1) == int.from_bytes(bytes.fromhex("e4772fc9fe50ee58"), "little")


# ---- making one ----


def test_it_is_what_extending_by_hand_gives(pipe, made):
    """The public tasks, joined as their documentation says, without correction of colours."""
    plain = {**JOB, "match": "none"}
    ours = pipe.generate("A woman walks.", [PHOTO], **plain)
    plan = spans(25, 13, 5)
    settings = {"steps": 2, "guidance": guidance.cfg(2)}
    frames = pipe.generate("A woman walks.", [PHOTO], size=SIZE, frames=plan[0].frames, seed=7, **settings).frames
    for span in plan[1:]:
        job = tasks.extend_after(Video(frames), size=SIZE, frames=span.frames, keep=5, references=[PHOTO])
        more = pipe.generate("A woman walks.", **job, seed=long.chunk_seed(7, span.index), **settings)
        frames = np.concatenate([frames, more.frames[5:]])
    assert len(plan) == 3 and np.array_equal(ours.frames, frames)
    assert np.array_equal(made.frames[: plan[0].frames], frames[: plan[0].frames]), "the first chunk is never corrected"


def test_one_chunk_is_a_short_video(pipe):
    job = {**JOB, "frames": 9}
    short = {name: value for name, value in job.items() if name not in ("chunk", "overlap")}
    assert np.array_equal(pipe.generate("A.", [PHOTO], **job).frames, pipe.generate("A.", [PHOTO], **short).frames)


def test_the_manifest_tells_every_chunk(made):
    told = json.loads(json.dumps(made.manifest))
    assert told["job"]["frames"] == 25 == len(made) and told["job"]["chunk"] == 13 and told["job"]["overlap"] == 5
    assert [c["seed"] for c in told["chunks"]] == [long.chunk_seed(7, k) for k in range(3)]
    assert [(c["start"], c["frames"], c["kept"]) for c in told["chunks"]] == [(0, 13, 0), (8, 13, 5), (16, 9, 5)]
    assert told["chunks"][0]["offset"] == [0, 0, 0] and any(told["chunks"][1]["offset"])
    assert [s["frame"] for s in told["seams"]["seams"]] == [13, 21]
    assert {s["name"] for s in told["stages"] if s["chunk"] == 1} == {"text", "source", "denoising", "decoding"}


def test_a_source_video_and_a_mask_are_cut_with_the_chunks(pipe, monkeypatch):
    clip = recipe.pixels("long/clip", (25, 32, 32, 3))
    mask = np.zeros((25, 32, 32), np.uint8)
    mask[:, :, 16:] = 255
    seen = []
    encode = Pipeline.encode_source
    monkeypatch.setattr(
        Pipeline, "encode_source", lambda self, *a, **given: seen.append(given) or encode(self, *a, **given)
    )
    made = pipe.generate("A.", video=clip, mask=mask, **{**JOB, "steps": 1, "match": "none"})
    assert [len(given["video"]) for given in seen] == [13, 13, 9]
    for span, given in zip(spans(25, 13, 5), seen):
        end = span.start + span.frames
        assert np.array_equal(given["video"][span.kept :], clip[span.seam : end])
        assert np.array_equal(given["video"][: span.kept], made.frames[span.start : span.seam])
        assert not given["mask"][: span.kept].any()
        assert np.array_equal(given["mask"][span.kept :], mask[span.seam : end])
    assert clip.tobytes() == recipe.pixels("long/clip", (25, 32, 32, 3)).tobytes(), "the caller's video is not touched"


def test_progress_names_the_chunk(pipe):
    told = []
    pipe.generate("A.", **{**JOB, "frames": 17}, progress=lambda stage, done, total: told.append(stage))
    assert {"text", "chunk 1 of 2: denoising", "chunk 2 of 2: denoising", "chunk 2 of 2: decoding"} <= set(told)


# ---- resuming ----


def test_only_what_is_missing_is_made(pipe, made, tmp_path, monkeypatch):
    folder = tmp_path / "parts"
    calls = []
    make = long.Job.make
    monkeypatch.setattr(long.Job, "make", lambda self, span, *rest: calls.append(span.index) or make(self, span, *rest))

    def again(**changed):
        calls.clear()
        return pipe.generate("A woman walks.", [PHOTO], **{**JOB, **changed}, resume=folder)

    assert np.array_equal(again().frames, made.frames) and calls == [0, 1, 2]
    assert sorted(p.name for p in folder.iterdir()) == [f"chunk-{k:04}.safetensors" for k in range(3)]
    resumed = again()
    assert np.array_equal(resumed.frames, made.frames) and calls == []
    assert [c["seed"] for c in resumed.manifest["chunks"]] == [c["seed"] for c in made.manifest["chunks"]]
    (folder / "chunk-0001.safetensors").unlink()
    assert np.array_equal(again().frames, made.frames) and calls == [1]

    for changed, name in (
        ({"seed": 8}, "seed"),
        ({"steps": 1}, "schedule"),
        ({"guidance": guidance.cfg(3)}, "guidance"),
        ({"overlap": 1}, "overlap"),
        ({"match": "none"}, "match"),
        ({"frames": 29}, "frames"),
    ):
        with pytest.raises(ValueError, match=f"of a job with another {name}"):
            again(**changed)
    with pytest.raises(ValueError, match="another texts"):
        pipe.generate("A man.", [PHOTO], **JOB, resume=folder)
    with pytest.raises(ValueError, match="another references"):
        pipe.generate("A woman walks.", [PHOTO[::-1]], **JOB, resume=folder)

    path = folder / "chunk-0000.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(FormatError, match=r"chunk-0000"):
        again()


def test_killed_between_and_within_chunks_it_goes_on_to_the_same_bytes(small_checkpoint, made, tmp_path):
    program = (
        "import sys, numpy as np\n"
        "from ipvg import Pipeline, guidance\n"
        "photo = np.load('photo.npy')\n"
        "job = dict(size=(32, 32), frames=25, chunk=13, overlap=5, steps=2, guidance=guidance.cfg(2), seed=7)\n"
        "def tell(stage, done, total): print(stage, done, flush=True)\n"
        f"pipe = Pipeline.load({str(small_checkpoint)!r}, threads=1)\n"
        "np.save('out.npy', pipe.generate('A woman walks.', [photo], **job, resume='parts', progress=tell).frames)\n"
    )
    np.save(tmp_path / "photo.npy", PHOTO)
    env = {**os.environ, "PYTHONPATH": str(Path(long.__file__).parent.parent)}
    command = [sys.executable, "-c", program]
    for stop in ("chunk 1 of 3: denoising 1", "chunk 2 of 3: decoding 2", "chunk 3 of 3: denoising 1"):
        with subprocess.Popen(command, cwd=tmp_path, env=env, stdout=subprocess.PIPE, text=True) as process:
            for line in process.stdout:
                if line.startswith(stop):
                    process.send_signal(signal.SIGKILL)
                    break
        assert process.returncode == -signal.SIGKILL, "it was stopped where it was meant to be"
    subprocess.run(command, cwd=tmp_path, env=env, check=True, stdout=subprocess.DEVNULL)
    assert np.array_equal(np.load(tmp_path / "out.npy"), made.frames)


# ---- colours ----


def test_a_chunks_colours_are_brought_back():
    frames = recipe.pixels("long/colour", (6, 20, 30, 3)) // 3 + 80
    for match, gain in (("mean", np.ones(3)), ("gain", np.array([0.9, 1.1, 1.0]))):
        shifted = np.rint(np.clip(frames * gain + [6, -9, 3], 0, 255)).astype(np.uint8)
        back = corrected(shifted, *correction(shifted, frames, match))
        # Two roundings to whole grey levels.
        assert abs(back.astype(int) - frames).max() <= 1 and abs(shifted.astype(int) - frames).max() > 5
    assert corrected(frames, *correction(frames, frames // 2, "none")) is frames
    gain, _ = correction(np.full_like(frames, 100), frames, "gain")
    assert (gain == 1.25).all(), "a flat picture is not blown up"
    black = corrected(frames, np.ones(3), np.full(3, -300.0))
    assert not black.any() and corrected(frames, np.ones(3), np.full(3, 300.0)).min() == 255


def test_a_drift_that_grows_with_the_chunks_is_stopped(pipe, monkeypatch):
    """A model that turns every chunk redder than its overlap: without correction the drift adds up."""
    decode = Pipeline.decode

    def redder(self, latents, progress=None):
        frames = decode(self, latents, progress).frames
        calls.append(1)
        out = np.full_like(frames, 128)
        out[..., 0] = 128 if len(calls) == 1 else last[0] + 10
        last[0] = int(out[-1, 0, 0, 0])
        return Video(out)

    monkeypatch.setattr(Pipeline, "decode", redder)
    drifts = {}
    for match in ("none", "mean"):
        calls, last = [], [0]
        video = pipe.generate("A.", **{**JOB, "steps": 1, "match": match, "frames": 33})
        drifts[match] = [s["drift"][0] for s in video.manifest["seams"]["seams"]]
    assert drifts["none"] == [10, 20, 30] and drifts["mean"] == [0, 0, 0]


# ---- seams ----


def moving(count, jump_at=None, jump=0):
    """A bright square that moves one pixel a frame over noise that stays."""
    frames = np.repeat(recipe.pixels("long/ground", (1, 40, 120, 3)) // 2, count, 0)
    for k in range(count):
        frames[k, 10:20, k : k + 10] = 200
        if jump_at is not None and k >= jump_at:
            frames[k] += np.uint8(jump)
    return frames


def test_a_video_without_seams_has_none():
    found = seams.measure(moving(40), [13, 25])
    for seam in found.seams:
        assert seam.colour_ratio < 3 and 0.8 < seam.motion_ratio < 1.25 and abs(seam.psnr_drop) < 1
    assert found.seams[0].drift == pytest.approx((0, 0, 0), abs=1)


def test_a_jump_is_measured():
    """Ten grey levels more from frame 25 on, by hand: colour 10 sqrt(3), motion about 10, drift 10."""
    still, found = seams.measure(moving(40), [13, 25]), seams.measure(moving(40, 25, 10), [13, 25])
    assert found.seams[0].change == still.seams[0].change and found.inside == still.inside
    jump = found.seams[1]
    assert jump.frame == 25 and jump.change.colour == pytest.approx(10 * 3**0.5, rel=0.02)
    assert jump.change.motion == pytest.approx(10, rel=0.1) and jump.motion_ratio > 3 and jump.colour_ratio > 10
    assert jump.psnr_drop > 0 and jump.drift == pytest.approx((10, 10, 10), abs=1)
    square = np.square(moving(40, 25, 10)[25].astype(float) - moving(40)[24]).mean()
    assert jump.change.psnr == pytest.approx(10 * np.log10(255**2 / square))
    assert seams.Seams.from_dict(json.loads(json.dumps(found.to_dict()))) == found
    assert "frame 25" in str(found) and len(str(found).splitlines()) == 5


def test_a_still_video_is_no_division_by_zero():
    found = seams.measure(np.full((9, 8, 8, 3), 7, np.uint8), [5])
    assert found.seams[0].motion_ratio == 1 and found.inside.psnr == 100 and found.seams[0].psnr_drop == 0


# ---- memory, errors ----


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks of a stage need Linux's clear_refs")
def test_memory_is_that_of_one_chunk(pipe):
    """Eight chunks: the last needs what the fourth did, plus the frames that the result has gained; 8 MB are for the
    allocator, where the plan of all 69 frames at once is several times that of a chunk."""
    video = pipe.generate("A.", **{**JOB, "frames": 69, "size": (48, 48), "steps": 1, "guidance": guidance.none()})
    peaks = {(s["chunk"], s["name"]): s["peak_bytes"] for s in video.manifest["stages"]}
    assert len(video.manifest["chunks"]) == 8
    for stage in ("denoising", "decoding"):
        assert peaks[7, stage] < peaks[3, stage] + video.frames.nbytes + (8 << 20)


@pytest.mark.parametrize(
    ("words", "changed"),
    [
        ("chunk: expected 4n", {"chunk": 12}),
        ("chunk: expected 5 or more", {"chunk": 1}),
        ("frames: expected 4n", {"frames": 24}),
        ("overlap: expected 1 to 9", {"overlap": 10}),
        ("overlap: expected an integer", {"overlap": "5"}),
        ("match: expected one of", {"match": "all"}),
        ("noise: not for a video in chunks", {"noise": np.zeros(3)}),
        ("start: not for a video in chunks", {"start": (np.zeros(3), 1)}),
        ("mask: it needs a source", {"mask": np.zeros((25, 32, 32))}),
        ("resume: expected the name", {"resume": 3}),
        ("overlap: is for long videos", {"chunk": None}),
    ],
)
def test_wrong_arguments_are_named(pipe, words, changed):
    with pytest.raises((ValueError, TypeError), match=words):
        pipe.generate("A.", **{**JOB, **changed})


@pytest.mark.parametrize(
    ("words", "video", "at"),
    [
        ("video: expected", np.zeros((3, 8, 8, 3)), [1]),
        ("at: expected 1 to 2", np.zeros((3, 8, 8, 3), np.uint8), [3]),
        ("at: expected at least one", np.zeros((3, 8, 8, 3), np.uint8), []),
        ("at: expected at least one", np.zeros((3, 8, 8, 3), np.uint8), [2, 1]),
        ("every frame is a seam", np.zeros((2, 8, 8, 3), np.uint8), [1]),
        ("at: expected frames", np.zeros((2, 8, 8, 3), np.uint8), 1),
    ],
)
def test_seams_that_cannot_be_measured(words, video, at):
    with pytest.raises((ValueError, TypeError), match=words):
        seams.measure(video, at)

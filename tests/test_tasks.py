"""Tasks: what each builds, pixel by pixel from its description, against the original's contexts, and to a video."""

import numpy as np
import pytest

from ipvg import Pipeline, guidance, prepare, tasks
from ipvg.parity import context as parity
from ipvg.parity import recipe
from ipvg.parity.golden import Golden
from ipvg.video import Video

from test_prepare import encode  # isort: skip

SIZE = (64, 48)


def pixels(key, *shape):
    return recipe.pixels(f"tasks/{key}", (*shape, 3))


CLIP = pixels("clip", 7, 60, 100)
PHOTO = pixels("photo", 70, 50)


def context(job):
    return prepare.vace_context(encode, **job)


# ---- against the original's inputs: golden stage `context` ----


def golden_job(name, case):
    made = parity.arguments(case)
    size, frames, refs = made["size"], made["frames"], made["references"]
    if name == "first_frame":
        return tasks.first_frame(made["video"][0], size=size, frames=frames, references=refs)
    if "mask" in made:
        return tasks.inpaint(
            made["video"], made["mask"], size=size, frames=frames, references=refs, fill=None, soft=True
        )
    if "video" in made:
        return tasks.control(made["video"], size=size, frames=frames, references=refs)
    if refs:
        return tasks.image(refs, size=size) if frames == 1 else tasks.references(refs, size=size, frames=frames)
    return tasks.text(size=size, frames=frames)


GOLDEN = {name: case for name, case in Golden("tests/golden", "context").cases.items() if "context" in case}


@pytest.mark.parametrize("name", GOLDEN)
def test_a_task_makes_the_inputs_of_the_original_case(name):
    job = golden_job(name, GOLDEN[name])
    assert np.array_equal(context(job), prepare.vace_context(encode, **parity.arguments(GOLDEN[name])))
    # The mask channels pass through no network: equal to the original's own.
    assert np.array_equal(context(job)[32:], GOLDEN[name]["context"][32:])


# ---- against the descriptions ----


def test_pictures_at_the_ends_and_grey_between():
    other = pixels("other", 48, 64)
    fit = prepare.fit_video(PHOTO[None], SIZE, 1)[0]
    for job, kept in (
        (tasks.first_frame(PHOTO, size=SIZE, frames=9), {0: fit}),
        (tasks.last_frame(PHOTO, size=SIZE, frames=9), {8: fit}),
        (tasks.first_last(PHOTO, other, size=SIZE, frames=9), {0: fit, 8: other}),
    ):
        for f in range(9):
            expected = kept.get(f, np.full((48, 64, 3), 127, np.uint8))
            assert np.array_equal(job["video"][f], expected)
            assert (job["mask"][f] == (0 if f in kept else 1)).all()


def test_extension_keeps_the_end_that_it_continues():
    fitted = prepare.fit_video(CLIP, SIZE, 7)
    after = tasks.extend_after(Video(CLIP), size=SIZE, frames=9, keep=3)
    before = tasks.extend_before(CLIP, size=SIZE, frames=9, keep=3)
    assert np.array_equal(after["video"][:3], fitted[4:]) and (after["video"][3:] == 127).all()
    assert np.array_equal(before["video"][-3:], fitted[:3]) and (before["video"][:-3] == 127).all()
    assert after["mask"].mean((1, 2)).tolist() == [0, 0, 0, 1, 1, 1, 1, 1, 1]
    assert before["mask"].mean((1, 2)).tolist() == [1, 1, 1, 1, 1, 1, 0, 0, 0]
    assert np.array_equal(tasks.extend_after(CLIP, size=SIZE, frames=9)["video"][:7], fitted)


def test_inpainting_greys_the_white_region_only():
    mask = np.zeros((60, 100), np.float32)
    mask[20:40, 30:70] = 1
    job = tasks.inpaint(CLIP, mask, size=SIZE, frames=5)
    fitted = prepare.fit_video(CLIP, SIZE, 5)
    white = job["mask"] == 1
    assert set(np.unique(job["mask"])) == {0, 1} and 0.05 < white.mean() < 0.3
    assert (job["video"][white] == 127).all() and np.array_equal(job["video"][~white], fitted[~white])
    # By hand: 60 x 100 covers 48 x 64 at a scale of 0.8, 80 wide, 8 columns cut at the left.
    assert white[0, 16:32, 16:48].all() and white.sum() == 5 * 16 * 32
    assert np.array_equal(tasks.inpaint(CLIP, mask, size=SIZE, frames=5, fill=None)["video"], fitted)
    soft = tasks.inpaint(CLIP, mask, size=SIZE, frames=5, soft=True)["mask"]
    assert ((soft > 0) & (soft < 1)).any() and np.array_equal(soft > 0.5, white)


def test_outpainting_pads_and_masks_the_same_pixels():
    clip = pixels("square", 5, 48, 32)
    job = tasks.outpaint(clip, left=0.25, right=0.75, size=SIZE)
    assert job["size"] == SIZE and job["frames"] == 5
    assert np.array_equal(job["video"][:, :, 8:40], clip)
    expected = np.ones((5, 48, 64))
    expected[:, :, 8:40] = 0
    assert np.array_equal(job["mask"], expected) and (job["video"][job["mask"] == 1] == 127).all()
    tall = tasks.outpaint(clip, top=1, bottom=0.5)
    assert tall["size"] == (32, 112), "120 rows, cut to a multiple of 16: 4 at the top, 4 at the bottom"
    assert not tall["mask"][:, 44:92].any() and tall["mask"][:, :44].all() and tall["mask"][:, 92:].all()


def test_control_takes_the_official_size_or_ours():
    job = tasks.control(CLIP)
    assert (job["size"], job["frames"]) == prepare.source_size(*CLIP.shape[:3]) and job["mask"] is None
    assert job["video"].shape == (5, job["size"][1], job["size"][0], 3)
    portrait = tasks.control(CLIP, size=(48, 80), frames=13)
    assert np.array_equal(portrait["video"], prepare.fit_video(CLIP, (48, 80), 13))


def test_a_clip_comes_at_16_frames_a_second_and_its_mask_with_it(pipe):
    """By hand: 16 pictures at 30 a second; the one at i / 16 seconds is floor(1.875 i)."""
    clip, shown = pixels("rate", 16, 48, 64), [0, 1, 3, 5, 7, 9, 11, 13, 15]
    fast = Video(clip, 30)
    assert np.array_equal(fast.resampled().frames, clip[shown]) and fast.resampled().fps == 16
    assert np.array_equal(Video(clip).resampled().frames, clip) and len(Video(clip[:2], 1000).resampled()) == 1
    assert Video(clip[:3], 8).resampled().frames.tolist() == clip[[0, 0, 1, 1, 2, 2]].tolist()
    assert np.array_equal(tasks.control(fast, size=SIZE)["video"], clip[shown])
    assert np.array_equal(tasks.extend_after(fast, size=SIZE, frames=9, keep=3)["video"][:3], clip[[11, 13, 15]])
    mask = pixels("rate/mask", 16, 48, 64)[..., 0] > 127
    want = tasks.inpaint(clip[shown], mask[shown], size=SIZE)
    for given in (mask, Video(np.repeat(255 * mask[..., None].astype(np.uint8), 3, 3)), mask[shown]):
        job = tasks.inpaint(fast, given, size=SIZE)
        assert np.array_equal(job["video"], want["video"]) and np.array_equal(job["mask"], want["mask"])
    by_hand = pipe.encode_source(video=clip[shown], mask=mask[shown], size=SIZE, frames=9).context
    assert np.array_equal(pipe.encode_source(video=fast, mask=mask, size=SIZE, frames=9).context, by_hand)


# ---- end to end ----

ALL = {
    "text": lambda: tasks.text(size=SIZE, frames=5),
    "image": lambda: tasks.image([PHOTO], size=(48, 64)),
    "references": lambda: tasks.references([PHOTO, PHOTO[::-1]], size=SIZE, frames=5),
    "control": lambda: tasks.control(CLIP, size=(32, 64), frames=5, references=[PHOTO]),
    "inpaint": lambda: tasks.inpaint(CLIP, np.ones((60, 100), bool), size=SIZE, frames=9, references=[PHOTO]),
    "outpaint": lambda: tasks.outpaint(CLIP, left=0.5, top=0.2, size=SIZE, frames=5),
    "first-frame": lambda: tasks.first_frame(PHOTO, size=SIZE, frames=5),
    "last-frame": lambda: tasks.last_frame(PHOTO, size=SIZE, frames=5),
    "first-last": lambda: tasks.first_last(PHOTO, PHOTO, size=SIZE, frames=5),
    "extend-after": lambda: tasks.extend_after(CLIP, size=SIZE, frames=9),
    "extend-before": lambda: tasks.extend_before(CLIP, size=SIZE, frames=9, keep=2),
}


@pytest.fixture(scope="module")
def pipe(small_checkpoint):
    return Pipeline.load(small_checkpoint, threads=1)


def test_every_task_is_here():
    assert set(ALL) == set(tasks.TASKS)
    for name, function in tasks.TASKS.items():
        assert f"tasks.{name.replace('-', '_')}(" in function.__doc__, "each has an example"


@pytest.mark.parametrize("name", ALL)
def test_a_task_becomes_a_video(pipe, name):
    job = ALL[name]()
    video = pipe.generate("A woman smiles.", **job, guidance=guidance.none(), steps=1)
    assert video.size == job["size"] and len(video) == job["frames"]
    source = pipe.encode_source(**job)
    assert np.array_equal(source.context, prepare.vace_context(pipe.vae.encode, **job)), "fitted once, not twice"


def test_the_pipeline_fits_a_mask_like_its_video(pipe):
    mask = np.zeros((7, 60, 100), np.uint8)
    mask[:, 20:40] = 255
    source = pipe.encode_source(video=CLIP, mask=mask, size=SIZE, frames=5)
    expected = prepare.vace_context(
        pipe.vae.encode, size=SIZE, frames=5, video=prepare.fit_video(CLIP, SIZE, 5),
        mask=prepare.fit_video(np.repeat(mask[..., None], 3, 3), SIZE, 5),
    )  # fmt: skip
    assert np.array_equal(source.context, expected)
    as_video = pipe.encode_source(video=Video(CLIP), mask=Video(np.repeat(mask[..., None], 3, 3)), size=SIZE, frames=5)
    assert np.array_equal(as_video.context, expected)


# ---- wrong arguments ----

SMALL = CLIP[:, :48, :64]

@pytest.mark.parametrize(
    ("error", "words", "call"),
    [
        (ValueError, "multiples of 16", lambda: tasks.text(size=(60, 48), frames=5)),
        (ValueError, "4n", lambda: tasks.first_frame(PHOTO, size=SIZE, frames=6)),
        (ValueError, "none is left to make", lambda: tasks.first_frame(PHOTO, size=SIZE, frames=1)),
        (ValueError, "none is left to make", lambda: tasks.extend_after(CLIP, size=SIZE, frames=5)),
        (ValueError, "keep", lambda: tasks.extend_after(CLIP, size=SIZE, frames=9, keep=8)),
        (ValueError, "keep", lambda: tasks.extend_before(CLIP, size=SIZE, frames=9, keep=0)),
        (TypeError, "first: expected a picture", lambda: tasks.first_last(CLIP, PHOTO, size=SIZE, frames=5)),
        (ValueError, "video: expected a Video", lambda: tasks.control(PHOTO)),
        (ValueError, "at least one must add", lambda: tasks.outpaint(CLIP)),
        (ValueError, "left", lambda: tasks.outpaint(CLIP, left=-1)),
        (ValueError, r"^size: 64x48 crops .* nothing is left to make; .* shape of 128x48",
         lambda: tasks.outpaint(SMALL, left=0.5, right=0.5, size=SIZE)),
        (ValueError, r"^size: 64x48 crops .* nothing is left to make; .* shape of 64x96",
         lambda: tasks.outpaint(SMALL, top=0.5, bottom=0.5, size=SIZE)),
        (ValueError, r"^left, right: cropped away .* to 64x48, .* ask for more",
         lambda: tasks.outpaint(SMALL, left=0.1, right=0.1)),
        (ValueError, "mask: it has 3 frames", lambda: tasks.inpaint(CLIP, np.ones((3, 60, 100), bool), size=SIZE)),
        (ValueError, "fill", lambda: tasks.inpaint(CLIP, np.ones((60, 100), bool), fill=256)),
        (ValueError, "at least one", lambda: tasks.references([], size=SIZE, frames=5)),
        (TypeError, "references", lambda: tasks.text(size=SIZE, frames=5) and tasks.image(None, size=SIZE)),
    ],
)
def test_wrong_arguments_are_named(error, words, call):
    with pytest.raises(error, match=words):
        call()

"""Preparation of pixels: what goes into the VACE context, against definitions written out here and against golden."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ipvg import prepare
from ipvg.parity import context as parity
from ipvg.parity import recipe
from ipvg.parity.golden import Golden

GOLDEN = "tests/golden"


def image(height, width, key="prepare/image"):
    return recipe.pixels(key, (height, width, 3))


def encode(pixels):
    """A stand-in for the VAE: every latent channel is the mean of its 8 x 8 x 4 pixels, times its number plus one."""
    pixels = np.ascontiguousarray(pixels)  # NumPy adds up in the order of memory
    c, t, h, w = pixels.shape
    assert c == 3 and pixels.dtype == np.float32
    first, rest = pixels[:, :1], pixels[:, 1:].reshape(3, (t - 1) // 4, 4, h, w).mean(2)
    mean = np.concatenate([first, rest], 1).reshape(3, -1, h // 8, 8, w // 8, 8).mean((0, 3, 5))
    return (np.arange(1, 17, dtype=np.float32)[:, None, None, None] * mean).astype(np.float32)


def test_golden_of_all_that_needs_no_vae(monkeypatch):
    """Reference fit, source resize, tables of sizes, folded masks: as in the original. `make parity` does the rest."""
    monkeypatch.setattr(parity, "vae", lambda golden, device: SimpleNamespace(encode=encode))
    results = [r for r in parity.check(Golden(GOLDEN, "context"), "cpu") if r.tensor != "context"]
    assert {r.case for r in results} == set(Golden(GOLDEN, "context").cases)
    assert [r for r in results if not r.ok] == []


# ---- reference ----


def test_one_pixel_line_where_the_reference_truncates():
    data = Golden(GOLDEN, "context").data["fit_one_short"]
    for height, width, h in data["found"]:
        canvas = prepare.fit_reference(np.zeros((h, 3, 3), np.uint8), (width, height))
        assert (canvas[:, -1] == 1).all() and (canvas[:, 0] == 1).all(1).sum() == 0, (height, h)
    short = sum(prepare._core.fit_size(480, 832, h, 1)[0] == 479 for h in range(1, 4097))
    assert short == data["how_many"]


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 90), st.integers(2, 90), st.sampled_from([16, 48, 64]), st.sampled_from([16, 48, 80]))
def test_fit_is_bilinear_between_the_two_nearest_pixels(h, w, height, width):
    source = image(h, w)
    new_h, new_w, top, left = prepare._core.fit_size(height, width, h, w)
    if min(new_h, new_w) < 1:
        return
    canvas = prepare.fit_reference(source, (width, height))
    if (h, w) == (height, width):
        assert np.allclose(canvas, (source / 127.5 - 1).transpose(2, 0, 1), atol=1e-6)
    x = (source.astype(np.float64) / 127.5 - 1).transpose(2, 0, 1)
    for axis, (n, to) in enumerate(((h, new_h), (w, new_w)), start=1):
        at = np.clip((np.arange(to) + 0.5) * n / to - 0.5, 0, n - 1)
        low = np.floor(at).astype(int)
        part = (at - low).reshape((-1, 1) if axis == 1 else (-1,))
        x = x.take(low, axis) * (1 - part) + x.take(np.minimum(low + 1, n - 1), axis) * part
    expected = np.ones((3, height, width))
    expected[:, top : top + new_h, left : left + new_w] = x
    # Positions are float32 in the reference: at most 90 * 2^-24 of a pixel off, twice, times a step of at most 2.
    assert np.abs(canvas - expected).max() < 4e-5


def test_antialias_keeps_the_mean_and_the_official_fit_does_not():
    stripes = np.zeros((480, 480, 3), np.uint8)
    stripes[::2] = 255
    rough = prepare.fit_reference(stripes, (160, 160))
    smooth = prepare.fit_reference(stripes, (160, 160), antialias=True)
    assert np.abs(smooth[:, 2:-2]).max() < 0.2  # a filter of 6 rows over stripes of 1: near mid-grey
    assert np.abs(rough).max() == 1


# ---- source video ----


def keys(x):
    x = np.abs(x)
    return np.where(x < 1, (1.5 * x - 2.5) * x * x + 1, np.where(x < 2, ((-0.5 * x + 2.5) * x - 4) * x + 2, 0))


def weights(n, to):
    """(to, n) float64: bicubic with antialias."""
    scale = n / to
    centre = (np.arange(to)[:, None] + 0.5) * scale
    w = keys((np.arange(n) + 0.5 - centre) / max(scale, 1))
    return w / w.sum(1, keepdims=True)


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 120), st.integers(2, 120), st.sampled_from([16, 48]), st.sampled_from([16, 64]))
def test_cover_is_bicubic_with_antialias_and_a_centre_crop(h, w, height, width):
    frames = recipe.pixels("prepare/video", (2, h, w, 3))
    ours = prepare.fit_video(frames, (width, height), 2)
    scale = max(width / w, height / h)
    full_h, full_w = round(scale * h), round(scale * w)
    if (h, w) == (height, width):
        assert np.array_equal(ours, frames)
        return
    y, x = (full_h - height) // 2, (full_w - width) // 2
    rows = np.clip(np.einsum("xw,fhwc->fhxc", weights(w, full_w)[x : x + width], frames), 0, 255)
    exact = np.clip(np.einsum("yh,fhxc->fyxc", weights(h, full_h)[y : y + height], rows), 0, 255)
    # Bytes between the passes and 16-bit weights: half a level each, the first times the filter's gain of up to 1.25.
    assert np.abs(ours - exact).max() < 1.75


def test_frames_are_resampled_to_4n_plus_1():
    frames = np.zeros((80, 16, 16, 3), np.uint8)
    frames[:, :, :, 0] = np.arange(80)[:, None, None]
    ids = prepare.fit_video(frames, (16, 16))[:, 0, 0, 0].tolist()
    assert len(ids) == 77 and ids[0] == 0 and ids[-1] == 79 and ids == sorted(set(ids))
    assert prepare.frame_ids(81, 81) == list(range(81))
    assert prepare.frame_ids(7, 1) == [0]
    assert prepare.frame_ids(2, 5) == [0, 0, 0, 1, 1]  # times 0, .375, .75, 1.125, 1.5


# ---- mask ----


def test_folded_mask_channel_and_frame():
    mask = np.random.default_rng(0).random((9, 24, 16), np.float32)
    folded = prepare.fold_mask(mask)
    assert folded.shape == (64, 3, 3, 2)
    for t, frame in enumerate((1, 4, 7)):
        for y in range(24):
            for x in range(16):
                assert folded[8 * (y % 8) + x % 8, t, y // 8, x // 8] == mask[frame, y, x]


def test_frames_of_81_that_a_folded_mask_shows():
    mask = np.broadcast_to(np.arange(81, dtype=np.float32)[:, None, None], (81, 8, 8))
    seen = prepare.fold_mask(mask)[0, :, 0, 0].astype(int).tolist()
    assert seen == [1, 5, 9, 13, 17, 21, 25, 28, 32, 36, 40, 44, 48, 52, 55, 59, 63, 67, 71, 75, 79]


def test_mask_of_bytes_splits_between_127_and_128():
    mask = prepare.mask_frames(np.array([0, 1, 127, 128, 254, 255], np.uint8).reshape(1, 1, 6), 1, (6, 1))
    assert np.array_equal(mask.ravel() > 0.5, [False, False, False, True, True, True])
    assert mask.min() == 0 and mask.max() == 1


def test_split_keeps_every_pixel_in_one_part():
    frames = np.random.default_rng(0).uniform(-1, 1, (3, 5, 16, 16)).astype(np.float32)
    mask = np.random.default_rng(1).random((5, 16, 16), np.float32)
    inactive, reactive = prepare.split(frames, mask)
    assert np.array_equal(inactive + reactive, frames)
    assert not inactive[:, mask > 0.5].any() and not reactive[:, mask <= 0.5].any()


# ---- context ----


def test_layout_of_a_context():
    references = [image(48, 64, "a"), image(48, 64, "b")]
    video = recipe.pixels("c", (9, 48, 64, 3))
    mask = np.zeros((9, 48, 64), np.float32)
    mask[:, :, 32:] = 1
    context = prepare.vace_context(
        encode, size=(64, 48), frames=9, references=references, video=video, mask=mask, cache=None
    )
    assert context.shape == (96, 5, 6, 8) and context.dtype == np.float32
    pixels = (video.transpose(3, 0, 1, 2) / np.float32(127.5) - 1).astype(np.float32)
    for i, picture in enumerate(references):  # ref0, ref1, ..., video
        canvas = prepare.fit_reference(picture, (64, 48))
        assert np.array_equal(context[:16, i : i + 1], encode(canvas[:, None]))
    assert np.array_equal(context[:16, 2:], encode(pixels * (mask == 0)))
    assert np.array_equal(context[16:32, 2:], encode(pixels * (mask == 1)))
    assert not context[:16, 2:, :, 4:].any() and context[:16, 2:, :, :4].any()
    assert not context[16:, :2].any()


def test_without_a_source_frames_are_zero_and_the_mask_one():
    seen = []

    def spy(pixels):
        seen.append(pixels)
        return encode(pixels)

    cache = {}
    first = prepare.vace_context(spy, size=(32, 16), frames=5, cache=cache)
    assert len(seen) == 1 and seen[0].shape == (3, 5, 16, 32) and not seen[0].any()
    assert (first[32:] == 1).all()
    assert np.array_equal(first, prepare.vace_context(spy, size=(32, 16), frames=5, cache=cache))
    assert len(seen) == 1, "the encoding of nothing is a constant and was cached"
    prepare.vace_context(spy, size=(32, 16), frames=9, cache=cache)
    prepare.vace_context(spy, size=(16, 32), frames=5, cache=cache)
    assert len(seen) == 3, "a constant per size and count"
    for frames in (13, 5, 17, 5, 9):  # the four used last are kept: 9 went when 17 came
        prepare.vace_context(spy, size=(32, 16), frames=frames, cache=cache)
    assert [pixels.shape[1] for pixels in seen[3:]] == [13, 17, 9] and len(cache) == 4


def test_a_fitted_canvas_and_its_picture_are_the_same_reference():
    picture = image(50, 40)
    canvas = prepare.fit_reference(picture, (64, 48))
    a, b = (prepare.vace_context(encode, size=(64, 48), frames=1, references=[r]) for r in (picture, canvas))
    assert np.array_equal(a, b)


# ---- wrong arguments ----

NAN = np.full((3, 48, 64), np.nan, np.float32)
U8 = np.zeros((9, 48, 64, 3), np.uint8)


@pytest.mark.parametrize(
    ("error", "words", "arguments"),
    [
        (ValueError, "multiples of 16", {"size": (60, 48)}),
        (ValueError, "4n", {"frames": 8}),
        (TypeError, "size", {"size": 64}),
        (ValueError, r"references\[0\].*\[-1, 1\]", {"references": [NAN]}),
        (ValueError, r"references\[1\].*\(3, 48, 64\)", {"references": [U8[0], np.zeros((3, 48, 60), np.float32)]}),
        (TypeError, r"references\[0\]", {"references": [np.zeros((3, 48, 64), int)]}),
        (ValueError, r"references\[0\].*\(H, W, 3\)", {"references": [U8]}),
        (ValueError, "video.*fit_video", {"video": U8[:5]}),
        (ValueError, r"video.*\[-1, 1\]", {"video": np.full((3, 9, 48, 64), 2.0)}),
        (TypeError, "video", {"video": np.zeros((3, 9, 48, 64), np.int16)}),
        (ValueError, "needs a source video", {"mask": U8}),
        (ValueError, "mask.*shape", {"video": U8, "mask": U8[:5]}),
        (ValueError, "0 .keep. to 1", {"video": U8, "mask": np.full((9, 48, 64), np.nan)}),
        (ValueError, "0 .keep. to 1", {"video": U8, "mask": np.full((9, 48, 64), 255.0)}),
        (TypeError, "mask", {"video": U8, "mask": np.zeros((9, 48, 64), np.int64)}),
    ],
)
def test_wrong_arguments_are_named(error, words, arguments):
    with pytest.raises(error, match=words):
        prepare.vace_context(encode, **{"size": (64, 48), "frames": 9, **arguments})


def test_an_encoder_of_another_shape_is_named():
    with pytest.raises(ValueError, match=r"encode: expected \(16, 3, 6, 8\)"):
        prepare.vace_context(lambda x: np.zeros((4, 3, 6, 8)), size=(64, 48), frames=9)


def test_wrong_pictures_are_named():
    with pytest.raises(TypeError, match="uint8"):
        prepare.fit_reference(np.zeros((4, 4, 3)), (16, 16))
    with pytest.raises(ValueError, match=r"\(H, W, 3\)"):
        prepare.fit_reference(np.zeros((4, 4, 4), np.uint8), (16, 16))
    with pytest.raises(ValueError, match="too long and thin"):
        prepare.fit_reference(np.zeros((1000, 2, 3), np.uint8), (16, 16))
    with pytest.raises(TypeError, match="width, height"):
        prepare.fit_reference(np.zeros((4, 4, 3), np.uint8), 16)
    with pytest.raises(ValueError, match="size"):
        prepare.fit_video(U8, (0, 16))
    with pytest.raises(ValueError, match="16 x 16"):
        prepare.source_size(5, 8, 100)


# ---- fitting a mask ----


def box(total, height, width):
    mask = np.zeros((total, height, width), np.float32)
    mask[:, height // 4 : height // 2, width // 3 : width // 2] = 1
    mask[total // 2 :, : height // 4] = 1
    return mask


def test_a_mask_goes_through_the_resize_of_its_video():
    mask = box(11, 50, 90)
    grey = np.repeat((mask * 255).astype(np.uint8)[..., None], 3, 3)
    expected = prepare.fit_video(grey, (64, 48), 9)[..., 0]
    assert 0 < (expected == 255).mean() < 1 and len(np.unique(expected)) > 2, "the edges are grey"
    for one in (mask, mask.astype(bool), mask.astype(np.float64), grey[..., 0], grey):
        assert np.array_equal(prepare.fit_mask(one, (64, 48), 9, like=(11, 50, 90)), expected), one.dtype


def test_a_mask_of_the_target_is_left_alone():
    mask = np.random.default_rng(0).random((9, 48, 64), np.float32)
    assert prepare.fit_mask(mask, (64, 48), 9, like=(20, 500, 300)) is mask
    assert np.array_equal(prepare.fit_mask(mask, (64, 48), 5), mask[prepare.frame_ids(9, 5)]), "frames alone are chosen"


def test_one_frame_of_mask_stands_for_all():
    mask = box(1, 50, 90)
    fitted = prepare.fit_mask(mask, (64, 48), 5, like=(20, 100, 180))
    assert fitted.shape == (5, 48, 64) and (fitted == fitted[0]).all()
    assert np.array_equal(prepare.fit_mask(mask[0], (64, 48), 5), fitted)
    assert prepare.fit_mask(np.ones((48, 64), bool), (64, 48), 5).shape == (5, 48, 64)


@pytest.mark.parametrize(
    ("words", "shape", "like"),
    [
        ("7 frames and its video 9", (7, 50, 90), (9, 50, 90)),
        ("90x50 has not the shape of its video's 90x90", (9, 50, 90), (9, 90, 90)),
        ("expected shape", (5,), None),
        ("expected shape", (0, 4, 4), None),
    ],
)
def test_a_mask_that_does_not_lie_on_its_video_is_refused(words, shape, like):
    with pytest.raises(ValueError, match=words):
        prepare.fit_mask(np.zeros(shape, np.float32), (64, 48), 5, like=like)

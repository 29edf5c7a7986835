"""Whatever is passed to a public call: it works, or a TypeError, ValueError or OSError names the argument.

Every argument of every stage is replaced, one at a time, by values of a wrong type, shape or range and by NaN. An
AttributeError or IndexError from the inside, a crash, or a text that does not say which argument fails here.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from ipvg import _core, guidance, prepare, text, video
from ipvg.checkpoint import Checkpoint, DitConfig, TextConfig, VaeConfig
from ipvg.pipeline import Pipeline
from ipvg.sampler import Sampler, noise
from ipvg.schedule import Schedule
from ipvg.source import Source

ROOT = Path(__file__).parent.parent
SIZE, FRAMES = (32, 16), 5
LATENT = (16, 3, 2, 4)  # one reference slot and two latent frames


# ---- what is wrong with a value ----

NOT_A_NUMBER = [None, "3", b"3", [], {}, object(), 1j, np.zeros(2), float]
NUMBER = [*NOT_A_NUMBER, float("nan"), float("inf")]
COUNT = [*NOT_A_NUMBER, 1.5, float("nan"), -1, 2**31, 2**63, -(2**63), 10**30, np.float32(1)]
TEXT = [None, 3, b"cat", ["cat"], object(), float("nan")]
WORD = [None, 3, "", "no such name", "official\0", b"official", [], object()]
PATH = [None, 3, [], object(), 1.5, "", "no\0path", "/no/such/file"]
OBJECT = [None, 3, "x", [], {}, object(), np.zeros(3)]


def floats(shape) -> list:
    """What an array of floats of that shape must not be."""
    good = np.zeros(shape, np.float32)
    nan, inf = good.copy(), good.copy()
    nan.flat[-1], inf.flat[0] = np.nan, -np.inf
    wrong_type = [None, "x", b"x", {}, object(), good.astype(complex), good.astype(object), good.astype("U1"), good > 0]
    wrong_shape = [3.0, [], good[None], good[..., :-1], good[..., None], np.zeros((0, *shape[1:]), np.float32)]
    return [*wrong_type, *wrong_shape, nan, inf, nan.astype(np.float64)]


def pixels(shape) -> list:
    """What uint8 pixels of that shape must not be."""
    good = np.zeros(shape, np.uint8)
    wrong_type = [None, 3, object(), good.astype(np.int64), good.astype(complex), good.astype(object), good > 0]
    return [*wrong_type, good[None], good[..., :2], good[..., 0], np.zeros((0, *shape[1:]), np.uint8)]


def without(values: list, *fine) -> list:
    """The values that are left when some are fine for an argument after all."""
    return [v for v in values if not any(type(v) is type(f) and repr(v) == repr(f) for f in fine)]


def without_shape(values: list, fine: tuple[int, ...]) -> list:
    return [v for v in values if np.shape(v) != fine]


# ---- the calls ----


@dataclass
class Call:
    """A public call: good arguments, and for each argument the values that it must refuse."""

    call: Callable
    good: dict
    bad: dict
    names: dict = field(default_factory=dict)  # argument -> what errors call it, where that is another word


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A pipeline of a very small untrained checkpoint."""
    spec = importlib.util.spec_from_file_location("recipe_checkpoint", ROOT / "models" / "recipe.py")
    recipe_checkpoint = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recipe_checkpoint)
    folder = recipe_checkpoint.write(
        tmp_path_factory.mktemp("arguments") / "checkpoint",
        dit=DitConfig(dim=24, ffn_dim=32, num_heads=2, num_layers=3, vace_layers=(0, 2), text_dim=16),
        vae=VaeConfig(dim=4, num_res_blocks=1),
        text=TextConfig(vocab=2560, dim=16, dim_attn=16, dim_ffn=24, num_heads=2, num_layers=2),
    )
    return Pipeline.load(folder, threads=1)


def calls(pipe: Pipeline) -> dict[str, Call]:
    context = np.zeros((96, *LATENT[1:]), np.float32)
    states = np.zeros((4, 16), np.float32)
    latent = np.zeros(LATENT, np.float32)
    image = np.zeros((6, 5, 3), np.uint8)
    frames = np.zeros((FRAMES, 16, 32, 3), np.uint8)
    mask = np.zeros((FRAMES, 16, 32), np.float32)
    source = Source(context, 1, FRAMES, SIZE)
    texts = {"cond": states, "negative": states}
    schedule = Schedule(2)
    sizes = [None, 3, "ab", (32,), (32, 16, 8), (32.0, 16), (0, 16), (-32, 16), (33, 16), (2**40, 16), (None, 16)]
    any_size = [None, 3, "ab", (32,), (32, 16, 8), (0, 16), (-32, 16), (2**40, 16), (None, 16), (float("nan"), 16)]
    ditext, dicontext = pipe.dit.text(states), pipe.dit.context(context)
    job = {"source": source, "guidance": guidance.cfg(), "seed": 1}
    sampler = {**job, "model": pipe.dit, "texts": texts, "schedule": schedule}
    sampling = {**job, "text": texts, "steps": 2, "shift": 16.0, "solver": "unipc", "sigmas_from": "official"}

    def sample_from(noise):
        return Sampler(**{**sampler, "seed": None}, noise=noise)

    def set_latent(latent):
        Sampler(**sampler).latent = latent

    def step(velocity):
        return schedule.start(latent).step(velocity)

    def save(path, crf, preset):
        return video.Video(frames).save(path, crf=crf, preset=preset)

    return {
        "clean": Call(text.clean, {"text": "a"}, {"text": TEXT}),
        "Tokenizer": Call(
            text.Tokenizer, {"path": pipe.checkpoint.tokenizer_path}, {"path": PATH}, names={"path": "path|null byte"}
        ),
        "Tokenizer()": Call(
            pipe.tokenizer, {"text": "a", "max_tokens": 9}, {"text": TEXT, "max_tokens": [*COUNT, 0, 513]}
        ),
        "Device": Call(
            _core.Device,
            {"name": "cpu", "threads": 1, "dtype": "float32"},
            {"name": WORD, "threads": COUNT, "dtype": WORD},
        ),
        "Schedule": Call(
            Schedule,
            {"steps": 2, "shift": 16.0, "solver": "unipc", "sigmas_from": "official"},
            {"steps": [*COUNT, 0], "shift": [*NUMBER, 0.0, -1.0], "solver": WORD, "sigmas_from": WORD},
        ),
        "Schedule.start": Call(
            schedule.start,
            {"noise": latent},
            {"noise": [None, "x", {}, object(), 3.0, [], latent.astype(complex), *floats(LATENT)[-3:]]},
        ),
        "Solver.step": Call(step, {"velocity": latent}, {"velocity": floats(LATENT)}),
        "noise": Call(
            noise,
            {"seed": 1, "shape": (2, 3)},
            {
                "seed": [*NOT_A_NUMBER, 1.5, -1, 2**64],
                "shape": [None, 3, "ab", (-1,), (1.5,), (2**40, 2**40), object()],
            },
        ),
        "Branch": Call(
            guidance.Branch,
            {"text": "cond", "reference": "drop", "skip_blocks": [1], "keep_hint": False, "context_scale": 1.0},
            {
                "text": [*TEXT, ""],
                "reference": WORD,
                "skip_blocks": [None, 3, "ab", [-1], [1.5], ["a"], [True], object(), np.zeros(())],
                "keep_hint": [None, 3, "x", []],
                # Lists are one number a layer, functions one a step.
                "context_scale": [
                    *(v for v in NUMBER if not callable(v) and np.ndim(v) == 0),
                    [],
                    [1, "a"],
                    [[1], [2, 3]],
                ],
            },
        ),
        "Guidance": Call(
            guidance.Guidance,
            {"branches": {"a": guidance.Branch(), "b": guidance.Branch()}, "combine": "a + w*(a - b)", "w": 5.0},
            {
                "branches": [*OBJECT, {"a": 3}, {3: guidance.Branch()}, {"a": None}, {"a": {"x": 1}}],
                "combine": [
                    *TEXT,
                    "",
                    "a",
                    "a*b",
                    "a**2",
                    "import os",
                    "a + c",
                    "a" * 5000,
                    "(" * 500,
                    "a/0 + b*w",
                    "a + w",
                ],
                "w": without(NUMBER, float, np.zeros(2)),
            },
            names={"branches": "branch|formula|names", "combine": "combine|formula", "w": r"\bw\b"},
        ),
        "Source": Call(
            Source,
            {"context": context, "references": 1, "frames": FRAMES, "size": SIZE},
            {"context": floats(context.shape), "references": COUNT, "frames": [*COUNT, 0, 4, 6], "size": sizes},
            names={"references": "references|context", "frames": "frames|context", "size": "size|width|height"},
        ),
        "fit_reference": Call(
            prepare.fit_reference, {"image": image, "size": SIZE}, {"image": pixels(image.shape), "size": any_size}
        ),
        "fit_video": Call(
            prepare.fit_video,
            {"frames": frames, "size": SIZE, "count": 5},
            {"frames": pixels(frames.shape), "size": any_size, "count": [*without(COUNT, None), 0]},
            names={"count": "count|frames"},
        ),
        "Pipeline.load": Call(
            Pipeline.load,
            {"path": pipe.checkpoint.path, "device": "cpu", "threads": 1, "dtype": "float32"},
            {
                "path": without(PATH, None),
                "device": WORD,
                "threads": without(COUNT, None),
                "dtype": WORD,
                "memory_limit": [0, -1, "8", "much", 1.5, object(), 1 << 40],  # the last: of a GPU alone
                "keep_text_encoder": [None, 1, "yes"],
            },
            names={"device": "device", "path": "checkpoint|null byte|path"},
        ),
        "Checkpoint.open": Call(
            Checkpoint.open,
            {"path": pipe.checkpoint.path, "components": ("dit",)},
            {"path": PATH, "components": [None, 3, "x", ["x"], [3], object()]},
            names={"path": "checkpoint|null byte|path"},
        ),
        "encode_text": Call(
            pipe.encode_text,
            {"prompts": {"cond": "a"}},
            {"prompts": [None, 3, "cat", ["cat"], object(), *({"cond": v} for v in TEXT)]},
            names={"prompts": "prompt"},
        ),
        "encode_source": Call(
            pipe.encode_source,
            {"references": [image], "video": frames, "mask": mask, "size": SIZE, "frames": FRAMES},
            {
                "references": [3, "x", object(), *([v] for v in pixels(image.shape))],
                "video": without(pixels(frames.shape), None),
                "mask": [*without(floats(mask.shape), None, mask > 0), mask - 1, mask + 2],
                "size": without(sizes, None),
                "frames": without([*COUNT, 0, 4], None),
            },
            names={"size": "size|width|height"},
        ),
        "generate": Call(
            pipe.generate,
            {
                "prompt": "a",
                "references": [image],
                "size": SIZE,
                "frames": FRAMES,
                "steps": 1,
                "guidance": guidance.cfg(),
            },
            {
                "prompt": [None, 3, b"cat", ["cat"], object(), float("nan")],
                "references": [3, "x", object(), *([v] for v in pixels(image.shape))],
                "negative": TEXT,
                "video": [*without(pixels(frames.shape), None), "clip.mp4"],
                "mask": [mask],  # without a video
                "size": without(sizes, None),
                "frames": without([*COUNT, 0, 4], None),
                "guidance": without([*OBJECT, "cfg", guidance.cfg], None),
                "steps": without([*COUNT, 0], None),
                "solver": WORD,
                "seed": [*NOT_A_NUMBER[1:], 1.5, -1, 2**64],
                "chunk": without([*COUNT, 0, 4], None),
                "overlap": [5],  # without chunk
                "stepz": [1],
                "start": [3, (3, "x"), (np.zeros(3), 1)],
                "edit_velocity": OBJECT[1:],
            },
            names={"size": "size|width|height"},
        ),
        "sampler": Call(
            pipe.sampler,
            sampling,
            {
                "text": [*OBJECT, {"cond": states}, {"cond": 3, "negative": states}],
                "source": OBJECT,
                "guidance": without(OBJECT, None),
                "steps": without([*COUNT, 0], None),
                "shift": without([*NUMBER, 0.0], None),
                "solver": WORD,
                "sigmas_from": WORD,
                "seed": [*NOT_A_NUMBER[1:], 1.5, -1, 2**64],
            },
            names={"text": "text|states"},
        ),
        "sampler(noise=)": Call(sample_from, {"noise": latent}, {"noise": without(floats(LATENT), None)}),
        "Sampler": Call(
            Sampler,
            sampler,
            {
                "model": OBJECT,
                "texts": OBJECT,
                "source": OBJECT,
                "guidance": OBJECT,
                "schedule": OBJECT[1:],
                "seed": [*NOT_A_NUMBER, 1.5, -1, 2**64],
            },
            names={"texts": "text", "seed": "seed"},
        ),
        "Sampler.latent": Call(set_latent, {"latent": latent}, {"latent": floats(LATENT)}),
        "decode": Call(
            pipe.decode,
            {"latents": latent},
            {"latents": without_shape(floats(LATENT), (16, 3, 2, 3))},
            names={"latents": "latent"},
        ),
        "Dit.text": Call(
            pipe.dit.text, {"states": states}, {"states": [*floats(states.shape), np.zeros((513, 16), np.float32)]}
        ),
        "Dit.context": Call(
            pipe.dit.context,
            {"context": context, "frames": 3},
            {"context": without_shape(floats(context.shape), (96, 3, 2, 3)), "frames": [*COUNT[1:], 0, 2]},
        ),
        "Dit.forward": Call(
            pipe.dit.forward,
            {
                "x": latent,
                "t": 5,
                "text": ditext,
                "context": dicontext,
                "skip": (1,),
                "keep_hint": True,
                "scale": 1.0,
                "out": latent.copy(),
            },
            {
                "x": floats(LATENT),
                "t": [*NUMBER, -1, 1001],
                "text": OBJECT,
                "context": OBJECT,
                "skip": [3, "ab", [-1], [3], [1.5], [None], object()],
                "scale": [*without(NUMBER, np.zeros(2)), (1.0,), (1.0, float("nan"))],
                "out": [*without(floats(LATENT)[:-3], None), latent.astype(np.float64)],
            },
            names={"x": r"\bx\b", "t": r"\bt\b", "text": "text|argument 3", "context": "context|argument 4"},
        ),
        "Vae.encode": Call(
            pipe.vae.encode,
            {"frames": np.zeros((3, 5, 16, 24), np.float32)},
            {
                "frames": [
                    *floats((3, 5, 16, 24)),
                    *(np.zeros(s, np.float32) for s in ((3, 4, 16, 24), (2, 5, 16, 24), (3, 5, 15, 24))),
                ]
            },
            names={"frames": "frames|size"},
        ),
        "Vae.decode": Call(
            pipe.vae.decode, {"latent": latent}, {"latent": without_shape(floats(LATENT), (16, 3, 2, 3))}
        ),
        "Vae.memory": Call(
            lambda frames, height, width: pipe.vae.memory(frames, height, width),
            {"frames": 5, "height": 16, "width": 24},
            {"frames": [*COUNT, 0, 4], "height": [*COUNT, 0, 9], "width": [*COUNT, 0, 9]},
            names={"height": "height|size", "width": "width|size"},
        ),
        "Video": Call(
            video.Video, {"frames": frames, "fps": 16.0}, {"frames": pixels(frames.shape), "fps": [*NUMBER, 0, -1]}
        ),
        "Video.from_float": Call(
            video.Video.from_float,
            {"frames": np.zeros((3, 2, 4, 6), np.float32)},
            {"frames": without_shape(floats((3, 2, 4, 6)), (3, 2, 4, 5))},
        ),
        "read_image": Call(
            video.read_image,
            {"source": image, "alpha": "drop"},
            {"source": [*PATH, *pixels(image.shape)[2:]], "alpha": WORD},
            names={"source": "image|file|path|source"},
        ),
        "contact_sheet": Call(
            video.Video(frames).contact_sheet,
            {"columns": 2, "count": 2, "gap": 1},
            {"columns": [*COUNT[:13], 0], "count": [*COUNT[:13], 0], "gap": COUNT[:13]},
        ),
        "save": Call(
            save,
            {"path": "/tmp/x.mp4", "crf": 10, "preset": "ultrafast"},
            {"path": [*PATH[:7], "x.avi", "/no/such/folder/x.mp4"], "crf": [*COUNT, 52], "preset": WORD},
            names={"path": "path|mp4|null byte"},
        ),
    }


def test_what_was_prepared_for_another_model_is_refused(models):
    other = Pipeline(models.checkpoint, models.device).dit
    states, context, x = (
        np.zeros((1, 16), np.float32),
        np.zeros((96, *LATENT[1:]), np.float32),
        np.zeros(LATENT, np.float32),
    )
    text, source = models.dit.text(states), models.dit.context(context)
    models.dit.forward(x, 5, text, source)
    for wrong in ((other.text(states), source), (text, other.context(context))):
        with pytest.raises(ValueError, match="another model"):
            models.dit.forward(x, 5, *wrong)


def test_a_context_of_another_size_is_refused(models):
    text = models.dit.text(np.zeros((1, 16), np.float32))
    context = models.dit.context(np.zeros((96, *LATENT[1:]), np.float32))
    for shape in ((16, 2, 2, 4), (16, 3, 4, 4), (16, 3, 2, 2)):
        with pytest.raises(ValueError, match=r"\bx\b"):
            models.dit.forward(np.zeros(shape, np.float32), 5, text, context)


CALLS = [
    "clean",
    "Tokenizer",
    "Tokenizer()",
    "Device",
    "Schedule",
    "Schedule.start",
    "Solver.step",
    "noise",
    "Branch",
    "Guidance",
    "Source",
    "fit_reference",
    "fit_video",
    "Pipeline.load",
    "Checkpoint.open",
    "encode_text",
    "encode_source",
    "generate",
    "sampler",
    "sampler(noise=)",
    "Sampler",
    "Sampler.latent",
    "decode",
    "Dit.text",
    "Dit.context",
    "Dit.forward",
    "Vae.encode",
    "Vae.decode",
    "Vae.memory",
    "Video",
    "Video.from_float",
    "read_image",
    "contact_sheet",
    "save",
]


def test_the_list_is_complete(models):
    assert list(calls(models)) == CALLS


@pytest.mark.parametrize("name", CALLS)
def test_wrong_arguments_are_named(models, name):
    case = calls(models)[name]
    case.call(**case.good)
    wrong = []
    for argument, values in case.bad.items():
        for value in values:
            try:
                case.call(**{**case.good, argument: value})
            except (TypeError, ValueError, OSError) as error:
                if type(error) not in (TypeError, ValueError, _core.FormatError) and not isinstance(
                    error, OSError | ValueError
                ):
                    wrong.append(f"{argument}={_short(value)}: {type(error).__name__}: {error}")
                elif not re.search(case.names.get(argument, argument), str(error), re.I) and not isinstance(
                    error, OSError
                ):
                    wrong.append(f"{argument}={_short(value)}: the text does not say which argument: {error}")
            except Exception as error:
                wrong.append(f"{argument}={_short(value)}: {type(error).__name__}: {error}")
            else:
                wrong.append(f"{argument}={_short(value)}: accepted")
    assert not wrong, "\n" + "\n".join(wrong)
    case.call(**case.good)  # and nothing is broken by it


def _short(value: object) -> str:
    if isinstance(value, np.ndarray):
        return f"<{value.dtype} {value.shape}>"
    return repr(value)[:60]

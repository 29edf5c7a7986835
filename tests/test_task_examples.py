"""The examples in the docstrings of ipvg.tasks run: as they stand, but for their sizes, which are cut for the test."""

import doctest

import numpy as np
import pytest

from ipvg import Pipeline, guidance, tasks
from ipvg.parity import recipe
from ipvg.video import Video

SMALLER = {"(832, 480)": "(64, 48)", "(480, 832)": "(48, 64)", "frames=81": "frames=9", "keep=17": "keep=3",
           ":-17]": ":-3]"}  # fmt: skip


@pytest.fixture(scope="module")
def pipe(small_checkpoint):
    return Pipeline.load(small_checkpoint, threads=2)


@pytest.mark.parametrize("name", tasks.TASKS)
def test_the_example_of_a_task_runs(pipe, monkeypatch, name):
    generate, made = pipe.generate, []

    def one_step(prompt, **given):
        made.append(generate(prompt, **{"guidance": guidance.none(), "steps": 1, **given}))
        return made[-1]

    monkeypatch.setattr(pipe, "generate", one_step)
    picture = recipe.pixels("examples/picture", (70, 50, 3))
    clip = Video(recipe.pixels("examples/clip", (7, 48, 64, 3)))
    mask = np.zeros((48, 64), bool)
    mask[10:20] = True
    space = dict.fromkeys(("photo", "woman", "plant", "morning", "evening"), picture)
    space |= {"clip": clip, "poses": clip, "portrait": clip[:, :, 20:50], "coat_mask": mask}
    space |= {"pipe": pipe, "tasks": tasks, "guidance": guidance, "Video": Video, "np": np}
    examples = doctest.DocTestParser().get_examples(tasks.TASKS[name].__doc__)
    assert examples
    for example in examples:
        code = example.source
        for large, small in SMALLER.items():
            code = code.replace(large, small)
        exec(code, space)
    assert made and made[0].frames.size

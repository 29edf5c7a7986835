"""The small untrained checkpoint: official layout, complete, whole or not there at all."""

import importlib.util
import json
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from ipvg import Pipeline, VaceReference, _core
from ipvg.checkpoint import Checkpoint
from ipvg.guidance import PRESETS
from ipvg.text import Tokenizer

spec = importlib.util.spec_from_file_location(
    "recipe_checkpoint", Path(__file__).parent.parent / "models" / "recipe.py"
)
recipe_checkpoint = importlib.util.module_from_spec(spec)
spec.loader.exec_module(recipe_checkpoint)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return Checkpoint.open(recipe_checkpoint.write(tmp_path_factory.mktemp("recipe") / "small"))


def test_it_opens_as_an_official_checkpoint(checkpoint):
    assert checkpoint.layout == "official"
    assert checkpoint.components["dit"].config == recipe_checkpoint.DIT
    assert checkpoint.components["vae"].config == recipe_checkpoint.VAE
    assert checkpoint.components["text"].config == recipe_checkpoint.TEXT


def test_dtypes_are_those_of_the_released_files(checkpoint):
    for name, entry in checkpoint.components["dit"].entries.items():
        assert entry.dtype == ("bfloat16" if name.startswith("vace") else "float32")
    assert {e.dtype for e in checkpoint.components["vae"].entries.values()} == {"float32"}
    assert {e.dtype for e in checkpoint.components["text"].entries.values()} == {"bfloat16"}


def test_it_says_that_its_output_is_noise(checkpoint):
    assert "noise" in json.loads((checkpoint.path / "ipvg.json").read_text())["note"]


def test_a_prompt_becomes_states(checkpoint):
    text = checkpoint.components["text"]
    tokenizer = Tokenizer(checkpoint.tokenizer_path)
    assert tokenizer.vocabulary <= text.config.vocab
    encoder = _core.TextEncoder(_core.Device("cpu"), asdict(text.config), text.weights())
    ids = tokenizer("A cat walks on the grass, realistic style.")
    states = encoder.encode(ids)
    assert states.shape == (len(ids), text.config.dim) and np.isfinite(states).all()


def test_what_is_there_stays(checkpoint):
    before = {p: p.stat().st_mtime_ns for p in checkpoint.path.rglob("*")}
    recipe_checkpoint.write(checkpoint.path)
    assert {p: p.stat().st_mtime_ns for p in checkpoint.path.rglob("*")} == before


def test_a_failure_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(recipe_checkpoint, "TOKENIZER", tmp_path / "none.gz")
    with pytest.raises(FileNotFoundError):
        recipe_checkpoint.write(tmp_path / "new" / "small")
    assert list((tmp_path / "new").iterdir()) == []


def test_the_weights_of_its_guidance_are_the_checkpoints(checkpoint, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(checkpoint.path, folder)
    assert Pipeline.load(folder).defaults.guidance == PRESETS["tpige_code"]()
    (folder / "ipvg.json").write_text('{"w": 1.5, "s": 0.25}')
    pipe = Pipeline.load(folder)
    assert pipe.defaults.guidance == PRESETS["tpige_code"](w=1.5, s=0.25)
    assert VaceReference(pipe).guidance == PRESETS["cfg"](1.5)
    (folder / "ipvg.json").write_text('{"w": "much"}')
    with pytest.raises(_core.FormatError, match=r"ipvg\.json: "):
        Pipeline.load(folder)

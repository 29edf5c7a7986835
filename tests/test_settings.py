"""Settings: types, config files, one by its dotted name, which of them wins, and errors that name the nearest known."""

import argparse
import json
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from media_files import png

from ipvg import FormatError, guidance, jobs, settings
from ipvg.cli import generate, parser
from ipvg.tasks import TASKS

YAML = """\
prompt: A woman smiles.
references: [alice.png]
size: 64x48
steps: 3                      # a comment
shift: 1e1
guidance: {preset: tpige_aligned, w: 6}
lora:
  - style.safetensors
  - [other.safetensors, 0.5]
"""


def test_the_distilled_recipe_gives_way_to_what_else_is_given(tmp_path):
    (tmp_path / "run.json").write_text('{"prompt": "x", "out": "a.mp4", "steps": 50, "guidance": "cfg"}')
    made, _ = options("--config", tmp_path / "run.json", "--distilled")
    assert (made["steps"], made["shift"], made["guidance"]) == (4, 5.0, guidance.none().to_dict())
    made, _ = options("--config", tmp_path / "run.json", "--distilled", "--steps", 8, "--guidance", "nag")
    assert (made["steps"], made["shift"], made["guidance"]) == (8, 5.0, guidance.nag().to_dict())


@pytest.fixture
def config(tmp_path):
    pytest.importorskip("yaml", reason="PyYAML, of .ci/requirements.txt, is not installed")
    path = tmp_path / "run.yaml"
    path.write_text(YAML)
    return path


def test_a_yaml_file(config, tmp_path):
    found = settings.check(settings.load(config))
    assert found["prompt"] == "A woman smiles." and found["size"] == [64, 48] and found["steps"] == 3
    assert found["shift"] == 10.0 and found["references"] == [str(tmp_path / "alice.png")], "from the file's folder"
    assert found["lora"] == [[str(tmp_path / "style.safetensors"), 1.0], [str(tmp_path / "other.safetensors"), 0.5]]
    assert found["guidance"] == guidance.tpige_aligned(w=6).to_dict() and found["seed"] == 2025


def test_json_is_the_same(config, tmp_path):
    import yaml

    (tmp_path / "run.json").write_text(json.dumps(yaml.safe_load(YAML)))
    assert settings.check(settings.load(tmp_path / "run.json")) == settings.check(settings.load(config))


def options(*words):
    args = parser().parse_args(["generate", *map(str, words)])
    return generate._settings(args)


def test_the_file_gives_way_to_options_and_these_to_set(config):
    made, where = options("--config", config, "--out", "a.mp4")
    assert (made["steps"], made["seed"], where["out"]) == (3, 2025, "a.mp4")
    made, _ = options("--config", config, "--out", "a.mp4", "--steps", 4, "--seed", 7, "--reference", "bob.png")
    assert (made["steps"], made["seed"]) == (4, 7) and [p.endswith("/bob.png") for p in made["references"]] == [True]
    made, where = options("--config", config, "--out", "a.mp4", "--steps", 4, "--set", "steps=5", "--set", "out=b.mp4")
    assert made["steps"] == 5 and where["out"] == "b.mp4"
    made, _ = options("--config", config, "--out", "a.mp4", "--weight", "s=1", "--set", "guidance.block=1")
    assert made["guidance"] == guidance.tpige_aligned(w=6, s=1, block=1).to_dict()
    made, _ = options("--config", config, "--out", "a.mp4", "--guidance", "cfg", "--weight", "w=2")
    assert made["guidance"] == guidance.cfg(2).to_dict()


def assigned(text, **given):
    settings.assign(given, text)
    return given


@pytest.mark.parametrize(("alpha", "shade"), [((), 40), (("--alpha", "white"), 255)])
def test_transparent_pixels_of_a_reference(tmp_path, alpha, shade):
    pytest.importorskip("ipvg._media")
    path = tmp_path / "cut.png"
    path.write_bytes(png(np.full((16, 16, 4), [40, 40, 40, 0], np.uint8), 6))
    pipe = SimpleNamespace(defaults=SimpleNamespace(frames=5, size=(64, 48)))
    given, _ = options("--prompt", "A cat.", "--image", path, "--out", "a.mp4", *alpha)
    (picture,) = jobs._inputs(given, pipe)["references"]
    assert (picture == shade).all()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("steps=8", {"steps": 8}),
        ("shift=1e1", {"shift": 10.0}),
        ("size=832x480", {"size": [832, 480]}),
        ("size=[832, 480]", {"size": [832, 480]}),
        ("prompt=7", {"prompt": "7"}),
        ("prompt=a=b", {"prompt": "a=b"}),
        ("seed=18446744073709551615", {"seed": 2**64 - 1}),
        ("seed=null", {"seed": 2025}),
        ("pad.left=0.5", {"pad": {"left": 0.5}}),
        ('pad={"top": 1}', {"pad": {"top": 1.0}}),
        ("guidance=cfg(3)", {"guidance": guidance.cfg(3).to_dict()}),
        ("guidance.w=[1,2,3]", {"guidance": guidance.tpige_code(w=[1, 2, 3]).to_dict()}),
        ("guidance.preset=stg_r", {"guidance": guidance.stg_r().to_dict()}),
    ],
)
def test_values_get_the_type_of_their_setting(text, expected):
    found = settings.check(assigned(text))
    assert {name: found[name] for name in expected} == expected


def test_parts_of_a_guidance_of_ones_own():
    mine = guidance.tpige_code().to_dict()
    found = settings.check(assigned("guidance.branches.weak.skip_blocks=[3]", guidance=mine))["guidance"]
    assert found["branches"]["weak"]["skip_blocks"] == [3] and mine["branches"]["weak"]["skip_blocks"] == [2]
    assert settings.check(assigned("guidance.weights.w=6", guidance="cfg + stg_r"))["guidance"]["weights"]["w"] == 6


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("stpes=8", "'stpes' is unknown; did you mean 'steps'"),
        ("w=8", "or 'guidance.w'"),
        ("left=1", "or 'pad.left'"),
        ("guidance.blok=2", "'guidance.blok' is unknown; did you mean 'block'"),
        ("guidance.branches.weka.skip_blocks=[1]", "no 'branches' there"),
        ("steps.x=8", "'steps' has no parts"),
        ("steps", "expected NAME=VALUE"),
        ("=3", "expected NAME=VALUE"),
        ("steps=many", "steps: expected an integer, got 'many'"),
        ("steps=0", "steps: expected 1 to"),
        ("steps=2.5", "steps: expected an integer, got 2.5"),
        ("steps=true", "steps: expected an integer"),
        ("frames=6", "frames: expected 4n"),
        ("size=100x100", "multiples of 16"),
        ("size=big", "WIDTHxHEIGHT"),
        ("shift=nan", "shift: expected a finite number"),
        ("solver=unipk", "did you mean 'unipc'"),
        ("match=all", "match: got 'all'; there are none, mean, gain"),
        ("pad.lef=1", "did you mean 'left'"),
        ("pad.left=9", "pad.left: expected a finite number from 0 to 4"),
        ("references=3", "references: expected a list"),
        ("references=[3]", "references: expected the name of a file"),
        ("lora=[[1,2]]", "lora: expected the name of a file"),
        ("guidance=cfgg", "did you mean 'cfg'"),
        ("guidance=3", "guidance: expected a preset"),
        ("chunk=6", "frames: expected 4n"),
    ],
)
def test_what_is_wrong_is_named(text, words):
    with pytest.raises((ValueError, TypeError), match=words):
        settings.check(assigned(text))


@pytest.mark.parametrize(
    ("name", "text", "error", "words"),
    [
        ("a.yaml", "stpes: 3", ValueError, r"a\.yaml: settings: 'stpes' is unknown; did you mean 'steps'"),
        ("a.yaml", "steps: 3\nsteps: 4", FormatError, "'steps' is given twice"),
        ("a.yaml", "images: [a]\nreferences: [b]", ValueError, "'references' is given twice"),
        ("a.yaml", "a: [", FormatError, r"a\.yaml: "),
        ("a.yaml", "!!python/object/apply:os.system [ls]", FormatError, "could not determine a constructor"),
        ("a.yaml", "", FormatError, "expected a mapping"),
        ("a.yaml", "- a", FormatError, "expected a mapping"),
        ("a.yaml", "3: a", ValueError, "3 is unknown"),
        ("a.yaml", "[" * 3000, FormatError, r"a\.yaml"),
        ("a.json", "{", FormatError, r"a\.json"),
        ("a.json", '{"steps": 3, "steps": 4}', FormatError, "'steps' is given twice"),
        ("a.json", "\xff", FormatError, "expected|utf-8|Expecting"),
        ("a.txt", "", ValueError, "ends in .yaml"),
    ],
)
def test_files_that_are_no_config(tmp_path, name, text, error, words):
    if name.endswith("yaml"):
        pytest.importorskip("yaml", reason="PyYAML, of .ci/requirements.txt, is not installed")
    (tmp_path / name).write_bytes(text.encode("latin-1"))
    with pytest.raises(error, match=words):
        settings.load(tmp_path / name)
    with pytest.raises(OSError, match=r"none\.yaml"):
        settings.load(tmp_path / "none.yaml")


def test_without_pyyaml_the_message_says_what_to_do(tmp_path):
    (tmp_path / "run.yaml").write_text("steps: 3\n")
    program = (
        "import sys; sys.modules['yaml'] = None\n"
        "from ipvg.cli import main\n"
        "sys.exit(main(['generate', '--config', 'run.yaml', '--out', 'a.mp4']))"
    )
    from pathlib import Path

    root = str(Path(settings.__file__).parent.parent)
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env={"PYTHONPATH": root}, capture_output=True, text=True
    )
    assert done.returncode == 1 and "pip install pyyaml" in done.stderr and "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_the_command_line_names_what_is_needed():
    for words, says in (([], "--out"), (["--out", "a.mp4"], "--prompt"), (["--out", "a.mp4", "--set", "w"], "NAME=")):
        with pytest.raises(generate.UsageError, match=says):
            options(*words)


def test_every_setting_is_an_option_or_can_be_set():
    """Options go into settings by their names; a name that is neither would be dropped silently."""
    (commands,) = (a for a in parser()._actions if isinstance(a, argparse._SubParsersAction))
    names = {action.dest for action in commands.choices["generate"]._actions}
    rest = {"help", "json", "debug", "quiet", "config", "assign", "weight", "distilled"}
    assert names - rest <= {*settings.SETTINGS, *settings.OUTPUTS}
    assert set(settings.SETTINGS) - names == {"sigmas_from"}
    assert tuple(TASKS) == generate.TASKS and set(jobs.NEEDS) == {None, *TASKS}

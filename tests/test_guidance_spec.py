"""Guidance as it is written in a config or on a command line, and what it costs."""

import json

import numpy as np
import pytest
from test_sampler import make_model, make_source

from ipvg import guidance as G
from ipvg.guidance import Guidance
from ipvg.parity import recipe
from ipvg.sampler import Sampler
from ipvg.schedule import Schedule


@pytest.mark.parametrize("name", G.PRESETS)
def test_a_presets_name_is_the_preset(name):
    assert G.read(name) == G.PRESETS[name]() == G.read(f" {name}( ) ") == G.read({"preset": name})


def test_sums_with_arguments():
    mine = G.cfg(6) + G.stg_r(s=[1, 0.5], blocks=[9])
    assert G.read("cfg(6) + stg_r(s=[1, 0.5], blocks=[9])") == mine
    assert G.read("seg(sigma=inf)+cfg()") == G.seg() + G.cfg() and G.read("nag(scale=-1)") == G.nag(scale=-1)
    assert G.read("interval(by='step', lo=0, hi=0.5)") == G.interval(by="step", lo=0, hi=0.5)
    assert G.read({"preset": "tpige_code", "w": 6, "block": 1}) == G.tpige_code(w=6, block=1)
    assert G.read(mine) is mine


def test_dictionaries_and_files(tmp_path):
    mine = Guidance({"a": {"text": "cond"}, "b": {"text": "null"}}, "b + w*(a - b)", w=2.0)
    assert G.read(mine.to_dict()) == mine
    branches = {"a": {"text": "cond"}, "b": {"text": "null"}}
    plain = {"branches": branches, "combine": "b + w*(a - b)", "weights": {"w": 2}}
    assert G.read(plain) == mine
    (tmp_path / "mine.json").write_text(json.dumps(plain | {"format": "ipvg.guidance", "version": 1}))
    assert G.read("mine.json", tmp_path) == mine
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(ValueError, match=r"bad\.json"):
        G.read("bad.json", tmp_path)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("tpige_cod", "no preset 'tpige_cod'; did you mean 'tpige_code'"),
        ("magic", "no preset 'magic'; there are none, cfg"),
        ("cfg(s=1)", "cfg has no argument 's'; there are w"),
        ("stg_r(block=[2])", "no argument 'block'; did you mean 'blocks'"),
        ("cfg(1, 2)", "cfg takes at most 1"),
        ("cfg(1, w=2)", "given twice"),
        ("cfg(w='x')", "cfg: weight 'w': expected a number"),
        ("cfg(w=__import__('os'))", "no sum of presets"),
        ("cfg - stg_r", "no sum of presets"),
        ("cfg(**{'w': 1})", "no sum of presets"),
        ("cfg(w=open)", "no sum of presets"),
        ("cfg.__class__", "no sum of presets"),
        ("", "no sum of presets"),
        ("(" * 5000, "no sum of presets"),
        ({"branches": {}}, "'combine' is missing"),
        ({"preset": ["cfg"]}, "no preset"),
    ],
)
def test_what_is_unknown_is_named(value, words):
    with pytest.raises(ValueError, match=words):
        G.read(value)
    for other in (3, None, ["cfg"]):
        with pytest.raises(TypeError, match="guidance: expected"):
            G.read(other)


EXTRA = {
    "zero at some steps": lambda: G.tpige_aligned(s=[0.5, 0, 0, 0.5]),
    "an operation whose branch has weight 0": lambda: G.apg(w=[0, 1, 5, 5]),
    "rescale": lambda: G.rescale(w=[0, 0, 1, 5]),
    "sum": lambda: G.apg() + G.stg_a(0.5) + G.pag(1),
    "inside": lambda: (G.cfg() + G.stg_r()).interval(0.7, 0.95),
    "array": lambda: G.cfg(w=np.ones((1, 1))) + G.slg(),
}


@pytest.mark.parametrize("name", [*G.PRESETS, *EXTRA])
def test_the_cost_is_what_the_sampler_counts(golden_dir, name):
    rule = G.PRESETS[name]() if name in G.PRESETS else EXTRA[name]()
    schedule = Schedule(4, 8.0)
    model = make_model(golden_dir)
    states = {n: recipe.normal(f"spec/{n}", (3, model.config["text_dim"])) for n in ("cond", "negative", "null")}
    run = Sampler(model, states, make_source(), guidance=rule, schedule=schedule, seed=1)
    assert sum(G.forwards(rule, schedule)) == run.forwards_total
    assert G.forwards(rule, schedule) == run._forwards.tolist()

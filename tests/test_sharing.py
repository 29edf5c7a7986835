"""Branches of one step are computed together, what they have in common once. Nothing shows it: not a bit, not a count.
That the work is left out indeed is counted in tests/c/test_pass.c."""

import os
import random

import numpy as np
import pytest
from test_sampler import make_source

from ipvg import _core, guidance, parity
from ipvg.guidance import NAG, Branch, Guidance
from ipvg.parity import recipe
from ipvg.sampler import Sampler, noise
from ipvg.schedule import Schedule

STEPS = 3


@pytest.fixture(scope="module")
def models(golden_dir):
    """The golden transformers: on one thread, on two, with bfloat16 products. IPVG_DEVICE=cuda: on a GPU."""
    golden, where = parity.Golden(golden_dir, "dit"), os.environ.get("IPVG_DEVICE", "cpu")

    def make(name, **device):
        config = golden.about["configs"][name]
        weights = {key: golden.weight(key, shape) for key, shape in config["weights"].items()}
        return _core.Dit(_core.Device(where, **device), {**golden.about["common"], **config}, _core.Weights(weights))

    return [make("A", threads=1), make("B", threads=2), make("A", threads=2, dtype="bfloat16")]


@pytest.fixture(scope="module")
def texts(models):
    width = models[0].config["text_dim"]
    return {name: recipe.normal(f"sharing/{name}", (n, width)) for name, n in (("a", 5), ("b", 9), ("c", 1))}


def alone(model, texts, source, branch, x, timestep, k):
    """The prediction of one branch, by a forward of its own."""
    slots = source.references if branch.reference != "drop" else 0
    reference, control = (s[k].tolist() for s in branch.scales(STEPS, len(model.config["vace_layers"])))
    options = {"reference_scale": reference, "reference_frames": slots} if slots else {}
    nag = branch.nag and (model.text(texts[branch.nag.text]), branch.nag.scale, branch.nag.tau, branch.nag.alpha)
    return model.forward(
        x, timestep, model.text(texts[branch.text]),
        model.context(source.variant(branch.reference), frames=source.latent_shape[1]),
        skip=branch.skip_blocks, keep_hint=branch.keep_hint, scale=control, identity=branch.identity_blocks,
        blur=(branch.blur_blocks, branch.blur_sigma) if branch.blur_blocks else None, nag=nag, **options,
    )  # fmt: skip


def check(model, texts, source, rule):
    sampler = Sampler(model, texts, source, guidance=rule, schedule=Schedule(STEPS, 8.0), seed=1)
    x, forwards = noise(1, source.latent_shape), 0
    for step in sampler:
        assert set(step.velocity) >= set(step.weights)
        for name, velocity in step.velocity.items():
            branch = rule.branches[name]
            assert velocity.tobytes() == alone(model, texts, source, branch, x, step.timestep, step.index).tobytes(), (
                f"step {step.index}, branch {name}: {rule}"
            )
        forwards += len({rule.branches[name] for name in step.velocity})
        assert sampler.forwards == forwards
        x = step.latent.copy()
    assert sampler.forwards_total == forwards


def draw_branch(rng, layers, vace):
    """One that often differs from the others in one thing alone, and often in what block 0 is given."""
    some = lambda: tuple(sorted(rng.sample(range(layers), rng.choice([1, 1, 2]))))  # noqa: E731
    changed = {
        "text": lambda: {"text": rng.choice("abc")},
        "reference": lambda: {"reference": rng.choice(["drop", "absent"])},
        "skip": lambda: {"skip_blocks": some(), "keep_hint": rng.random() < 0.5},
        "skip 0": lambda: {"skip_blocks": (0,), "keep_hint": rng.random() < 0.5},
        "identity": lambda: {"identity_blocks": some()},
        "identity 0": lambda: {"identity_blocks": (0,)},
        "blur": lambda: {"blur_blocks": rng.choice([(0,), some()]), "blur_sigma": rng.choice([0.8, np.inf])},
        "nag": lambda: {"nag": NAG(rng.choice("bc"), scale=rng.choice([3.0, 11.0]))},
        "scale": lambda: {"context_scale": rng.choice([0.0, 0.5, tuple(rng.choice([0, 1, 2]) for _ in range(vace))])},
        "scales": lambda: {"context_scale": tuple((rng.choice([0.0, 1.0]),) for _ in range(STEPS))},
        "slots": lambda: {"reference_scale": rng.choice([0.0, 2.0]), "control_scale": rng.choice([0.0, 1.0])},
    }
    options = {"text": "a"}
    for name in rng.sample(list(changed), rng.choice([0, 1, 1, 2, 3])):
        options |= changed[name]()
    both = set(options.get("identity_blocks", ())) & set(options.get("blur_blocks", ()))
    return Branch(**{k: v for k, v in options.items() if not (both and k.startswith("blur"))})


@pytest.mark.parametrize("seed", range(24))
def test_shared_work_gives_the_bytes_of_separate_forwards(models, texts, seed):
    rng = random.Random(seed)
    model = rng.choice(models)
    layers, vace = model.config["num_layers"], len(model.config["vace_layers"])
    names = "pqrstu"[: rng.choice([2, 3, 3, 4, 6])]
    branches = {name: draw_branch(rng, layers, vace) for name in names}
    weights = {f"w_{n}": [rng.choice([0.0, 1.0, -0.5]) for _ in range(STEPS)] for n in names}
    weights["w_p"] = [1.0, 0.7, 1.0]  # each step has a branch
    rule = Guidance(branches, " + ".join(f"w_{n}*{n}" for n in names), **weights)
    check(model, texts, make_source(references=rng.choice([0, 1, 2]), frames=5, size=(48, 32)), rule)


@pytest.mark.parametrize("name", guidance.PRESETS)
def test_every_preset(models, name):
    rule, model = guidance.PRESETS[name](), models[0]
    texts = {t: recipe.normal(f"sharing/{t}", (4, model.config["text_dim"])) for t in rule.texts}
    check(model, texts, make_source(frames=5, size=(48, 32)), rule)

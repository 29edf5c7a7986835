"""The whole denoising loop against the released one: step by step from the reference's own latents, then on its own.

Step by step, so that an error is seen where it arises: guidance weighs differences of predictions 5 to 8 times, and a
trajectory on its own drifts.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from .. import _core, guidance
from ..guidance import Guidance
from ..sampler import Sampler
from ..schedule import Schedule
from ..source import Source
from .golden import FP32, Case, Golden, Result, measure
from .schedule import of_case

#: A combination of given velocities, relative L2: eight float32 roundings of terms up to 8 times as large as the sum.
COMBINE = 2e-6

#: Which golden tensor a branch's velocity is, and which golden text each prompt name.
_VELOCITY = {"cond": "v_c", "uncond": "v_u", "weak": "v_b"}
_TEXT = {"cond": "text_pos", "negative": "text_neg", "null": "text_null"}


def check(golden: Golden, device: str) -> Iterator[Result]:
    on = _core.Device(device)
    model = _dit(golden, on)
    for case in golden.cases.values():
        source = _source(case, golden)
        if source is None:
            yield case.fail("context", "no case holds the VACE context of these inputs")
            continue
        settings = {
            "guidance": of_config(case),
            "schedule": of_case(case),
            "noise": case.input("noise", case.config["noise_shape"]),
        }
        texts = {name: case.input(key) for name, key in _TEXT.items()}
        yield from _combination(case, settings["guidance"], settings["schedule"])
        yield from _step_by_step(case, Sampler(model, texts, source, **settings))
        yield from _on_its_own(case, Sampler(model, texts, source, **settings))


def of_config(case: Case) -> Guidance:
    """The preset that a case was made with."""
    c = case.config
    if "W_c" in c:
        return guidance.tpige_figure(c["W_c"], c["W_i"])
    if not c["s"]:
        return guidance.cfg(c["w"])
    preset = guidance.tpige_aligned if c["loop"] == "ours" else guidance.tpige_code
    return preset(c["w"], c["s"])


def _combination(case: Case, rule: Guidance, schedule: Schedule) -> Iterator[Result]:
    """The reference's velocities, combined our way: one weighted sum, where it has nested differences."""
    weights = rule.coefficients(schedule)
    v = sum(
        weight.astype(np.float32)[:, None, None, None, None] * case[_VELOCITY[name]] for name, weight in weights.items()
    )
    yield case.compare("v", v, COMBINE, note="the formula on the reference's own velocities")


def _step_by_step(case: Case, sampler: Sampler) -> Iterator[Result]:
    for k in range(sampler.schedule.steps):
        if k:
            sampler.latent = case["x"][k - 1]
        step = sampler.step()
        for name, velocity in step.velocity.items():
            yield _at(case, k, _VELOCITY[name], velocity)
        yield _at(case, k, "v", step.combined)
        yield _at(case, k, "x", step.latent)


def _at(case: Case, k: int, tensor: str, ours: np.ndarray) -> Result:
    note = f"{case.tensors[tensor].meaning}, from the reference's sample"
    return measure("endtoend", case.name, f"step {k} {tensor}", ours, case[tensor][k], FP32["forward"], note=note)


def _on_its_own(case: Case, sampler: Sampler) -> Iterator[Result]:
    samples = [step.latent.copy() for step in sampler]
    yield case.compare("x", np.stack(samples), FP32["forward"], note="every sample of a free run")
    yield case.compare("latents", sampler.latents, FP32["forward"])


def _dit(golden: Golden, device: _core.Device) -> _core.Dit:
    """The transformer is one of those of the dit stage, whose file lists the tensors."""
    dit = Golden(golden.folder, "dit")
    config = dit.about["configs"][golden.about["dit"]["config"]]
    weights = {name: golden.weight(name, shape) for name, shape in config["weights"].items()}
    return _core.Dit(device, {**dit.about["common"], **config}, _core.Weights(weights))


def _source(case: Case, golden: Golden) -> Source | None:
    c = case.config
    for other in golden.cases.values():
        if "context" in other and all(other.config.get(key) == c.get(key) for key in _INPUTS):
            return Source(other["context"], c["references"], c["frames"], (c["width"], c["height"]))
    return None


_INPUTS = ("height", "width", "frames", "references", "source", "mask")

"""From pictures to frames against the released code: the context, the denoising loop step by step from the reference's
own latents, then the loop on its own, decoded to pixels.

Step by step, so that an error is seen where it arises: guidance weighs differences of predictions 5 to 8 times, and a
trajectory on its own drifts.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from .. import _core, guidance, prepare
from ..guidance import Guidance
from ..sampler import Sampler
from ..schedule import Schedule
from ..source import Source
from ..video import Video
from .context import arguments
from .context import vae as vae_of
from .golden import FP32, Case, Golden, Result, measure
from .schedule import of_case

#: A combination of given velocities, relative L2: eight float32 roundings of terms up to 8 times as large as the sum.
COMBINE = 2e-6

#: Share of bytes that rounding may turn: the reference in float64 differs from itself in 2e-4 of them. A systematic
#: difference of one (truncation for rounding) would be in half of them.
DIFFERENT = 2e-3

#: Which golden tensor a branch's velocity is, which context its reference, and which golden text each prompt name.
_VELOCITY = {"cond": "v_c", "uncond": "v_u", "weak": "v_b"}
_CONTEXT = {"context": "present", "context_weak": "drop"}
_TEXT = {"cond": "text_pos", "negative": "text_neg", "null": "text_null"}


def check(golden: Golden, device: str) -> Iterator[Result]:
    on = _core.Device(device)
    model, vae, cache = _dit(golden, on), vae_of(golden, on), {}
    for case in golden.cases.values():
        inputs = arguments(case)
        context = prepare.vace_context(vae.encode, cache=cache, **inputs)
        source = Source(context, case.config["references"], case.config["frames"], inputs["size"])
        for name, reference in _CONTEXT.items():
            if name in case:
                yield case.compare(name, source.variant(reference), FP32["vae"])
        settings = {
            "guidance": of_config(case),
            "schedule": of_case(case),
            "noise": case.input("noise", case.config["noise_shape"]),
        }
        texts = {name: case.input(key) for name, key in _TEXT.items()}
        yield from _combination(case, settings["guidance"], settings["schedule"])
        yield from _step_by_step(case, Sampler(model, texts, source, **settings))
        yield from _on_its_own(case, Sampler(model, texts, source, **settings), vae)


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


def _on_its_own(case: Case, sampler: Sampler, vae: _core.Vae) -> Iterator[Result]:
    samples = [step.latent.copy() for step in sampler]
    yield case.compare("x", np.stack(samples), FP32["forward"], note="every sample of a free run")
    yield case.compare("latents", sampler.latents, FP32["forward"])
    decoded = vae.decode(sampler.latents)
    if "decoded" in case:
        yield case.compare("decoded", decoded, FP32["vae"])
    u8 = np.asarray(Video.from_float(decoded))
    yield case.compare("u8", u8, 1, by="max abs", note="rounding ties")
    share = float((u8 != case["u8"]).mean()) if u8.shape == case["u8"].shape else 1.0
    note = "share of bytes that differ at all"
    yield Result("endtoend", case.name, "u8 (share)", share, DIFFERENT, share <= DIFFERENT, note, "share")


def _dit(golden: Golden, device: _core.Device) -> _core.Dit:
    """The transformer is one of those of the dit stage, whose file lists the tensors."""
    dit = Golden(golden.folder, "dit")
    config = dit.about["configs"][golden.about["dit"]["config"]]
    weights = {name: golden.weight(name, shape) for name, shape in config["weights"].items()}
    return _core.Dit(device, {**dit.about["common"], **config}, _core.Weights(weights))

"""A photo and a sentence become the video that diffusers' WanVACEPipeline makes of them.

Three differences are known and set aside: diffusers reverses the order of several references (so: one), has sigmas of
its own (so: sigmas_from="diffusers"), and rounds a picture's size to multiples of 8 first (so: a size that is one).
Measured: 6e-6 on the last latent; a guidance of 4.99 instead of 5 gives 5e-4.
"""

import numpy as np
import pytest
import torch
from diffusers import UniPCMultistepScheduler, WanVACEPipeline

from ipvg import guidance
from ipvg.parity import FP32, recipe, relative_l2
from ipvg.pipeline import Pipeline

PROMPT = "A cat walks on the grass, realistic style. Tom &amp;amp; Jerry  “quoted”"
NEGATIVE = "Bright tones, overexposed, static"
WIDTH, HEIGHT, FRAMES, STEPS, SHIFT = 48, 32, 9, 4, 16.0


@pytest.fixture(scope="module")
def peer(folders):
    pipe = WanVACEPipeline.from_pretrained(folders["diffusers"], torch_dtype=torch.float32)
    pipe.scheduler = UniPCMultistepScheduler.from_config(pipe.scheduler.config, flow_shift=SHIFT)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def picture(height, width):
    return recipe.pixels("peers/reference", (height, width, 3))


def theirs(peer, noise, **options):
    from PIL import Image

    references = [Image.fromarray(options.pop("reference"))] if "reference" in options else None
    seen = []

    def keep(pipe, step, t, tensors):
        seen.append(tensors["latents"][0].numpy().copy())
        return tensors

    video = peer(
        prompt=PROMPT, negative_prompt=NEGATIVE, reference_images=references, height=HEIGHT, width=WIDTH,
        num_frames=FRAMES, num_inference_steps=STEPS, latents=torch.from_numpy(noise)[None], output_type="np",
        callback_on_step_end=keep, **options,
    ).frames[0]  # fmt: skip
    return seen, video


def ours(folder, noise, references, rule):
    pipe = Pipeline.load(folder)
    text = pipe.encode_text({"cond": PROMPT, "negative": NEGATIVE})
    source = pipe.encode_source(references, size=(WIDTH, HEIGHT), frames=FRAMES)
    run = pipe.sampler(text, source, rule, steps=STEPS, shift=SHIFT, sigmas_from="diffusers", noise=noise)
    latents = [step.latent.copy() for step in run]
    return latents, pipe.decode(run.latents).frames


def compare(got, want):
    """Every step's latent, then the frames."""
    for k, (a, b) in enumerate(zip(got[0], want[0], strict=True)):
        # The bound of one forward: four steps of guidance 5 amplify it, the solver's averages take that back.
        assert relative_l2(a, b) < FP32["forward"], f"step {k}"
    pixels = np.rint(want[1] * 255).astype(np.int16)
    assert np.abs(got[1].astype(np.int16) - pixels).max() <= 1  # a tie may round either way
    assert pixels.std() > 20  # not a flat picture, of which anything would be equal


@pytest.mark.parametrize("layout", ["official", "diffusers"])
@pytest.mark.parametrize("height, width", [(48, 32), (16, 80)])
def test_a_reference_and_a_prompt(peer, folders, layout, height, width):
    noise = recipe.normal("peers/noise", (16, 1 + (FRAMES + 3) // 4, HEIGHT // 8, WIDTH // 8))
    image = picture(height, width)
    want = theirs(peer, noise, reference=image, guidance_scale=5.0)
    compare(ours(folders[layout], noise, [image], guidance.cfg(5.0)), want)


def test_no_reference_and_no_guidance(peer, folders):
    noise = recipe.normal("peers/noise", (16, (FRAMES + 3) // 4, HEIGHT // 8, WIDTH // 8))
    want = theirs(peer, noise, guidance_scale=1.0)
    compare(ours(folders["official"], noise, [], guidance.none()), want)

"""The bundled checkpoint in both layouts, in ipvg and in diffusers: the same states, velocity and pixels.

The diffusers folder is what models/tiny/export.py makes of the shipped files. IPVG_TINY: see tests/bundled.py.
"""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import WanVACEPipeline

from ipvg import Pipeline, noise, read_image
from ipvg.parity import FP32, relative_l2

ROOT = Path(__file__).resolve().parents[2]
FOLDER = Path(os.environ.get("IPVG_TINY") or ROOT / "models" / "ipvg-tiny")
PICTURE = ROOT / "models" / "tiny" / "examples" / "person6.png"
PROMPT = "A woman in a blue turtleneck smiles and nods in a green forest."

pytestmark = pytest.mark.skipif(
    not (FOLDER / "config.json").is_file(), reason=f"{FOLDER} has no config.json: the denoiser is not trained yet"
)


@pytest.fixture(scope="module")
def layouts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundled") / "diffusers"
    script = ROOT / "models" / "tiny" / "export.py"
    subprocess.run([sys.executable, script, "diffusers", "--checkpoint", FOLDER, "--to", folder], check=True)
    return {"official": Pipeline.load(FOLDER), "diffusers": Pipeline.load(folder), "peer": folder}


@pytest.fixture(scope="module")
def peer(layouts):
    return WanVACEPipeline.from_pretrained(layouts["peer"], torch_dtype=torch.float32)


@pytest.fixture(scope="module")
def want(peer, layouts):
    """What diffusers' and transformers' own modules make of a prompt, a context and a latent."""
    context = layouts["official"].encode_source([read_image(PICTURE)], frames=5).context
    x = noise(3, (16, *context.shape[1:]))
    with torch.inference_mode():
        states = peer.encode_prompt(
            PROMPT, do_classifier_free_guidance=False, device="cpu", max_sequence_length=512  # padding counts
        )[0]
        velocity = peer.transformer(
            hidden_states=torch.from_numpy(x)[None], timestep=torch.tensor([500]), encoder_hidden_states=states,
            control_hidden_states=torch.from_numpy(context)[None], return_dict=False,
        )[0]  # fmt: skip
        mean, std = (torch.tensor(v).view(1, -1, 1, 1, 1) for v in (peer.vae.config.latents_mean,
                                                                   peer.vae.config.latents_std))  # fmt: skip
        latent = torch.from_numpy(context[None, :16, :1])  # the encoded reference picture
        pixels = peer.vae.decode(latent * std + mean, return_dict=False)[0]
    tokens = int((states[0].abs().sum(-1) > 0).sum())
    return {"context": context, "x": x, "states": states[0, :tokens].numpy(), "velocity": velocity[0].numpy(),
            "pixels": pixels[0].numpy()}  # fmt: skip


@pytest.mark.parametrize("layout", ["official", "diffusers"])
def test_both_layouts_agree_with_the_peer(layouts, want, layout):
    pipe = layouts[layout]
    states = pipe.encode_text({"cond": PROMPT})["cond"]
    assert relative_l2(states, want["states"]) < FP32["umt5"]
    model = pipe.dit
    velocity = model.forward(want["x"], 500, model.text(states), model.context(want["context"], frames=3))
    assert relative_l2(velocity, want["velocity"]) < FP32["forward"]
    pixels = np.clip(pipe.vae.decode(want["context"][:16, :1]), -1, 1)  # as the peer's decoder does
    assert relative_l2(pixels, want["pixels"]) < FP32["vae"]


def test_both_layouts_give_the_same_bytes(layouts, want):
    """The weights are the same half-precision numbers, whatever the file's names and order are."""
    made = []
    for layout in ("official", "diffusers"):
        model = layouts[layout].dit
        states = layouts[layout].encode_text({"cond": PROMPT})["cond"]
        made.append(model.forward(want["x"], 500, model.text(states), model.context(want["context"], frames=3)))
    assert np.array_equal(*made)

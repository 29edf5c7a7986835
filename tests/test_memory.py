"""A job takes no more memory than was estimated before it began."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from checkpoint_files import make_official

from ipvg import guidance, memory
from ipvg.checkpoint import Checkpoint, save_safetensors
from ipvg.pipeline import Pipeline

ROOT = Path(__file__).resolve().parent.parent

# In a process of its own: the high-water mark is the process's. A first small job touches every page of the weights and
# warms the libraries up, so that what comes on top is scratch, latents and pixels.
CHILD = """
import json, sys
import numpy as np
sys.path.insert(0, "models")
import recipe
from ipvg import memory
from ipvg.pipeline import Pipeline

def status(field):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(field))

pipe = Pipeline.load(recipe.write(sys.argv[1]), threads=2)
size, frames, picture = (192, 128), 9, np.zeros((60, 50, 3), np.uint8)
pipe.generate("a cat", [picture], size=(16, 16), frames=5, steps=1)
pipe.device.release()
estimate = memory.estimate(pipe.checkpoint, width=size[0], height=size[1], frames=frames)
base = status("VmRSS")
with open("/proc/self/clear_refs", "w") as f:
    f.write("5")  # the mark starts anew
pipe.generate("a cat", [picture], size=size, frames=frames, steps=2)
print(json.dumps({"peak": status("VmHWM") - base, "estimate": estimate}))
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc/self/clear_refs")
def test_peak_is_within_five_percent_of_the_estimate(tmp_path):
    out = subprocess.run(
        [sys.executable, "-c", CHILD, str(tmp_path / "small")], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    found = json.loads(out)
    estimate = sum(found["estimate"].values())
    allowed = 1.05 * estimate - found["estimate"]["weights"]  # those are in memory already
    assert 0.5 * allowed < found["peak"] < allowed, found


FIELD = guidance.Guidance({"cond": {}, "uncond": {"text": "negative"}}, "cond + w*(cond - uncond)", w=np.ones((6, 8)))


@pytest.mark.parametrize("references", [0, 1])
@pytest.mark.parametrize("rule", [*guidance.PRESETS, "field"])
def test_the_estimate_is_what_a_run_takes(rule, references, golden_dir):
    """The arena and the sampler's tensors, for every preset: the states of all branches of a step, NAG's and blur's
    buffers, APG's running differences, weights by element. Texts are as long as they may be; shorter ones take less."""
    from test_sampler import make_model, make_source

    from ipvg.parity import recipe
    from ipvg.sampler import Sampler
    from ipvg.schedule import Schedule

    model = make_model(golden_dir)
    rule = FIELD if rule == "field" else guidance.PRESETS[rule]()
    source = make_source(references=references)
    planned = model.memory(*source.latent_shape[1:], **memory._forward(rule, references))
    longest, scratch = model.config["text_len"], {}
    for words in (5, longest):
        states = {name: recipe.normal(name, (words, model.config["text_dim"])) for name in rule.texts}
        run = Sampler(model, states, source, guidance=rule, schedule=Schedule(4, 3.0), seed=1)
        run.run()
        scratch[words] = run._core.device.scratch
    assert scratch[5] < scratch[longest] == planned["scratch"]
    slots = memory._slots(rule)
    rounded = -(-run.latent.nbytes // 256) * 256
    assert run.bytes <= slots * rounded <= run.bytes + 2 * rounded


def test_the_estimate_counts_what_the_guidance_needs_and_what_loras_change(tmp_path):
    folder = make_official(tmp_path / "checkpoint", pth=False)
    checkpoint, size = Checkpoint.open(folder), {"width": 64, "height": 48, "frames": 9}
    plain = memory.estimate(checkpoint, **size)
    assert plain == memory.estimate(checkpoint, **size, guidance=guidance.tpige_code())
    assert memory.estimate(checkpoint, **size, references=2)["latents"] > plain["latents"]
    assert memory.estimate(checkpoint, **size, guidance=guidance.none())["latents"] < plain["latents"]

    shape = checkpoint.components["dit"].entries["blocks.1.ffn.0.weight"].shape
    down, up = np.ones((2, shape[1]), np.float32), np.ones((shape[0], 2), np.float32)
    keys = {"diffusion_model.blocks.1.ffn.0.lora_A.weight": down, "diffusion_model.blocks.1.ffn.0.lora_B.weight": up}
    save_safetensors(tmp_path / "lora.safetensors", keys)
    pipe = Pipeline.load(folder, threads=1)
    loras = [pipe.load_lora(tmp_path / "lora.safetensors"), pipe.load_lora(tmp_path / "lora.safetensors", 0.5)]
    with_loras = memory.estimate(checkpoint, **size, loras=loras)
    assert with_loras["weights"] - plain["weights"] == 4 * shape[0] * shape[1]  # merged once, however many act
    assert pipe.dit.weights.array("blocks.1.ffn.0.weight").nbytes == 4 * shape[0] * shape[1]

"""LoRA files against diffusers: the same file on both sides, the same velocity."""

from dataclasses import asdict

import numpy as np
import pytest
import torch
from diffusers import WanVACEPipeline
from safetensors.torch import save_file

from ipvg import _core, lora
from ipvg.checkpoint import Checkpoint, expected, names
from ipvg.parity import FP32, relative_l2

from .test_transformer import draw, ours, reference

pytest.importorskip("peft", reason="diffusers loads LoRA files through it")

PARTS = ("self_attn.q", "self_attn.o", "cross_attn.v", "ffn.0", "ffn.2")
LAYERS = [f"blocks.{i}.{part}" for i in (0, 3) for part in PARTS]
OFFICIAL = (lambda m: f"diffusion_model.{m}", "lora_A", "lora_B")
OLD = (lambda m: f"diffusion_model.{m}", "lora_down", "lora_up")
DIFFUSERS = (lambda m: f"transformer.{names.to_diffusers('dit', f'{m}.weight')[: -len('.weight')]}", "lora_A", "lora_B")


@pytest.mark.parametrize("scheme, alpha", [(OFFICIAL, None), (OLD, 2.0), (DIFFUSERS, None)])
@pytest.mark.parametrize("strength", [1.0, -0.4])
def test_the_same_file_gives_the_same_velocity(folders, tmp_path, scheme, alpha, strength):
    component = Checkpoint.open(folders["diffusers"], components=["dit"]).components["dit"]
    key, down, up = scheme
    rng, tensors, rank = np.random.default_rng(0), {}, 4
    for module in LAYERS:
        rows, columns = expected(component.config)[f"{module}.weight"]
        tensors[f"{key(module)}.{down}.weight"] = rng.standard_normal((rank, columns), np.float32) * 0.2
        tensors[f"{key(module)}.{up}.weight"] = rng.standard_normal((rows, rank), np.float32) * 0.2
        if alpha is not None:
            tensors[f"{key(module)}.alpha"] = np.array(alpha, np.float32)
    path = tmp_path / "lora.safetensors"
    save_file({k: torch.from_numpy(np.ascontiguousarray(v)) for k, v in tensors.items()}, path)

    pipe = WanVACEPipeline.from_pretrained(folders["diffusers"])
    pipe.load_lora_weights(str(path), adapter_name="mine")
    pipe.set_adapters(["mine"], [strength])
    opened = lora.Lora.open(path, component.config, strength=strength)
    weights = component.weights(lora.merged(component, [opened]))
    model = _core.Dit(_core.Device("cpu"), asdict(component.config), weights)
    plain = _core.Dit(_core.Device("cpu"), asdict(component.config), component.weights())

    x, context, states = draw(11)
    want = reference(pipe.transformer, x, 400, states, context)
    assert relative_l2(ours(model, x, 400, states, context), want) < FP32["forward"]
    assert relative_l2(ours(plain, x, 400, states, context), want) > 100 * FP32["forward"], "it does something"

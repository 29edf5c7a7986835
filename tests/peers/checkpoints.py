"""One small model with shared weights, saved by the peers' own code: as diffusers saves a pipeline, and in the official
layout with torch.save and safetensors.

Every weight is representable in bfloat16, so that storing some as the released files do loses nothing and the peers'
float32 result is the reference for both folders.
"""

from __future__ import annotations

import gzip
import json
from collections import OrderedDict
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanVACEPipeline, WanVACETransformer3DModel
from safetensors.torch import save_file
from transformers import AutoTokenizer, UMT5Config, UMT5EncoderModel

from ipvg.checkpoint import names
from ipvg.parity import recipe

GOLDEN = Path(__file__).parent.parent / "golden"
SALT = "peers/"
TEXT_DIM = 48


def transformer(heads: int = 3, head_dim: int = 64, ffn_dim: int = 320) -> WanVACETransformer3DModel:
    model = WanVACETransformer3DModel(
        num_attention_heads=heads, attention_head_dim=head_dim, text_dim=TEXT_DIM, ffn_dim=ffn_dim, num_layers=5,
        vace_layers=[0, 1, 3], vace_in_channels=96,
    )  # fmt: skip
    return fill(model, "dit")


def vae() -> AutoencoderKLWan:
    return fill(AutoencoderKLWan(base_dim=16, num_res_blocks=1), "vae", num_res_blocks=1)


def text_encoder(
    heads: int = 6, d_kv: int = 10, layers: int = 3, d_model: int = TEXT_DIM, d_ff: int = 112
) -> UMT5EncoderModel:
    config = UMT5Config(
        vocab_size=2560, d_model=d_model, d_kv=d_kv, d_ff=d_ff, num_heads=heads, num_layers=layers,
        feed_forward_proj="gated-gelu",
    )  # fmt: skip
    return fill(UMT5EncoderModel(config), "text")


def fill(model: torch.nn.Module, component: str, num_res_blocks: int = 2) -> torch.nn.Module:
    """Gives every tensor the recipe's weight of its official name, rounded to bfloat16."""
    state = model.state_dict()
    for name, tensor in state.items():
        official = names.to_official(component, name, num_res_blocks)
        assert official, f"{name}: a tensor of the peer that ipvg has no name for"
        state[name] = torch.from_numpy(recipe.weight(official, tuple(tensor.shape), SALT)).bfloat16().float()
    model.load_state_dict(state)
    return model.eval()


def write(root: Path) -> dict[str, Path]:
    """Both folders: {"official": ..., "diffusers": ...}."""
    parts = {"dit": transformer(), "vae": vae(), "text": text_encoder()}
    return {"official": _official(root / "official", parts), "diffusers": _diffusers(root / "diffusers", parts)}


def _diffusers(root: Path, parts: dict[str, torch.nn.Module]) -> Path:
    (root / "tokenizer").mkdir(parents=True)
    (root / "tokenizer" / "tokenizer.json").write_bytes(tokenizer_json())
    (root / "tokenizer" / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>", "pad_token": "<pad>",
                    "unk_token": "<unk>", "model_max_length": 512})
    )  # fmt: skip
    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    pipeline = WanVACEPipeline(
        AutoTokenizer.from_pretrained(root / "tokenizer"), parts["text"], parts["vae"], scheduler, parts["dit"]
    )
    pipeline.save_pretrained(root, max_shard_size="2MB")  # several shards and an index, as the released ones
    assert len(list((root / "transformer").glob("*-of-*.safetensors"))) > 1
    return root


def _official(root: Path, parts: dict[str, torch.nn.Module]) -> Path:
    (root / "google" / "umt5-xxl").mkdir(parents=True)
    (root / "google" / "umt5-xxl" / "tokenizer.json").write_bytes(tokenizer_json())
    dit = official_state(parts["dit"], "dit")
    half = {name: t.bfloat16() if name.startswith("vace") else t for name, t in dit.items()}
    save_file(half, root / "diffusion_pytorch_model.safetensors")
    torch.save(official_state(parts["vae"], "vae", num_res_blocks=1), root / "Wan2.1_VAE.pth")
    text = official_state(parts["text"], "text")
    torch.save(OrderedDict((k, t.bfloat16()) for k, t in text.items()), root / "models_t5_umt5-xxl-enc-bf16.pth")
    c = parts["dit"].config
    config = {
        "_class_name": "VaceWanModel", "model_type": "vace", "dim": c.num_attention_heads * c.attention_head_dim,
        "eps": c.eps, "ffn_dim": c.ffn_dim, "freq_dim": c.freq_dim, "in_dim": c.in_channels, "out_dim": c.out_channels,
        "num_heads": c.num_attention_heads, "num_layers": c.num_layers, "text_len": 512,
        "vace_layers": list(c.vace_layers), "vace_in_dim": c.vace_in_channels,
    }  # fmt: skip
    (root / "config.json").write_text(json.dumps(config))
    return root


def official_state(model: torch.nn.Module, component: str, num_res_blocks: int = 2) -> OrderedDict:
    """The state dict under official names; a tied tensor once."""
    return OrderedDict(
        (names.to_official(component, name, num_res_blocks), tensor.contiguous())
        for name, tensor in model.state_dict().items()
    )


def tokenizer_json() -> bytes:
    return gzip.decompress((GOLDEN / "tokenizer_standin.json.gz").read_bytes())

"""Writes a small checkpoint in the official layout with weights from the golden recipe: whole, loadable, and untrained.

    python models/recipe.py FOLDER

It runs every stage of the pipeline in seconds. **Its videos are noise.** The folder says so too: the "note" of its
ipvg.json, which holds its default job as well. A folder that exists is left alone.
"""

from __future__ import annotations

import dataclasses
import gzip
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

from ipvg.checkpoint import DitConfig, TextConfig, VaeConfig, expected, save_safetensors, to_bfloat16
from ipvg.parity import recipe

NOTE = "untrained weights from the golden recipe, to try the pipeline: the output is noise"
DEFAULTS = {"note": NOTE, "size": [128, 96], "frames": 17, "steps": 8, "shift": 16.0}

# The sizes of the golden cases. The vocabulary is the stand-in tokenizer's 2481, rounded up, as the real one's is.
DIT = DitConfig(dim=256, ffn_dim=384, num_heads=2, num_layers=4, vace_layers=(0, 2), text_dim=64)
VAE = VaeConfig(dim=24)
TEXT = TextConfig(vocab=2560, dim=64, dim_attn=64, dim_ffn=160, num_heads=4, num_layers=3)

TOKENIZER = Path(__file__).parent.parent / "tests" / "golden" / "tokenizer_standin.json.gz"


def write(
    folder: str | os.PathLike[str],
    dit: DitConfig = DIT,
    vae: VaeConfig = VAE,
    text: TextConfig = TEXT,
    salt: str = "",
) -> Path:
    """Writes the checkpoint, all or nothing, and returns the folder. What is there already stays as it is.

    The dtypes are those of the released files: float32, but bfloat16 for the VACE blocks and the text encoder. T5 and
    VAE are .safetensors under their official stems (the released ones are .pth; ipvg reads both).
    """
    folder = Path(folder).absolute()
    if folder.exists():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    making = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        _save(making / "diffusion_pytorch_model.safetensors", dit, salt, bfloat16=lambda name: name.startswith("vace"))
        _save(making / "Wan2.1_VAE.safetensors", vae, salt, bfloat16=lambda name: False)
        _save(making / "models_t5_umt5-xxl-enc-bf16.safetensors", text, salt, bfloat16=lambda name: True)
        (making / "config.json").write_text(json.dumps(_config(dit), indent=2) + "\n", encoding="utf-8")
        (making / "ipvg.json").write_text(json.dumps(DEFAULTS, indent=2) + "\n", encoding="utf-8")
        tokenizer = making / "google" / "umt5-xxl" / "tokenizer.json"
        tokenizer.parent.mkdir(parents=True)
        tokenizer.write_bytes(gzip.decompress(TOKENIZER.read_bytes()))
        making.chmod(0o755)
        try:
            making.rename(folder)
        except OSError:
            if not folder.exists():  # else another process was quicker, and wrote the same
                raise
    finally:
        shutil.rmtree(making, ignore_errors=True)
    return folder


def _save(path: Path, config, salt: str, bfloat16) -> None:
    tensors, dtypes = {}, {}
    for name, shape in expected(config).items():
        tensors[name] = recipe.weight(name, shape, salt)
        if bfloat16(name):
            tensors[name], dtypes[name] = to_bfloat16(tensors[name]), "bfloat16"
    save_safetensors(path, tensors, {"note": NOTE}, dtypes)


def _config(dit: DitConfig) -> dict:
    """config.json as the official one has it. text_dim is left out there: it follows from the tensors."""
    sizes = dataclasses.asdict(dit)
    del sizes["patch_size"], sizes["text_dim"]
    return {"_class_name": "VaceWanModel", "model_type": "vace"} | sizes


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python models/recipe.py FOLDER")
    print(f"{write(sys.argv[1])}: {NOTE}")

"""The bundled checkpoint for tests, and the outputs of it that are kept (tests/golden_tiny) so that any change shows.

    python -m tests.bundled --write        # after new weights: everything anew, by this build in float32

IPVG_TINY names another folder of the same sizes, to try tests on weights that are not shipped yet.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from functools import lru_cache
from pathlib import Path

import numpy as np

from ipvg import NEGATIVE, Pipeline, Schedule, guidance, noise, read_image
from ipvg.checkpoint import save_safetensors
from ipvg.guidance import Branch

ROOT = Path(__file__).resolve().parent.parent
FOLDER = Path(os.environ.get("IPVG_TINY") or ROOT / "models" / "ipvg-tiny")
EXAMPLES = ROOT / "models" / "tiny" / "examples"
GOLDEN = ROOT / "tests" / "golden_tiny"
THERE = (FOLDER / "config.json").is_file()
WHY = f"{FOLDER} has no config.json: the bundled denoiser is not trained yet"

#: Branches whose velocity is kept, at one timestep: all that the presets use.
BRANCHES = {
    "cond": Branch(),
    "uncond": Branch("negative"),
    "null": Branch("null"),
    "weak, code": Branch(reference="drop", skip_blocks=(2,)),
    "weak, aligned": Branch(reference="absent", skip_blocks=(2,)),
    "attention = V": Branch(identity_blocks=(2,)),
}
PERSON, TIMESTEP, SEED, STEPS = "person2", 500, 11, 3


@lru_cache(1)
def pipeline() -> Pipeline:
    return Pipeline.load(FOLDER)


@lru_cache(1)
def examples() -> dict:
    return json.loads((EXAMPLES / "examples.json").read_text(encoding="utf-8"))["people"]


def picture(name: str) -> np.ndarray:
    return read_image(EXAMPLES / f"{name}.png")


def weights_sha256() -> str:
    """Of all weight files, so that outputs of other weights are told from a change of numerics."""
    found = hashlib.sha256()
    for path in sorted(FOLDER.glob("*.safetensors")):
        found.update(path.read_bytes())
    return found.hexdigest()


def outputs() -> dict[str, np.ndarray]:
    """What is kept, stage by stage: text states, the reference's latent, a velocity a branch, a short run, pixels."""
    pipe, caption = pipeline(), examples()[PERSON]["caption"]
    text = pipe.encode_text({"cond": caption, "negative": NEGATIVE, "null": ""})
    found = {f"text/{name}": states for name, states in text.items()}
    source = pipe.encode_source([picture(PERSON)], frames=5)
    found["reference latent"] = source.context[:16, 0]
    x = noise(SEED, source.latent_shape)
    model, words = pipe.dit, {name: pipe.dit.text(states) for name, states in text.items()}
    for name, branch in BRANCHES.items():
        context = model.context(source.variant(branch.reference), frames=source.latent_shape[1])
        found[f"velocity/{name}"] = model.forward(
            x, TIMESTEP, words[branch.text], context, skip=branch.skip_blocks, identity=branch.identity_blocks
        )
    run = pipe.sampler(text, source, guidance.tpige_code(), steps=STEPS, noise=x)
    for step in run:
        found[f"latent/{step.index}"] = step.latent.copy()
    found["frames"] = pipe.vae.decode(run.latents)[:, ::4, ::4, ::4]
    return {name: np.ascontiguousarray(value, np.float32) for name, value in found.items()}


def about() -> dict:
    return {
        "made": "python -m tests.bundled --write",
        "weights_sha256": weights_sha256(),
        "reference": f"{PERSON}.png",
        "caption": examples()[PERSON]["caption"],
        "velocities": {"timestep": TIMESTEP, "noise": f"ipvg.noise({SEED})", "branches": list(map(str, BRANCHES))},
        "latents": {"guidance": "tpige_code", "schedule": repr(Schedule(STEPS, pipeline().defaults.shift))},
        "frames": "decoded, every fourth frame, row and column",
    }


def write() -> None:
    GOLDEN.mkdir(exist_ok=True)
    found = outputs()
    save_safetensors(GOLDEN / "tiny.safetensors", found, {"weights_sha256": weights_sha256()})
    (GOLDEN / "tiny.json").write_text(json.dumps(about(), indent=1) + "\n", encoding="utf-8")
    print(f"{GOLDEN}: {len(found)} tensors of {FOLDER}")


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit(__doc__)
    write()

"""How far PyTorch in bfloat16 is from the golden tensors: what tests/bfloat16.py holds ours against.

    PYTHONPATH=. python -m tests.peers.bfloat16 [--golden FOLDER] [--write FILE]

The golden weights in diffusers' and transformers' own models, as they load them in bfloat16, eager, on the CPU. Every
case of dit, umt5 and vae has an expression there: a skipped block is the identity, and its hint, where that goes too,
has scale 0; a context that is a frame short is padded by diffusers itself. diffusers clamps decoded frames, so the
figure of `frames` is of clamped ones. float32 is measured beside it and must agree: it is the same case. Without
--write the figures are printed only; --write FOLDER/bfloat16.json puts them beside golden tensors of your own.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

from ipvg.checkpoint import DitConfig, TextConfig, VaeConfig
from ipvg.parity import Golden, relative_l2
from ipvg.parity.dit import input_of
from ipvg.parity.vae import frames_of
from tests.bfloat16 import fingerprint

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))
from gpu import peers  # noqa: E402

Figures = Iterator[tuple[str, str, np.ndarray, np.ndarray]]  # case, tensor, float32, bfloat16


def tensors(golden: Golden, shapes) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(golden.weight(name, shape)) for name, shape in shapes.items()}


def dit(golden: Golden) -> Figures:
    models = {}
    for case in golden.cases.values():
        name = case.config["config"]
        if name not in models:
            entry = golden.about["common"] | golden.about["configs"][name]
            known = {k: v for k, v in entry.items() if k in DitConfig.__dataclass_fields__}
            config = DitConfig(**known | {"vace_layers": tuple(entry["vace_layers"])})
            weights = tensors(golden, entry["weights"])
            models[name] = config, [peers.dit(config, weights, "cpu", t) for t in (torch.float32, torch.bfloat16)]
        config, pair = models[name]
        yield case.name, "v", *(velocity(model, config, case) for model in pair)


def velocity(model, config: DitConfig, case) -> np.ndarray:
    c, skip = case.config, case.config["skipped_main_block"]
    scales = torch.full((len(config.vace_layers),), float(c["vace_context_scale"]))
    whole = None
    if skip is not None:
        block, whole = model.blocks[skip], model.blocks[skip].forward
        block.forward = lambda hidden, *_: hidden
        if skip in config.vace_layers and not c.get("keep_hint", False):
            scales[config.vace_layers.index(skip)] = 0.0
    made = []
    try:
        for t, x, vace, text in zip(c["t"], c["x"], c["vace_context"], c["text"], strict=True):
            arrays = (input_of(case, name) for name in (x, vace, text))
            given = peers.dit_inputs(config, *arrays, "cpu", model.dtype)
            given |= {"timestep": torch.tensor([t]), "control_hidden_states_scale": scales.to(model.dtype)}
            with torch.no_grad():
                made.append(model(**given)[0][0].float().numpy())
    finally:
        if whole:
            block.forward = whole
    return np.stack(made).reshape(case.tensors["v"].shape)


def umt5(golden: Golden) -> Figures:
    table = golden.data["config"]
    known = {k: v for k, v in table.items() if k in TextConfig.__dataclass_fields__}
    config, weights = TextConfig(**known), tensors(golden, golden.data["weights"]["shapes"])
    pair = [peers.umt5(config, weights, dtype) for dtype in (torch.float32, torch.bfloat16)]
    for case in golden.cases.values():
        if "ids" not in case:
            continue
        with torch.no_grad():
            ids = torch.from_numpy(case["ids"].astype(np.int64))[None]
            whole = [model(ids).last_hidden_state[0].float().numpy() for model in pair]
        for name in case.tensors:
            if name == "out":
                yield case.name, name, *whole
            elif name.startswith(("out_first", "out_last")):
                n = int(name.removeprefix("out_first").removeprefix("out_last"))
                yield case.name, name, *(x[:n] if "first" in name else x[-n:] for x in whole)


def vae(golden: Golden) -> Figures:
    table, weights = golden.data["config"], tensors(golden, golden.data["weights"]["shapes"])
    known = {k: v for k, v in table.items() if k in VaeConfig.__dataclass_fields__}
    config = VaeConfig(**{k: tuple(v) if isinstance(v, list) else v for k, v in known.items()})
    pair = [peers.vae(config, weights, dtype) for dtype in (torch.float32, torch.bfloat16)]
    for case in golden.cases.values():
        part = "encoder" if "latent" in case else "decoder"
        given = frames_of(case) if part == "encoder" else case.input("latent")
        made = [peers.vae_run(m, part, torch.from_numpy(np.ascontiguousarray(given)), False)() for m in pair]
        made = [array.float().numpy() for array in made]
        for name in case.tensors:
            if name in ("latent", "frames", "frames_clamped"):
                yield case.name, name, *made


STAGES = {"dit": dit, "umt5": umt5, "vae": vae}


def measure(folder: Path) -> dict:
    stages = {}
    for stage, make in STAGES.items():
        golden, figures = Golden(folder, stage), {}
        for case, tensor, exact, half in make(golden):
            reference = golden.cases[case][tensor]
            if tensor == "frames":
                reference = reference.clip(-1, 1)
            error = float(f"{relative_l2(half, reference):.3g}")
            figures[f"{case}/{tensor}"] = {"error": error, "of": fingerprint(golden.cases[case][tensor])}
            same = relative_l2(exact, reference)
            print(f"{stage} {case}/{tensor}: bfloat16 {error:.3g}, float32 {same:.1e}")
            assert same < 1e-4, "the peer does not compute this case"
        stages[stage] = figures
    return stages


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--golden", type=Path, default=ROOT / "tests/golden")
    parser.add_argument("--write", type=Path)
    args = parser.parse_args()
    found = measure(args.golden)
    if args.write:
        names = ("torch", "diffusers", "transformers")
        head = {
            "what": "PyTorch in bfloat16: relative L2 to the golden tensor of that case; of: CRC-32 of that tensor",
            "command": "PYTHONPATH=. python -m tests.peers.bfloat16 --write tests/bfloat16.json",
            "versions": {name: version(name) for name in names} | {"python": platform.python_version()},
        }
        args.write.write_text(json.dumps(head | {"stages": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()

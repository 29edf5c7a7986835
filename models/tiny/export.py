"""From training's outputs to the files that are shipped.

    python models/tiny/export.py judges --state STATE     # a.pt, b.pt, probe.pt -> models/tiny/judges/*.onnx
    python models/tiny/export.py vae --state STATE        # vae_*.pt -> models/ipvg-tiny/Wan2.1_VAE.safetensors

Weights are stored in half precision; `measure.py` says what that costs.
"""

import argparse
import functools
import importlib.util
import json
import os

import numpy as np
import torch

import nets
import vae
from train import load_net

HERE = os.path.dirname(os.path.abspath(__file__))
JUDGES = os.path.join(HERE, "judges")
ROOT = os.path.dirname(os.path.dirname(HERE))
CHECKPOINT = os.path.join(os.path.dirname(HERE), "ipvg-tiny")


def halve(path):
    """Large weights of an ONNX file as float16 with a Cast behind each: half the bytes, float32 arithmetic."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    model = onnx.load(path)
    casts, kept = [], []
    for w in model.graph.initializer:
        value = numpy_helper.to_array(w)
        if value.dtype == np.float32 and value.size > 512:
            small = numpy_helper.from_array(value.astype(np.float16), w.name + "_half")
            kept.append(small)
            casts.append(helper.make_node("Cast", [small.name], [w.name], to=TensorProto.FLOAT))
        else:
            kept.append(w)
    nodes = [*casts, *model.graph.node]
    del model.graph.initializer[:], model.graph.node[:]
    model.graph.initializer.extend(kept)
    model.graph.node.extend(nodes)
    onnx.checker.check_model(model)
    onnx.save(model, path)


def export_judges(state):
    os.makedirs(JUDGES, exist_ok=True)
    face = torch.zeros(2, 3, 128, 128)
    clip = torch.zeros(2, len(nets.PROBE_FRAMES), 3, 128, 128)
    for name, net, x in (
        ("face", nets.Embedder("a"), face),
        ("face_b", nets.Embedder("b"), face),
        ("probe", nets.Probe(), clip),
    ):
        load_net(net, os.path.join(state, {"face": "a", "face_b": "b"}.get(name, name) + ".pt"), "cpu")
        path = os.path.join(JUDGES, name + ".onnx")
        torch.onnx.export(
            net,
            (x,),
            path,
            input_names=["pixels"],
            output_names=["out"],
            dynamo=False,
            dynamic_axes={"pixels": {0: "n"}, "out": {0: "n"}},
            opset_version=17,
        )
        halve(path)
        print(path, os.path.getsize(path))
    from people import HAIR_COLOURS, HAIR_STYLES
    from scenes import CATEGORIES

    words = {**CATEGORIES, "hair_colour": HAIR_COLOURS, "hair_style": HAIR_STYLES, "face": ("none", "a face")}
    about = {
        "pixels": "float32 RGB in [-1, 1]; face: (n, 3, 128, 128); probe: (n, 5, 3, 128, 128)",
        "frames": list(nets.PROBE_FRAMES),
        "face": "128 numbers, unit length: identity similarity is their dot product. Judges; shaped no loss.",
        "face_b": "same form, another design and training people. Shaped the autoencoder's loss: no judge of it.",
        "probe": "logits, heads in this order",
        "heads": {h: list(words[h]) for h in nets.HEADS},
    }
    with open(os.path.join(JUDGES, "judges.json"), "w") as f:
        json.dump(about, f, indent=1)


def trained_vae(state):
    net = vae.build()
    parts = [
        torch.load(os.path.join(state, f"vae_{p}.pt"), map_location="cpu", weights_only=True)
        for p in ("encoder", "decoder")
    ]
    net.load_state_dict({**parts[0]["net"], **parts[1]["net"]})
    with open(os.path.join(state, "vae.json")) as f:
        last = json.load(f)[-1]
    return vae.fit_constants(net, torch.tensor(last["latent_mean"]), torch.tensor(last["latent_std"])).eval()


def export_vae(state):
    from safetensors.numpy import save_file

    tensors = {
        names().to_official("vae", k, vae.RES_BLOCKS): v.detach().numpy().astype(np.float16)
        for k, v in trained_vae(state).state_dict().items()
    }
    assert None not in tensors
    os.makedirs(CHECKPOINT, exist_ok=True)
    path = os.path.join(CHECKPOINT, "Wan2.1_VAE.safetensors")
    save_file(
        tensors,
        path,
        {"note": "Wan2.1 autoencoder, base 24, one block a level, trained on a rendered world (models/README.md)"},
    )
    print(path, os.path.getsize(path))


@functools.cache
def names():
    """ipvg's map between the layouts' tensor names: a plain file, so that a training machine needs no built ipvg."""
    spec = importlib.util.spec_from_file_location("names", os.path.join(ROOT, "ipvg", "checkpoint", "names.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def shipped_vae():
    """The shipped autoencoder as a diffusers module, float32."""
    from safetensors.torch import load_file

    net = vae.build()
    net.load_state_dict(
        {
            names().to_diffusers("vae", k, vae.RES_BLOCKS): v.float()
            for k, v in load_file(os.path.join(CHECKPOINT, "Wan2.1_VAE.safetensors")).items()
        }
    )
    return net.eval().requires_grad_(False)


if __name__ == "__main__":
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("what", choices=("judges", "vae"))
    p.add_argument("--state", required=True)
    a = p.parse_args()
    {"judges": export_judges, "vae": export_vae}[a.what](a.state)

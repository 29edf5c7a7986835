"""From training's outputs to the files that are shipped.

    python models/tiny/export.py judges --state STATE     # a.pt, b.pt, probe.pt -> models/tiny/judges/*.onnx
    python models/tiny/export.py vae --state STATE        # vae_*.pt -> models/ipvg-tiny/Wan2.1_VAE.safetensors
    python models/tiny/export.py dit --state STATE        # dit_*.pt -> the denoiser, the text encoder, their configs
    python models/tiny/export.py diffusers --to FOLDER    # the shipped files again, in the diffusers layout

Weights are stored in half precision; `measure.py` says what that costs.
"""

import argparse
import functools
import glob
import importlib.util
import json
import os
import shutil

import numpy as np
import torch

import dit
import nets
import text
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


def to_onnx(net, x, path):
    """x: two examples of what it takes."""
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


def add_judge(net, name, **about):
    """A judge of single portraits beside the others, and what judges.json says of it."""
    to_onnx(net, torch.zeros(2, 3, 128, 128), os.path.join(JUDGES, name + ".onnx"))
    path = os.path.join(JUDGES, "judges.json")
    with open(path) as f:
        table = json.load(f) | about
    with open(path, "w") as f:
        json.dump(table, f, indent=1)
        f.write("\n")


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
        to_onnx(net, x, path)
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
    tensors = {names().to_official("vae", k, vae.RES_BLOCKS): v for k, v in trained_vae(state).state_dict().items()}
    note = "Wan2.1 autoencoder, base 24, one block a level, trained on a rendered world (models/README.md)"
    os.makedirs(CHECKPOINT, exist_ok=True)
    store(tensors, os.path.join(CHECKPOINT, "Wan2.1_VAE"), note)


@functools.cache
def names():
    """ipvg's map between the layouts' tensor names: a plain file, so that a training machine needs no built ipvg."""
    spec = importlib.util.spec_from_file_location("names", os.path.join(ROOT, "ipvg", "checkpoint", "names.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def shipped_vae():
    """The shipped autoencoder as a diffusers module, float32."""
    net = vae.build()
    net.load_state_dict(shipped("vae", "Wan2.1_VAE"))
    return net.eval().requires_grad_(False)


def store(tensors, stem, note, limit=15_500_000):
    """Tensors as float16 safetensors: one file, or shards under `limit` bytes with an index."""
    from safetensors.torch import save_file

    shards, room = [{}], limit
    for name, tensor in tensors.items():
        tensor = tensor.detach().half().contiguous()
        if tensor.nbytes > room:
            shards.append({})
            room = limit
        shards[-1][name] = tensor
        room -= tensor.nbytes
    where, count = {}, len(shards)
    for i, shard in enumerate(shards, 1):
        path = f"{stem}.safetensors" if count == 1 else f"{stem}-{i:05d}-of-{count:05d}.safetensors"
        save_file(shard, path, {"note": note, "format": "pt"})
        where.update(dict.fromkeys(shard, os.path.basename(path)))
        print(path, os.path.getsize(path))
    if count > 1:
        index = {"metadata": {"total_size": sum(t.nbytes for s in shards for t in s.values())}, "weight_map": where}
        write_json(f"{stem}.safetensors.index.json", index)


def write_json(path, table):
    with open(path, "w") as f:
        json.dump(table, f, indent=2)
        f.write("\n")


def export_dit(state):
    """The averaged weights (dit_*.pt) in the official layout."""
    kept = {}
    for path in sorted(glob.glob(os.path.join(state, "dit_[0-9]*.pt"))):
        kept.update(torch.load(path, map_location="cpu", weights_only=True))
    note = "Wan2.1-VACE, small, trained on a rendered world (models/README.md)"
    for part, stem in (("dit", "diffusion_pytorch_model"), ("text", "models_t5_umt5-xxl-enc-bf16")):
        own = {k.removeprefix(part + "."): v for k, v in kept.items() if k.startswith(part + ".")}
        own.pop("encoder.embed_tokens.weight", None)  # the same tensor as shared.weight
        store({names().to_official(part, k): v for k, v in own.items()}, os.path.join(CHECKPOINT, stem), note)
    c = dit.CONFIG
    sizes = {"dim": dit.DIM, "ffn_dim": c["ffn_dim"], "num_heads": dit.HEADS, "num_layers": c["num_layers"]}
    sizes |= {"in_dim": 16, "out_dim": 16, "vace_in_dim": 96, "vace_layers": c["vace_layers"]}
    sizes |= {"freq_dim": c["freq_dim"], "text_len": text.FULL, "eps": 1e-6}
    write_json(os.path.join(CHECKPOINT, "config.json"), {"_class_name": "VaceWanModel", "model_type": "vace"} | sizes)
    defaults = {"size": [128, 128], "frames": 17, "steps": 20, "shift": 3.0, "w": 1.0, "s": 0.5}
    write_json(os.path.join(CHECKPOINT, "ipvg.json"), defaults)


def shipped(part, stem):
    """Diffusers names of a shipped component's tensors, float32."""
    from safetensors.torch import load_file

    paths = sorted(glob.glob(os.path.join(CHECKPOINT, stem + "*.safetensors")))
    found = {k: v for p in paths for k, v in load_file(p).items()}
    return {names().to_diffusers(part, k, vae.RES_BLOCKS): v.float() for k, v in found.items()}


def export_diffusers(to):
    """What is shipped, as diffusers and transformers save it (float16)."""
    from diffusers import UniPCMultistepScheduler

    shipped_vae().half().save_pretrained(os.path.join(to, "vae"))
    parts = [("dit", "diffusion_pytorch_model", dit.build(), "transformer")]
    parts.append(("text", "models_t5_umt5-xxl-enc-bf16", text.build(), "text_encoder"))
    for part, stem, net, folder in parts:
        missing, extra = net.load_state_dict(shipped(part, stem), strict=False)
        assert not extra and set(missing) <= {"encoder.embed_tokens.weight"}, (missing, extra)
        net.half().save_pretrained(os.path.join(to, folder))
    scheduler = UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, num_train_timesteps=1000, flow_shift=3.0
    )
    scheduler.save_pretrained(os.path.join(to, "scheduler"))
    os.makedirs(os.path.join(to, "tokenizer"), exist_ok=True)
    shutil.copy(os.path.join(CHECKPOINT, "google", "umt5-xxl", "tokenizer.json"), os.path.join(to, "tokenizer"))
    special = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    write_json(
        os.path.join(to, "tokenizer", "tokenizer_config.json"), {"tokenizer_class": "PreTrainedTokenizerFast"} | special
    )
    classes = {
        "scheduler": ["diffusers", "UniPCMultistepScheduler"],
        "text_encoder": ["transformers", "UMT5EncoderModel"],
    }
    classes |= {"tokenizer": ["transformers", "PreTrainedTokenizerFast"]}
    classes |= {"transformer": ["diffusers", "WanVACETransformer3DModel"], "vae": ["diffusers", "AutoencoderKLWan"]}
    write_json(os.path.join(to, "model_index.json"), {"_class_name": "WanVACEPipeline"} | classes)


if __name__ == "__main__":
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("what", choices=("judges", "vae", "dit", "diffusers"))
    p.add_argument("--state", default="out/tiny", help="folder with what training returned")
    p.add_argument("--to", default="out/ipvg-tiny-diffusers")
    p.add_argument("--checkpoint", default=CHECKPOINT, help="the folder in the official layout")
    a = p.parse_args()
    CHECKPOINT = a.checkpoint
    if a.what == "diffusers":
        export_diffusers(a.to)
    else:
        {"judges": export_judges, "vae": export_vae, "dit": export_dit}[a.what](a.state)

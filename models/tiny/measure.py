"""Measures the shipped autoencoder and judges on held-out people, in float32. One JSON line each.

python models/tiny/measure.py vae --clips 192       # PSNR, first frames, identity of reconstructions
python models/tiny/measure.py judges --people 1024  # equal error rates; accuracy of the probe, through ONNX Runtime
python models/tiny/measure.py walk                  # our forwards against diffusers' and transformers'
"""

import argparse
import json
import os

import numpy as np
import torch

import dit
import judges
import pool
import text
import vae
import vae_train
from export import JUDGES, shipped_vae


class Judge:
    """An ONNX judge with a torch face: float tensor in, float tensor out."""

    def __init__(self, name):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        self.session = onnxruntime.InferenceSession(
            os.path.join(JUDGES, name + ".onnx"), options, providers=["CPUExecutionProvider"]
        )

    def __call__(self, x):
        return torch.from_numpy(self.session.run(None, {"pixels": np.ascontiguousarray(x.cpu().numpy())})[0]).to(
            x.device
        )


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("what", choices=("vae", "judges", "walk"))
    p.add_argument("--clips", type=int, default=192)
    p.add_argument("--people", type=int, default=1024)
    p.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    p.add_argument("--threads", type=int, default=0)
    a = p.parse_args()
    if a.threads:
        torch.set_num_threads(a.threads)
    if a.what == "judges":
        print(json.dumps({"face": judges.measure_embedder(Judge("face"), a.device, n=a.people)}))
        print(json.dumps({"face_b": judges.measure_embedder(Judge("face_b"), a.device, n=a.people)}))
        print(json.dumps({"probe": judges.measure_probe(Judge("probe"), a.device, n=a.people)}))
        return
    net = shipped_vae().to(a.device)
    if a.what == "vae":
        clip, mask = pool.clips(a.clips, pool.HELD_OUT + 3, a.device)[:2]
        print(json.dumps({"clips": a.clips, **vae_train.measure(net, clip, mask, Judge("face"))}))
    else:
        print(json.dumps(walk(net, a.device)))


@torch.no_grad()
def walk(net, device):
    """Largest differences between our walks, made for training, and diffusers' and transformers' own forwards."""
    torch.backends.cudnn.allow_tf32 = False  # PyTorch's convolutions on a GPU: 10 bits
    torch.manual_seed(0)
    x = torch.rand(1, 9, 3, 64, 64, device=device) * 2 - 1
    ours, theirs = vae.encode(net, x)[0], net.encode(x.transpose(1, 2)).latent_dist.mean.transpose(1, 2)
    back = vae.decode(net, theirs).clamp(-1, 1) - net.decode(theirs.transpose(1, 2)).sample.transpose(1, 2)
    found = {"vae encode": ours - theirs, "vae decode": back}
    encoder, ids = text.build().to(device), torch.randint(4, 400, (2, text.LENGTH), device=device)
    ids[0, 20:], ids[1, 31:] = 0, 0
    real = (ids != 0).long()
    states, bias = text.states(encoder, ids)
    found["text"] = states - encoder(input_ids=ids, attention_mask=real).last_hidden_state * real[..., None]
    model = dit.build().to(device)
    for m in (model.proj_out, *(b.proj_out for b in model.vace_blocks)):  # zero at the start: nothing to compare
        torch.nn.init.normal_(m.weight, std=0.1)
    x, c = torch.randn(2, 3, 16, 8, 8, device=device), torch.randn(2, 3, 96, 8, 8, device=device)
    sigma = torch.tensor([0.3, 0.9], device=device)
    full = torch.nn.functional.pad(states, (0, 0, 0, text.FULL - text.LENGTH))
    for mode, context in ((dit.OWN, c), (dit.REMOVED, c[:, 1:])):
        ours = dit.forward(model, x, c, sigma, states, bias, torch.full((2,), mode, device=device), half=torch.float32)
        theirs = model(x.transpose(1, 2), sigma * 1000, full, control_hidden_states=context.transpose(1, 2)).sample
        found["dit" if mode == dit.OWN else "dit, reference removed"] = ours - theirs.transpose(1, 2)
    return {k: float(v.abs().max()) for k, v in found.items()}


if __name__ == "__main__":
    main()

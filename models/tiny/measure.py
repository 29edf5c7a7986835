"""Measures the shipped autoencoder and judges on held-out people, in float32. One JSON line each.

python models/tiny/measure.py vae --clips 192       # PSNR, first frames, identity of reconstructions
python models/tiny/measure.py judges --people 1024  # equal error rates; accuracy of the probe, through ONNX Runtime
python models/tiny/measure.py walk                  # one pass over time against diffusers' chunked walk
"""

import argparse
import json
import os

import numpy as np
import torch

import judges
import pool
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
        x = torch.rand(1, 9, 3, 64, 64, device=a.device) * 2 - 1
        with torch.no_grad():
            ours, theirs = vae.encode(net, x)[0], net.encode(x.transpose(1, 2)).latent_dist.mean.transpose(1, 2)
            back = vae.decode(net, theirs).clamp(-1, 1) - net.decode(theirs.transpose(1, 2)).sample.transpose(1, 2)
        print(json.dumps({"encode": float((ours - theirs).abs().max()), "decode": float(back.abs().max())}))


if __name__ == "__main__":
    main()

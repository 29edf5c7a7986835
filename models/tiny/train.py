"""Trains the bundled checkpoint, one phase a command. Each phase writes what it made, and a log, to --out.

python models/tiny/train.py judges                      # embedders a and b, attribute probe (one GPU)
torchrun --nproc_per_node 2 models/tiny/train.py vae --phases 1:96:6000,9:16:9000 --seconds 560
torchrun --nproc_per_node 2 models/tiny/train.py vae --resume   # goes on at the step it stopped at
"""

import argparse
import json
import os
import time

import torch
import torch.distributed as dist

import judges
import nets
import vae
import vae_train


def log_line(start):
    return lambda *a: print(f"[{time.time() - start:6.1f}]", *a, flush=True)


def write(out, name, data):
    with open(os.path.join(out, name), "w") as f:
        json.dump(data, f)


def load_net(net, path, device):
    net.load_state_dict(torch.load(path, map_location=device, weights_only=True))
    return net.to(device).eval().requires_grad_(False)


def run_judges(a, device, log):
    """Which judges: a, b, probe (a comma list)."""
    for name in a.which.split(","):
        t0 = time.time()
        if name == "probe":
            net, history = judges.train_probe(device, clips_n=a.n or 24576, steps=a.steps or 2000, log=log)
            result = judges.measure_probe(net, device, n=a.held)
        else:
            net, history = judges.train_embedder(
                name, device, people_n=a.n or 20480, steps=a.steps or 1600, seed={"a": 11, "b": 5011}[name], log=log
            )
            result = judges.measure_embedder(net, device, n=a.held)
        result["gpu_seconds"] = round(time.time() - t0, 1)
        log(name, json.dumps(result))
        torch.save(net.state_dict(), os.path.join(a.out, f"{name}.pt"))
        write(a.out, f"{name}.json", {"result": result, "loss": history})


def run_vae(a, device, log):
    phases = [tuple(int(v) for v in p.split(":")) for p in a.phases.split(",")]
    phases = [(t, b, n, bool(rest and rest[0])) for t, b, n, *rest in phases]
    judge = {
        k: load_net(nets.Embedder(k), os.path.join(a.judges, f"{k}.pt"), device)
        if os.path.exists(os.path.join(a.judges, f"{k}.pt"))
        else None
        for k in "ab"
    }
    resume = None
    if a.resume:
        kept = [
            torch.load(os.path.join(a.resume, f"vae_{p}.pt"), map_location="cpu", weights_only=True)
            for p in ("encoder", "decoder")
        ]
        resume = os.path.join(a.out, f"resume{os.environ.get('RANK', 0)}.pt")
        torch.save({**kept[0], "net": {**kept[0]["net"], **kept[1]["net"]}}, resume)
    vae_train.train(
        a.out,
        phases,
        device,
        a.seconds,
        peak=a.lr,
        clips_n=a.n or 12288,
        resume=resume,
        judge_a=judge["a"],
        judge_b=judge["b"],
        held=a.held,
        state_at=a.state,
        log=log,
    )
    if resume:
        os.remove(resume)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("phase", choices=("judges", "vae", "bench"))
    p.add_argument("--out", default=os.environ.get("OUT", "out/tiny"))
    p.add_argument("--which", default="a,b,probe")
    p.add_argument("--judges", default="models/tiny/state", help="folder with a.pt and b.pt")
    p.add_argument(
        "--phases", default="1:96:4000,9:16:8000,9:16:4000:1", help="frames:batch:steps[:1 = with judge b's loss], ..."
    )
    p.add_argument("--seconds", type=float, default=540)
    p.add_argument("--lr", type=float, default=1e-3)
    p.add_argument("--n", type=int, default=0, help="people or clips to render")
    p.add_argument("--steps", type=int, default=0)
    p.add_argument("--held", type=int, default=192)
    p.add_argument("--conv", default="3d", choices=("3d", "2d"))
    p.add_argument("--resume", default="", help="folder with vae_encoder.pt and vae_decoder.pt")
    p.add_argument(
        "--state", default="/tmp/vae_state.pt", help="full optimiser state on this machine; used when it exists"
    )
    a = p.parse_args()
    os.makedirs(a.out, exist_ok=True)
    start = time.time()
    rank = int(os.environ.get("RANK", 0))
    device = "cpu"
    if torch.cuda.is_available():
        device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
        torch.cuda.set_device(device)
        torch.backends.cudnn.benchmark = True
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    if "RANK" in os.environ:
        dist.init_process_group(
            "nccl" if device != "cpu" else "gloo", device_id=torch.device(device) if device != "cpu" else None
        )
    vae.CONV = a.conv
    log = log_line(start) if rank == 0 else (lambda *_: None)
    if a.phase == "judges":
        run_judges(a, device, log)
    elif a.phase == "vae":
        run_vae(a, device, log)
    else:
        t0 = time.time()
        import pool

        for n in (256, 1024):
            pool.clips(n, 1, device)
            torch.cuda.synchronize()
            log(f"render {n} clips of 17: {time.time() - t0:.1f} s (the first with compilation)")
            t0 = time.time()
        vae_train.bench(device, log)
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main()

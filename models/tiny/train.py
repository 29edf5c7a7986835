"""Trains the bundled checkpoint, one phase a command. Each phase writes what it made, and a log, to --out.

    python models/tiny/train.py judges                      # embedders a and b, attribute probe (one GPU)
    torchrun --nproc_per_node 2 models/tiny/train.py vae --phases 1:96:2400,17:8:7351,17:8:3500:1
    torchrun --nproc_per_node 2 models/tiny/train.py cache --pool 16384 --cache /tmp/cache     # the denoiser's data
    torchrun --nproc_per_node 2 models/tiny/train.py dit --cache /tmp/cache --phases 1:1:512:8000,1:5:256:20000

A phase goes on at the step it stopped at when its --state exists (weights, moments, averages). `vae --resume FOLDER`
starts from the two weight files of an earlier run, `dit --resume models/tiny/logs` from the shipped weights. --phases:
frames:batch:steps[:1 = with judge b's loss] for vae, references:latent frames:batch:steps for dit; batches a GPU.
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

RANK = int(os.environ.get("RANK", 0))


def load_net(net, path, device):
    net.load_state_dict(torch.load(path, map_location=device, weights_only=True))
    return net.to(device).eval().requires_grad_(False)


def phases_of(a):
    return [tuple(int(v) for v in p.split(":")) for p in a.phases.split(",")]


def run_judges(a, device, log):
    """Which judges: a, b, probe (a comma list)."""
    for name in a.which.split(","):
        t0 = time.time()
        if name == "probe":
            net, history = judges.train_probe(device, clips_n=a.pool or 24576, steps=a.steps or 2000, log=log)
            result = judges.measure_probe(net, device, n=a.held)
        else:
            seed = {"a": 11, "b": 5011}[name]
            n, steps = a.pool or 20480, a.steps or 1600
            net, history = judges.train_embedder(name, device, n, steps=steps, seed=seed, log=log)
            result = judges.measure_embedder(net, device, n=a.held)
        result["gpu_seconds"] = round(time.time() - t0, 1)
        log(name, json.dumps(result))
        torch.save(net.state_dict(), os.path.join(a.out, f"{name}.pt"))
        with open(os.path.join(a.out, f"{name}.json"), "w") as f:
            json.dump({"result": result, "loss": history}, f)


def run_vae(a, device, log):
    phases = [(t, b, n, bool(rest and rest[0])) for t, b, n, *rest in phases_of(a)]
    judge = dict.fromkeys("ab")
    for k in judge:
        path = os.path.join(a.judges, f"{k}.pt")
        if os.path.exists(path):
            judge[k] = load_net(nets.Embedder(k), path, device)
    kept = None
    if a.resume:
        parts = [torch.load(os.path.join(a.resume, f"vae_{p}.pt"), weights_only=True) for p in ("encoder", "decoder")]
        kept = {**parts[0], "net": {**parts[0]["net"], **parts[1]["net"]}}
    vae_train.train(
        a.out, phases, device, a.seconds, peak=a.lr or 1e-3, clips_n=a.pool or 12288, resume=kept, judge_a=judge["a"],
        judge_b=judge["b"], held=a.held, state_at=a.state or "/tmp/vae_state.pt", log=log,
    )  # fmt: skip


def run_cache(a, device, log):
    """One training cache a GPU, and one of held-out people."""
    from tokenizers import Tokenizer

    import dit_data
    import pool
    from export import CHECKPOINT, shipped_vae

    os.makedirs(a.cache, exist_ok=True)
    t0 = time.time()
    tokenizer = Tokenizer.from_file(os.path.join(CHECKPOINT, "google", "umt5-xxl", "tokenizer.json"))
    codec = shipped_vae().to(device)
    train = (f"train{RANK}", a.pool or 16384, 1_000_003 * (1 + RANK + 64 * a.seed))
    for name, count, seed in ((f"held{RANK}", a.held, pool.HELD_OUT + 41), train):
        built = dit_data.build(codec, count, seed, device, tokenizer=tokenizer, size=a.size)
        torch.save(built, os.path.join(a.cache, name + ".pt"))
        size = sum(v.numel() * v.element_size() for v in built.values()) / 2**30
        log(f"{name}: {count} clips, {size:.2f} GiB, {time.time() - t0:.0f} s")


def run_dit(a, device, log):
    import dit_train
    from export import shipped, shipped_vae
    from measure import Judge

    files = [os.path.join(a.cache, f"{k}{RANK}.pt") for k in ("train", "held")]
    state = a.state or "/tmp/dit_state.pt"
    face = codec = None
    if RANK == 0 and a.size == 128:
        face, codec = Judge("face"), shipped_vae().to(device)
    resume = None
    if a.resume:
        with open(os.path.join(a.resume, "dit.json")) as f:
            history = json.load(f)
        resume = {
            "dit": shipped("dit", "diffusion_pytorch_model"),
            "text": shipped("text", "models_t5_umt5-xxl-enc-bf16"),
        }
        resume |= {"step": history[-1]["step"], "history": history}
    dit_train.train(
        a.out,
        files,
        phases_of(a),
        device,
        a.seconds,
        lr=a.lr or 0.01,
        face=face,
        codec=codec,
        resume=resume,
        state_at=state,
        settle=a.settle,
        log=log,
    )
    if RANK == 0:
        dit_train.split_weights(state, a.out)


def run_bench(a, device, log):
    if a.phases:
        import dit_train

        return dit_train.bench(phases_of(a), device, log)
    import pool

    for n in (256, 1024):
        t0 = time.time()
        pool.clips(n, 1, device)
        torch.cuda.synchronize()
        log(f"render {n} clips of 17: {time.time() - t0:.1f} s (the first with compilation)")
    vae_train.bench(device, log)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    runs = {"judges": run_judges, "vae": run_vae, "cache": run_cache, "dit": run_dit, "bench": run_bench}
    p.add_argument("phase", choices=tuple(runs))
    p.add_argument("--out", default=os.environ.get("OUT", "out/tiny"))
    p.add_argument("--which", default="a,b,probe")
    p.add_argument("--judges", default="models/tiny/state", help="folder with a.pt and b.pt")
    p.add_argument("--phases", default="")
    p.add_argument("--seconds", type=float, default=540, help="stop, and save, after so long")
    p.add_argument("--settle", type=float, default=0, help="dit: the rate falls over the last so many of --seconds")
    p.add_argument("--lr", type=float, default=0.0, help="peak; 0.001 for vae (AdamW), 0.01 for dit (Muon)")
    p.add_argument("--pool", type=int, default=0, help="people or clips to render")
    p.add_argument("--seed", type=int, default=0, help="another pool of people for cache")
    p.add_argument("--steps", type=int, default=0)
    p.add_argument("--held", type=int, default=192)
    p.add_argument("--conv", default="3d", choices=("3d", "2d"))
    p.add_argument("--resume", default="", help="vae: folder with vae_*.pt; dit: with dit.json, weights as shipped")
    p.add_argument("--cache", default="/tmp/tiny_cache", help="where cache writes and dit reads")
    p.add_argument("--size", type=int, default=128)
    p.add_argument("--state", default="", help="full optimiser state on this machine; used when it exists")
    a = p.parse_args()
    os.makedirs(a.out, exist_ok=True)
    start = time.time()
    device = "cpu"
    if torch.cuda.is_available():
        device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
        torch.cuda.set_device(device)
        torch.backends.cudnn.benchmark = True
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    if "RANK" in os.environ:
        where = None if device == "cpu" else torch.device(device)
        dist.init_process_group("nccl" if where else "gloo", device_id=where)
    vae.CONV = a.conv

    def log(*line):
        if RANK == 0:
            print(f"[{time.time() - start:6.1f}]", *line, flush=True)

    runs[a.phase](a, device, log)
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main()

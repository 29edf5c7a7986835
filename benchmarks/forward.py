"""The CUDA engine at the size of the real models, with random weights: seconds, memory, what the GPU did, and the
same of diffusers and transformers where they are installed.

    python benchmarks/forward.py                         # all works, ours and peers
    python benchmarks/forward.py dit --profile           # one, with a table of its kernels (through torch's profiler)
    python benchmarks/forward.py dit --dtype float32 --no-peer
    python benchmarks/forward.py ceilings                # what this GPU does at most, at these shapes: needs torch

Each side runs in a process of its own, one after the other, so that neither meets the other's memory. The first run
counts for itself: it plans and times algorithms. Then `--runs` runs; printed are median and range. A run ends when its
result is in host memory. Both sides have the same weights and inputs: how far the results are apart is printed too.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib.util
import itertools
import json
import multiprocessing
import re
import statistics
import sys
import tempfile
import time
import zlib
from dataclasses import asdict

import numpy as np

from ipvg import _core
from ipvg.checkpoint import DitConfig, TextConfig, VaeConfig, expected, names, to_bfloat16
from ipvg.parity import relative_l2

SMALL = DitConfig(1536, 8960, 12, 30, tuple(range(0, 30, 2)))
LARGE = DitConfig(5120, 13824, 40, 40, tuple(range(0, 40, 5)))
UMT5 = TextConfig(256384, 4096, 4096, 10240, 64, 24)
VAE = VaeConfig()
LATENT_480, LATENT_720 = (22, 60, 104), (22, 90, 160)  # 81 frames and a reference: 34320 and 79200 tokens
VIDEO = (81, 480, 832)
TEXT = 200  # tokens of the prompt
EXACT = ("modulation", "norm", "bias", "time_", "head.")  # what the official files keep in float32


# ---- weights: views of a pool of random numbers, so that billions of them take a second ----


class Pool:
    MOST = 1 << 27  # elements of a weight; beyond it there is umT5's embedding alone, of which the host reads some rows

    def __init__(self, config):
        self.config = config
        counts = [int(np.prod(shape)) for shape in expected(config).values()]
        self.room = max(count for count in counts if count <= self.MOST)
        self.normals = np.random.default_rng(0).standard_normal(self.room + 64 * 4096, np.float32)
        self.scaled = {}

    def weight(self, name, shape, half):
        """float32 (shape), or (uint16 bits, "bfloat16"): neighbours in the pool from a place that the name gives."""
        count, key = int(np.prod(shape)), zlib.crc32(name.encode())
        if len(shape) == 1 or name.endswith("gamma"):
            some = 0.1 * self.normals[key % 4096 :][:count].reshape(shape)
            return np.float32(name.endswith(("weight", "gamma"))) + some
        if count > self.MOST:
            few = np.random.default_rng(key).standard_normal((1024, shape[1]), np.float32)
            table = np.zeros(shape, np.uint16)
            table[:1024] = to_bfloat16(few).reshape(few.shape)
            return (table, "bfloat16")
        std = float(np.prod(shape[1:]) ** -0.5)
        if name.endswith("attn.q.weight") and isinstance(self.config, TextConfig):
            std *= (self.config.dim_attn // self.config.num_heads) ** -0.5  # T5's scale; else softmax picks one key
        if (std, half) not in self.scaled:
            scaled = self.normals * np.float32(std)
            self.scaled[std, half] = to_bfloat16(scaled) if half else scaled
        first = key % 4096 * 64
        part = self.scaled[std, half][first : first + count].reshape(shape)
        return (part, "bfloat16") if half else part

    def all(self, half):
        exact = EXACT if isinstance(self.config, DitConfig) else ("norm",)
        return {
            name: self.weight(name, shape, half and not any(part in name for part in exact))
            for name, shape in expected(self.config).items()
        }


def draw(name, shape):
    return np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape, np.float32)


def dit_inputs(config, latent):
    return draw("x", (16, *latent)), draw("context", (96, *latent)), draw("text", (TEXT, config.text_dim))


# ---- ours: build(dtype) -> run ----


def ours_dit(config, latent):
    def build(dtype):
        model = _core.Dit(_core.Device("cuda", dtype=dtype), asdict(config), _core.Weights(Pool(config).all(True)))
        x, context, text = dit_inputs(config, latent)
        prepared = model.text(text), model.context(context)
        return lambda: model.forward(x, 500, *prepared)

    return build


def ours_umt5(dtype):
    config = asdict(UMT5) | {"norm_eps": UMT5.eps}
    model = _core.TextEncoder(_core.Device("cuda", dtype=dtype), config, _core.Weights(Pool(UMT5).all(True)))
    return lambda: model.encode(np.arange(512))


def ours_vae(work):
    def build(dtype):
        model = _core.Vae(_core.Device("cuda", dtype=dtype), asdict(VAE), _core.Weights(Pool(VAE).all(False)))
        if work == "encode":
            video = draw("video", (3, *VIDEO)).clip(-1, 1)
            return lambda: model.encode(video)
        latent = draw("latent", (16, (VIDEO[0] - 1) // 4 + 1, VIDEO[1] // 8, VIDEO[2] // 8))
        return lambda: model.decode(latent)

    return build


# ---- peers ----


def fill(model, component, config, dtype):
    import torch

    weights = Pool(config).all(component != "vae")
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            w = weights[names.to_official(component, name)]
            bits = torch.from_numpy(w[0]).view(torch.bfloat16) if isinstance(w, tuple) else torch.from_numpy(w)
            tensor.copy_(bits.reshape(tensor.shape))
    return model.eval().to(getattr(torch, dtype))


def peer_dit(config, latent):
    def build(dtype):
        import torch
        from diffusers import WanVACETransformer3DModel

        with torch.device("cuda"):
            model = WanVACETransformer3DModel(
                num_attention_heads=config.num_heads, attention_head_dim=config.dim // config.num_heads,
                text_dim=config.text_dim, ffn_dim=config.ffn_dim, num_layers=config.num_layers,
                vace_layers=list(config.vace_layers), vace_in_channels=96,
            ).to(getattr(torch, dtype))  # fmt: skip
        model = fill(model, "dit", config, dtype)
        inputs = (torch.from_numpy(a)[None] for a in dit_inputs(config, latent))
        x, context, text = (a.to("cuda", getattr(torch, dtype)) for a in inputs)
        text = torch.nn.functional.pad(text, (0, 0, 0, config.text_len - TEXT))

        def run():
            with torch.inference_mode():
                return model(
                    hidden_states=x, timestep=torch.tensor([500], device="cuda"), encoder_hidden_states=text,
                    control_hidden_states=context, return_dict=False,
                )[0][0].float().cpu().numpy()  # fmt: skip

        return run

    return build


def peer_umt5(dtype):
    import torch
    from transformers import UMT5Config, UMT5EncoderModel

    config = UMT5Config(
        vocab_size=UMT5.vocab, d_model=UMT5.dim, d_kv=UMT5.dim_attn // UMT5.num_heads, d_ff=UMT5.dim_ffn,
        num_heads=UMT5.num_heads, num_layers=UMT5.num_layers, feed_forward_proj="gated-gelu",
    )  # fmt: skip
    with torch.device("cuda"):
        model = UMT5EncoderModel(config).to(getattr(torch, dtype))
    model = fill(model, "text", UMT5, dtype)
    ids = torch.arange(512, device="cuda")[None]

    def run():
        with torch.inference_mode():
            return model(ids).last_hidden_state[0].float().cpu().numpy()

    return run


def peer_vae(work):
    def build(dtype):
        import torch
        from diffusers import AutoencoderKLWan

        kind = getattr(torch, dtype)
        with torch.device("cuda"):
            model = fill(AutoencoderKLWan(), "vae", VAE, dtype)
        mean, std = (torch.tensor(x, device="cuda")[:, None, None, None] for x in (VAE.mean, VAE.std))
        video = torch.from_numpy(draw("video", (3, *VIDEO)).clip(-1, 1))[None].cuda()
        latent = torch.from_numpy(draw("latent", (16, (VIDEO[0] - 1) // 4 + 1, VIDEO[1] // 8, VIDEO[2] // 8))).cuda()

        def run():
            with torch.inference_mode():
                if work == "encode":
                    out = (model.encode(video.to(kind)).latent_dist.mode()[0] - mean) / std
                else:
                    out = model.decode((latent * std + mean)[None].to(kind), return_dict=False)[0][0]
                return out.float().cpu().numpy()

        return run

    return build


WORK = {
    "dit": ("1.3B forward, 480p, 81 frames + reference", ours_dit(SMALL, LATENT_480), peer_dit(SMALL, LATENT_480)),
    "dit_14b": ("14B forward, the same", ours_dit(LARGE, LATENT_480), peer_dit(LARGE, LATENT_480)),
    "dit_14b_720": ("14B forward, 720p", ours_dit(LARGE, LATENT_720), peer_dit(LARGE, LATENT_720)),
    "umt5": ("umT5-XXL, 512 tokens", ours_umt5, peer_umt5),
    "vae_decode": ("VAE decode, 81x480x832", ours_vae("decode"), peer_vae("decode")),
    "vae_encode": ("VAE encode, 81x480x832", ours_vae("encode"), peer_vae("encode")),
}
DEFAULT = ("dit", "umt5", "vae_decode", "vae_encode")


# ---- measuring ----


def used():
    """Bytes of the GPU's memory in use, by whomever."""
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    with open("/proc/self/maps") as maps:
        library = next((line.split()[-1] for line in maps if "libcudart.so" in line), None)
    if not library:
        return 0
    ctypes.CDLL(library).cudaMemGetInfo(ctypes.byref(free), ctypes.byref(total))
    return total.value - free.value


def kernels(run):
    """(milliseconds, calls, name) of each kernel and copy of one run: CUPTI sees all of the process, torch's or not."""
    import torch

    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        run()
    with tempfile.TemporaryDirectory() as folder:
        profile.export_chrome_trace(f"{folder}/trace.json")
        with open(f"{folder}/trace.json") as f:
            events = json.load(f)["traceEvents"]
    table, spans = {}, []
    for event in events:
        if event.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset"):
            row = table.setdefault(event["name"], [0.0, 0])
            row[0] += event["dur"] / 1000
            row[1] += 1
            spans.append((event["ts"], event["ts"] + event["dur"]))
    spans.sort()
    idle = sum(max(0.0, b[0] - a[1]) for a, b in itertools.pairwise(spans)) / 1000 if spans else 0.0
    return sorted(((ms, calls, name) for name, (ms, calls) in table.items()), reverse=True), idle


KINDS = (
    ("attention", r"sdpa|fmha|flash|attention|softmax"),
    ("convolution", r"conv|fprop|implicit|winograd|fft"),
    ("product", r"gemm|nvjet|cutlass|xmma|cublas|splitk"),
    ("copy", r"memcpy|memset|copy"),
)


def kind_of(name):
    own = re.search(r"(\w+_kernel)\b", name)
    if own and "array" in name:  # ours all take ipvg_k_array
        return "our kernels"
    return next((kind for kind, pattern in KINDS if re.search(pattern, name, re.IGNORECASE)), "other")


def worker(pipe, build, dtype, runs, profile):
    began = time.perf_counter()
    run = build(dtype)
    loaded = time.perf_counter() - began
    weights = used()
    began = time.perf_counter()
    result = run()
    first = time.perf_counter() - began
    seconds = []
    for _ in range(runs):
        began = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - began)
    memory = used()
    if "torch" in sys.modules:
        memory = max(memory, sys.modules["torch"].cuda.max_memory_reserved())
    table = None
    if profile and importlib.util.find_spec("torch"):
        table = kernels(run)
    again = run()
    pipe.send((result, loaded, first, seconds, weights, memory, table, bool(np.array_equal(again, result))))


def side(build, dtype, runs, profile):
    context = multiprocessing.get_context("fork")  # nothing has touched the GPU yet in this process
    pipe, child = context.Pipe(duplex=False)
    process = context.Process(target=worker, args=(child, build, dtype, runs, profile), daemon=True)
    process.start()
    child.close()
    try:
        return pipe.recv()
    except EOFError:
        return None
    finally:
        process.join()


def show(who, measured):
    _, loaded, first, seconds, weights, memory, table, same = measured
    low, high = min(seconds), max(seconds)
    print(f"  {who:10} {1000 * statistics.median(seconds):8.1f} ms ({1000 * low:.1f} to {1000 * high:.1f}), first "
          f"{1000 * first:.0f}, load {loaded:.1f} s, memory {memory / 2**30:.2f} GiB ({weights / 2**30:.2f} before the "
          f"first run), {'same bytes again' if same else 'OTHER BYTES AT THE LAST RUN'}", flush=True)  # fmt: skip
    if not table:
        return
    rows, idle = table
    kinds = {}
    for ms, _, name in rows:
        kinds[kind_of(name)] = kinds.get(kind_of(name), 0.0) + ms
    print("             " + ", ".join(f"{k} {v:.1f}" for k, v in sorted(kinds.items(), key=lambda x: -x[1])) +
          f", idle between {idle:.1f} ms")  # fmt: skip
    for ms, calls, name in rows[:24]:
        print(f"             {ms:9.2f} ms {calls:6d} x {1000 * ms / calls:9.1f} us  {name[:110]}")


def ceilings():
    """This GPU's rates at the works' shapes, after enough load for its power limit to bite."""
    import torch

    def rate(run, work, seconds=1.5):
        run()
        torch.cuda.synchronize()
        began, times = time.perf_counter(), []
        while time.perf_counter() - began < seconds:
            a, b = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            a.record()
            run()
            b.record()
            b.synchronize()
            times.append(a.elapsed_time(b))
        tail = times[len(times) // 2 :]
        return statistics.median(tail), work / statistics.median(tail) / 1e9

    bf16 = {"device": "cuda", "dtype": torch.bfloat16}
    for what, m, n, k in (("qkv", 34320, 4608, 1536), ("o", 34320, 1536, 1536), ("up", 34320, 8960, 1536),
                          ("down", 34320, 1536, 8960)):  # fmt: skip
        x, w = torch.randn(m, k, **bf16), torch.randn(n, k, **bf16)
        ms, tflops = rate(lambda x=x, w=w: torch.nn.functional.linear(x, w), 2 * m * n * k)
        print(f"  product {what:5} ({m}, {k}) x ({k}, {n}): {ms:8.3f} ms, {tflops:6.0f} TFLOP/s", flush=True)
    q, k, v = (torch.randn(1, 12, 34320, 128, **bf16) for _ in range(3))
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.CUDNN_ATTENTION):
        ms, tflops = rate(lambda: torch.nn.functional.scaled_dot_product_attention(q, k, v), 4 * 12 * 34320**2 * 128)
    print(f"  attention 12 x 34320 x 128 (cuDNN): {ms:8.3f} ms, {tflops:6.0f} TFLOP/s", flush=True)
    x = torch.empty(1 << 30, dtype=torch.uint8, device="cuda").random_()
    y = torch.empty_like(x)
    ms, rate_ = rate(lambda: y.copy_(x), 2 * x.numel())
    print(f"  copy, read + written: {ms:8.3f} ms, {1000 * rate_:6.0f} GB/s", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("work", nargs="*", help=f"{', '.join(WORK)}, ceilings (default: {' '.join(DEFAULT)})")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--profile", action="store_true", help="a table of kernels; needs torch")
    parser.add_argument("--no-peer", action="store_true")
    args = parser.parse_args()
    if unknown := set(args.work) - set(WORK) - {"ceilings"}:
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    failed = False
    for name in args.work or DEFAULT:
        if name == "ceilings":
            print("ceilings, bfloat16, sustained")
            context = multiprocessing.get_context("fork")
            process = context.Process(target=ceilings)
            process.start()
            process.join()
            continue
        title, ours, peer = WORK[name]
        print(f"{title}, {args.dtype}", flush=True)
        mine = side(ours, args.dtype, args.runs, args.profile)
        if not mine:
            failed = True
            continue
        show("ipvg", mine)
        failed |= not np.isfinite(mine[0]).all()
        if args.no_peer or not all(map(importlib.util.find_spec, ("torch", "diffusers", "transformers"))):
            continue
        theirs = side(peer, args.dtype, args.runs, args.profile)
        if theirs:
            show("peer", theirs)
            ratio = statistics.median(theirs[3]) / statistics.median(mine[3])
            print(f"  peer / ours {ratio:.3f}, results {relative_l2(mine[0], theirs[0]):.2e} apart", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())

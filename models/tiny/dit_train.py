"""Training the denoiser and its text encoder: flow matching, one CUDA graph a step."""

import functools
import itertools
import json
import os
import time

import torch
import torch._dynamo
import torch.distributed as dist

import dit
import dit_data
import nets
import text
import vae
from muon import FlatMuon
from vae_train import rate

EVERY = 100  # steps between log lines
torch._dynamo.config.cache_size_limit = 64  # one entry a block kind, shape and phase
FIELDS = ("x0", "noise", "control", "weight", "ids", "sigma", "mode")


def is_matrix(name, p):
    return p.ndim == 2 and name.startswith("0.") and "blocks." in name and "table" not in name


def loss_of(net, encoder, inputs, run):
    x0, noise, sigma = inputs["x0"].float(), inputs["noise"], inputs["sigma"]
    half = torch.bfloat16 if x0.is_cuda else torch.float32
    states, bias = text.states(encoder, inputs["ids"])
    s = sigma.view(-1, 1, 1, 1, 1)
    v = dit.forward(
        net, x0 + s * (noise - x0), inputs["control"], sigma, states, bias, inputs["mode"], run=run, half=half
    )
    e = (v - (noise - x0)).square().mean(2)
    w = inputs["weight"]
    each = (e * w).flatten(1).sum(1) / w.flatten(1).sum(1)
    return each.mean(), each.detach()


@functools.cache
def compiled():
    return torch.compile(dit.block, dynamic=False)


class GraphStep:
    """Forward, loss, backward on inputs held in place; `loss` after a call: one number a sample."""

    def __init__(self, net, encoder, flat, inputs):
        self.inputs = {k: inputs[k].clone() for k in FIELDS}
        cuda = inputs["x0"].is_cuda
        run = compiled() if cuda else dit.block
        self.once = lambda: self._once(net, encoder, flat, run)
        self.graph = None
        if cuda:
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(3):
                    self.once()
            torch.cuda.current_stream().wait_stream(side)
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph):
                self.loss = self.once()

    def _once(self, net, encoder, flat, run):
        flat.grad.zero_()
        loss, each = loss_of(net, encoder, self.inputs, run)
        loss.backward()
        return each

    def __call__(self, inputs):
        for k in FIELDS:
            self.inputs[k].copy_(inputs[k])
        if self.graph is None:
            self.loss = self.once()
        else:
            self.graph.replay()
        return self.loss


@torch.no_grad()
def sample(net, encoder, codec, inputs, refs, steps=16, shift=3.0, w=1.0, null=None, half=torch.bfloat16):
    """Euler from pure noise with the batch's control and text -> frames in [-1, 1] (n, T, 3, H, W)."""
    x = inputs["noise"].clone()
    states, bias = text.states(encoder, inputs["ids"])
    u = torch.linspace(1, 0, steps + 1)
    sigmas = (shift * u / (1 + (shift - 1) * u)).tolist()
    mode = torch.zeros(len(x), dtype=torch.long, device=x.device)
    for a, b in itertools.pairwise(sigmas):
        at = torch.full((len(x),), a, device=x.device)
        v = dit.forward(net, x, inputs["control"], at, states, bias, mode, half=half)
        if w != 1:
            blank, blank_bias = text.states(encoder, null.expand(len(x), -1))
            base = dit.forward(net, x, inputs["control"], at, blank, blank_bias, mode, half=half)
            v = base + w * (v - base)
        x = x + (b - a) * v
    z = dit_data.restore(x[:, refs:].float())
    return torch.cat([vae.decode(codec, p.to(half)).float() for p in z.split(16)]).clamp(-1, 1)


@torch.no_grad()
def judge(net, encoder, codec, face, cache, n, frames, out, seed=5):
    """Identity of clips to the person, given their picture, a stranger's or none; and a contact sheet."""
    half = torch.bfloat16 if cache["clip"].is_cuda else torch.float32
    report, shown = {}, []
    decode = lambda z: vae.decode(codec, dit_data.restore(z.float()).to(half)).float().clamp(-1, 1)
    for name, offset, w in (("own", 0, 1.0), ("own_cfg2", 0, 2.0), ("stranger", 1, 1.0), ("absent", 0, 1.0)):
        g = torch.Generator(cache["clip"].device).manual_seed(seed)
        inputs = dit_data.batch(cache, n, 1, frames, g, drop=False, offset=offset)
        if name == "absent":
            inputs["control"] = torch.cat([torch.zeros_like(inputs["control"][:, :1]), inputs["control"][:, 1:]], 1)
        y = sample(net, encoder, codec, inputs, 1, w=w, null=cache["null"][1], half=half)
        own = decode(inputs["x0"][:, :1])
        e = face(own[:, 0])
        report[name] = round(float((face(y.flatten(0, 1)).unflatten(0, (n, -1)) * e[:, None]).sum(-1).mean()), 4)
        shown += [torch.cat([own[:6], y[:6, :: max(1, (y.shape[1] - 1) // 2)]], 1)]
    truth = decode(inputs["x0"][:, 1:])
    report["ceiling"] = round(float((face(truth.flatten(0, 1)).unflatten(0, (n, -1)) * e[:, None]).sum(-1).mean()), 4)
    from PIL import Image

    sheet = torch.cat([s.permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1) for s in shown[:1]], 1)
    Image.fromarray(((sheet + 1) * 127.5).round().byte().cpu().numpy()).save(os.path.join(out, "dit.png"))
    return report


def compare(run, held, size, refs, frames, times=4):
    """Held-out loss with the person's own reference and with a stranger's, under the same noise."""
    found = []
    for offset in (0, 1):
        g = torch.Generator(held["clip"].device).manual_seed(3)
        inputs = (dit_data.batch(held, size, refs, frames, g, drop=False, offset=offset) for _ in range(times))
        found.append(round(torch.stack([run(i).mean() for i in inputs]).mean().item(), 5))
    return found


def train(
    out,
    cache_files,
    phases,
    device,
    seconds,
    seed=91,
    lr=0.01,
    lr_rest=1e-3,
    state_at="/tmp/dit_state.pt",
    face=None,
    codec=None,
    resume=None,
    settle=0.0,
    log=print,
):
    """phases: [(references, latent frames, batch a GPU, steps)]. Stops after `seconds`; the rate falls to zero over
    the last `settle` of them, or else over the last 35 % of all steps.

    Goes on from `state_at` (everything, on this machine) or from `resume`: {"dit", "text"} state dicts and "step"."""
    rank = dist.get_rank() if dist.is_initialized() else 0
    begin = time.time()
    torch.manual_seed(seed)
    net, encoder = dit.build().to(device), text.build().to(device)
    done, history, used = 0, [], 0.0
    if resume:
        for part, to in (("dit", net), ("text", encoder)):
            to.load_state_dict(resume[part], strict=part == "dit")  # the text encoder's embedding has two names
        done, history, used = resume["step"], resume["history"], resume["history"][-1].get("seconds", 0.0)
    flat = FlatMuon([net, encoder], is_matrix)
    if os.path.exists(state_at):
        kept = torch.load(state_at, map_location=device, weights_only=True)
        flat.load(kept)
        done, history, used = kept["step"], json.loads(kept["history"]), kept["seconds"]
    cache, held = (torch.load(f, map_location=device, weights_only=True) for f in cache_files)
    g = torch.Generator(device).manual_seed(seed + 1000 * rank + done)
    total, step = sum(p[3] for p in phases), 0
    size_of = lambda m: sum(p.numel() for p in m.parameters()) / 1e6
    log(f"{size_of(net):.2f} M + {size_of(encoder):.2f} M parameters, {len(cache['clip'])} clips")
    clock, over = torch.zeros(1, device=device), False

    def elapsed():
        """Seconds since the start by rank 0's clock: ranks must agree on the rate and on when to stop."""
        clock.fill_(time.time() - begin)
        if dist.is_initialized():
            dist.broadcast(clock, 0)
        return clock.item()

    spent = elapsed()
    for refs, frames, size, steps in phases:
        last = step + steps
        if done >= last:
            step = last
            continue
        t0 = time.time()
        run = GraphStep(net, encoder, flat, dit_data.batch(cache, size, refs, frames, g))
        log(f"phase refs {refs} latent frames {frames} batch {size}: graph in {time.time() - t0:.0f} s")
        t0, first = time.time(), max(step, done)
        losses = []
        for step in range(first, last):
            each = run(dit_data.batch(cache, size, refs, frames, g))
            losses.append(each.mean())
            k = min(1, (seconds - spent) / settle) if settle else rate(step, total, 1.0, warm=300)
            k = max(k, 0) * min(1, (step - done + 1) / 100)
            norm = flat.step(lr * k, lr_rest * k, ema=0.999 if step > 3000 else 0.99)
            if (step + 1) % EVERY == 0:
                spent = elapsed()
                over = spent > seconds
                loss, losses = torch.stack(losses).mean().item(), []
                row = {
                    "step": step + 1,
                    "refs": refs,
                    "frames": frames,
                    "loss": round(loss, 4),
                    "norm": round(norm.item(), 3),
                }
                if (step + 1) % (5 * EVERY) == 0 or over:
                    flat.swap()
                    row["own"], row["stranger"] = compare(run, held, size, refs, frames)
                    flat.swap()
                row["seconds"] = round(used + time.time() - begin, 1)
                history.append(row)
                ms = 1000 * (time.time() - t0) / (step + 1 - first)
                log(json.dumps(row), f"{ms:.1f} ms/step, {size * 1000 / ms:.0f} samples/s a GPU")
                if over:
                    break
        step += 1
        if over:
            break
    if rank == 0:
        flat.swap()
        if face is not None and codec is not None:
            found = judge(net, encoder, codec, face, held, min(64, len(held["clip"])), cache["clip"].shape[1], out)
            history.append({"step": step, "seconds": round(used + time.time() - begin, 1), "identity": found})
            log(history[-1])
        torch.save({"dit": net.state_dict(), "text": encoder.state_dict(), "step": step}, state_at + ".weights")
        flat.swap()
        torch.save(
            {**flat.state(), "step": step, "history": json.dumps(history), "seconds": used + time.time() - begin},
            state_at,
        )
        with open(os.path.join(out, "dit.json"), "w") as f:
            json.dump(history, f)
    return net, encoder


def split_weights(state, out, limit=15_000_000):
    """The averaged weights as float16 files under the limit of 16 MB."""
    kept = torch.load(state + ".weights", map_location="cpu", weights_only=True)
    flat = {f"{part}.{k}": v.half() for part in ("dit", "text") for k, v in kept[part].items()}
    files, size = [{}], 0
    for k, v in flat.items():
        if size + 2 * v.numel() > limit:
            files.append({})
            size = 0
        files[-1][k] = v.clone()
        size += 2 * v.numel()
    for i, part in enumerate(files):
        torch.save(part, os.path.join(out, f"dit_{i}.pt"))


assert nets.PROBE_FRAMES  # the probe scores clips of the same length


def synthetic(n, device, size=16):
    """A cache of random numbers, to time steps without rendering."""
    r = lambda *s: torch.randn(*s, device=device).to(torch.bfloat16)
    ids = torch.randint(4, 400, (n, 2, text.LENGTH), device=device).to(torch.int16)
    ids[..., 30:] = 0
    return {
        "clip": r(n, 5, 16, size, size), "face": r(n, 5, size, size).abs(), "refs": r(n, 2, 16, size, size),
        "source": r(n, 5, 32, size, size), "fold": r(n, 5, 64, size, size) > 0, "ids": ids, "null": ids[:2, 0],
        "empty": r(5, 16, size, size),
    }  # fmt: skip


def bench(phases, device, log=print):
    """Times a step of each (references, latent frames, batch, steps), one GPU, data drawn from a cache."""
    cache = synthetic(1024, device)
    for phase in phases:
        torch.cuda.reset_peak_memory_stats()
        found = times_of(cache, *phase, device)
        found["GiB"] = torch.cuda.max_memory_allocated() / 2**30
        log("dit bench", *phase, json.dumps({k: float(f"{v:.5g}") for k, v in found.items()}))


def times_of(cache, refs, frames, size, steps, device):
    """Milliseconds of a step and of its parts; a loss and a gradient, to compare ways by."""
    torch.manual_seed(1)
    net, encoder = dit.build().to(device), text.build().to(device)
    torch.nn.init.normal_(net.proj_out.weight, std=0.02)  # zero at the start: no gradient would come through
    flat = FlatMuon([net, encoder], is_matrix)
    g = torch.Generator(device).manual_seed(1)
    draw = lambda: dit_data.batch(cache, size, refs, frames, g)
    update = lambda: flat.step(1e-4, 1e-4, 0.99)
    inputs, t0 = draw(), time.time()
    run = GraphStep(net, encoder, flat, inputs)
    loss, slope = run(inputs).mean().item(), net.blocks[0].attn1.norm_q.weight.grad.norm().item()
    found = {"loss": loss, "slope": slope, "compiled s": time.time() - t0}
    whole = lambda: (run(draw()), update())
    for name, what in (("step", whole), ("graph", run.graph.replay), ("batch", draw), ("optimiser", update)):
        torch.cuda.synchronize()
        t0 = time.time()
        for _ in range(steps):
            what()
        torch.cuda.synchronize()
        found[name] = 1000 * (time.time() - t0) / steps
    return found

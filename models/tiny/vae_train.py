"""Training and measuring the autoencoder.

Pictures first, then clips of 17 frames. Every step is one CUDA graph (forward, loss, backward);
parameters, gradients and moments are flat buffers, so that the rest of a step is an all-reduce and four kernels.
"""

import json
import math
import os
import time

import torch
import torch.distributed as dist
import torch.nn.functional as F

import pool
import vae


class Flat:
    """A network's parameters and gradients as views of flat float32 buffers, with AdamW and averaged weights."""

    def __init__(self, net, betas=(0.9, 0.99)):
        ps = list(net.parameters())
        self.data = torch.nn.Parameter(torch.cat([p.data.flatten() for p in ps]))
        self.data.grad = torch.zeros_like(self.data)
        self.mean = self.data.detach().clone()
        at = 0
        for p in ps:
            p.data = self.data.data[at : at + p.numel()].view_as(p)
            p.grad = self.data.grad[at : at + p.numel()].view_as(p)
            at += p.numel()
        self.opt = torch.optim.AdamW([self.data], 1e-3, betas, weight_decay=0.0, fused=self.data.is_cuda)

    def step(self, lr, ema, clip=1.0):
        if dist.is_initialized():
            dist.all_reduce(self.data.grad, op=dist.ReduceOp.AVG)
        norm = torch.nn.utils.clip_grad_norm_([self.data], clip)
        self.opt.param_groups[0]["lr"] = lr
        self.opt.step()
        self.mean.lerp_(self.data.detach(), 1 - ema)
        return norm

    def averaged(self, net):
        """Context in which the network holds the averaged weights."""
        flat = self

        class Swap:
            def __enter__(self):
                self.kept = flat.data.data.clone()
                flat.data.data.copy_(flat.mean)

            def __exit__(self, *_):
                flat.data.data.copy_(self.kept)

        return Swap()


def loss_of(net, clip, mask, judge=None, face=6.0, kl=2e-4):
    """clip uint8 (B, T, H, W, 3), mask uint8 (B, T, H, W)."""
    half = torch.bfloat16 if clip.is_cuda else torch.float32
    x = pool.to_float(clip)
    mean, logvar = vae.encode(net, x.to(half))
    z = mean + (0.5 * logvar).exp() * torch.randn_like(mean)
    y = vae.decode(net, z.to(half)).float()
    w = 1 + face / 255 * mask.float()[:, :, None]
    w = w / w.mean()
    e = y - x
    pixel = (w * ((e * e + 1e-4).sqrt() + 4 * e * e)).mean()
    edge = (w[..., 1:] * (e[..., 1:] - e[..., :-1]).abs()).mean() + (
        w[..., 1:, :] * (e[..., 1:, :] - e[..., :-1, :]).abs()
    ).mean()
    nats = 0.5 * (mean * mean + logvar.exp() - 1 - logvar).mean()
    loss = pixel + 0.5 * edge + kl * nats
    if judge is not None:
        with torch.autocast(clip.device.type, half, enabled=clip.is_cuda):
            a = judge.trunk.features(x.flatten(0, 1), 3)
            b = judge.trunk.features(y.clamp(-1.1, 1.1).flatten(0, 1), 3)
            far = sum((p - q).float().abs().mean() / p.float().abs().mean() for p, q in zip(a, b))
            ea, eb = judge.trunk(x.flatten(0, 1)).float(), judge.trunk(y.clamp(-1.1, 1.1).flatten(0, 1)).float()
            loss = loss + 0.03 * far + 0.05 * (1 - F.cosine_similarity(ea, eb)).mean()
    return loss, torch.stack([loss.detach(), (e * e).mean().detach(), nats.detach()])


class GraphStep:
    """Forward, loss and backward of one batch shape as a CUDA graph (plain calls on the CPU)."""

    def __init__(self, net, flat, clip, mask, judge=None, **kw):
        self.clip, self.mask = clip.clone(), mask.clone()
        self.run = lambda: self._once(net, flat, judge, kw)
        self.graph = None
        if clip.is_cuda:
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(3):
                    self.run()
            torch.cuda.current_stream().wait_stream(side)
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph):
                self.out = self.run()

    def _once(self, net, flat, judge, kw):
        flat.data.grad.zero_()
        loss, out = loss_of(net, self.clip, self.mask, judge, **kw)
        loss.backward()
        return out

    def __call__(self, clip, mask):
        self.clip.copy_(clip)
        self.mask.copy_(mask)
        if self.graph is None:
            return self.run()
        self.graph.replay()
        return self.out


def batch_of(bank, t, b, g):
    """b random windows of t frames, mirrored half the time."""
    clip, mask = bank
    pick = torch.randint(len(clip), (b,), device=clip.device, generator=g)
    start = torch.randint(clip.shape[1] - t + 1, (b, 1), device=clip.device, generator=g)
    at = start + torch.arange(t, device=clip.device)
    clip, mask = clip[pick[:, None], at], mask[pick[:, None], at]
    flip = torch.rand(b, device=clip.device, generator=g) < 0.5
    return (
        torch.where(flip.view(-1, 1, 1, 1, 1), clip.flip(3), clip),
        torch.where(flip.view(-1, 1, 1, 1), mask.flip(3), mask),
    )


@torch.no_grad()
def measure(net, clip, mask, judge=None, chunk=8):
    """Held-out clips: PSNR of clips, face boxes, first and later frames; identity cosine; latent statistics."""
    rows, cos, lat, logv = [], [], [], []
    for c, m in zip(clip.split(chunk), mask.split(chunk)):
        x = pool.to_float(c)
        mean, logvar = vae.encode(net, x)
        y = vae.decode(net, mean).clamp(-1, 1)
        e = (x - y).square().mean(2) / 4  # (B, T, H, W), of a range of 1
        on = m > 0
        box = (on.any(-1, keepdim=True) & on.any(-2, keepdim=True)).float()
        db = lambda v: -10 * torch.log10(v)
        rows.append(
            torch.stack(
                [
                    db(e.mean((1, 2, 3))),
                    db((e * box).sum((1, 2, 3)) / box.sum((1, 2, 3))),
                    db(e[:, 0].mean((1, 2))),
                    db(e[:, 1:].mean((1, 2, 3))),
                    db((e * box)[:, 0].sum((1, 2)) / box[:, 0].sum((1, 2))),
                ],
                1,
            )
        )
        lat.append(mean)
        logv.append(logvar.mean())
        if judge is not None:
            cos.append((judge(x.flatten(0, 1)) * judge(y.flatten(0, 1))).sum(1).view(len(c), -1))
    rows, lat = torch.cat(rows).mean(0).tolist(), torch.cat(lat)
    out = dict(zip(("psnr", "psnr_face", "psnr_first", "psnr_later", "psnr_face_first"), (round(v, 3) for v in rows)))
    if judge is not None:
        cos = torch.cat(cos)
        out.update(
            identity=round(float(cos.mean()), 4),
            identity_first=round(float(cos[:, 0].mean()), 4),
            identity_p05=round(float(cos.flatten().quantile(0.05)), 4),
        )
    out["latent_std"] = [round(v, 3) for v in lat.std((0, 1, 3, 4)).tolist()]
    out["latent_mean"] = [round(v, 3) for v in lat.mean((0, 1, 3, 4)).tolist()]
    out["posterior_std"] = round(float(torch.stack(logv).mean().mul(0.5).exp()), 4)
    return out


def picture(net, clip, path, n=6):
    """A contact sheet: rendered above reconstructed, first, middle and last frame of n clips."""
    from PIL import Image

    x = pool.to_float(clip[:n])
    with torch.no_grad():
        y = vae.decode(net, vae.encode(net, x)[0]).clamp(-1, 1)
    at = [0, clip.shape[1] // 2, clip.shape[1] - 1]
    both = torch.stack([x[:, at], y[:, at]], 0)  # 2, n, 3, 3, H, W
    image = both.permute(0, 4, 1, 2, 5, 3).reshape(2 * x.shape[-2], -1, 3)
    Image.fromarray(((image + 1) * 127.5).round().clamp(0, 255).byte().cpu().numpy()).save(path)


def rate(step, total, peak, warm=200, decay=0.35):
    """Warm up, hold, then fall by a half cosine over the last `decay` of all steps."""
    fall = (step - (1 - decay) * total) / (decay * total)
    return (
        peak
        * min(1, (step + 1) / warm)
        * (1 if fall <= 0 else 0.5 * (1 + math.cos(math.pi * min(fall, 1))) * 0.98 + 0.02)
    )


def train(
    out,
    phases,
    device,
    seconds,
    seed=31,
    peak=1e-3,
    clips_n=12288,
    resume=None,
    judge_a=None,
    judge_b=None,
    held=192,
    state_at="/tmp/vae_state.pt",
    log=print,
):
    """phases: [(frames, batch a GPU, steps, use judge b)]. Stops after `seconds`.

    Goes on from `state_at` (everything, on this machine) or from `resume` (weights and step alone)."""
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    begin = time.time()
    torch.manual_seed(seed)
    net = vae.quiet_start(vae.build()).to(device)
    done, history, used = 0, [], 0.0
    if resume:
        net.load_state_dict(resume["net"])
        done, history, used = resume["step"], json.loads(resume["history"]), resume["seconds"]
    flat = Flat(net)
    if os.path.exists(state_at):
        kept = torch.load(state_at, map_location=device, weights_only=True)
        flat.data.data.copy_(kept["data"])
        flat.mean.copy_(kept["mean"])
        flat.opt.load_state_dict(kept["opt"])
        done, history, used = kept["step"], json.loads(kept["history"]), kept["seconds"]
    torch.manual_seed(seed + 1000 * rank + done)
    g = torch.Generator(device).manual_seed(seed + 1000 * rank + done)
    bank = pool.clips(clips_n, seed + 10 * (rank + world * done), device)[:2]
    test = pool.clips(held, pool.HELD_OUT + 3, device)[:2] if rank == 0 else None
    log(f"pool {clips_n} clips: {time.time() - begin:.0f} s")
    total = sum(p[2] for p in phases)

    def report(step):
        with flat.averaged(net):
            m = measure(net, *test, judge_a)
            picture(net, test[0], os.path.join(out, "vae.png"))
            save(net, out, step, history, used + time.time() - begin)
        history.append({"step": step, "seconds": round(used + time.time() - begin, 1), **m})
        log(
            f"  held out at {step}: "
            + " ".join(f"{k} {v}" for k, v in m.items() if not isinstance(v, list))
            + f" latent_std {min(m['latent_std'])}..{max(m['latent_std'])}"
        )
        with open(os.path.join(out, "vae.json"), "w") as f:
            json.dump(history, f)

    step, last_report = 0, time.time()
    stop = torch.zeros(1, device=device)
    for frames, size, steps, judged in phases:
        if done >= step + steps:
            step += steps
            continue
        t0 = time.time()
        run = GraphStep(net, flat, *batch_of(bank, frames, size, g), judge_b if judged else None)
        log(f"phase T {frames} batch {size} x {world}, graph in {time.time() - t0:.0f} s")
        begin_phase, from_step = time.time(), max(step, done)
        last = step + steps
        for step in range(from_step, last):
            out_v = run(*batch_of(bank, frames, size, g))
            lr = rate(step, total, peak) * min(1, (step - done + 1) / 100)  # a short warm-up for fresh moments
            norm = flat.step(lr, ema=0.999 if step - done > 2000 else 0.99)
            if step % 50 == 0:
                stop.fill_(float(time.time() - begin > seconds))
                if dist.is_initialized():
                    dist.broadcast(stop, 0)
                if stop.item():
                    break
                recent = out_v.tolist()
                if step % 250 == 0 and rank == 0:
                    log(
                        f"step {step} T {frames} loss {recent[0]:.4f} psnr {-10 * math.log10(recent[1] / 4):.2f} "
                        f"kl {recent[2]:.2f} grad {norm.item():.2f} lr {lr:.2e} "
                        f"{1000 * (time.time() - begin_phase) / max(step - from_step, 1):.1f} ms/step"
                    )
                if rank == 0 and time.time() - last_report > 60:
                    report(step)
                    last_report = time.time()
        step += 1
        if stop.item():
            break
    if rank == 0:
        report(step)
        torch.save(
            {
                "data": flat.data.data,
                "mean": flat.mean,
                "opt": flat.opt.state_dict(),
                "step": step,
                "history": json.dumps(history),
                "seconds": used + time.time() - begin,
            },
            state_at,
        )
    return net


def save(net, out, step, history, seconds):
    """Averaged weights, fp32, in two files (no file over 16 MB)."""
    state = {k: v.float().cpu() for k, v in net.state_dict().items()}
    for part in ("encoder", "decoder"):
        keep = {
            k: v.clone()
            for k, v in state.items()
            if k.startswith(part)
            or (k.startswith("quant") and part == "encoder")
            or (k.startswith("post") and part == "decoder")
        }
        torch.save(
            {"net": keep, "step": step, "history": json.dumps(history), "seconds": seconds},
            os.path.join(out, f"vae_{part}.pt"),
        )


def bench(device, log=print):
    """Milliseconds a step for both ways to run the convolutions."""
    import itertools

    for mode, (t, b) in itertools.product(("3d", "2d"), ((1, 96), (9, 16), (17, 8), (9, 32))):
        if t == 1 and mode == "2d":
            continue
        vae.CONV = mode
        torch.manual_seed(0)
        net = vae.build().to(device)
        flat = Flat(net)
        clip = torch.randint(0, 255, (b, t, 128, 128, 3), device=device, dtype=torch.uint8)
        t0 = time.time()
        run = GraphStep(net, flat, clip, clip[..., 0])
        made = time.time() - t0
        torch.cuda.synchronize()
        t0 = time.time()
        for _ in range(10):
            run(clip, clip[..., 0])
            flat.step(1e-3, 0.99)
        torch.cuda.synchronize()
        ms = (time.time() - t0) * 100
        log(
            f"bench {mode} T {t} B {b}: {ms:.1f} ms, {b * t / ms * 1000:.0f} frames/s, capture {made:.0f} s, "
            f"{torch.cuda.max_memory_allocated() / 2**30:.1f} GiB"
        )
        del run, net, flat
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()

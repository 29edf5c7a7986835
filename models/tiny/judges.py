"""Training and measuring the judges: embedder a, embedder b, probe."""

import time

import torch
import torch.nn.functional as F

import nets
import pool


def _optimise(net, lr, steps):
    opt = torch.optim.AdamW(net.parameters(), lr, weight_decay=0.02)
    return opt, torch.optim.lr_scheduler.OneCycleLR(opt, lr, total_steps=steps, pct_start=0.1)


def train_embedder(kind, device, people_n=20480, each=4, steps=1600, batch=512, seed=11, log=print):
    """Margin softmax over a batch's identities (two views each); a quarter of the batch are pairs of near-twins."""
    torch.manual_seed(seed)
    t0 = time.time()
    bank = pool.views(people_n, seed, device, each)
    log(f"embedder {kind}: {bank.numel() / 49152:.0f} pictures in {time.time() - t0:.1f} s")
    net = nets.Embedder(kind).to(device).train()
    opt, sched = _optimise(net, 3e-3, steps)
    g = torch.Generator(device).manual_seed(seed)
    history = []
    for i in range(steps):
        twins = torch.randperm(people_n, device=device, generator=g)[: batch // 8]
        single = torch.randperm(people_n, device=device, generator=g)[: batch - 2 * len(twins)]
        line = torch.cat(
            [
                torch.zeros_like(twins),
                torch.ones_like(twins),
                torch.randint(2, single.shape, device=device, generator=g),
            ]
        )
        who = torch.cat([twins, twins, single])
        cols = torch.rand(len(who), each, device=device, generator=g).argsort(1)
        x = torch.cat([bank[line, who, cols[:, 0]], bank[line, who, cols[:, 1]]])
        x = nets.degrade(pool.to_float(x), g)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=x.is_cuda):
            raw = net.trunk(x)
        e = F.normalize(raw.float(), dim=1)
        a, b = e.chunk(2)
        # The same person may be drawn twice (single and twin): such cells are no negatives.
        same = (who[:, None] == who[None]) & (line[:, None] == line[None])
        eye = torch.eye(len(a), device=device, dtype=torch.bool)
        scale, margin = 24.0, 0.15
        sim = scale * (a @ b.T - margin * eye).masked_fill(same & ~eye, -1e4)
        target = torch.arange(len(a), device=device)
        loss = (F.cross_entropy(sim, target) + F.cross_entropy(sim.T, target)) / 2
        opt.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 5.0)
        opt.step()
        sched.step()
        if i % 50 == 0 or i == steps - 1:
            history.append([i, round(loss.item(), 4), round(time.time() - t0, 1)])
            log(f"embedder {kind} step {i} loss {loss.item():.3f} {time.time() - t0:.0f} s")
    return net.eval(), history


def equal_error(same, other):
    """Equal error rate and its threshold, from similarities of same and of other pairs."""
    cut = torch.cat([same, other]).sort().values
    cut = cut[torch.linspace(0, len(cut) - 1, 4000, device=cut.device).long()]
    frr = (same[None] < cut[:, None]).float().mean(1)
    far = (other[None] >= cut[:, None]).float().mean(1)
    i = (frr - far).abs().argmin()
    return float((frr[i] + far[i]) / 2), float(cut[i])


@torch.no_grad()
def measure_embedder(net, device, n=1024, each=4, seed=pool.HELD_OUT + 7, chunk=512):
    """Held-out people: EER against strangers and against near-twins, rank-1 among n."""
    bank = pool.views(n, seed, device, each)
    flat = bank.reshape(-1, *bank.shape[-3:])
    e = torch.cat([net(pool.to_float(x)) for x in flat.split(chunk)]).reshape(2, n, each, -1)
    pairs = [(i, j) for i in range(each) for j in range(i)]
    same = torch.cat([(e[:, :, i] * e[:, :, j]).sum(-1).flatten() for i, j in pairs])
    cross = e[0, :, 0] @ e[0, :, 1].T
    other = cross[~torch.eye(n, dtype=torch.bool, device=device)]
    twin = torch.cat([(e[0, :, i] * e[1, :, j]).sum(-1) for i in range(each) for j in range(each)])
    eer, cut = equal_error(same, other[torch.randperm(len(other), device=device)[:100000]])
    return {
        "people": n,
        "eer": eer,
        "threshold": cut,
        "eer_near_twins": equal_error(same, twin)[0],
        "rank1": float((cross.argmax(1) == torch.arange(n, device=device)).float().mean()),
        "same": [float(same.mean()), float(same.std())],
        "other": [float(other.mean()), float(other.std())],
        "twin": [float(twin.mean()), float(twin.std())],
    }


def train_probe(device, clips_n=24576, steps=2000, batch=256, seed=21, log=print):
    torch.manual_seed(seed)
    t0 = time.time()
    bank, _, who, scene = pool.clips(clips_n, seed, device, at=nets.PROBE_FRAMES)
    truth = {k: v.to(device) for k, v in nets.labels(who, scene).items()}
    log(f"probe: {clips_n} clips in {time.time() - t0:.1f} s")
    net = nets.Probe().to(device).train()
    opt, sched = _optimise(net, 3e-3, steps)
    g = torch.Generator(device).manual_seed(seed)
    history = []
    for i in range(steps):
        pick = torch.randint(clips_n, (batch,), device=device, generator=g)
        x = pool.to_float(bank[pick])
        x = nets.degrade(x.flatten(1, 2), g).reshape(x.shape)
        # No-face examples: blurred beyond recognition, or cut into tiles and shuffled.
        k = batch // 8
        x[: k // 2] = F.interpolate(
            F.interpolate(x[: k // 2].flatten(1, 2), size=7, mode="area"), size=128, mode="bilinear"
        ).reshape(x[: k // 2].shape)
        tiles = x[k // 2 : k].unflatten(-1, (4, 32)).unflatten(-3, (4, 32)).movedim(-2, -3).flatten(-4, -3)
        order = torch.randperm(16, device=device, generator=g)
        x[k // 2 : k] = tiles[..., order, :, :].unflatten(-3, (4, 4)).movedim(-3, -2).flatten(-2, -1).flatten(-3, -2)
        face = torch.ones(batch, dtype=torch.long, device=device)
        face[:k] = 0
        with torch.autocast(x.device.type, torch.bfloat16, enabled=x.is_cuda):
            logits = nets.split(net(x))
        loss = F.cross_entropy(logits["face"].float(), face) + sum(
            F.cross_entropy(logits[h][k:].float(), truth[h][pick[k:]]) for h in truth
        )
        opt.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 5.0)
        opt.step()
        sched.step()
        if i % 100 == 0 or i == steps - 1:
            history.append([i, round(loss.item(), 4), round(time.time() - t0, 1)])
            log(f"probe step {i} loss {loss.item():.3f} {time.time() - t0:.0f} s")
    return net.eval(), history


@torch.no_grad()
def measure_probe(net, device, n=1024, seed=pool.HELD_OUT + 9, chunk=256):
    bank, _, who, scene = pool.clips(n, seed, device, at=nets.PROBE_FRAMES)
    logits = nets.split(torch.cat([net(pool.to_float(x)) for x in bank.split(chunk)]))
    out = {h: float((logits[h].argmax(1) == v.to(device)).float().mean()) for h, v in nets.labels(who, scene).items()}
    out["face"] = float((logits["face"].argmax(1) == 1).float().mean())
    return {"clips": n, **out}

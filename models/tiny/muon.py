"""Flat parameters with Muon for the blocks' matrices and AdamW for the rest."""

import torch
import torch.distributed as dist


def orthogonal(g, steps=5):
    """Newton-Schulz: (n, a, b) -> the nearest semi-orthogonal matrices, roughly."""
    x = g.to(torch.bfloat16 if g.is_cuda else torch.float32)
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        a = x @ x.mT
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return (x.mT if tall else x).float()


class FlatMuon:
    """All parameters as views of one float32 buffer, matrices of the same shape next to each other."""

    def __init__(self, nets, is_matrix, betas=(0.9, 0.98)):
        named = [(f"{i}.{k}", p) for i, net in enumerate(nets) for k, p in net.named_parameters()]
        groups = {}
        for name, p in named:
            groups.setdefault(tuple(p.shape) if is_matrix(name, p) else (), []).append(p)
        rest = groups.pop((), [])
        ordered = [p for ps in groups.values() for p in ps] + rest
        self.data = torch.cat([p.data.flatten() for p in ordered])
        self.grad, self.velocity = torch.zeros_like(self.data), torch.zeros_like(self.data)
        self.mean = self.data.clone()
        self.spans, at = [], 0
        for shape, ps in groups.items():
            size = shape[0] * shape[1] * len(ps)
            self.spans.append((at, at + size, (len(ps), *shape)))
            at += size
        self.rest = torch.nn.Parameter(self.data[at:])
        self.rest.grad = self.grad[at:]
        at = 0
        for p in ordered:
            p.data = self.data[at : at + p.numel()].view_as(p)
            p.grad = self.grad[at : at + p.numel()].view_as(p)
            at += p.numel()
        self.opt = torch.optim.AdamW([self.rest], 1e-3, betas, weight_decay=0.0, fused=self.data.is_cuda)

    @torch.no_grad()
    def step(self, lr, lr_rest, ema, clip=1.0, momentum=0.95):
        if dist.is_initialized():
            dist.all_reduce(self.grad, op=dist.ReduceOp.AVG)
        norm = self.grad.norm()
        self.grad *= (clip / (norm + 1e-6)).clamp(max=1)
        for a, b, shape in self.spans:
            v = self.velocity[a:b].mul_(momentum).add_(self.grad[a:b])
            update = orthogonal((self.grad[a:b] + momentum * v).view(shape))
            self.data[a:b].view(shape).sub_(update, alpha=lr * max(1, shape[1] / shape[2]) ** 0.5)
        self.opt.param_groups[0]["lr"] = lr_rest
        self.opt.step()
        self.mean.lerp_(self.data, 1 - ema)
        return norm

    def swap(self):
        """Exchange weights and their average (call twice to undo)."""
        kept = self.data.clone()
        self.data.copy_(self.mean)
        self.mean.copy_(kept)

    def state(self):
        return {"data": self.data, "mean": self.mean, "velocity": self.velocity, "opt": self.opt.state_dict()}

    def load(self, kept):
        for k in ("data", "mean", "velocity"):
            getattr(self, k).copy_(kept[k])
        self.opt.load_state_dict(kept["opt"])

"""The video VAE as formulas over a whole video in float64: no chunks, no cache, no streams."""

import numpy as np

CONFIG = {
    "dim": 6,
    "z_dim": 16,
    "dim_mult": [1, 2, 3, 3],
    "num_res_blocks": 1,
    "temperal_downsample": [False, True, True],
}


def shapes(c):
    """Every tensor by its official name."""
    out = {}

    def conv(name, *shape):
        out.update({f"{name}.weight": shape, f"{name}.bias": shape[:1]})

    def res(name, i, o):
        out.update({f"{name}.residual.0.gamma": (i, 1, 1, 1), f"{name}.residual.3.gamma": (o, 1, 1, 1)})
        conv(f"{name}.residual.2", o, i, 3, 3, 3)
        conv(f"{name}.residual.6", o, o, 3, 3, 3)
        if i != o:
            conv(f"{name}.shortcut", o, i, 1, 1, 1)

    def middle(half, d):
        res(f"{half}.middle.0", d, d)
        out[f"{half}.middle.1.norm.gamma"] = (d, 1, 1)
        conv(f"{half}.middle.1.to_qkv", 3 * d, d, 1, 1)
        conv(f"{half}.middle.1.proj", d, d, 1, 1)
        res(f"{half}.middle.2", d, d)

    dims, z, temporal = [c["dim"] * m for m in c["dim_mult"]], c["z_dim"], c["temperal_downsample"]
    conv("encoder.conv1", c["dim"], 3, 3, 3, 3)
    part, i = 0, c["dim"]
    for level, o in enumerate(dims):
        for _ in range(c["num_res_blocks"]):
            res(f"encoder.downsamples.{part}", i, o)
            part, i = part + 1, o
        if level + 1 < len(dims):
            conv(f"encoder.downsamples.{part}.resample.1", o, o, 3, 3)
            if temporal[level]:
                conv(f"encoder.downsamples.{part}.time_conv", o, o, 3, 1, 1)
            part += 1
    middle("encoder", i)
    out["encoder.head.0.gamma"] = (i, 1, 1, 1)
    conv("encoder.head.2", 2 * z, i, 3, 3, 3)
    conv("conv1", 2 * z, 2 * z, 1, 1, 1)
    conv("conv2", z, z, 1, 1, 1)
    conv("decoder.conv1", i, z, 3, 3, 3)
    middle("decoder", i)
    part = 0
    for level, o in enumerate(reversed(dims)):
        for _ in range(c["num_res_blocks"] + 1):
            res(f"decoder.upsamples.{part}", i, o)
            part, i = part + 1, o
        if level + 1 < len(dims):
            i = o // 2
            conv(f"decoder.upsamples.{part}.resample.1", i, o, 3, 3)
            if temporal[::-1][level]:
                conv(f"decoder.upsamples.{part}.time_conv", 2 * o, o, 3, 1, 1)
            part += 1
    out["decoder.head.0.gamma"] = (i, 1, 1, 1)
    conv("decoder.head.2", 3, i, 3, 3, 3)
    return out


def weights_of(config=CONFIG, seed=0):
    rng = np.random.default_rng(seed)

    def draw(name, shape):
        if len(shape) == 1:
            return 0.1 * rng.standard_normal(shape)
        if name.endswith("gamma"):
            return 1 + 0.2 * rng.standard_normal(shape)
        return rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))

    return {name: draw(name, shape).astype(np.float32) for name, shape in shapes(config).items()}


class Oracle:
    """Arrays are (C, T, H, W), float64."""

    def __init__(self, config, weights, mean, std):
        self.c = config
        self.w = {name: value.astype(np.float64) for name, value in weights.items()}
        self.mean, self.std = (np.float64(np.float32(x))[:, None, None, None] for x in (mean, std))

    def conv(self, name, x, pad=1, step=1, history=2, time_step=1):
        """Causal: `history` zero frames before. pad: zeros around a frame, or (before, after)."""
        w, b = self.w[f"{name}.weight"], self.w[f"{name}.bias"]
        if w.ndim == 4:
            w, history = w[:, :, None], 0
        kernel, steps = w.shape[2:], (time_step, step, step)
        around = pad if isinstance(pad, tuple) else (pad, pad)
        if kernel[1] == 1:
            around = (0, 0)
        x = np.pad(x, ((0, 0), (history if kernel[0] > 1 else 0, 0), around, around))
        size = [(n - k) // s + 1 for n, k, s in zip(x.shape[1:], kernel, steps, strict=True)]
        out = np.zeros((w.shape[0], *size))
        for at in np.ndindex(kernel):
            window = [slice(a, a + (n - 1) * s + 1, s) for a, n, s in zip(at, size, steps, strict=True)]
            out += np.einsum("oc,cthw->othw", w[(slice(None), slice(None), *at)], x[(slice(None), *window)])
        return out + b[:, None, None, None]

    def norm(self, name, x):
        gamma = self.w[name].reshape(-1, 1, 1, 1)
        return x / np.maximum(np.sqrt((x**2).sum(0, keepdims=True)), 1e-12) * np.sqrt(len(x)) * gamma

    @staticmethod
    def silu(x):
        return x / (1 + np.exp(-x))

    def res(self, name, x):
        h = self.conv(f"{name}.residual.2", self.silu(self.norm(f"{name}.residual.0.gamma", x)))
        h = self.conv(f"{name}.residual.6", self.silu(self.norm(f"{name}.residual.3.gamma", h)))
        return h + (self.conv(f"{name}.shortcut", x) if f"{name}.shortcut.weight" in self.w else x)

    def attention(self, name, x):
        c, t, h, w = x.shape
        qkv = self.conv(f"{name}.to_qkv", self.norm(f"{name}.norm.gamma", x)).reshape(3, c, t, h * w)
        q, k, v = qkv.transpose(0, 2, 3, 1)
        score = q @ k.swapaxes(1, 2) / np.sqrt(c)
        p = np.exp(score - score.max(-1, keepdims=True))
        a = (p / p.sum(-1, keepdims=True) @ v).transpose(2, 0, 1).reshape(c, t, h, w)
        return x + self.conv(f"{name}.proj", a)

    def middle(self, half, x):
        x = self.res(f"{half}.middle.0", x)
        return self.res(f"{half}.middle.2", self.attention(f"{half}.middle.1", x))

    def encode(self, frames):
        x, part = self.conv("encoder.conv1", np.float64(frames)), 0
        for level in range(len(self.c["dim_mult"])):
            for _ in range(self.c["num_res_blocks"]):
                x, part = self.res(f"encoder.downsamples.{part}", x), part + 1
            if level + 1 < len(self.c["dim_mult"]):
                x = self.conv(f"encoder.downsamples.{part}.resample.1", x, pad=(0, 1), step=2)
                if self.c["temperal_downsample"][level] and x.shape[1] > 1:  # frames 0 1 2, 2 3 4, ...; the first stays
                    rest = self.conv(f"encoder.downsamples.{part}.time_conv", x, history=0, time_step=2)
                    x = np.concatenate([x[:, :1], rest], axis=1)
                part += 1
        x = self.silu(self.norm("encoder.head.0.gamma", self.middle("encoder", x)))
        mu = self.conv("conv1", self.conv("encoder.head.2", x))[: self.c["z_dim"]]
        return (mu - self.mean) / self.std

    def decode(self, latent):
        x = self.conv("decoder.conv1", self.conv("conv2", np.float64(latent) * self.std + self.mean))
        x, part = self.middle("decoder", x), 0
        for level in range(len(self.c["dim_mult"])):
            for _ in range(self.c["num_res_blocks"] + 1):
                x, part = self.res(f"decoder.upsamples.{part}", x), part + 1
            if level + 1 < len(self.c["dim_mult"]):
                if self.c["temperal_downsample"][::-1][level]:  # the first frame stays and is no history for the others
                    c, t, h, w = x.shape
                    pairs = self.conv(f"decoder.upsamples.{part}.time_conv", x[:, 1:]).reshape(2, c, t - 1, h, w)
                    pairs = pairs.transpose(1, 2, 0, 3, 4).reshape(c, 2 * t - 2, h, w)
                    x = np.concatenate([x[:, :1], pairs], axis=1)
                x = self.conv(f"decoder.upsamples.{part}.resample.1", x.repeat(2, axis=2).repeat(2, axis=3))
                part += 1
        return self.conv("decoder.head.2", self.silu(self.norm("decoder.head.0.gamma", x)))

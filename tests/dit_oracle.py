"""The diffusion transformer as formulas in float64, one thing after the other; a small model's weights and inputs."""

import numpy as np

CONFIG = {
    "dim": 60, "num_heads": 3, "ffn_dim": 76, "num_layers": 4, "vace_layers": [0, 2, 3], "in_dim": 5, "out_dim": 3,
    "vace_in_dim": 7, "freq_dim": 20, "text_len": 9, "text_dim": 11, "eps": 1e-6,
}  # fmt: skip
SIZE = (3, 4, 6)  # frames, height, width of the latent


def shapes(c):
    d = c["dim"]

    def linear(name, rows, *columns):
        return {f"{name}.weight": (rows, *columns), f"{name}.bias": (rows,)}

    def block(b):
        out = {f"{b}.modulation": (1, 6, d), f"{b}.norm3.weight": (d,), f"{b}.norm3.bias": (d,)}
        out |= linear(f"{b}.ffn.0", c["ffn_dim"], d) | linear(f"{b}.ffn.2", d, c["ffn_dim"])
        for a in (f"{b}.self_attn", f"{b}.cross_attn"):
            for n in "qkvo":
                out |= linear(f"{a}.{n}", d, d)
            out |= {f"{a}.norm_q.weight": (d,), f"{a}.norm_k.weight": (d,)}
        return out

    out = linear("patch_embedding", d, c["in_dim"], 1, 2, 2) | linear("head.head", 4 * c["out_dim"], d)
    out |= linear("text_embedding.0", d, c["text_dim"]) | linear("text_embedding.2", d, d)
    out |= linear("time_embedding.0", d, c["freq_dim"]) | linear("time_embedding.2", d, d)
    out |= linear("time_projection.1", 6 * d, d) | {"head.modulation": (1, 2, d)}
    for i in range(c["num_layers"]):
        out |= block(f"blocks.{i}")
    if c["vace_layers"]:
        out |= linear("vace_patch_embedding", d, c["vace_in_dim"], 1, 2, 2) | linear("vace_blocks.0.before_proj", d, d)
    for n in range(len(c["vace_layers"])):
        out |= block(f"vace_blocks.{n}") | linear(f"vace_blocks.{n}.after_proj", d, d)
    return out


def weights_of(config=CONFIG, seed=0):
    rng = np.random.default_rng(seed)

    def draw(name, shape):
        x = rng.standard_normal(shape)
        if len(shape) == 1:
            return 1 + 0.2 * x if name.endswith(".weight") else 0.2 * x
        return 0.3 * x if "modulation" in name else x * np.prod(shape[1:]) ** -0.5

    return {name: draw(name, shape).astype(np.float32) for name, shape in shapes(config).items()}


def inputs(config=CONFIG, size=SIZE, text=4, seed=7, context_frames=None):
    """x, timestep, text states, context."""
    rng = np.random.default_rng(seed)
    f, h, w = size
    channels = config["vace_in_dim"] if config["vace_layers"] else 0
    return (
        rng.standard_normal((config["in_dim"], f, h, w)).astype(np.float32),
        700,
        rng.standard_normal((text, config["text_dim"])).astype(np.float32),
        rng.standard_normal((channels, context_frames or f, h, w)).astype(np.float32),
    )


def blur_matrix(n, sigma):
    """(n, n): a Gaussian line filter of SEG's number of taps over a line that is mirrored without its ends."""
    if np.isinf(sigma):
        return np.full((n, n), 1 / n)
    radius = int(np.ceil(6 * sigma)) // 2  # kernel_size = ceil(6 sigma), made odd
    taps = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    padded = np.pad(np.eye(n), ((radius, radius), (0, 0)), mode="reflect")  # row i: what stands at place i - radius
    return np.stack([taps / taps.sum() @ padded[i : i + 2 * radius + 1] for i in range(n)])


def oracle(
    weights, config, x, t, text, context, skip=(), keep_hint=False, scale=1.0, reference_scale=None,
    reference_frames=0, identity=(), blur=((), 1.0), nag=None,
):  # fmt: skip
    """The formulas of the method in float64, one thing after the other."""
    w = {name: value.astype(np.float64) for name, value in weights.items()}
    d, heads, eps, half = config["dim"], config["num_heads"], config["eps"], config["freq_dim"] // 2
    frames, rows, cols = x.shape[1], x.shape[2] // 2, x.shape[3] // 2
    scales = np.broadcast_to(scale, len(config["vace_layers"]))

    def linear(name, v):
        return v @ w[f"{name}.weight"].reshape(len(w[f"{name}.bias"]), -1).T + w[f"{name}.bias"]

    def patches(v):
        c, f, h, width = v.shape
        v = v.astype(np.float64).reshape(c, f, h // 2, 2, width // 2, 2)
        return v.transpose(1, 2, 4, 0, 3, 5).reshape(f * (h // 2) * (width // 2), c * 4)

    def norm(v):
        return (v - v.mean(-1, keepdims=True)) / np.sqrt(v.var(-1, keepdims=True) + eps)

    def rms(v, name):
        return v / np.sqrt((v**2).mean(-1, keepdims=True) + eps) * w[name]

    def silu(v):
        return v / (1 + np.exp(-v))

    def gelu(v):
        return 0.5 * v * (1 + np.tanh(np.sqrt(2 / np.pi) * (v + 0.044715 * v**3)))

    def rope(v):
        pairs = d // heads // 2
        space = pairs // 3
        f, y, col = np.meshgrid(np.arange(frames), np.arange(rows), np.arange(cols), indexing="ij")
        parts = [(f, pairs - 2 * space), (y, space), (col, space)]
        angle = np.concatenate([p.reshape(-1, 1) * 10000.0 ** (-np.arange(n) / max(n, 1)) for p, n in parts], 1)
        z = v.reshape(len(v), heads, pairs, 2)
        turned = (z[..., 0] + 1j * z[..., 1]) * np.exp(1j * angle)[:, None]
        return np.stack([turned.real, turned.imag], -1).reshape(v.shape)

    def attention(q, k, v):
        q, k, v = (a.reshape(len(a), heads, -1).swapaxes(0, 1) for a in (q, k, v))
        s = q @ k.swapaxes(1, 2) / np.sqrt(d // heads)
        p = np.exp(s - s.max(-1, keepdims=True))
        return (p / p.sum(-1, keepdims=True) @ v).swapaxes(0, 1).reshape(-1, d)

    def attend(b, h):
        a, number = f"{b}.self_attn", int(b.split(".")[1]) if b.startswith("blocks") else None
        if number in identity:
            return linear(f"{a}.v", h)
        q, k = rms(linear(f"{a}.q", h), f"{a}.norm_q.weight"), rms(linear(f"{a}.k", h), f"{a}.norm_k.weight")
        q = rope(q)
        if number in blur[0]:
            grid = q.reshape(frames, rows, cols, d)
            by_row, by_col = blur_matrix(rows, blur[1]), blur_matrix(cols, blur[1])
            q = np.einsum("ir,jc,frcd->fijd", by_row, by_col, grid).reshape(q.shape)
        return attention(q, rope(k), linear(f"{a}.v", h))

    def read_text(a, q, words):
        return attention(q, rms(linear(f"{a}.k", words), f"{a}.norm_k.weight"), linear(f"{a}.v", words))

    def block(b, v):
        shift, gain, gate, shift2, gain2, gate2 = w[f"{b}.modulation"][0] + e0
        h, a = norm(v) * (1 + gain) + shift, f"{b}.self_attn"
        v = v + gate * linear(f"{a}.o", attend(b, h))
        h, a = norm(v) * w[f"{b}.norm3.weight"] + w[f"{b}.norm3.bias"], f"{b}.cross_attn"
        q = rms(linear(f"{a}.q", h), f"{a}.norm_q.weight")
        z = read_text(a, q, words)
        if nag:
            g = nag[1] * z - (nag[1] - 1) * read_text(a, q, away)
            ratio = abs(g).sum(-1, keepdims=True) / abs(z).sum(-1, keepdims=True)
            g = np.where(ratio > nag[2], g * nag[2] / ratio, g)
            z = nag[3] * g + (1 - nag[3]) * z
        v = v + linear(f"{a}.o", z)
        h = norm(v) * (1 + gain2) + shift2
        return v + gate2 * linear(f"{b}.ffn.2", gelu(linear(f"{b}.ffn.0", h)))

    angle = t * 10000.0 ** (-np.arange(half) / half)
    e = linear("time_embedding.2", silu(linear("time_embedding.0", np.concatenate([np.cos(angle), np.sin(angle)]))))
    e0 = linear("time_projection.1", silu(e)).reshape(6, d)

    def embed(text):
        padded = np.zeros((config["text_len"], config["text_dim"]))
        padded[: len(text)] = text
        return linear("text_embedding.2", gelu(linear("text_embedding.0", padded)))

    words, away = embed(text), embed(nag[0]) if nag else None
    v = linear("patch_embedding", patches(x))
    hints = []
    if config["vace_layers"]:
        tokens = np.zeros_like(v)
        embedded = linear("vace_patch_embedding", patches(context))
        tokens[: len(embedded)] = embedded
        c = linear("vace_blocks.0.before_proj", tokens) + v
        for n in range(len(config["vace_layers"])):
            c = block(f"vace_blocks.{n}", c)
            hints.append(linear(f"vace_blocks.{n}.after_proj", c))
    for i in range(config["num_layers"]):
        if i not in skip:
            v = block(f"blocks.{i}", v)
        if i in config["vace_layers"] and (i not in skip or keep_hint):
            n = list(config["vace_layers"]).index(i)
            by_row = np.full((len(v), 1), scales[n])
            if reference_scale is not None:
                by_row[: reference_frames * rows * cols] = np.broadcast_to(reference_scale, len(scales))[n]
            v = v + hints[n] * by_row
    shift, gain = w["head.modulation"][0] + e
    out = linear("head.head", norm(v) * (1 + gain) + shift).reshape(frames, rows, cols, 2, 2, config["out_dim"])
    return out.transpose(5, 0, 1, 3, 2, 4).reshape(config["out_dim"], *x.shape[1:])

"""umT5's encoder: equal to the formulas in float64 at any size and length, safe against any input, exact plan."""

import threading

import numpy as np
import pytest

from ipvg import _core
from ipvg.parity import relative_l2

CONFIG = {
    "vocab": 50, "dim": 48, "dim_attn": 40, "dim_ffn": 72, "num_heads": 5, "num_layers": 3, "num_buckets": 32,
    "max_distance": 128, "eps": 1e-6,
}  # fmt: skip


def shapes(c):
    out = {"token_embedding.weight": (c["vocab"], c["dim"]), "norm.weight": (c["dim"],)}
    for i in range(c["num_layers"]):
        b = f"blocks.{i}."
        out |= {b + "norm1.weight": (c["dim"],), b + "norm2.weight": (c["dim"],)}
        out |= {b + f"attn.{n}.weight": (c["dim_attn"], c["dim"]) for n in "qkv"}
        out |= {b + "attn.o.weight": (c["dim"], c["dim_attn"])}
        out |= {b + "ffn.gate.0.weight": (c["dim_ffn"], c["dim"]), b + "ffn.fc1.weight": (c["dim_ffn"], c["dim"])}
        out |= {b + "ffn.fc2.weight": (c["dim"], c["dim_ffn"])}
        out |= {b + "pos_embedding.embedding.weight": (c["num_buckets"], c["num_heads"])}
    return out


def weights_of(config=CONFIG, seed=0):
    rng = np.random.default_rng(seed)

    def draw(name, shape):
        if len(shape) == 1:
            return 1 + 0.2 * rng.standard_normal(shape, np.float32)
        scale = 1 if "embedding" in name else shape[1] ** -0.5
        return np.float32(scale) * rng.standard_normal(shape, np.float32)

    return {name: draw(name, shape).astype(np.float32) for name, shape in shapes(config).items()}


def model(weights=None, config=CONFIG, device=None):
    weights = weights_of(config) if weights is None else weights
    return _core.TextEncoder(device or _core.Device("cpu", threads=2), config, _core.Weights(weights))


def oracle(weights, config, ids):
    """The formulas of the method in float64, with the bucket in whole numbers, not logarithms."""
    w = {name: value.astype(np.float64) for name, value in weights.items()}
    length, heads = len(ids), config["num_heads"]

    def norm(x, name):
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + config["eps"]) * w[name]

    def bucket(distance):
        half, n = config["num_buckets"] // 2, abs(distance)
        exact = half // 2
        if n >= exact:  # the largest k with exact * (max/exact)^(k / (half-exact)) <= n
            steps, k = half - exact, 0
            while k < steps - 1 and exact**steps * config["max_distance"] ** (k + 1) <= n**steps * exact ** (k + 1):
                k += 1
            n = exact + k
        return n + (half if distance > 0 else 0)

    table = np.array([bucket(d) for d in range(1 - length, length)])
    at = np.arange(length)[None, :] - np.arange(length)[:, None] + length - 1
    x = w["token_embedding.weight"][ids]
    for i in range(config["num_layers"]):
        b = f"blocks.{i}."
        h = norm(x, b + "norm1.weight")
        q, k, v = ((h @ w[b + f"attn.{n}.weight"].T).reshape(length, heads, -1).swapaxes(0, 1) for n in "qkv")
        score = q @ k.swapaxes(1, 2) + w[b + "pos_embedding.embedding.weight"].T[:, table[at]]
        p = np.exp(score - score.max(-1, keepdims=True))
        a = (p / p.sum(-1, keepdims=True) @ v).swapaxes(0, 1).reshape(length, -1)
        x = x + a @ w[b + "attn.o.weight"].T
        h = norm(x, b + "norm2.weight")
        g, u = h @ w[b + "ffn.gate.0.weight"].T, h @ w[b + "ffn.fc1.weight"].T
        gelu = 0.5 * g * (1 + np.tanh(np.sqrt(2 / np.pi) * (g + 0.044715 * g**3)))
        x = x + (gelu * u) @ w[b + "ffn.fc2.weight"].T
    return norm(x, "norm.weight")


@pytest.mark.parametrize("length", [1, 2, 3, 7, 16, 17, 33, 64, 100, 129, 255, 511, 512])
def test_equal_to_the_formulas_at_any_length(length):
    weights = weights_of()
    ids = np.random.default_rng(length).integers(0, CONFIG["vocab"], length)
    # 1e-5: float32 against float64 over three layers of this width; the golden model of the same kind is at 2e-6.
    assert relative_l2(model(weights).encode(ids), oracle(weights, CONFIG, ids)) < 1e-5


@pytest.mark.parametrize(
    "change",
    [
        {"dim": 8, "dim_attn": 8, "num_heads": 1, "dim_ffn": 4, "num_layers": 1},
        {"dim": 33, "dim_attn": 21, "num_heads": 7, "dim_ffn": 65},
        {"num_buckets": 8, "max_distance": 20},
        {"num_buckets": 64, "max_distance": 300},
        {"eps": 0.1},
    ],
)
def test_equal_to_the_formulas_at_any_size(change):
    config = CONFIG | change
    weights = weights_of(config, seed=1)
    ids = np.random.default_rng(5).integers(0, config["vocab"], 90)
    assert relative_l2(model(weights, config).encode(ids), oracle(weights, config, ids)) < 1e-5


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_weights_of_16_bits_are_widened(dtype):
    """As in a checkpoint: the result is that of the rounded weights in float32."""
    weights = weights_of()
    if dtype == "float16":
        stored = {name: w.astype(np.float16) for name, w in weights.items()}
        rounded = {name: w.astype(np.float32) for name, w in stored.items()}
    else:
        bits = {name: w.view(np.uint32) >> np.uint32(16) for name, w in weights.items()}
        stored = {name: (b.astype(np.uint16), "bfloat16") for name, b in bits.items()}
        rounded = {name: (b << np.uint32(16)).view(np.float32) for name, b in bits.items()}
    ids = np.arange(40)
    assert relative_l2(model(stored).encode(ids), oracle(rounded, CONFIG, ids)) < 1e-5


def test_subnormal_float16_position_bias():
    weights = weights_of()
    name = "blocks.0.pos_embedding.embedding.weight"
    values = np.array([6e-8, -3e-5, 6.1e-5, 0.0, -0.0, 65504, -1.5, 1 / 3], np.float16)
    weights[name] = np.resize(values, shapes(CONFIG)[name])
    seen = {}
    model(weights).encode(np.ones(512, np.int32), trace=seen.__setitem__)
    assert set(np.unique(seen["pos_bias0"])) == {np.float32(v) for v in values}


def test_two_runs_give_the_same_bytes_and_threads_only_round():
    ids = np.arange(50).repeat(4)
    first = model(device=_core.Device("cpu", threads=1))
    assert first.encode(ids).tobytes() == first.encode(ids).tobytes()
    assert relative_l2(model(device=_core.Device("cpu", threads=3)).encode(ids), first.encode(ids)) < 1e-5


def test_the_plan_is_what_a_run_takes():
    for length in (1, 77, 512):
        device = _core.Device("cpu")
        encoder = model(device=device)
        planned = encoder.scratch(length)
        assert device.scratch == 0 and planned > 0
        encoder.encode(np.ones(length, np.int32))
        assert device.scratch == planned


def test_shapes_without_data_plan_and_do_not_compute():
    empty = {name: (None, 0, "bfloat16", shape) for name, shape in shapes(CONFIG).items()}
    encoder = model(empty)
    assert encoder.scratch(512) == model().scratch(512)
    with pytest.raises(ValueError, match="without data"):
        encoder.encode([1])


def test_trace_sees_every_layer_in_order():
    names = []
    states = {}
    out = model().encode([3, 4, 1], trace=lambda name, array: (names.append(name), states.update({name: array})))
    layers = [n for i in range(3) for n in (f"pos_bias{i}", f"after_layer{i}")]
    assert names == ["embedding", *layers, "out"]
    assert np.array_equal(states["out"], out)
    assert np.array_equal(states["embedding"], weights_of()["token_embedding.weight"][[3, 4, 1]])


def test_an_exception_in_the_trace_comes_through():
    encoder = model()

    def stop(name, array):
        if name == "after_layer0":
            raise KeyError("enough")

    with pytest.raises(KeyError, match="enough"):
        encoder.encode([1, 2], trace=stop)
    assert np.isfinite(encoder.encode([1, 2])).all()


def test_cancel_stops_within_a_block_and_leaves_the_model_usable():
    device = _core.Device("cpu")
    encoder = model(device=device)
    before = encoder.encode([5, 6, 1])
    seen = []

    def stop(name, array):
        seen.append(name)
        if name == "after_layer0":
            assert device.cancel()

    with pytest.raises(_core.Cancelled):
        encoder.encode([5, 6, 1], trace=stop)
    assert seen[-1] == "after_layer0"
    assert np.array_equal(encoder.encode([5, 6, 1]), before)


def test_threads_may_share_a_model():
    encoder = model()
    want = {n: encoder.encode(np.arange(n) % 50) for n in (5, 60, 200)}
    wrong = []

    def work(n):
        for _ in range(20):
            if not np.array_equal(encoder.encode(np.arange(n) % 50), want[n]):
                wrong.append(n)

    threads = [threading.Thread(target=work, args=(n,)) for n in want]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong


@pytest.mark.parametrize(
    "ids, error, match",
    [
        ([], ValueError, "1 to 512"),
        (np.ones(513, int), ValueError, "1 to 512"),
        ([[1, 2]], ValueError, "1 to 512"),
        (3, ValueError, "1 to 512"),
        ([50], ValueError, "50"),
        ([-1], ValueError, "-1"),
        ([2**31], ValueError, "2147483648"),
        ([2**40], ValueError, "id"),
        ([1.0], TypeError, "integers"),
        ([True], TypeError, "integers"),
        ("cat", TypeError, "integers"),
        ([None], TypeError, "integers"),
        (np.array([float("nan")]), TypeError, "integers"),
    ],
)
def test_bad_ids(ids, error, match):
    with pytest.raises(error, match=match):
        model().encode(ids)


@pytest.mark.parametrize("tokens, error", [(0, ValueError), (513, ValueError), (-5, ValueError), (1.5, TypeError)])
def test_bad_plan(tokens, error):
    with pytest.raises(error):
        model().scratch(tokens)


def test_bad_trace():
    with pytest.raises(TypeError, match="trace"):
        model().encode([1], trace=3)


@pytest.mark.parametrize("key", CONFIG)
@pytest.mark.parametrize("value, error", [("absent", ValueError), (None, TypeError), (0, ValueError), (-3, ValueError)])
def test_bad_config(key, value, error):
    config = {k: v for k, v in CONFIG.items() if k != key} | ({} if value == "absent" else {key: value})
    with pytest.raises(error, match=key):
        model(weights_of(), config)


@pytest.mark.parametrize(
    "change, match",
    [({"num_heads": 7}, "dim_attn"), ({"num_buckets": 30}, "buckets"), ({"max_distance": 8}, "max_distance")],
)
def test_config_that_contradicts_itself(change, match):
    with pytest.raises(ValueError, match=match):
        model(weights_of(), CONFIG | change)


@pytest.mark.parametrize("name", [n for n in shapes(CONFIG) if not n.startswith(("blocks.1", "blocks.2"))])
def test_missing_and_misshapen_tensors_are_named(name):
    weights = weights_of()
    with pytest.raises(_core.FormatError, match=name):
        model({k: v for k, v in weights.items() if k != name})
    with pytest.raises(_core.FormatError, match=name):
        model(weights | {name: weights[name][:-1].copy()})


def test_an_unknown_tensor_is_named():
    with pytest.raises(_core.FormatError, match="surplus"):
        model(weights_of() | {"blocks.3.surplus.weight": np.zeros(3, np.float32)})


@pytest.mark.parametrize("args", [(), (1, 2, 3), ("cpu", CONFIG, None)])
def test_wrong_constructor_arguments(args):
    with pytest.raises(TypeError):
        _core.TextEncoder(*args)
    device, weights = _core.Device("cpu"), _core.Weights(weights_of())
    with pytest.raises(TypeError):
        _core.TextEncoder(device, [], weights)
    with pytest.raises(TypeError, match="weights"):
        _core.TextEncoder(device, CONFIG, {})

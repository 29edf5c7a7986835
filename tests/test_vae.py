"""The video VAE: a stream of frames equals the formulas over the whole video, in memory that does not grow with it."""

import ctypes
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from vae_oracle import CONFIG, Oracle, shapes, weights_of

import ipvg
from ipvg import _core
from ipvg.parity import relative_l2
from ipvg.video import Video

#: float32 against float64 through nets of this depth: measured up to 4e-6. Wrong history, padding or order: 1e-2.
BOUND = 2e-5

CONFIGS = {
    "wan": CONFIG,
    "two blocks": CONFIG | {"num_res_blocks": 2, "dim": 4},
    "wide": CONFIG | {"dim": 26},
    "three levels": CONFIG | {"dim_mult": [1, 1, 2], "temperal_downsample": [True, False]},
    "one level": CONFIG | {"dim_mult": [2], "temperal_downsample": []},
    "time thrice": CONFIG | {"temperal_downsample": [True, True, True]},
    "no time": CONFIG | {"temperal_downsample": [False, False, False]},
    "other latent": CONFIG | {"z_dim": 3, "mean": [0.5, -1, 0], "std": [2, 0.3, 1]},
}


def model(weights=None, config=CONFIG, device=None):
    weights = weights_of(config) if weights is None else weights
    return _core.Vae(device or _core.Device("cpu", threads=2), config, _core.Weights(weights))


def oracle(config=CONFIG, weights=None):
    from ipvg.checkpoint.config import LATENT_MEAN, LATENT_STD

    weights = weights_of(config) if weights is None else weights
    return Oracle(config, weights, config.get("mean", LATENT_MEAN), config.get("std", LATENT_STD))


def video(frames, height, width, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, (3, frames, height, width)).astype(np.float32)


def latent(frames, height, width, z=16, seed=0):
    return np.random.default_rng(seed).standard_normal((z, frames, height, width), np.float32)


# ---- equal to the formulas ----


@pytest.mark.parametrize("frames, height, width", [(1, 8, 8), (5, 24, 8), (9, 16, 40), (13, 8, 16)])
def test_encode_equals_one_pass_over_the_video(frames, height, width):
    x = video(frames, height, width)
    ours = model().encode(x)
    assert ours.shape == (16, (frames - 1) // 4 + 1, height // 8, width // 8)
    assert relative_l2(ours, oracle().encode(x)) < BOUND


@pytest.mark.parametrize("frames, height, width", [(1, 1, 1), (2, 3, 1), (3, 2, 5), (5, 1, 2)])
def test_decode_equals_one_pass_over_the_video(frames, height, width):
    z = latent(frames, height, width)
    ours = model().decode(z)
    assert ours.shape == (3, 4 * (frames - 1) + 1, 8 * height, 8 * width)
    assert relative_l2(ours, oracle().decode(z)) < BOUND


@pytest.mark.parametrize("name", CONFIGS)
def test_any_config(name):
    config = CONFIGS[name]
    vae, truth = model(config=config), oracle(config)
    time, space = vae.stride
    assert (time, space) == (2 ** sum(config["temperal_downsample"]), 2 ** (len(config["dim_mult"]) - 1))
    x, z = video(1 + 2 * time, 2 * space, 3 * space), latent(3, 2, 3, config["z_dim"])
    assert relative_l2(vae.encode(x), truth.encode(x)) < BOUND
    assert relative_l2(vae.decode(z), truth.decode(z)) < BOUND


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_weights_of_16_bits_are_widened(dtype):
    weights = weights_of()
    if dtype == "float16":
        stored = {name: w.astype(np.float16) for name, w in weights.items()}
        rounded = {name: w.astype(np.float32) for name, w in stored.items()}
    else:
        bits = {name: w.view(np.uint32) >> np.uint32(16) for name, w in weights.items()}
        stored = {name: (b.astype(np.uint16), "bfloat16") for name, b in bits.items()}
        rounded = {name: (b << np.uint32(16)).view(np.float32) for name, b in bits.items()}
    vae, truth, x, z = model(stored), oracle(weights=rounded), video(5, 16, 8), latent(2, 2, 1)
    assert relative_l2(vae.encode(x), truth.encode(x)) < BOUND
    assert relative_l2(vae.decode(z), truth.decode(z)) < BOUND


def test_a_video_of_zeros_is_no_division_by_zero():
    assert np.isfinite(model().encode(np.zeros((3, 5, 16, 16), np.float32))).all()


# ---- streams ----


def test_the_stream_gives_the_same_frames_as_they_become_ready():
    vae, z = model(), latent(4, 2, 3)
    chunks = list(vae.decode_stream(z))
    assert [c.shape for c in chunks] == [(3, 1, 16, 24)] + [(3, 4, 16, 24)] * 3
    assert np.array_equal(np.concatenate(chunks, axis=1), vae.decode(z))


def test_the_stream_gives_bytes_as_video_makes_them():
    vae, z = model(), 2 * latent(3, 2, 3)
    out = np.empty((9, 16, 24, 3), np.uint8)
    parts = list(vae.decode_stream(z, out=out))
    want = Video.from_float(vae.decode(z)).frames
    assert [part.shape for part in parts] == [(1, 16, 24, 3)] + [(4, 16, 24, 3)] * 2
    assert all(part.base is out for part in parts)
    assert out.tobytes() == want.tobytes() and {0, 255} < set(out.ravel().tolist())


def test_frames_that_are_not_finite_are_no_bytes():
    weights = weights_of()
    weights["decoder.head.2.bias"] = np.array([0, np.inf, 0], np.float32)
    with pytest.raises(ValueError, match="NaN or infinity in a decoded frame"):
        list(model(weights).decode_stream(latent(1, 2, 2), out=np.empty((1, 16, 16, 3), np.uint8)))


@pytest.mark.parametrize("out", [
    np.empty((5, 16, 16, 3), np.float32), np.empty((4, 16, 16, 3), np.uint8), np.empty((5, 16, 16), np.uint8),
    np.empty((5, 16, 32, 3), np.uint8)[:, :, ::2], bytearray(5 * 16 * 16 * 3),
])  # fmt: skip
def test_bytes_want_room_of_their_shape(out):
    wanted = r"out: expected a writable C-contiguous uint8 array of shape \(5, 16, 16, 3\)"
    with pytest.raises(ValueError, match=wanted):
        model().decode_stream(latent(2, 2, 2), out=out)


def test_streams_and_other_work_may_alternate_on_a_device():
    vae, z, other = model(), latent(3, 2, 2), latent(3, 1, 2, seed=5)
    want, want_other = vae.decode(z), vae.decode(other)
    a, b = vae.decode_stream(z), vae.decode_stream(other)
    got, got_other = [], []
    for _ in range(3):
        got.append(next(a))
        vae.encode(video(1, 32, 32))
        got_other.append(next(b))
    assert np.array_equal(np.concatenate(got, axis=1), want)
    assert np.array_equal(np.concatenate(got_other, axis=1), want_other)
    assert next(a, None) is None and next(a, None) is None


def test_the_past_alone_decides_a_frame():
    """Causal: cutting the end of a video or a latent leaves everything before it as it was."""
    vae, x, z = model(), video(13, 16, 16), latent(4, 2, 2)
    assert np.array_equal(vae.encode(x[:, :9]), vae.encode(x)[:, :3])
    assert np.array_equal(vae.decode(z[:, :2]), vae.decode(z)[:, :5])


def test_two_runs_give_the_same_bytes_and_threads_only_round():
    z, x = latent(2, 3, 5), video(5, 24, 40)
    one, three = model(device=_core.Device("cpu", threads=1)), model(device=_core.Device("cpu", threads=3))
    assert three.decode(z).tobytes() == three.decode(z).tobytes()
    assert three.encode(x).tobytes() == three.encode(x).tobytes()
    assert relative_l2(three.decode(z), one.decode(z)) < BOUND
    assert relative_l2(three.encode(x), one.encode(x)) < BOUND


def test_a_bfloat16_device_leaves_the_vae_in_float32():
    z, x = latent(2, 2, 3), video(5, 16, 24)
    half = model(device=_core.Device("cpu", threads=2, dtype="bfloat16"))
    assert np.array_equal(half.decode(z), model().decode(z))
    assert np.array_equal(half.encode(x), model().encode(x))


# ---- memory ----


def test_memory_does_not_grow_with_the_number_of_frames():
    vae = model()
    assert vae.memory(9, 48, 64) == vae.memory(81, 48, 64) == vae.memory(4001, 48, 64)
    assert vae.memory(9, 96, 64)["decode"] > vae.memory(9, 48, 64)["decode"]


@pytest.mark.parametrize("what", ["encode", "decode"])
def test_the_plan_is_what_a_run_takes(what):
    device = _core.Device("cpu")
    vae = model(device=device)
    planned = vae.memory(9, 32, 48)[what]
    assert device.scratch == 0
    getattr(vae, what)(video(9, 32, 48) if what == "encode" else latent(3, 4, 6))
    latent_frame = 4 * 16 * 4 * 6 if what == "decode" else 0  # on the host, beside the scratch
    assert device.scratch + latent_frame == planned


MEASURE = """
import sys
import numpy as np
from vae_oracle import CONFIG, weights_of
from ipvg import _core

def memory(field):
    with open("/proc/self/status") as file:
        return next(1024 * int(line.split()[1]) for line in file if line.startswith(field))

config = CONFIG | {"dim": 32}
vae = _core.Vae(_core.Device("cpu", threads=1), config, _core.Weights(weights_of(config)))
frames = int(sys.argv[1])
z = np.random.default_rng(0).standard_normal((16, frames, 16, 24), np.float32)
list(vae.decode_stream(z[:, :1, :1, :1]))
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")  # the peak starts anew
before = memory("VmRSS:")
for chunk in vae.decode_stream(z):
    pass
print(memory("VmHWM:") - before, vae.memory(4 * frames - 3, 128, 192)["decode"])
"""


def test_measured_peak_memory_is_the_plan_and_flat_in_frames():
    here = Path(__file__).resolve().parent
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(here), str(here.parent)])}

    def measure(frames):
        args = [sys.executable, "-c", MEASURE, str(frames)]
        return map(int, subprocess.run(args, check=True, capture_output=True, text=True, env=env).stdout.split())

    short, plan = measure(2)
    long, same = measure(6)
    assert plan == same > 10e6
    chunks = 2 * 3 * 4 * 128 * 192 * 4  # the caller's: the last one is alive while the next is made
    assert long <= 1.05 * plan + chunks
    assert abs(long - short) <= 0.05 * plan


# ---- stopping, seeing ----


def test_cancel_stops_within_a_block_and_leaves_the_model_usable():
    device = _core.Device("cpu")
    vae, z = model(device=device), latent(3, 2, 2)
    before, seen = vae.decode(z), []

    def stop(name, array):
        seen.append(name)
        if seen.count("upsamples.0") == 2:
            assert device.cancel()

    with pytest.raises(_core.Cancelled):
        vae.decode(z, trace=stop)
    assert seen[-1] == "upsamples.0"
    assert np.array_equal(vae.decode(z), before)


def test_cancel_from_another_thread():
    device = _core.Device("cpu")
    vae = model(device=device)
    started = threading.Event()
    caught = []

    def work():
        try:
            vae.encode(video(81, 64, 64), progress=lambda done, total: started.set())
        except _core.Cancelled as error:
            caught.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    assert started.wait(30)
    assert device.cancel()
    thread.join(30)
    assert not thread.is_alive() and len(caught) == 1
    assert not device.cancel()


def test_a_cancelled_stream_is_over():
    device = _core.Device("cpu")
    vae = model(device=device)
    stream = vae.decode_stream(latent(3, 2, 2))
    next(stream)

    over = threading.Event()

    def interfere():
        while not over.is_set():
            device.cancel()

    thread = threading.Thread(target=interfere)
    thread.start()
    try:
        with pytest.raises(_core.Cancelled):
            for _ in range(10_000):  # until the other thread meets a running call that is not at its end
                next(stream, None)
                stream = stream if stream.__length_hint__() else vae.decode_stream(latent(3, 2, 2))
    finally:
        over.set()
        thread.join()
    assert list(stream) == []
    assert len(list(vae.decode_stream(latent(3, 2, 2)))) == 3  # a cancel is for the call that runs, not for the next


def test_a_cancel_past_the_last_block_comes_too_late_and_stops_nothing_else():
    device, told = _core.Device("cpu"), []
    vae, frames = model(device=device), video(5, 8, 8)
    late = vae.encode(frames, progress=lambda done, total: told.append(device.cancel()) if done == total else None)
    assert told == [True] and not device.cancel()
    assert np.array_equal(vae.encode(frames), late)


def test_progress_counts_frames_and_may_raise():
    vae, seen = model(), []
    vae.encode(video(5, 8, 8), progress=lambda *state: seen.append(state))
    assert seen == [(i, 5) for i in range(6)]
    seen.clear()
    vae.decode(latent(3, 1, 1), progress=lambda *state: seen.append(state))
    assert seen == [(0, 9), (1, 9), (5, 9), (9, 9)]

    def stop(done, total):
        raise KeyError("enough")

    with pytest.raises(KeyError, match="enough"):
        vae.decode(latent(3, 1, 1), progress=stop)

    def stop_late(done, total):
        if done == total:
            raise KeyError("late")

    for call, given in ((vae.encode, video(5, 8, 8)), (vae.decode, latent(3, 1, 1))):
        with pytest.raises(KeyError, match="late"):
            call(given, progress=stop_late)
    with pytest.raises(TypeError, match="progress"):
        vae.decode(latent(1, 1, 1), progress=3)


def test_trace_sees_every_part_in_order():
    seen = []
    model().decode(latent(1, 2, 2), trace=lambda name, array: seen.append((name, array.shape)))
    assert [name for name, _ in seen[:5]] == ["post_quant_conv", "conv1", "middle.0", "middle.1", "middle.2"]
    assert [name for name, _ in seen[5:-2]] == [f"upsamples.{i}" for i in range(11)]
    assert seen[-1] == ("head.2", (16, 16, 3))


# ---- refusals ----


def _odd_pixel(value):
    """Of a video that several threads look at, the second of two."""
    frames = np.zeros((3, 1, 512, 512), np.float32)
    frames.ravel()[[600000, 700000]] = value
    return frames


@pytest.mark.parametrize(
    "frames, error, match",
    [
        (np.zeros((3, 4, 16, 16), np.float32), ValueError, "4n\\+1"),
        (np.zeros((3, 0, 16, 16), np.float32), ValueError, "4n\\+1"),
        (np.zeros((3, 1, 12, 16), np.float32), ValueError, "multiples of 8"),
        (np.zeros((3, 1, 16, 17), np.float32), ValueError, "multiples of 8"),
        (np.zeros((3, 1, 0, 16), np.float32), ValueError, "multiples of 8"),
        (np.zeros((1, 16, 16, 3), np.float32), ValueError, "frames"),
        (np.zeros((3, 16, 16), np.float32), ValueError, "frames"),
        (np.full((3, 1, 8, 8), np.nan, np.float32), ValueError, "finite"),
        (np.full((3, 1, 8, 8), np.inf, np.float32), ValueError, "finite"),
        (np.zeros((3, 1, 8, 8), complex), TypeError, "frames"),
        ("video", TypeError, "frames"),
        (None, TypeError, "frames"),
        (_odd_pixel(np.nan), ValueError, "element 600000 is not finite"),
        (_odd_pixel(-np.inf), ValueError, "element 600000 is not finite"),
    ],
)
def test_bad_frames_are_refused(frames, error, match):
    with pytest.raises(error, match=match):
        model().encode(frames)


@pytest.mark.parametrize("call", ["decode", "decode_stream"])
@pytest.mark.parametrize(
    "z, error, match",
    [
        (np.zeros((15, 1, 2, 2), np.float32), ValueError, "latent"),
        (np.zeros((16, 0, 2, 2), np.float32), ValueError, "4n\\+1"),
        (np.zeros((16, 1, 0, 2), np.float32), ValueError, "multiples of 8"),
        (np.zeros((16, 2, 2), np.float32), ValueError, "latent"),
        (np.full((16, 1, 2, 2), np.nan, np.float32), ValueError, "finite"),
        ([["x"]], TypeError, "latent"),
    ],
)
def test_bad_latents_are_refused(call, z, error, match):
    with pytest.raises(error, match=match):
        getattr(model(), call)(z)


@pytest.mark.parametrize(
    "size, match",
    [
        ((4, 16, 16), r"4n\+1"),
        ((0, 16, 16), "frames"),
        ((-3, 16, 16), "frames"),
        ((5, 15, 16), "multiples of 8"),
        ((5, 16, -8), "width"),
        ((5, 1 << 17, 16), "multiples of 8"),
        ((5, 2**40, 16), "height"),
    ],
)
def test_memory_of_a_size_that_cannot_work(size, match):
    with pytest.raises(ValueError, match=match):
        model().memory(*size)


@pytest.mark.parametrize(
    "change, error, match",
    [
        ({"dim": 0}, ValueError, "dim"),
        ({"dim": "96"}, TypeError, "dim"),
        ({"dim_mult": []}, ValueError, "levels|dim_mult"),
        ({"dim_mult": [1] * 20}, ValueError, "dim_mult"),
        ({"dim_mult": 4}, (TypeError, ValueError), "dim_mult"),
        ({"temperal_downsample": [True]}, ValueError, "temperal_downsample"),
        ({"temperal_downsample": [0, 1, 2]}, ValueError, "temperal_downsample"),
        ({"num_res_blocks": 0}, ValueError, "num_res_blocks"),
        ({"num_res_blocks": 99}, ValueError, "num_res_blocks"),
        ({"z_dim": 3}, ValueError, "mean"),
        ({"mean": [1.0]}, ValueError, "mean"),
        ({"std": [0.0] * 16}, ValueError, "deviation"),
        ({"std": [float("nan")] * 16}, ValueError, "deviation"),
        ({"std": ["1"] * 16}, TypeError, "str"),
        ({"attn_scales": [0.5]}, ValueError, "attn_scales"),
        ({"dim": 5, "dim_mult": [1, 1, 1, 1]}, ValueError, "halves"),
    ],
)
def test_bad_configs_are_refused(change, error, match):
    with pytest.raises(error, match=match):
        _core.Vae(_core.Device("cpu"), CONFIG | change, _core.Weights(weights_of()))


def test_a_missing_config_entry_is_named():
    for key in CONFIG:
        with pytest.raises(ValueError, match=key):
            model(config={k: v for k, v in CONFIG.items() if k != key}, weights=weights_of())


def test_missing_misshapen_and_unknown_tensors_are_named():
    weights = weights_of()
    name = "decoder.upsamples.4.residual.2.weight"
    with pytest.raises(_core.FormatError, match=name):
        model({k: v for k, v in weights.items() if k != name})
    with pytest.raises(_core.FormatError, match=name):
        model(weights | {name: weights[name][:-1]})
    with pytest.raises(_core.FormatError, match=r"decoder\.extra"):
        model(weights | {"decoder.extra": np.zeros(3, np.float32)})


def test_shapes_without_data_plan_and_do_not_compute():
    empty = {name: (None, 0, "float32", shape) for name, shape in shapes(CONFIG).items()}
    vae = model(empty)
    assert vae.memory(5, 32, 48) == model().memory(5, 32, 48)
    for call in (lambda: vae.decode(latent(1, 1, 1)), lambda: vae.encode(video(1, 8, 8)),
                 lambda: next(vae.decode_stream(latent(1, 1, 1)))):  # fmt: skip
        with pytest.raises(ValueError, match="without data"):
            call()


@pytest.mark.skipif(ipvg.cuda_error() is not None, reason="a GPU's queue")
def test_the_device_never_waits_for_the_host_between_frames():
    """On the emulated device, which counts the waits at whose end it has nothing left to do: the last one alone,
    however many frames there are."""
    emulated = sys.modules["ipvg._cuda"].__file__
    if "emulated" not in emulated:
        pytest.skip("a GPU does not count")
    dry = ctypes.CDLL(emulated).emulator_dry
    dry.restype = ctypes.c_long
    vae = model(device=_core.Device("cuda"))

    def waits(call, given):
        before = dry()
        call(given)
        return dry() - before

    for call, make in ((vae.encode, lambda n: video(4 * n + 1, 16, 16)), (vae.decode, lambda n: latent(n, 2, 2))):
        call(make(7))
        assert waits(call, make(2)) == waits(call, make(7)) == 1

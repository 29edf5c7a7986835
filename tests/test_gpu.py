"""The CUDA engine on a real GPU: as the CPU computes, the same bytes twice, stopped and gone on, several at a time."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import test_dit
import test_sampler
import test_umt5
import test_vae

import ipvg
from ipvg import _core
from ipvg.parity import relative_l2

ROOT = Path(__file__).resolve().parent.parent

pytestmark = pytest.mark.skipif(ipvg.cuda_error() is not None, reason=f"no GPU: {ipvg.cuda_error()}")

#: float32 on both sides, through nets of this depth; bfloat16 against it (nets this narrow err by chance).
BOUND = {"float32": 2e-5, "bfloat16": 8e-2}

#: Heads of 128 and a width of 512: what cuDNN's fused attention takes.
WIDE = test_dit.CONFIG | {"dim": 512, "num_heads": 4, "ffn_dim": 1536, "in_dim": 16, "out_dim": 16, "text_dim": 64}
#: One block of the 1.3B model, several times: long enough to be stopped within.
LONG = WIDE | {"dim": 1536, "num_heads": 12, "ffn_dim": 8960, "num_layers": 12, "vace_layers": []}
LONG_SIZE = (8, 60, 104)

OPTIONS = {
    "plain": {},
    "skipped": {"skip": (2,), "keep_hint": True},
    "scaled": {"scale": (0.5, 0.0, 1.5), "reference_scale": 0.3, "reference_frames": 1},
    "identity": {"identity": (1, 2)},
    "blurred": {"blur": ((0, 3), 1.5)},
}


@pytest.fixture(params=["float32", "bfloat16"])
def dtype(request):
    return request.param


def gpu(dtype="float32", number=0):
    return _core.Device(f"cuda:{number}", dtype=dtype)


@pytest.mark.parametrize("config", ["odd", "wide"])
@pytest.mark.parametrize("options", OPTIONS)
def test_the_transformer_computes_what_the_cpu_does(config, options, dtype):
    config = test_dit.CONFIG if config == "odd" else WIDE
    given, weights = test_dit.inputs(config), test_dit.weights_of(config)
    want = test_dit.run(test_dit.model(weights, config), *given, **OPTIONS[options])
    ours = test_dit.run(test_dit.model(weights, config, gpu(dtype)), *given, **OPTIONS[options])
    assert relative_l2(ours, want) <= BOUND[dtype]


def test_normalised_attention_guidance(dtype):
    given = test_dit.inputs(WIDE)
    away = np.random.default_rng(9).standard_normal((3, WIDE["text_dim"])).astype(np.float32)

    def run(device):
        model = test_dit.model(config=WIDE, device=device)
        return test_dit.run(model, *given, nag=(model.text(away), 4.0, 2.5, 0.25))

    assert relative_l2(run(gpu(dtype)), run(_core.Device())) <= BOUND[dtype]


@pytest.mark.parametrize("name", test_vae.CONFIGS)
def test_the_autoencoder_computes_what_the_cpu_does(name, dtype):
    config = test_vae.CONFIGS[name]
    z, bound = config.get("z_dim", 16), {"float32": 2e-5, "bfloat16": 1e-2}[dtype]  # float16 inside
    cpu, ours = test_vae.model(config=config), test_vae.model(config=config, device=gpu(dtype))
    time, space, *_ = cpu.stride
    video = test_vae.video(1 + 2 * time, 3 * space, 5 * space)
    latent = test_vae.latent(3, 4, 6, z)
    assert relative_l2(ours.encode(video), cpu.encode(video)) <= bound
    assert relative_l2(ours.decode(latent), cpu.decode(latent)) <= bound


@pytest.mark.parametrize("length", [1, 5, 40, 127])
def test_the_text_encoder_computes_what_the_cpu_does(length, dtype):
    config = test_umt5.CONFIG
    ids = np.random.default_rng(length).integers(0, config["vocab"], length)
    weights = _core.Weights(test_umt5.weights_of())
    encoders = [_core.TextEncoder(device, config, weights) for device in (_core.Device(), gpu(dtype))]
    want, ours = (encoder.encode(ids) for encoder in encoders)
    assert relative_l2(ours, want) <= {"float32": 2e-5, "bfloat16": 1e-1}[dtype]


def test_the_same_bytes_every_time(dtype):
    """On one device object, on a new one, and with a longer sequence in between."""
    given = test_dit.inputs(WIDE, size=(5, 16, 24))
    dit = test_dit.model(config=WIDE, device=gpu(dtype))
    first = test_dit.run(dit, *given)
    test_dit.run(dit, *test_dit.inputs(WIDE, size=(7, 16, 24)))
    assert np.array_equal(test_dit.run(dit, *given), first)
    assert np.array_equal(test_dit.run(test_dit.model(config=WIDE, device=gpu(dtype)), *given), first)


def test_two_devices_in_two_threads(dtype):
    given = [test_dit.inputs(WIDE, size=(3, 16, 24), seed=i) for i in range(2)]
    models = [test_dit.model(config=WIDE, device=gpu(dtype)) for _ in range(2)]
    want, wrong = [test_dit.run(m, *g) for m, g in zip(models, given)], []

    def work(i):
        for _ in range(30):
            if not np.array_equal(test_dit.run(models[i], *given[i]), want[i]):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_second_gpu_computes_the_same():
    try:
        second = gpu(number=1)
    except ValueError:
        pytest.skip("this machine has one GPU")
    given = test_dit.inputs(WIDE)
    first = test_dit.run(test_dit.model(config=WIDE, device=gpu()), *given)
    assert np.array_equal(test_dit.run(test_dit.model(config=WIDE, device=second), *given), first)


def test_a_sampler_on_the_gpu_follows_the_cpu(golden_dir):
    """Four steps of four branches; float32."""
    from ipvg import guidance, parity
    from ipvg.parity import recipe
    from ipvg.sampler import Sampler
    from ipvg.schedule import Schedule

    golden = parity.Golden(golden_dir, "dit")
    config = next(iter(golden.about["configs"].values()))
    weights = {name: golden.weight(name, shape) for name, shape in config["weights"].items()}
    latents = []
    for device in (_core.Device(), gpu()):
        model = _core.Dit(device, {**golden.about["common"], **config}, _core.Weights(weights))
        texts = {n: recipe.normal(n, (5, model.config["text_dim"])) for n in ("cond", "negative")}
        sampler = Sampler(model, texts, test_sampler.make_source(), guidance=guidance.tpige_code(),
                          schedule=Schedule(4, 5.0), seed=1)  # fmt: skip
        latents.append(sampler.run())
    assert relative_l2(latents[1], latents[0]) <= 1e-4


def test_cancel_stops_soon_and_the_model_goes_on():
    device = gpu("bfloat16")
    dit, given = test_dit.model(config=LONG, device=device), test_dit.inputs(LONG, size=LONG_SIZE)
    want = test_dit.run(dit, *given)
    began = time.perf_counter()
    test_dit.run(dit, *given)
    whole = time.perf_counter() - began
    stopped = []

    def work():
        began = time.perf_counter()
        try:
            while True:
                test_dit.run(dit, *given)
        except _core.Cancelled:
            stopped.append(time.perf_counter() - began)

    thread = threading.Thread(target=work)
    thread.start()
    time.sleep(1.25 * whole)
    began = time.perf_counter()
    while not device.cancel():
        pass
    thread.join(60)
    assert stopped and time.perf_counter() - began < whole, "more than half of a forward after cancel()"
    assert np.array_equal(test_dit.run(dit, *given), want)


CTRL_C = """
import sys
sys.path.insert(0, "tests")
import test_dit, test_gpu
dit = test_dit.model(config=test_gpu.LONG, device=test_gpu.gpu("bfloat16"))
given = test_dit.inputs(test_gpu.LONG, size=test_gpu.LONG_SIZE)
want = test_dit.run(dit, *given)
print("ready", flush=True)
try:
    while True:
        test_dit.run(dit, *given)
except KeyboardInterrupt:
    print("interrupted", flush=True)
print("equal" if (test_dit.run(dit, *given) == want).all() else "differs", flush=True)
"""


def test_ctrl_c_stops_a_forward():
    child = subprocess.Popen(
        [sys.executable, "-c", CTRL_C], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT) + os.pathsep + os.environ.get("PYTHONPATH", "")},
    )  # fmt: skip
    assert child.stdout.readline() == "ready\n", child.communicate()[1]
    time.sleep(0.3)
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=120)
    assert out == "interrupted\nequal\n", err
    assert "Traceback" not in err


def test_out_of_memory_is_an_exception_and_the_model_goes_on():
    dit, given = test_dit.model(config=WIDE, device=gpu()), test_dit.inputs(WIDE)
    want = test_dit.run(dit, *given)
    frames, side = 64, 512  # 4 million tokens: their feed-forward net alone is larger than any GPU
    context = dit.context(np.zeros((WIDE["vace_in_dim"], 1, side, side), np.float32), frames=frames)
    with pytest.raises(MemoryError, match="MiB"):
        dit.forward(np.zeros((16, frames, side, side), np.float32), 500, dit.text(given[2]), context)
    assert np.array_equal(test_dit.run(dit, *given), want)

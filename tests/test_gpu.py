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


@pytest.mark.parametrize("words", [20, 255, 256])
def test_short_and_long_texts(words, dtype):
    """Padding is one row that counts often; in 16 bits only where no more than 256 rows remain."""
    config, rows = WIDE | {"text_len": 300}, {}
    given, weights = test_dit.inputs(config, text=words), test_dit.weights_of(config)
    dit = test_dit.model(weights, config, gpu(dtype))
    dit.text(given[2], trace=rows.__setitem__)
    assert len(rows["text_rows"]) == (300 if words == 256 and dtype == "bfloat16" else words // 8 * 8 + 8)
    assert relative_l2(test_dit.run(dit, *given), test_dit.run(test_dit.model(weights, config), *given)) <= BOUND[dtype]


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


def test_a_small_forward_is_replayed_to_the_same_bytes(dtype):
    """A set of branches is one graph from its second run on. Its velocities are those of forwards that stand alone,
    whatever comes in between: other branches, other scales, other scratch."""
    from ipvg.schedule import Schedule

    device = gpu(dtype)
    config = test_dit.CONFIG | {"out_dim": test_dit.CONFIG["in_dim"]}
    dit, (x, _, text, context) = test_dit.model(config=config, device=device), test_dit.inputs(config)
    texts, context = (dit.text(text), dit.text(-text)), dit.context(context, frames=x.shape[1])
    schedule, options = Schedule(12, 5.0)._core, [{}, {"scale": (1.0, 1.0, 1.0)}]
    branches = [(texts[b], context, options[b], False, 0) for b in (0, 1)]
    both = [k % 5 < 3 for k in range(12)]
    run = _core.Sampler(dit, schedule, branches, np.array([[2, -1 * two] for two in both], np.float32), x)
    for k, two in enumerate(both):
        if k == 6:
            options[1] = {"scale": (0.5, 0.0, 1.5)}
            run.set_scale(1, options[1]["scale"])
        if k == 8:
            device.release()
        x = np.array(run.tensor("latent"))
        run.step()
        for b in range(1 + two):
            alone = dit.forward(x, float(schedule.timesteps[k]), texts[b], context, **options[b])
            assert np.array_equal(np.asarray(run.tensor(b)), alone), (k, b)


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
    config = WIDE | {"num_heads": 32}
    dit, given = test_dit.model(config=config, device=gpu()), test_dit.inputs(config)
    want = test_dit.run(dit, *given)
    frames, side = 384, 512  # 25 million tokens, whose scratch is 336 GiB: what fits would be computed, for hours
    with pytest.raises(MemoryError, match="MiB"):
        context = dit.context(np.zeros((WIDE["vace_in_dim"], 1, side, side), np.float32), frames=frames)
        dit.forward(np.zeros((16, frames, side, side), np.float32), 500, dit.text(given[2]), context)
    assert np.array_equal(test_dit.run(dit, *given), want)


# ---- beside PyTorch on the same GPU ----


def small_sampler(golden_dir, device, **settings):
    from ipvg import guidance, parity
    from ipvg.parity import recipe
    from ipvg.sampler import Sampler
    from ipvg.schedule import Schedule

    golden = parity.Golden(golden_dir, "dit")
    config = next(iter(golden.about["configs"].values()))
    weights = {name: golden.weight(name, shape) for name, shape in config["weights"].items()}
    model = _core.Dit(device, {**golden.about["common"], **config}, _core.Weights(weights))
    texts = {n: recipe.normal(n, (5, model.config["text_dim"])) for n in ("cond", "negative")}
    settings = {} if "noise" in settings else {"seed": 1}, settings
    return Sampler(model, texts, test_sampler.make_source(), guidance=guidance.tpige_code(), schedule=Schedule(4, 5.0),
                   **settings[0], **settings[1])  # fmt: skip


@pytest.fixture
def torch():
    module = pytest.importorskip("torch")
    if not module.cuda.is_available():
        pytest.skip("this PyTorch has no GPU")
    return module


@pytest.fixture(params=["default stream", "own stream"])
def stream(request, torch):
    with torch.cuda.stream(torch.cuda.Stream() if request.param == "own stream" else torch.cuda.default_stream()):
        yield


def busy(torch):
    """Work that keeps the current stream busy for some 100 ms: what is queued behind it comes late."""
    x = torch.randn(4096, 4096, device="cuda")
    for _ in range(60):
        x = x @ x / 64
    return x


def test_torch_shares_the_memory(golden_dir, torch, stream):
    sampler = small_sampler(golden_dir, gpu())
    step = next(sampler)
    first, again = torch.from_dlpack(step.tensors.x0), torch.from_dlpack(step.tensors.x0)
    assert first.is_cuda and first.data_ptr() == again.data_ptr() and first.dtype == torch.float32
    assert np.array_equal(first.cpu().numpy(), step.x0)
    cut = torch.from_dlpack(sampler.latents_tensor)
    whole = torch.from_dlpack(step.tensors.latent)
    assert cut.data_ptr() == whole[:, 1:].data_ptr() and cut.stride() == whole[:, 1:].stride()
    assert np.array_equal(cut.cpu().numpy(), sampler.latents)
    del sampler, step
    assert torch.isfinite(first).all()  # the memory stays while somebody holds it


def test_torch_edits_a_velocity_in_place_or_returns_one(golden_dir, torch, stream):
    """Both give the bytes of the way over the host, though torch's work comes late and nobody waits for it."""

    def over_the_host(seen):
        return {name: np.float32(0.5) * v for name, v in seen.velocity.items()}

    def in_place(seen):
        busy(torch)
        for tensor in seen.tensors.velocity.values():
            torch.from_dlpack(tensor).mul_(0.5)

    def returned(seen):
        busy(torch)
        return {name: 0.5 * torch.from_dlpack(tensor) for name, tensor in seen.tensors.velocity.items()}

    want = small_sampler(golden_dir, gpu(), edit_velocity=over_the_host).run()
    assert np.array_equal(small_sampler(golden_dir, gpu(), edit_velocity=in_place).run(), want)
    assert np.array_equal(small_sampler(golden_dir, gpu(), edit_velocity=returned).run(), want)


def test_torch_reads_late_what_the_next_step_overwrites(golden_dir, torch, stream):
    sampler, copies, want = small_sampler(golden_dir, gpu()), [], []
    for step in sampler:
        busy(torch)
        copies.append(torch.from_dlpack(step.tensors.latent).clone())
    for step in small_sampler(golden_dir, gpu()):
        want.append(step.latent)
    assert all(np.array_equal(c.cpu().numpy(), w) for c, w in zip(copies, want, strict=True))


@pytest.mark.parametrize("kind", ["float32", "bfloat16", "float16", "strided", "expanded"])
def test_what_torch_made_is_taken_on_the_gpu(golden_dir, torch, stream, kind):
    from ipvg.sampler import noise

    sampler = small_sampler(golden_dir, gpu())
    start = torch.from_numpy(noise(3, sampler.source.latent_shape)).cuda()
    given = {
        "float32": lambda: start + 0,
        "bfloat16": lambda: start.bfloat16(),
        "float16": lambda: start.half(),
        "strided": lambda: start.repeat_interleave(2, 1)[:, ::2],
        "expanded": lambda: start[:1].expand(start.shape),
    }[kind]
    want = given().float().cpu().numpy()
    busy(torch)
    sampler.latent = given()
    assert np.array_equal(sampler.latent, want)
    held = torch.from_dlpack(sampler.latents_tensor.copy())
    assert held.is_contiguous()
    busy(torch)
    held.fill_(float("nan"))
    with pytest.raises(ValueError, match="NaN"):
        sampler.latent = torch.cat([held[:, :1], held], 1)
    assert np.array_equal(sampler.latent, want)


def test_the_autoencoder_decodes_where_the_latent_lies(torch, stream, dtype):
    config = test_vae.CONFIGS[next(iter(test_vae.CONFIGS))]
    vae = test_vae.model(config=config, device=gpu(dtype))
    latent = test_vae.latent(3, 4, 6, config.get("z_dim", 16))
    there = torch.from_numpy(latent).cuda()
    busy(torch)
    assert np.array_equal(vae.decode(there * 1), vae.decode(latent))
    time, space, *_ = vae.stride
    video = test_vae.video(1 + 2 * time, 3 * space, 5 * space)
    assert np.array_equal(vae.encode(torch.from_numpy(video).cuda() * 1), vae.encode(video))


def test_a_cpu_model_does_not_take_what_lies_on_a_gpu(golden_dir, torch):
    with pytest.raises(ValueError, match="lies on DLPack's device"):
        small_sampler(golden_dir, _core.Device()).latent = torch.zeros(16, 4, 6, 8, device="cuda")


def test_a_step_reads_nothing_that_nobody_asks_for(golden_dir, torch):
    """A whole run copies nothing to the host; one look at one array is one copy."""
    sampler = small_sampler(golden_dir, gpu())
    next(sampler)

    def copies(work):
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA], acc_events=True) as profile:
            work()
            torch.cuda.synchronize()
        return sum("DtoH" in event.name for event in profile.events())

    assert copies(lambda: [next(sampler) for _ in range(2)]) == 0
    step = next(sampler)
    assert copies(lambda: step.x0) == 1

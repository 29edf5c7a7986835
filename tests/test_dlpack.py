"""Arrays shared with other libraries: the same memory, in the right order of time, given back once; and nothing that
another library says is believed unchecked. IPVG_DEVICE=cuda: on the emulated GPU, where tests/lender.py is that."""

import gc
import os
import random
import sys

import numpy as np
import pytest
from lender import CPU, CUDA, Gpu, Lender, look, name_of, take
from test_sampler import make_source

from ipvg import _core, guidance, parity
from ipvg.parity import recipe
from ipvg.sampler import Sampler, noise
from ipvg.schedule import Schedule

WHERE = os.environ.get("IPVG_DEVICE", "cpu")
on_the_host = pytest.mark.skipif(WHERE != "cpu", reason="of the host's memory alone")
on_the_device = pytest.mark.skipif(WHERE == "cpu", reason="the emulated device, see test_cuda.py")


@pytest.fixture(scope="module")
def device():
    return _core.Device(WHERE)


@pytest.fixture(scope="module")
def model(golden_dir, device):
    golden = parity.Golden(golden_dir, "dit")
    config = next(iter(golden.about["configs"].values()))
    weights = {name: golden.weight(name, shape) for name, shape in config["weights"].items()}
    return _core.Dit(device, {**golden.about["common"], **config}, _core.Weights(weights))


@pytest.fixture(scope="module")
def texts(model):
    return {name: recipe.normal(f"dlpack/{name}", (5, model.config["text_dim"])) for name in ("cond", "negative")}


@pytest.fixture
def make(model, texts):
    def make(**settings):
        job = {"source": make_source(frames=5, size=(32, 32)), "guidance": guidance.cfg(4.0)}
        settings = {"seed": 1, "schedule": Schedule(2, 8.0), **job, **settings}
        if "noise" in settings:
            del settings["seed"]
        return Sampler(model, settings.pop("texts", texts), settings.pop("source"), **settings)

    return make


# ---- out ----


@on_the_host
def test_numpy_shares_the_memory_and_may_not_write_to_it(make):
    sampler = make()
    step = next(sampler)
    for name in ("latent", "combined", "x0"):
        tensor, array = getattr(step.tensors, name), getattr(step, name)
        there = np.from_dlpack(tensor)
        assert there.ctypes.data == array.ctypes.data and there.strides == array.strides
        assert not there.flags.writeable and not tensor.writable
        assert np.array_equal(there, array) and there.shape == tensor.shape and tensor.dtype == there.dtype
    assert list(step.tensors.velocity) == list(step.velocity)
    assert np.from_dlpack(step.tensors.velocity["cond"]).ctypes.data == step.velocity["cond"].ctypes.data
    held, before = np.from_dlpack(step.tensors.latent), step.latent.copy()
    next(sampler)
    assert not np.array_equal(held, before)  # the sampler's own memory, which the next step writes to
    assert np.array_equal(held, sampler.latent)


def test_latents_without_the_references_are_a_strided_tensor(make):
    sampler = make()
    tensor = sampler.latents_tensor
    assert tensor.shape == sampler.latents.shape
    assert np.array_equal(np.asarray(tensor), np.asarray(sampler.latent)[:, 1:])
    assert np.array_equal(np.asarray(tensor.copy()), np.asarray(tensor))
    _, f, h, w = sampler.latent.shape
    assert look(tensor.__dlpack__(max_version=(1, 0))).strides == (f * h * w, h * w, w, 1)


def test_what_a_capsule_says(make):
    tensor = make().step().tensors.x0
    new = look(capsule := tensor.__dlpack__(max_version=(1, 3)))
    assert name_of(capsule) == "dltensor_versioned" and new.version == 1
    assert new.flags == 1  # read-only
    assert new.device == tensor.__dlpack_device__() == (CPU if WHERE == "cpu" else CUDA)
    assert new.dtype == (2, 32, 1) and new.offset == 0 and new.shape == tensor.shape
    own = tensor.copy()
    assert own.writable and name_of(own.__dlpack__()) == "dltensor"
    copied = look(held := tensor.__dlpack__(max_version=(1, 0), copy=True))
    assert copied.flags == 2 and copied.data != new.data
    del held


def test_an_older_library_cannot_be_told_that_it_must_not_write(make):
    tensor = make().step().tensors.x0
    for options in ({}, {"max_version": None}, {"max_version": (0, 8)}):
        with pytest.raises(BufferError, match=r"read-only.*tensor\.copy\(\)"):
            tensor.__dlpack__(**options)
        assert name_of(tensor.__dlpack__(copy=True, **options)) == "dltensor"


@pytest.mark.parametrize(
    "options, error, text",
    [
        ({"max_version": 1}, TypeError, "max_version"),
        ({"max_version": (1, "0")}, TypeError, None),
        ({"dl_device": 1}, TypeError, "dl_device"),
        ({"dl_device": (4, 0)}, BufferError, "dl_device"),
        ({"dl_device": (2, 7)}, BufferError, "dl_device"),
        ({"stream": 0}, ValueError, "stream"),
        ({"stream": "main"}, (TypeError, ValueError), "stream"),
        ({"stream": -2}, ValueError, "stream"),
        ({"unknown": 3}, TypeError, "unknown"),
    ],
)
def test_what_a_consumer_may_not_ask_for(make, options, error, text):
    tensor = make().step().tensors.x0
    with pytest.raises(error, match=text):
        tensor.__dlpack__(**{"max_version": (1, 0)} | options)


def test_memory_outlives_the_sampler_while_somebody_holds_it(make):
    sampler = make()
    tensor = next(sampler).tensors.x0
    core = sampler._core
    held = take(tensor.__dlpack__(max_version=(1, 0)))
    unused = tensor.__dlpack__(max_version=(1, 0))
    del sampler, tensor
    gc.collect()
    holders = sys.getrefcount(core)
    del unused  # nobody took it: its end gives it back
    held.give_back()
    gc.collect()
    assert sys.getrefcount(core) == holders - 1  # the one Tensor that both capsules held


@on_the_host
def test_numpy_gives_it_back(make):
    core = (sampler := make())._core
    next(sampler)
    before = sys.getrefcount(core)
    arrays = [np.from_dlpack(core.tensor("x0")) for _ in range(10)]
    assert sys.getrefcount(core) == before + 10
    del arrays
    assert sys.getrefcount(core) == before


def test_reading(make):
    tensor = make().step().tensors.x0
    array = np.asarray(tensor)
    assert not array.flags.writeable and array.dtype == np.float32
    assert np.array(tensor).flags.writeable and np.array_equal(np.array(tensor), array)
    assert np.asarray(tensor, np.float64).dtype == np.float64
    assert repr(tensor).startswith("<Tensor float32 (")
    host = np.from_dlpack(tensor, device="cpu", copy=True if WHERE != "cpu" else None)
    assert np.array_equal(host, array)
    with pytest.raises(ValueError, match="copy"):
        np.asarray(tensor, np.float64, copy=False)
    with pytest.raises(TypeError):
        type(tensor)()


# ---- in ----

KINDS = {
    "plain": lambda a: Lender(a),
    "old": lambda a: Lender(a, versioned=False),
    "no strides": lambda a: Lender(a, strides=None),
    "offset": lambda a: Lender(a, address=a.ctypes.data - 64, offset=64),
    "pinned": lambda a: Lender(a, device=(3, 0)),
    "double": lambda a: Lender(a.astype(np.float64)),
    "swapped axes": lambda a: Lender(np.ascontiguousarray(a.swapaxes(0, 1)).swapaxes(0, 1)),
    "cut": lambda a: Lender(np.repeat(a, 2, axis=1)[:, ::2]),
    "backwards": lambda a: Lender(np.ascontiguousarray(a[:, ::-1])[:, ::-1]),
}


@on_the_host
@pytest.mark.parametrize("kind", KINDS)
def test_every_array_that_a_stage_takes_may_be_lent_by_the_host(make, model, device, texts, kind):
    lenders = []

    def lend(array):
        lenders.append(KINDS[kind](array))
        return lenders[-1]

    start = noise(3, make().source.latent_shape)
    plain, ours = make(noise=start), make(noise=lend(start), texts={n: lend(t) for n, t in texts.items()})
    ours.latent = lend(start)
    plain.latent = start
    assert np.array_equal(plain.run(), ours.run())

    context = plain.source.context
    text = model.text(texts["cond"])
    want = model.forward(start, 300, text, model.context(context))
    assert np.array_equal(model.forward(lend(start), 300, text, model.context(lend(context))), want)

    schedule = Schedule(2)._core
    velocity = noise(5, start.shape)
    solvers = [_core.Solver(device, schedule, start), _core.Solver(device, schedule, lend(start))]
    assert np.array_equal(solvers[0].step(velocity), solvers[1].step(lend(velocity)))
    del ours, solvers
    assert lenders and all(lender.given_back == lender.lent == 1 for lender in lenders)


@on_the_host
def test_bfloat16_of_the_host_is_widened(make):
    start = noise(3, make().source.latent_shape)
    halved = start.view(np.uint32) >> 16
    want = (halved << 16).view(np.float32)
    lender = Lender(halved.astype(np.uint16), code=4)
    assert np.array_equal(make(noise=lender).latent, want)
    assert lender.given_back == 1


@on_the_host
def test_the_autoencoder_takes_them_too(golden_dir, device):
    golden = parity.Golden(golden_dir, "vae")
    weights = {name: golden.weight(name, shape) for name, shape in golden.data["weights"]["shapes"].items()}
    latent = golden.data["latent"]
    config = golden.data["config"] | {"mean": latent["mean"], "std": latent["std"]}
    vae = _core.Vae(device, config, _core.Weights(weights))
    frames = recipe.uniform("dlpack/frames", (3, 5, 16, 24)).astype(np.float32)
    z = vae.encode(frames)
    assert np.array_equal(vae.encode(Lender(frames)), z)
    made = vae.decode(z)
    lender = Lender(z)
    assert np.array_equal(vae.decode(lender), made) and lender.given_back == 1
    stream = vae.decode_stream(lender)
    assert lender.given_back == 1  # it holds what it decodes
    assert np.array_equal(np.concatenate(list(stream), axis=1), made)
    del stream
    assert lender.given_back == 2


@on_the_host
def test_hooks_write_in_place(make):
    """What a hook writes counts as what it returns."""
    def returned(seen):
        return {name: 0.5 * v for name, v in seen.velocity.items()}

    def written(seen):
        for tensor in seen.tensors.velocity.values():
            assert tensor.writable
            array = np.from_dlpack(tensor)
            array *= np.float32(0.5)

    def returned_sum(seen):
        return seen.combined + np.float32(1)

    def written_sum(seen):
        assert not any(t.writable for t in seen.tensors.velocity.values()) and not seen.tensors.latent.writable
        array = np.from_dlpack(seen.tensors.combined)
        array += np.float32(1)

    want = make(edit_velocity=returned, edit_combined=returned_sum).run()
    assert np.array_equal(make(edit_velocity=written, edit_combined=written_sum).run(), want)
    assert not np.array_equal(make().run(), want)


def test_a_hook_may_return_the_tensor_that_it_was_given(make):
    want = make().run()
    assert np.array_equal(make(edit_velocity=lambda seen: dict(seen.tensors.velocity)).run(), want)
    ours = make(edit_velocity=lambda seen: {n: t.copy() for n, t in seen.tensors.velocity.items()})
    assert np.array_equal(ours.run(), want)


# ---- what is not believed ----


def capsule_of(value):
    return lambda: value


HOSTILE = {
    "no capsule": ({"answer": capsule_of("x")}, BufferError, "DLPack capsule"),
    "None": ({"answer": capsule_of(None)}, BufferError, "DLPack capsule"),
    "another capsule": ({"name": b"arrow_array"}, BufferError, "nobody has used"),
    "a used one": ({"name": b"used_dltensor"}, BufferError, "nobody has used"),
    "DLPack 2": ({"major": 2}, BufferError, "DLPack 2"),
    "four lanes": ({"lanes": 4}, TypeError, "dtype"),
    "4 bits": ({"bits": 4}, TypeError, "dtype"),
    "complex": ({"code": 5, "bits": 64}, TypeError, "dtype"),
    "bool": ({"code": 6, "bits": 8}, TypeError, "dtype"),
    "unknown code": ({"code": 99}, TypeError, "dtype"),
    "three dimensions": ({"ndim": 3}, ValueError, "shape"),
    "-1 dimensions": ({"ndim": -1}, ValueError, "shape"),
    "2 billion dimensions": ({"ndim": 2**31 - 1}, ValueError, "shape"),
    "no shape": ({"shape": None}, ValueError, "shape"),
    "a negative side": ({"shape": [16, -3, 4, 4]}, ValueError, "shape"),
    "a huge side": ({"shape": [2**62, 3, 4, 4]}, ValueError, "shape"),
    "no memory": ({"data": None}, ValueError, "memory"),
    "between two floats": ({"offset": 2}, ValueError, "aligned"),
    "a GPU's capsule": ({"type": 2}, BufferError, "device"),
    "an FPGA": ({"device": (4, 0)}, ValueError, "DLPack's device"),
    "a GPU that is not the model's": ({"device": (2, 5)}, ValueError, "DLPack's device"),
    "no device": ({"device": None}, TypeError, "__dlpack_device__"),
    "half a device": ({"device": (1,)}, TypeError, "__dlpack_device__"),
}


@on_the_host
@pytest.mark.parametrize("what", HOSTILE)
def test_hostile(make, what):
    changes, error, text = HOSTILE[what]
    sampler = make()
    before = sampler.latent.copy()
    lender = Lender(noise(3, before.shape), **changes)
    if what == "no device":
        lender.__class__ = type("Deviceless", (Lender,), {"__dlpack_device__": lambda self: 3})
    with pytest.raises(error, match=text):
        sampler.latent = lender
    assert np.array_equal(sampler.latent, before)
    gc.collect()
    unread = what in ("another capsule", "a used one", "DLPack 2")  # a capsule that nobody took has its own end
    assert lender.given_back == (0 if unread else lender.lent)


@on_the_host
def test_an_error_of_the_lender_is_what_the_caller_sees(make):
    def fail():
        raise ConnectionError("out of reach")

    with pytest.raises(ConnectionError, match="out of reach"):
        make().latent = Lender(noise(3, make().source.latent_shape), answer=fail)


@on_the_host
def test_a_capsule_is_taken_once(make):
    sampler = make()
    lender = Lender(noise(3, sampler.latent.shape))
    capsule = lender.__dlpack__()
    lender.answer = lambda: capsule
    sampler.latent = lender
    with pytest.raises(BufferError, match="nobody has used"):
        sampler.latent = lender
    assert lender.given_back == 1


@on_the_host
def test_not_finite_is_refused(make):
    sampler = make()
    before = sampler.latent.copy()
    for bad in (np.nan, np.inf, -np.inf):
        values = noise(3, before.shape)
        values[-1, -1, -1, -1] = bad
        with pytest.raises(ValueError, match=r"latent: .*(finite|NaN)"):
            sampler.latent = Lender(values)
    assert np.array_equal(sampler.latent, before)


@on_the_host
@pytest.mark.parametrize("seed", range(20))
def test_fields_at_random(make, seed):
    """An exception or the right values, never a crash, and the memory always given back."""
    rng, sampler = random.Random(seed), make()
    values = noise(3, sampler.latent.shape)
    extreme = [0, 1, -1, 2, 3, 5, 2**15, 2**31 - 1]
    fields = {
        "code": lambda: rng.randrange(256), "bits": lambda: rng.choice([0, 1, 4, 8, 16, 31, 32, 33, 128, 255]),
        "lanes": lambda: rng.choice([0, 1, 65535]), "ndim": lambda: rng.choice([*extreme, -(2**31)]),
        "type": lambda: rng.choice(extreme), "id": lambda: rng.choice(extreme),
        "shape": lambda: [rng.choice([*values.shape, 0, -1, 2**63 - 1]) for _ in range(8)],
        "flags": lambda: rng.randrange(2**32), "minor": lambda: rng.randrange(2**31), "data": lambda: None,
    }  # fmt: skip
    for _ in range(50):
        changes = {name: fields[name]() for name in rng.sample(list(fields), rng.choice([1, 2, 3]))}
        changes.pop("shape", None) if changes.get("ndim", 4) > 8 else None
        lender = Lender(values, **changes)
        try:
            sampler.latent = lender
        except (BufferError, TypeError, ValueError):
            pass
        else:
            assert np.array_equal(sampler.latent, values) or changes.get("code") == 4 or "bits" in changes, changes
        assert lender.given_back == lender.lent, changes


# ---- streams ----


@pytest.fixture
def gpu():
    return Gpu()


def on_gpu(gpu, array, **changes):
    address = gpu.memory(array.nbytes)
    lender = Lender(array, device=CUDA, address=address, **changes)
    lender.on_lend = lambda stream: (gpu.write(address, array), gpu.order(stream, gpu.stream))

    def spoil():  # the memory is the lender's again
        gpu.write(address, np.full(array.size * array.itemsize // 4, np.nan, np.float32))
        gpu.wait()

    lender.on_return = spoil
    return lender


@on_the_device
def test_the_consumer_s_stream_waits_for_ours(make, gpu):
    sampler = make()
    step = next(sampler)
    want = step.x0.copy()
    held = take(step.tensors.x0.__dlpack__(stream=gpu.stream, max_version=(1, 0)))
    seen = gpu.read(held.data, want.shape)
    next(sampler)  # which waits for that reading, though nobody else has
    assert np.array_equal(seen, want)
    held.give_back()


@on_the_device
def test_predictions_seen_by_a_hook_are_complete_on_its_stream(make, gpu):
    """Nobody waits on the host between the forward and the hook's reading."""
    want, seen = [], []

    def hook(prediction):
        held = take(prediction.tensors.velocity["cond"].__dlpack__(stream=gpu.stream, max_version=(1, 0)))
        seen.append(gpu.read(held.data, held.shape))
        gpu.wait()
        held.give_back()

    for step in make():
        want.append(step.velocity["cond"].copy())
    make(edit_velocity=hook).run()
    assert len(seen) == 2 and all(np.array_equal(a, b) for a, b in zip(seen, want, strict=True))


@on_the_device
def test_a_hook_writes_on_its_own_stream(make, gpu):
    half = {}

    def returned(prediction):
        half[prediction.index] = {name: np.float32(0.5) * v for name, v in prediction.velocity.items()}
        return half[prediction.index]

    def written(prediction):
        for name, tensor in prediction.tensors.velocity.items():
            held = take(tensor.__dlpack__(stream=gpu.stream, max_version=(1, 0)))
            gpu.write(held.data, half[prediction.index][name])  # queued; it is ours to wait
            held.give_back()

    want = make(edit_velocity=returned).run()
    assert np.array_equal(make(edit_velocity=written).run(), want)


@on_the_device
@pytest.mark.parametrize("kind", ["plain", "old", "half", "strided", "strided half"])
def test_what_lies_on_the_gpu_is_taken_there(make, model, texts, gpu, kind):
    lenders = []
    exact = lambda a: a.astype(np.float16).astype(np.float32) if "half" in kind else a  # noqa: E731

    def lend(array):
        array = array.astype(np.float16) if "half" in kind else array
        if "strided" in kind:
            whole = np.repeat(array, 2, axis=0)
            rows = [s // array.itemsize for s in array.strides[1:]]
            lender = on_gpu(gpu, whole, shape=array.shape, strides=[2 * array[0].size, *rows])
        else:
            lender = on_gpu(gpu, array, versioned=kind != "old")
        lenders.append(lender)
        return lender

    start = exact(noise(3, make().source.latent_shape))
    names = {name: exact(text) for name, text in texts.items()}
    plain, ours = make(noise=start, texts=names), make(noise=lend(start), texts={n: lend(t) for n, t in names.items()})
    assert np.array_equal(plain.latent, ours.latent)
    assert np.array_equal(plain.run(), ours.run())
    velocity = exact(noise(9, start.shape))
    runs = [make(edit_combined=lambda seen: velocity).run(), make(edit_combined=lambda seen: lend(velocity)).run()]
    assert np.array_equal(*runs)
    context = exact(plain.source.context)
    text = model.text(names["cond"])
    want = model.forward(start, 300, text, model.context(context))
    assert np.array_equal(model.forward(lend(start), 300, text, model.context(lend(context))), want)
    assert all(lender.given_back == lender.lent == 1 for lender in lenders)
    assert all(stream not in (None, 0) for lender in lenders for stream in lender.streams)


@on_the_device
def test_not_finite_on_the_gpu_is_refused(make, gpu):
    sampler = make()
    before = sampler.latent.copy()
    for bad in (np.nan, np.inf):
        values = noise(3, before.shape)
        values[0, 0, 0, 0] = bad
        lender = on_gpu(gpu, values)
        with pytest.raises(ValueError, match="latent: holds NaN"):
            sampler.latent = lender
        assert lender.given_back == 1
    assert np.array_equal(sampler.latent, before)


@on_the_device
def test_dtypes_and_layouts_that_the_gpu_does_not_convert(make, gpu):
    sampler = make()
    for array in (np.zeros(sampler.latent.shape), np.zeros(sampler.latent.shape, np.int32)):
        with pytest.raises(TypeError, match="latent: on a GPU expected float32, bfloat16 or float16"):
            sampler.latent = on_gpu(gpu, array)


@on_the_device
def test_the_autoencoder_decodes_what_lies_there(golden_dir, device, gpu):
    golden = parity.Golden(golden_dir, "vae")
    weights = {name: golden.weight(name, shape) for name, shape in golden.data["weights"]["shapes"].items()}
    latent = golden.data["latent"]
    config = golden.data["config"] | {"mean": latent["mean"], "std": latent["std"]}
    vae = _core.Vae(device, config, _core.Weights(weights))
    z = recipe.normal("dlpack/latent", (config["z_dim"], 2, 2, 3))
    want = vae.decode(z)
    lender = on_gpu(gpu, z)
    assert np.array_equal(vae.decode(lender), want) and lender.given_back == 1
    frames = recipe.uniform("dlpack/frames", (3, 5, 16, 24)).astype(np.float32)
    assert np.array_equal(vae.encode(on_gpu(gpu, frames)), vae.encode(frames))
    cpu = _core.Vae(_core.Device(), config, _core.Weights(weights))
    assert parity.relative_l2(want, cpu.decode(z)) < 2e-5


@on_the_device
def test_a_tensor_of_the_gpu_is_not_taken_by_a_model_on_the_cpu(make, golden_dir):
    tensor = make().step().tensors.latent
    with pytest.raises(ValueError, match="lies on DLPack's device"):
        _core.Solver(_core.Device(), Schedule(2)._core, tensor)
    assert np.array_equal(_core.Solver(_core.Device(), Schedule(2)._core, np.asarray(tensor)).x, np.asarray(tensor))

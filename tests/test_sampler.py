"""The denoising loop: what it computes, what it leaves out, what it shows, and how it can be stopped."""

import ctypes
import gc
import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from ipvg import _core, guidance, parity
from ipvg.guidance import Branch, Guidance
from ipvg.parity import recipe
from ipvg.sampler import Sampler, noise
from ipvg.schedule import Schedule
from ipvg.source import Source

ROOT = Path(__file__).resolve().parent.parent


def make_model(golden_dir, threads=1):
    """A transformer of random weights: the first one that the golden files describe."""
    golden = parity.Golden(golden_dir, "dit")
    config = next(iter(golden.about["configs"].values()))
    weights = {name: golden.weight(name, shape) for name, shape in config["weights"].items()}
    return _core.Dit(_core.Device(threads=threads), {**golden.about["common"], **config}, _core.Weights(weights))


def make_source(frames=9, size=(64, 48), references=1):
    shape = (96, references + 1 + (frames - 1) // 4, size[1] // 8, size[0] // 8)
    return Source(recipe.normal("sampler/context", shape), references, frames, size)


@pytest.fixture(scope="module")
def model(golden_dir):
    return make_model(golden_dir)


@pytest.fixture(scope="module")
def texts(model):
    width = model.config["text_dim"]
    lengths = {"cond": 12, "negative": 40, "null": 1}
    return {name: recipe.normal(f"sampler/{name}", (n, width)) for name, n in lengths.items()}


@pytest.fixture
def make(model, texts):
    def make(rule=None, steps=4, **settings):
        settings = {"schedule": Schedule(steps, 16.0), "seed": 1, "source": make_source()} | settings
        if "noise" in settings:
            del settings["seed"]
        return Sampler(settings.pop("model", model), settings.pop("texts", texts), settings.pop("source"),
                       guidance=rule or guidance.tpige_code(), **settings)  # fmt: skip

    return make


def digest(sampler):
    return hashlib.sha256(b"".join(step.latent.tobytes() for step in sampler)).hexdigest()


# ---- what it computes ----


def test_every_golden_case_agrees(golden_dir):
    results = parity.run(golden_dir, ["endtoend"])
    assert [r for r in results if not r.ok] == []
    assert len(results) > 100


@pytest.mark.parametrize("solver", ["unipc", "dpmpp", "euler"])
@pytest.mark.parametrize("name", ["none", "cfg", "tpige_code", "tpige_figure", "tpige_aligned", "mine"])
def test_a_run_is_what_its_parts_give_one_by_one(model, texts, make, name, solver):
    """Forward each branch alone, weigh in float64, solve alone: the loop adds nothing of its own."""
    mine = Guidance(
        {
            "a": Branch(skip_blocks=[0, 3], keep_hint=True, context_scale=0.5),
            "b": Branch("null", "absent"),
            "c": Branch(),
        },
        "(a + 2*b)/3 + q*(c - b)",
        q=[1, 0, -2],
    )
    rule = mine if name == "mine" else guidance.PRESETS[name]()
    source, schedule = make_source(references=2), Schedule(3, 8.0, solver)
    sampler = make(rule, source=source, schedule=schedule)
    start = noise(1, source.latent_shape)
    solve = schedule.start(start)
    coefficients = rule.coefficients(schedule)
    assert np.array_equal(sampler.latent, start)
    for step in sampler:
        k = step.index
        velocity = {
            key: model.forward(
                solve.x.copy(), int(schedule.timesteps[k]), model.text(texts[b.text]),
                model.context(source.variant(b.reference), frames=source.latent_shape[1]),
                skip=b.skip_blocks, keep_hint=b.keep_hint, scale=b.context_scale,
            )
            for key, b in rule.branches.items()
        }  # fmt: skip
        combined = sum(coefficients[key][k] * v.astype(np.float64) for key, v in velocity.items())
        assert step.sigma == schedule.sigmas[k] and step.timestep == schedule.timesteps[k]
        assert step.weights == {key: np.float32(c[k]) for key, c in coefficients.items() if c[k]}
        for key in step.velocity:
            assert parity.relative_l2(step.velocity[key], velocity[key]) < 1e-5
        # Guidance weighs differences up to 8 times; two runs of the same float32 code agree far better than that.
        assert parity.relative_l2(step.combined, combined) < 1e-5
        solve.step(combined)
        assert parity.relative_l2(step.x0, solve.x0) < 1e-5
        assert parity.relative_l2(step.latent, solve.x) < 1e-5
    assert sampler.done and np.array_equal(sampler.latents, sampler.latent[:, 2:])


def test_x0_is_the_latent_less_sigma_times_velocity(make):
    sampler = make()
    before = sampler.latent.copy()
    for step in sampler:
        np.testing.assert_allclose(step.x0, before - np.float32(step.sigma) * step.combined, atol=1e-6, rtol=1e-6)
        before = step.latent.copy()


def test_a_branch_of_weight_zero_is_not_computed(make):
    rule = guidance.tpige_code(s=[0.5, 0, 0, 0.5])
    sampler = make(rule)
    assert sampler.forwards_total == 10
    counts = [(sampler.forwards, set(step.velocity)) for step in sampler]
    everything = {"cond", "uncond", "weak"}
    assert counts == [(3, everything), (5, everything - {"weak"}), (7, everything - {"weak"}), (10, everything)]


def test_a_branch_that_never_counts_needs_no_text(make, texts):
    sampler = make(guidance.cfg(w=1), texts={"cond": texts["cond"]})
    for step in sampler:
        with pytest.raises(KeyError, match="'uncond'"):
            step.velocity["uncond"]
    assert sampler.forwards == 4
    with pytest.raises(ValueError, match="'uncond' needs 'negative'; given: cond"):
        make(guidance.cfg(w=[1, 1, 1, 2]), texts={"cond": texts["cond"]})


def test_weight_zero_equals_leaving_the_branch_out(make):
    assert digest(make(guidance.tpige_code(w=5, s=0))) == digest(make(guidance.cfg(5)))


def test_control_has_the_weight_it_says(make):
    """Where the weak branch does nothing (no block skipped, reference kept) the method is its own control."""
    same = Guidance({"cond": {}, "uncond": {"text": "negative"}, "weak": {}}, guidance.tpige_code().combine, w=5, s=0.5)
    ours, control = make(same).run(), make(guidance.control(same)).run()
    assert parity.relative_l2(ours, control) < 2e-5
    assert parity.relative_l2(make(guidance.cfg(5)).run(), control) > 1e-2


# ---- the same bytes ----


def test_same_seed_and_threads_give_the_same_bytes(make, golden_dir, texts):
    assert digest(make(seed=3)) == digest(make(seed=3)) != digest(make(seed=4))
    assert digest(make(seed=3)) == digest(make(noise=noise(3, make_source().latent_shape)))
    assert digest(make(seed=3)) == digest(make(seed=3, model=make_model(golden_dir)))


def test_thread_counts_differ_by_rounding_at_most(make, golden_dir):
    one, two = (make(model=make_model(golden_dir, threads)).run() for threads in (1, 2))
    assert parity.relative_l2(two, one) < parity.FP32["forward"]


def test_runs_on_one_device_do_not_touch_each_other(model, make, texts):
    alone = [digest(make(seed=s)) for s in (1, 2)]
    first, second = make(seed=1), make(seed=2, source=make_source())
    hashes = [hashlib.sha256(), hashlib.sha256()]
    for a, b in zip(first, second, strict=True):
        hashes[0].update(a.latent.tobytes())
        model.text(texts["null"])  # plans and grows the same scratch
        hashes[1].update(b.latent.tobytes())
        first._core.device.release()
    assert [h.hexdigest() for h in hashes] == alone


# ---- memory ----


MALLINFO = ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")


class Mallinfo(ctypes.Structure):
    """struct mallinfo2 of glibc."""

    _fields_ = [(name, ctypes.c_size_t) for name in MALLINFO]


def test_a_step_allocates_nothing(make):
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallinfo2"):
        pytest.skip("needs glibc 2.33")
    libc.mallinfo2.restype = Mallinfo
    sampler = make(steps=32)
    core = sampler._core
    core.step()
    core.step()  # libraries build and keep their kernels at the first
    gc.collect()  # else Python's own memory may change hands meanwhile
    gc.disable()
    grown = []
    for _ in range(3):
        before, address, scratch = libc.mallinfo2(), np.asarray(core.tensor("latent")).ctypes.data, core.device.scratch
        for _ in range(10):
            core.step()
        after = libc.mallinfo2()
        assert np.asarray(core.tensor("latent")).ctypes.data == address and core.device.scratch == scratch > 0
        grown.append(after.uordblks + after.hblkhd - before.uordblks - before.hblkhd)
        assert grown[-1] < 4096  # a latent alone is 12 KiB here
        assert (after.arena, after.hblkhd) == (before.arena, before.hblkhd)  # nor did the heap ever have to grow
    gc.enable()
    # Python may give something of its own back in between, once; the steps themselves change nothing, to the byte.
    assert 0 in grown, grown


def test_views_cost_no_copy_and_stay_safe(make):
    sampler = make()
    step = next(sampler)
    arrays = [*step.velocity.values(), step.combined, step.x0, step.latent]
    for array in arrays:
        assert not array.flags.writeable and not array.flags.owndata and array.dtype == np.float32
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 0
    assert np.shares_memory(step.latent, sampler.latent)
    kept = step.combined.copy()
    next(sampler)
    assert not np.array_equal(kept, step.combined)  # documented: valid until the next step
    now = [array.copy() for array in arrays]
    del sampler, step
    for array, expected in zip(arrays, now, strict=True):
        assert np.array_equal(array, expected)


def test_memory_is_what_it_says(make):
    sampler = make()
    assert 9 * sampler.latent.nbytes <= sampler.bytes <= 9 * (sampler.latent.nbytes + 256)


# ---- stopping and going on ----

BIG = {"frames": 17, "size": (192, 192)}  # a step takes long enough to be stopped within


def test_cancel_between_steps_loses_nothing(make):
    expected = digest(make())
    sampler, h = make(), hashlib.sha256()
    for step in sampler:
        h.update(step.latent.tobytes())
        if step.index == 1:
            sampler.cancel()
            with pytest.raises(_core.Cancelled):
                next(sampler)
            assert sampler.index == 2
    assert h.hexdigest() == expected


def test_cancel_stops_a_step_within_a_block_and_loses_nothing(make):
    sampler, reference = make(steps=2, source=make_source(**BIG)), make(steps=2, source=make_source(**BIG))
    first = next(reference)
    whole, latent = first.seconds, first.latent.copy()
    next(sampler)
    stopped = []

    def work():
        try:
            sampler.step()
        except _core.Cancelled:
            stopped.append("cancelled")

    thread = threading.Thread(target=work)
    forwards = sampler.forwards
    thread.start()
    while not sampler._core.busy and thread.is_alive():
        time.sleep(0.0005)
    time.sleep(0.2 * whole)
    sampler.cancel()
    thread.join()
    # It is over, and not because the step was: that "within a block" holds is counted in tests/c/test_sample.c.
    assert stopped == ["cancelled"] and sampler.index == 1 and sampler.forwards < forwards + 3
    assert np.array_equal(sampler.latent, latent)
    assert next(sampler).latent.tobytes() == next(reference).latent.tobytes()


def test_a_second_thread_is_refused_not_raced(make):
    sampler = make(steps=2, source=make_source(**BIG))
    thread = threading.Thread(target=sampler.step)
    thread.start()
    while not sampler._core.busy and thread.is_alive():
        time.sleep(0.001)
    with pytest.raises(RuntimeError, match="another thread"):
        sampler.step()
    with pytest.raises(RuntimeError, match="another thread"):
        sampler.latent = np.zeros(sampler.latent.shape)
    thread.join()
    assert sampler.index == 1


CTRL_C = """
import sys, hashlib
sys.path.insert(0, "tests")
from pathlib import Path
import test_sampler as t
from ipvg import guidance
from ipvg.parity import recipe
from ipvg.sampler import Sampler
from ipvg.schedule import Schedule
model = t.make_model(Path(sys.argv[1]))
texts = {n: recipe.normal(n, (5, model.config["text_dim"])) for n in ("cond", "negative")}
def make():
    return Sampler(model, texts, t.make_source(**t.BIG), guidance=guidance.tpige_code(), schedule=Schedule(2), seed=1)
expected = make().run().tobytes()
sampler = make()
sampler.step()
print("ready", flush=True)
try:
    while True:
        sampler.step()
        sampler = make(); sampler.step()
except KeyboardInterrupt:
    print("interrupted at", sampler.index, flush=True)
print("equal" if sampler.run().tobytes() == expected else "differs", flush=True)
"""


def test_ctrl_c_stops_within_a_block_and_the_sampler_goes_on(golden_dir):
    child = subprocess.Popen(
        [sys.executable, "-c", CTRL_C, str(golden_dir.resolve())],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert child.stdout.readline() == "ready\n", child.communicate()[1]
    time.sleep(0.1)
    child.send_signal(signal.SIGINT)
    begin = time.perf_counter()
    line = child.stdout.readline()
    seconds = time.perf_counter() - begin
    out, err = child.communicate(timeout=120)
    assert line.startswith("interrupted at") and out == "equal\n", err
    assert seconds < 5 and "Traceback" not in err


def test_an_exception_of_a_callback_loses_nothing(make):
    expected = make().run().tobytes()
    sampler = make()

    def fail(step):
        if step.index == 2:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        sampler.run(callback=fail)
    assert sampler.index == 3
    assert sampler.run().tobytes() == expected


def test_the_latent_can_be_replaced(make):
    half = make()
    next(half)
    x = half.latent.copy()
    fresh = make(guidance.cfg(5), noise=x)
    half.latent = x  # the same: nothing changes
    assert half.run().tobytes() == make().run().tobytes()
    first = make(steps=1)
    first.latent = np.zeros(first.latent.shape)
    assert not np.array_equal(first.run(), fresh.latents)
    with pytest.raises(ValueError, match="latent: expected shape"):
        half.latent = x[:, 1:]
    with pytest.raises(ValueError, match="not finite"):
        half.latent = np.full(x.shape, np.inf)


def test_progress_counts_forwards_not_steps(make, capsys):
    sampler = make(guidance.cfg(w=[5, 5, 1, 1]))
    seen = []
    sampler.run(progress=seen.append)
    assert [(p.done, p.total) for p in seen] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert seen[-1].eta == 0 and seen[0].eta == pytest.approx(seen[0].elapsed / 2 * 4)
    make().run(progress=True)
    err = capsys.readouterr().err
    assert "step 4/4" in err and "0:00 left" in err


# ---- what cannot work ----


def test_what_cannot_work_says_so(make, model, texts, golden_dir):
    for settings, error, match in (
        ({"seed": None}, ValueError, "seed= or noise="),
        ({"noise": np.zeros((16, 4, 6, 9))}, ValueError, "noise: expected shape"),
        ({"noise": np.full((16, 4, 6, 8), np.nan)}, ValueError, "noise: element 0 is not finite"),
        ({"noise": "x"}, TypeError, "noise"),
        ({"texts": {}}, ValueError, "needs 'cond'; given: nothing"),
        ({"texts": {**texts, "cond": np.zeros((513, 64))}}, ValueError, "text"),
        ({"texts": {**texts, "cond": make_model(golden_dir).text(texts["cond"])}}, ValueError, "another model"),
        ({"rule": guidance.tpige_code(block=4)}, ValueError, "block 4 of a model whose blocks are 0 to 3"),
        ({"rule": guidance.cfg(w=[1, 2])}, ValueError, "2 values for 4 steps"),
        ({"rule": Guidance({"cond": {}}, "w*cond", w=0)}, ValueError, "every coefficient is 0"),
        ({"rule": guidance.cfg(w=1e39)}, ValueError, "not finite"),
        ({"rule": guidance.cfg(w=lambda step, sigma: None)}, TypeError, "number"),
    ):
        with pytest.raises(error, match=match):
            make(**settings)
    sampler = make()
    sampler.run()
    assert sampler.run().shape == (16, 3, 6, 8)  # a finished run has no steps left
    with pytest.raises(ValueError, match="all 4 steps are done"):
        sampler.step()
    with pytest.raises(ValueError, match="references"):
        Source(np.zeros((96, 4, 6, 8)), 2, 9, (64, 48))


def test_cancel_while_waiting_for_the_device_spares_the_call_that_has_it(make):
    """Two samplers in two threads share one device: cancelling the one that waits must not stop the other."""
    big, small = make(steps=1, source=make_source(**BIG)), make(steps=1)
    outcome = {}

    def work(name, sampler):
        try:
            sampler.step()
            outcome[name] = "done"
        except _core.Cancelled:
            outcome[name] = "cancelled"

    threads = [threading.Thread(target=work, args=args) for args in (("big", big), ("small", small))]
    threads[0].start()
    while not big._core.busy and threads[0].is_alive():
        time.sleep(0.0005)
    threads[1].start()
    while not small._core.busy and threads[1].is_alive():
        time.sleep(0.0005)
    small.cancel()
    for thread in threads:
        thread.join()
    assert outcome == {"big": "done", "small": "cancelled"}
    assert small.index == 0 and small.run().any()

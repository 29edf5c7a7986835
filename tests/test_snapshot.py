"""Forks, snapshots, starts from latents, hooks, seeds: a run that is taken up again goes on to the same bytes."""

import os
import signal
import subprocess
import sys
import threading
import warnings

import numpy as np
import pytest
from test_sampler import ROOT, make_model, make_source

from ipvg import _core, parity
from ipvg import guidance as G
from ipvg.checkpoint.safetensors import read_metadata
from ipvg.guidance import Branch, Guidance
from ipvg.parity import recipe, relative_l2
from ipvg.sampler import Sampler, noise
from ipvg.schedule import Schedule

STEPS = 5
#: Momentum, a rest at the start, an array of weights, scheduled scales, two texts: all that a snapshot must carry.
RULE = G.apg(5, momentum=0.5).interval(0.1, 1, by="step") + Guidance(
    {
        "cond": Branch(),
        "weak": Branch(identity_blocks=[2], context_scale=lambda step, sigma: sigma, nag=G.NAG("null", 2.0)),
    },
    "cond + s*m*(cond - weak)",
    [G.Rescale(0.5)],
    s=lambda step, sigma: step / 2,
    m=np.linspace(0, 1, 48).reshape(6, 8),
)


def states(model):
    return {n: recipe.normal(f"snap/{n}", (5, model.config["text_dim"])) for n in ("cond", "negative", "null", "other")}


def start(model, rule=RULE, solver="unipc", **settings):
    settings = {"schedule": Schedule(STEPS, 6.0, solver), "seed": 3} | settings
    if "noise" in settings:
        del settings["seed"]
    return Sampler(model, settings.pop("texts", states(model)), make_source(), guidance=rule, **settings)


@pytest.fixture(scope="module")
def model(golden_dir):
    return make_model(golden_dir)


@pytest.fixture(scope="module")
def whole(model):
    """The latent after each step, and the noise before the first."""
    run = start(model)
    return [run.latent.tobytes(), *(step.latent.tobytes() for step in run)]


# ---- forks ----


@pytest.mark.parametrize("solver", ["unipc", "dpmpp", "euler"])
def test_a_fork_is_its_parent_bit_for_bit(model, solver):
    run = start(model, solver=solver)
    forks = [run.fork()]
    for _ in run:
        forks.append(run.fork())
    for k, fork in enumerate(forks):
        assert fork.index == k and fork.seed == 3
        assert fork.run().tobytes() == run.latents.tobytes()
        assert fork.forwards == run.forwards


def test_a_fork_at_an_earlier_step_needs_a_record(model, whole):
    run = start(model, record=[1, 3])
    run.run()
    for k in (1, 3):
        fork = run.fork(at=k)
        assert fork.latent.tobytes() == whole[k] and fork.run().tobytes() == run.latents.tobytes()
    with pytest.raises(ValueError, match=r"before step 2 was kept \(see record=\); there are: 1, 3, 5"):
        run.fork(at=2)
    every = start(model, record=True)
    every.run()
    assert [every.fork(at=k).latent.tobytes() for k in range(STEPS + 1)] == whole


def test_a_fork_may_differ_and_leaves_its_parent_alone(model, whole):
    run = start(model)
    next(run), next(run)
    other = run.fork(guidance=G.cfg(2))
    text = run.fork(text={"cond": states(model)["other"]})
    assert other.latent.tobytes() == text.latent.tobytes() == whole[2]
    # The same by hand: a sampler of the other guidance that is given the state.
    hand = start(model, G.cfg(2))
    hand._core.load(2, 0, [np.array(view) for view in run._core.state()[:5]])
    assert other.run().tobytes() == hand.run().tobytes()
    assert text.run().tobytes() != run.run().tobytes() and run.latent.tobytes() == whole[-1]


def test_a_fork_shares_prepared_prompts_and_contexts(model):
    run = start(model)
    fork = run.fork()
    assert all(a[0] is b[0] and a[1] is b[1] for a, b in zip(run._plan.branches, fork._plan.branches, strict=True))
    with pytest.raises(ValueError, match="needs 'mine'"):
        run.fork(guidance=Guidance({"cond": Branch("mine")}, "cond"))


# ---- snapshots ----


@pytest.mark.parametrize("solver", ["unipc", "dpmpp", "euler"])
def test_a_snapshot_goes_on_to_the_same_bytes(model, golden_dir, tmp_path, solver):
    path, run = tmp_path / "run.safetensors", start(model, solver=solver)
    paths = []
    for k in range(STEPS + 1):
        paths.append(path.with_stem(f"run{k}"))
        run.snapshot(paths[-1])
        if k < STEPS:
            next(run)
    for k, file in enumerate(paths):
        back = Sampler.restore(file, make_model(golden_dir))
        assert (back.index, back.seed, back.guidance, back.schedule) == (k, 3, run.guidance, run.schedule)
        assert back.run().tobytes() == run.latents.tobytes() and back.forwards == run.forwards
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


CHILD = """
import sys, time
sys.path.insert(0, "tests")
from pathlib import Path
import test_snapshot as t
from ipvg.sampler import Sampler
golden, path, stop = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
def inside(prediction):
    if stop == f"inside {prediction.index}":
        print(stop, flush=True)
        time.sleep(60)                               # the predictions are made, the step is not
model = t.make_model(golden)
run = Sampler.restore(path, model, edit_velocity=inside) if path.exists() else t.start(model, edit_velocity=inside)
run.snapshot(path)
while not run.done:
    if stop == f"at {run.index}":
        print(stop, flush=True)
        time.sleep(60)
    run.step()
    run.snapshot(path)
sys.stdout.buffer.write(run.latent.tobytes())
"""


def child(golden_dir, path, stop):
    command = [sys.executable, "-c", CHILD, str(golden_dir.resolve()), str(path), stop]
    return subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})


def test_killed_at_every_boundary_and_within_every_step(whole, golden_dir, tmp_path):
    """kill -9, and again from the file that is left, over and over, until the run is done."""
    path = tmp_path / "run.safetensors"
    for k in range(STEPS):
        for stop in (f"at {k}", f"inside {k}"):
            process = child(golden_dir, path, stop)
            assert process.stdout.readline().decode().strip() == stop
            process.send_signal(signal.SIGKILL)
            process.communicate()
            assert process.returncode == -signal.SIGKILL
    out, _ = child(golden_dir, path, "never").communicate(timeout=120)
    assert out == whole[-1]


WRITER = """
import sys
sys.path.insert(0, "tests")
from pathlib import Path
import test_snapshot as t
run = t.start(t.make_model(Path(sys.argv[1])))
run.snapshot(sys.argv[2])
print("ready", flush=True)
while True:
    run.snapshot(sys.argv[2])
"""


def test_killed_while_writing_leaves_a_whole_file(model, whole, golden_dir, tmp_path):
    for i in range(6):
        path = tmp_path / f"{i}.safetensors"
        command = [sys.executable, "-c", WRITER, str(golden_dir.resolve()), str(path)]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}
        )
        process.stdout.readline()
        threading.Event().wait(0.003 * i)
        process.kill()
        process.communicate()
        assert Sampler.restore(path, model).latent.tobytes() == whole[0]
    last = Sampler.restore(path, model)
    last.run()
    assert last.latent.tobytes() == whole[-1]


def test_a_snapshot_of_prepared_prompts_needs_them_again(model, whole, tmp_path):
    prepared = {name: model.text(state) for name, state in states(model).items()}
    run = start(model, texts=prepared)
    next(run)
    run.snapshot(tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="needs"):
        Sampler.restore(tmp_path / "x.safetensors", model)
    back = Sampler.restore(tmp_path / "x.safetensors", model, texts=prepared)
    back.run()
    assert back.latent.tobytes() == whole[-1]


def test_a_file_that_is_no_snapshot_is_named(model, golden_dir, tmp_path):
    from ipvg.checkpoint.write import save_safetensors

    path = tmp_path / "x.safetensors"
    for metadata in (None, {"ipvg": "{"}, {"ipvg": "[]"}, {"ipvg": '{"format": "ipvg.snapshot", "version": 9}'},
                     {"ipvg": '{"format": "ipvg.snapshot", "version": 1}'}):  # fmt: skip
        save_safetensors(path, {"x": np.zeros(3, np.float32)}, metadata)
        with pytest.raises(_core.FormatError, match=str(path)):
            Sampler.restore(path, model)
    with pytest.raises(FileNotFoundError):
        Sampler.restore(tmp_path / "none", model)
    start(model).snapshot(path)
    assert '"seed": 3' in read_metadata(path)["ipvg"]
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(_core.FormatError):
        Sampler.restore(path, model)


def test_an_error_names_the_file_that_was_asked_for(model, tmp_path):
    run = start(model)
    for path, match in ((tmp_path / "no" / "x.safetensors", "no/x.safetensors'"), (tmp_path, f"{tmp_path.name}'")):
        with pytest.raises(OSError, match=match):
            run.snapshot(path)
    with pytest.raises(_core.FormatError, match=f"^{tmp_path}: not a regular file"):
        Sampler.restore(tmp_path, model)
    with pytest.raises(TypeError, match="text 'cond': expected umT5 states, got words"):
        run.fork(text={"cond": "A woman."})
    with pytest.raises(TypeError, match="text: expected a mapping"):
        run.fork(text="A woman.")
    long = tmp_path / ("女" * 80 + ".safetensors")  # 252 bytes of 255
    run.snapshot(long)
    assert [p.name for p in tmp_path.iterdir()] == [long.name]


def test_changed_weights_are_named(model, golden_dir, tmp_path):
    """Another checkpoint of the same sizes, or a LoRA: said with the tensors' names; a copy of the same is not."""
    golden = parity.Golden(golden_dir, "dit")
    config = next(iter(golden.about["configs"].values()))
    weights = {name: golden.weight(name, shape) for name, shape in config["weights"].items()}
    run = start(model)
    run.snapshot(tmp_path / "x.safetensors")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Sampler.restore(tmp_path / "x.safetensors", make_model(golden_dir))
    for name in ("blocks.1.ffn.0.weight", "head.modulation"):
        other = {**weights, name: weights[name] + np.float32(0.01)}
        changed = _core.Dit(_core.Device(threads=1), {**golden.about["common"], **config}, _core.Weights(other))
        with pytest.warns(UserWarning, match=rf"x.safetensors: made with other weights: 1 of \d+ .* \({name}\)"):
            Sampler.restore(tmp_path / "x.safetensors", changed)
    half = {name: value.astype(np.float16) for name, value in weights.items()}
    changed = _core.Dit(_core.Device(threads=1), {**golden.about["common"], **config}, _core.Weights(half))
    with pytest.warns(UserWarning, match=rf"{len(half)} of {len(half)} tensors"):
        Sampler.restore(tmp_path / "x.safetensors", changed)


def test_another_thread_count_is_said(model, golden_dir, tmp_path):
    path = tmp_path / "x.safetensors"
    start(model).snapshot(path)
    with pytest.warns(UserWarning, match="1 threads"):
        Sampler.restore(path, make_model(golden_dir, threads=2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Sampler.restore(path, model)


# ---- starts from latents ----


@pytest.mark.parametrize("solver", ["unipc", "dpmpp", "euler"])
def test_a_start_from_latents_is_the_rest_of_the_schedule(model, solver):
    """No step before it, no history at it: in the solver's own words, a run whose first sigma is that one."""
    schedule = Schedule(6, 6.0, solver)
    clean = recipe.normal("snap/clean", (16, 3, 6, 8)).astype(np.float32)
    given = np.concatenate([np.zeros((16, 1, 6, 8), np.float32), clean], axis=1)
    for latents in (clean, given):
        run = start(model, G.cfg(3), schedule=schedule, start=(latents, 2))
        sigma = schedule.sigmas[2]
        x = (1 - sigma) * given + sigma * noise(3, given.shape)
        assert relative_l2(run.latent, x) < 1e-6 and run.index == 2 and len(run) == 4
        solve, steps = Schedule(6, 6.0, solver, begin=2).start(run.latent.copy()), list(run.fork())
        assert [s.index for s in steps] == [2, 3, 4, 5]
        for step in run:
            assert relative_l2(solve.step(step.combined.copy()), step.latent) < 1e-6
        assert run.forwards == run.forwards_total == 8


def test_a_start_takes_a_sigma_and_reproduces_a_clean_latent(model):
    schedule = Schedule(8, 3.0)
    clean = recipe.normal("snap/clean", (16, 4, 6, 8)).astype(np.float32)
    for sigma, k in ((1.5, 0), (float(schedule.sigmas[3]), 3), (float(schedule.sigmas[3]) + 0.01, 3)):
        assert start(model, G.none(), schedule=schedule, start=(clean, sigma)).index == k
    exact = noise(3, clean.shape) - clean  # a model that knows the answer brings the latent back, from any step
    for k in range(8):
        run = start(model, G.none(), schedule=schedule, start=(clean, k), edit_combined=lambda p: exact)
        assert relative_l2(run.run(), clean[:, 1:]) < 1e-5


def test_a_start_survives_a_snapshot(model, tmp_path):
    run = start(model, start=(np.zeros((16, 3, 6, 8)), 1))
    next(run)
    run.snapshot(tmp_path / "x.safetensors")
    back = Sampler.restore(tmp_path / "x.safetensors", model)
    assert back.schedule.begin == 1 and back.run().tobytes() == run.run().tobytes()


# ---- hooks ----


def test_hooks_that_change_nothing_change_nothing(model, whole):
    seen = []
    run = start(model, edit_velocity=lambda p: seen.append((p.index, p.combined)), edit_combined=lambda p: p.combined)
    run.run()
    assert run.latent.tobytes() == whole[-1] and seen == [(k, None) for k in range(STEPS)]


def test_a_hook_replaces_a_velocity(model):
    """cond in place of uncond: then no guidance is left."""
    run = start(model, G.cfg(5), edit_velocity=lambda p: {"uncond": p.velocity["cond"]})
    plain = start(model, G.none())
    assert relative_l2(run.run(), plain.run()) < 1e-5
    double = start(model, G.none(), edit_combined=lambda p: 2 * p.combined)
    assert relative_l2(double.run(), start(model, Guidance({"cond": {}}, "2*cond")).run()) < 1e-5


def test_a_hook_that_fails_loses_nothing(model, whole):
    """Also between the combination, which moves APG's running difference, and the solver."""
    failures = [True, True]

    def fail(prediction):
        if prediction.index == 3 and failures:
            failures.pop()
            raise ZeroDivisionError

    for where in ("edit_velocity", "edit_combined"):
        failures[:] = [True, True]
        run = start(model, **{where: fail})
        for _ in range(2):
            with pytest.raises(ZeroDivisionError):
                run.run()
            assert run.index == 3 and run.latent.tobytes() == whole[3]
        run.run()
        assert run.latent.tobytes() == whole[-1]


def test_what_hooks_cannot_do_says_so(model):
    with pytest.raises(ValueError, match="'weak' is not predicted at step 0; there are cond"):
        start(model, G.none(), edit_velocity=lambda p: {"weak": p.latent}).step()
    with pytest.raises(ValueError, match="velocity: expected shape"):
        start(model, G.none(), edit_combined=lambda p: p.latent[:1]).step()
    x = np.zeros((16, 4, 6, 8))
    for wrong, error in (
        (3, TypeError),
        ((x, "1"), TypeError),
        ((np.zeros(3), 1), ValueError),
        ((x, 5), ValueError),
        ((x, 0.0), ValueError),
    ):
        with pytest.raises(error, match="start"):
            start(model, start=wrong)


# ---- seeds, threads ----


def test_seeds_share_what_is_prepared(model):
    run = start(model)
    for seed, other in zip((7, 8), run.seeds([7, 8]), strict=True):
        assert other._plan.branches[0][0] is run._plan.branches[0][0]
        assert other.seed == seed and other.run().tobytes() == start(model, seed=seed).run().tobytes()
    assert run.index == 0


def test_two_in_two_threads_give_the_same_bytes_as_alone(golden_dir):
    """Two devices at once, and two runs that share one."""
    alone = {seed: start(make_model(golden_dir), seed=seed).run().tobytes() for seed in (1, 2, 3)}
    shared = make_model(golden_dir)
    runs = {1: start(make_model(golden_dir), seed=1), 2: start(shared, seed=2), 3: start(shared, seed=3)}
    got = {}
    threads = [threading.Thread(target=lambda s=s, r=r: got.update({s: r.run().tobytes()})) for s, r in runs.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == alone

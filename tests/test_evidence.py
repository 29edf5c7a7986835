"""The benchmark of identity: its arms, its statistics, and that what it stores is whole and of the same run."""

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))

import bundled
import identity
from evidence import arms as arms_
from evidence import report, work
from evidence import statistics as st

from ipvg import guidance
from ipvg.parity import relative_l2


@pytest.fixture(params=[1.0, 2.0])
def arms(request):
    return arms_.listed(request.param, 12, 10)


def test_every_arm_has_a_name_and_a_file_of_its_own(arms):
    assert len({a.name for a in arms}) == len({a.file for a in arms}) == len(arms)


def test_controls_come_first_and_have_the_same_effective_weight(arms):
    seen = {}
    for arm in arms:
        if arm.control:
            control = seen[arm.control]
            assert (arm.steps, arm.pairs) == (control.steps, control.pairs)
            if "tpige" in arm.name and arm.table != "conflict":
                W = guidance.control(arm.rule).weights.get("W", 1.0)
                assert control.rule.weights.get("w", 1.0) == pytest.approx(W)
        seen[arm.name] = arm


def test_the_released_weights_are_held_against_cfg_7():
    found = {a.name: a for a in arms_.listed(1.0, 12, 10)}
    assert found["tpige_code w 5 s 0.5"].control == found["skip only w 5 s 0.5"].control == "cfg 7"
    assert found["tpige_code w 1 s 0.5"].control == found["drop only w 1 s 0.5"].control == "none"


def test_an_interval_covers_a_shift_and_a_paired_one_is_tighter():
    generator = np.random.default_rng(1)
    people, gain = generator.normal(0, 1, 200), generator.normal(0.1, 0.05, 200)
    pairs = np.arange(200)
    low, high = st.paired((pairs, people + gain), (pairs, people))[1:]
    assert low < gain.mean() < high and high - low < 0.03
    assert np.diff(st.interval(people)[1:]) > 0.2
    assert st.paired((pairs[50:], people[50:] + 1), (pairs[:100], people[:100]))[0] == pytest.approx(1)  # by pair


def test_the_frechet_distance_is_that_of_gaussians():
    x = np.random.default_rng(2).normal(0, 1, (4000, 3))
    distance = st.Frechet(x)
    assert distance(x) == pytest.approx(0, abs=1e-9)
    assert distance(x + [3, 0, 4]) == pytest.approx(25)
    scale = np.sqrt(np.trace(np.cov(x, rowvar=False)))  # C' = 4 C: tr(C + 4 C - 4 C) = tr C, and the mean doubles
    assert distance(2 * x) == pytest.approx(scale**2 + (x.mean(0) ** 2).sum(), rel=1e-6)


def test_rows_are_added_and_those_of_another_run_are_refused(tmp_path):
    path = tmp_path / "arm.npz"
    row = lambda v: {"face": np.full((2, 3), v, np.float32), "seconds": np.zeros(2)}  # noqa: E731
    identity.save(path, {3: row(3), 1: row(1) | {"shown": np.ones((3, 2, 2, 3), np.uint8)}}, "this run")
    identity.save(path, {0: row(0), 7: row(7)}, "this run")
    found = identity.load(path, "this run")
    assert found["pairs"].tolist() == [0, 1, 3, 7] and found["shown_pairs"].tolist() == [1]
    assert found["face"][:, 0, 0].tolist() == [0, 1, 3, 7]
    with pytest.raises(SystemExit, match=r"arm\.npz is of other weights"):
        identity.save(path, {9: row(9)}, "another run")
    assert identity.load(path)["pairs"].tolist() == [0, 1, 3, 7] and [p.name for p in tmp_path.iterdir()] == ["arm.npz"]


def test_a_report_keeps_what_an_earlier_one_says_of_arms_that_are_not_here():
    settings, rest = {"weights": "a", "device": "cuda"}, {"ratios": {}, "enhanced": {}}
    earlier = {"settings": settings, "missing": ["c"], "rows": {"a": {"n": 1}, "b": {"n": 2}}, "cpu_seconds": 100}
    earlier |= rest | {"ratios": {"x": 1}}

    def here(weights="a"):
        rows = {"c": {"n": 3}, "b": {"n": 4}}
        own = {"weights": weights, "device": "cpu"}
        return {"settings": own, "missing": ["a", "ratios", "d"], "rows": rows, "cpu_seconds": 7} | rest

    names, table = ["a", "b", "c", "d", "ratios"], here()  # d: an arm that the earlier report did not know yet
    assert report.keep(table, earlier, names, {"c": 5.0, "b": 2.0}) == 2
    assert list(table["rows"].items()) == [("a", {"n": 1}), ("b", {"n": 4}), ("c", {"n": 3})]
    assert table["missing"] == ["d"] and table["ratios"] == {"x": 1} and table["cpu_seconds"] == 105
    assert table["settings"]["device"] == "cpu and cuda"
    other = here("b")
    assert report.keep(other, earlier, names, {}) == 0 and other == here("b")


def test_what_is_seen_of_a_clip():
    pytest.importorskip("onnxruntime")
    still = np.repeat(np.random.default_rng(3).integers(3, 253, (1, 128, 128, 3), np.uint8), 17, 0)
    seen = work.look(still)
    assert seen["uneven"] == seen["motion"] == seen["clipped"] == 0 and seen["face"].shape == (17, 128)
    blink = still.copy()
    blink[8] = 255
    assert work.look(blink)["uneven"] > work.look(blink)["motion"] > 0 and work.look(blink)["clipped"] > 0.05


def test_a_face_is_seen_where_there_is_one():
    """Portraits have one; noise of three grains, portraits blurred to 6 x 6 and a plain colour have none."""
    pytest.importorskip("onnxruntime")
    people = np.stack([bundled.picture(f"person{i}") for i in range(1, 7)])
    generator, none = np.random.default_rng(5), [np.full((128, 128, 3), 140, np.uint8)]
    for grain in (1, 8, 32):
        tiles = generator.integers(0, 256, (128 // grain, 128 // grain, 3), np.uint8)
        none.append(tiles.repeat(grain, 0).repeat(grain, 1))
    blurred = people[:, :126, :126].reshape(6, 6, 21, 6, 21, 3).mean((2, 4)).repeat(22, 1).repeat(22, 2)[:, :128, :128]
    seen = lambda frames: work.look(frames)["seen"] > 0  # noqa: E731
    five = lambda frames: np.asarray(frames, np.uint8)[np.arange(5) % len(frames)]  # noqa: E731
    assert seen(five(people)).all() and seen(five(people[1:])).all()
    assert not seen(five(none)).any() and not seen(five(blurred)).any() and not seen(five(blurred[1:])).any()


@pytest.fixture
def pairs(tmp_path):
    """Two pairs of the bundled people. Clips are their portraits, still."""
    portraits = np.stack([bundled.picture(name) for name in ("person2", "person4")])
    captions = np.array(["In front of a green forest, a man in a blue t-shirt is laughing.", "She smiles and nods."])
    kinds = ("main", "conflict")
    np.savez(
        tmp_path / "pairs.npz",
        **{f"{k}_reference": portraits for k in kinds},
        **{f"{k}_caption": captions for k in kinds},
    )
    np.savez(tmp_path / "pairs.clips.npz", main_clip=portraits[:, None].repeat(17, 1))
    return tmp_path / "pairs.npz"


@pytest.mark.parametrize("name", ["through the codec", "none", "ratios", "enhanced"])
def test_a_pair_of_each_kind_is_made(pairs, name):
    """On IPVG_DEVICE, one step; elsewhere than on the CPU, the same figures as there."""
    pytest.importorskip("onnxruntime")
    arm = next(a for a in arms_.listed(1.0, 12, 10) if a.name == name)
    made = {}
    for device in dict.fromkeys(("cpu", os.environ.get("IPVG_DEVICE", "cpu"))):
        for cache in (work.table, work.states, work.source):
            cache.cache_clear()
        work.begin(work.Setting(str(pairs), str(bundled.FOLDER), device, steps=1))
        made[device] = work.one((arm, 0, ""))
    cpu = made.pop("cpu")
    keys = {"through the codec": "face", "none": "face", "ratios": "rms", "enhanced": "picture"}
    assert np.isfinite(np.float64(cpu[keys[name]])).all() and cpu["seconds"].min() > 0
    for other in made.values():
        for key in ("face", "rms", "picture"):
            if key in cpu:
                assert relative_l2(np.float64(other[key]), np.float64(cpu[key])) < 2e-3, key


def test_threads_make_what_one_makes(pairs):
    """As workers on a GPU: a pipeline each, at once."""
    pytest.importorskip("onnxruntime")
    arm = next(a for a in arms_.listed(1.0, 12, 10) if a.name == "none")
    work.begin(work.Setting(str(pairs), str(bundled.FOLDER), steps=1))
    jobs = [(arm, pair, "") for pair in (0, 1, 0, 1)]
    with ThreadPoolExecutor(2) as pool:
        made = list(pool.map(work.one, jobs))
    for job, found in zip(jobs[:2], made):
        assert np.array_equal(found["face"], work.one(job)["face"])
    assert np.array_equal(made[0]["face"], made[2]["face"]) and not np.array_equal(made[0]["face"], made[1]["face"])

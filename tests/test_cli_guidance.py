"""`ipvg guidance` and `ipvg seams`."""

import json

import numpy as np
import pytest

from ipvg import guidance, seams
from ipvg.cli import main
from ipvg.parity import recipe
from ipvg.video import Video


def run(capsys, *words):
    status = main([str(w) for w in words])
    return status, capsys.readouterr()


def test_the_list_has_every_preset_with_its_cost(capsys):
    status, said = run(capsys, "guidance", "list", "--json")
    rows = {row["name"]: row for row in json.loads(said.out)}
    assert status == 0 and set(rows) == set(guidance.PRESETS)
    assert {n: rows[n]["forwards"] for n in ("none", "cfg", "tpige_code", "nag")} == {
        "none": 1, "cfg": 2, "tpige_code": 3, "nag": 1,
    }  # fmt: skip
    status, said = run(capsys, "guidance", "list")
    assert status == 0 and all(name in said.out for name in guidance.PRESETS)


def test_show_prints_formula_branches_and_cost(capsys):
    status, said = run(capsys, "guidance", "show", "tpige_code")
    assert status == 0 and str(guidance.tpige_code()) in said.out and "3 forwards a step, 150 in 50 steps" in said.out
    status, said = run(capsys, "guidance", "show", "interval(by='step', lo=0, hi=0.5)", "--steps", 10)
    assert "1 to 2 forwards a step, 15 in 10 steps" in said.out
    status, said = run(capsys, "guidance", "show", "cfg(w=6) + stg_r", "--json", "--steps", 2)
    shown = json.loads(said.out)
    assert shown.pop("forwards") == [3, 3] and shown.pop("forwards_total") == 6
    assert guidance.Guidance.from_dict(shown) == guidance.cfg(6) + guidance.stg_r()


def test_an_unknown_one_is_wrong_usage_with_the_nearest_name(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["guidance", "show", "tpige_cod"])
    assert caught.value.code == 2 and "did you mean 'tpige_code'" in capsys.readouterr().err


def test_seams_of_a_file(capsys, tmp_path):
    pytest.importorskip("ipvg._media", reason="built without FFmpeg")
    frames = np.repeat(recipe.pixels("cli/seams", (1, 32, 32, 3)) // 2, 9, 0)
    frames[5:] += 20
    path = Video(frames).save(tmp_path / "a.mkv")  # lossless
    status, said = run(capsys, "seams", path, "--at", 5, "--json")
    assert status == 0 and json.loads(said.out) == json.loads(json.dumps(seams.measure(frames, [5]).to_dict()))
    status, said = run(capsys, "seams", path, "--at", 5)
    assert status == 0 and "frame 5" in said.out
    with pytest.raises(SystemExit) as caught:
        main(["seams", str(path)])
    assert caught.value.code == 2

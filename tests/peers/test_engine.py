"""benchmarks/engine.py on small models, without a GPU: every row comes to its end and both sides agree."""

import json
import os
import subprocess
import sys
from pathlib import Path

ENGINE = Path(__file__).parents[2] / "benchmarks" / "engine.py"
ROWS = "forward13,step13,umt5,vae_decode,vae_encode,load13,accuracy,forward14,accuracy14,scaling,video"
QUICK = ["--device", "cpu", "--tiny", "--warm", "0.01", "--timed", "0.02", "--steps", "1"]


def run(folder, *options):
    done = subprocess.run(
        [sys.executable, ENGINE, *QUICK, "--out", folder, *options],
        capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "2"},
    )  # fmt: skip
    return done, {row["title"]: row for row in json.loads((folder / "engine.json").read_text())["rows"]}


def test_rows(tmp_path):
    done, rows = run(tmp_path, "--rows", ROWS, "--sides", "ours,eager,floor")
    assert done.returncode == 0, done.stdout + done.stderr
    assert {row["name"] for row in rows.values()} == set(ROWS.split(","))
    for title, row in rows.items():
        assert not row["errors"], title
        if row["name"].startswith("accuracy"):
            assert row["ok"] and row["ours_error"] > 0 and row["peer_error"] > 0, title
            continue
        assert row["x_floor"] > 0 and row["faster"] > 0 and row["floor_seconds"] > 0, title
        if row["name"] not in ("step13", "load13", "video"):
            assert 0 < row["apart"] < 3e-2, title


def test_a_row_that_fails_says_why_and_the_others_go_on(tmp_path):
    done, rows = run(tmp_path, "--rows", "forward13_fp8,load13,whole14_720", "--sides", "ours")
    failed, loaded, whole = rows.values()
    assert done.returncode == 1
    assert "not in fp8" in failed["errors"]["fp8"]
    assert all(row["ours"]["seconds"] > 0 and not row["errors"] for row in (loaded, whole))

"""The data of `ipvg info`: what a folder holds, what is wrong, what memory it needs, whose tokenizer it has."""

from __future__ import annotations

import hashlib
import json

import checkpoint_files as files
import pytest

from ipvg import _core, info


def test_a_folder_described(tmp_path):
    root = files.make_official(tmp_path / "c", {"dit": {"vace_blocks": "bfloat16"}, "text": "bfloat16"}, shards=2)
    found = info.describe(root)
    assert json.loads(json.dumps(found)) == found
    assert found["ok"] and found["layout"] == "official"
    dit = found["components"]["dit"]
    entries = files.tensors_of("dit", {"vace_blocks": "bfloat16"})
    assert dit["tensors"] == len(entries)
    assert dit["parameters"] == sum(array.size for _, array in entries.values())
    assert dit["bytes"] == sum(array.nbytes for _, array in entries.values())
    assert dit["dtypes"]["bfloat16"]["tensors"] == sum(name.startswith("vace_blocks.") for name in entries)
    assert sum(of["bytes"] for of in dit["dtypes"].values()) == dit["bytes"]
    assert [f["name"] for f in dit["files"]] == [
        f"diffusion_pytorch_model-0000{i}-of-00002.safetensors" for i in (1, 2)
    ]
    assert "sha256" not in dit["files"][0] and "memory" not in found
    text = info.render(found)
    assert "(official layout)" in text and "Wan2.1_VAE.pth" in text and "dim 24, ffn_dim 40" in text


def test_hashes_when_asked_for(tmp_path, monkeypatch):
    root = files.make_diffusers(tmp_path / "c")
    path = root / "vae/diffusion_pytorch_model.safetensors"
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    found = info.describe(root, sha256=True)
    assert found["components"]["vae"]["files"] == [
        {
            "name": "vae/diffusion_pytorch_model.safetensors",
            "bytes": path.stat().st_size,
            "sha256": digest,
            "published": None,
        }
    ]
    assert f"{digest}  (not a file whose hash ipvg knows)" in info.render(found)
    monkeypatch.setitem(info.PUBLISHED, digest, "a release")
    assert "(as released: a release)" in info.render(info.describe(root, sha256=True))


def test_what_is_missing_or_damaged_is_told_and_the_rest_described(tmp_path):
    root = files.make_diffusers(tmp_path / "c")
    (root / "vae/config.json").write_text("{")
    (root / "text_encoder/model.safetensors").unlink()
    (root / "tokenizer/tokenizer.json").unlink()
    found = info.describe(root, estimate=lambda *a, **k: pytest.fail("no estimate for half a checkpoint"))
    assert not found["ok"]
    assert "not valid JSON" in found["components"]["vae"]["error"]
    assert "the text encoder is missing" in found["components"]["text"]["error"]
    assert "tokenizer.json is missing" in found["tokenizer"]["error"]
    assert found["components"]["dit"]["tensors"] > 0
    text = info.render(found)
    assert "VAE: " in text and "tokenizer: tokenizer.json is missing" in text
    with pytest.raises(_core.FormatError, match="not a checkpoint"):
        info.describe(tmp_path)


def test_the_memory_table_has_a_row_for_each_combination(tmp_path):
    def estimate(ckpt, *, width, height, frames, dtype, device):
        assert ckpt.components["dit"].config == files.DIT
        if dtype == "bfloat16":
            raise _core.UnsupportedError("this CPU has no bf16")
        return {"weights": 10, "scratch": width * height * frames, "frames": 5}

    found = info.describe(files.make_official(tmp_path / "c"), estimate=estimate, sizes=[(832, 480, 81), (64, 32, 1)])
    rows = found["memory"]
    assert [(r["dtype"], r["width"]) for r in rows] == [
        ("float32", 832), ("float32", 64), ("bfloat16", 832), ("bfloat16", 64),
    ]  # fmt: skip
    assert rows[0]["total"] == 15 + 832 * 480 * 81 and rows[1]["parts"]["scratch"] == 2048
    assert rows[2]["error"] == "this CPU has no bf16" and "total" not in rows[2]
    lines = [line.split() for line in info.render(found).splitlines()]
    assert ["cpu", "float32", "832x480", "81", "10", "B", "32.3", "MB", "5", "B", "32.3", "MB"] in lines
    assert ["cpu", "bfloat16", "64x32", "1", "this", "CPU", "has", "no", "bf16"] in lines


def test_the_check_tells_another_tokenizer_from_umt5s(tmp_path):
    root = files.make_official(tmp_path / "c")
    found = info.describe(root, check=True)
    check = found["tokenizer"]["check"]
    assert check["texts"] == 22 and not check["ok"] and not found["ok"]
    text = info.render(found)
    assert (
        "places from what is published of umT5's (22 texts)" in text
        and "entries in the vocabulary: expected 256300" in text
    )
    (root / "google/umt5-xxl/tokenizer.json").write_text("{}")
    found = info.describe(root, check=True)
    assert not found["ok"] and "not a tokenizer.json" in found["tokenizer"]["error"]


@pytest.mark.parametrize(
    ("n", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.00 kB"), (41_234, "41.2 kB"), (999_400, "999 kB"), (999_700, "1.00 MB"),
     (7_150_000_000, "7.15 GB"), (63_252_168_960, "63.3 GB"), (123_456_789_012, "123 GB")],
)  # fmt: skip
def test_sizes_have_three_digits(n, text):
    assert info.gigabytes(n) == text

"""_core.Weights: files mapped, arrays taken as they are, and every bound checked again in C."""

from __future__ import annotations

import checkpoint_files as files
import numpy as np
import pytest

from ipvg import _core
from ipvg.checkpoint import Checkpoint


def test_core_refuses_what_lies_outside_the_file(tmp_path):
    path = tmp_path / "data"
    path.write_bytes(bytes(range(64)))
    assert _core.Weights({"a": (path, 60, "float32", (1,))}).array("a").shape == (1,)
    for offset, shape in [(61, (1,)), (64, (1,)), (2**64 - 1, (1,)), (2**64 - 4, (1,)), (0, (17,)), (0, (2**61, 8))]:
        with pytest.raises(_core.FormatError, match="tensor 'a'"):
            _core.Weights({"a": (path, offset, "float32", shape)})
    for shape in [(-1,), (-1, -4), (2**62, 2**62), (2**62, 2**62, 0)]:
        with pytest.raises(_core.FormatError, match="tensor 'a': dtype, rank or size"):
            _core.Weights({"a": (path, 0, "float32", shape)})
    with pytest.raises(ValueError, match="6 dimensions"):
        _core.Weights({"a": (path, 0, "float32", (1,) * 6)})
    with pytest.raises(OverflowError):
        _core.Weights({"a": (path, 2**64, "float32", (1,))})
    with pytest.raises(OverflowError):
        _core.Weights({"a": (path, -1, "float32", (1,))})
    with pytest.raises(TypeError, match="dtype 'F32' is none of"):
        _core.Weights({"a": (path, 0, "F32", (1,))})
    with pytest.raises(_core.FormatError, match="not a regular file"):
        _core.Weights({"a": (tmp_path, 0, "float32", (1,))})
    with pytest.raises(FileNotFoundError, match="nowhere"):
        _core.Weights({"a": (tmp_path / "nowhere", 0, "float32", (1,))})
    with pytest.raises(_core.FormatError, match="has no name"):
        _core.Weights({"": (path, 0, "float32", (1,))})
    with pytest.raises(ValueError, match="NUL"):
        _core.Weights({"a\0": (path, 0, "float32", (1,))})


def test_core_takes_arrays_and_shapes_without_data():
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    weights = _core.Weights(
        {
            "x": x,
            "b": (np.zeros(3, np.uint16), "bfloat16"),
            "plan": (None, 0, "float16", (1 << 20, 1 << 20)),
            "none": x[:0],
        }
    )
    assert weights.names() == weights.untaken() == ["x", "b", "plan", "none"]
    assert "plan" in weights and "other" not in weights and 3 not in weights and len(weights) == 4
    x[0, 0] = 7
    assert weights.array("x")[0, 0] == 7  # a view of the caller's memory
    assert weights.array("none").shape == (0, 3)
    with pytest.raises(ValueError, match="a shape but no data"):
        weights.array("plan")
    with pytest.raises(KeyError):
        weights.array("other")
    view = weights.array("x")
    del weights
    np.testing.assert_array_equal(view, x)  # the view keeps the object alive
    for bad, error in [
        (x.T, ValueError),
        (x.astype(">f4"), TypeError),
        (x.astype(complex), TypeError),
        ("text", TypeError),
    ]:
        with pytest.raises(error):
            _core.Weights({"x": bad})
    with pytest.raises(TypeError, match="bfloat16 takes 2 bytes"):
        _core.Weights({"x": (x, "bfloat16")})


def test_a_checkpoint_cut_after_it_was_opened_is_refused_when_it_is_mapped(tmp_path):
    root = files.make_official(tmp_path / "c")
    ckpt = Checkpoint.open(root)
    path = root / "diffusion_pytorch_model.safetensors"
    with path.open("r+b") as f:
        f.truncate(path.stat().st_size - 1)
    with pytest.raises(_core.FormatError, match="truncated"):
        ckpt.components["dit"].weights()

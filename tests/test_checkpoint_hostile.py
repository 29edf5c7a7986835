"""Files that lie: truncated, flipped bit by bit, hostile. Each gives FormatError with the reason, never another
exception, a crash, code that runs, or a read outside the file."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path

import checkpoint_files as files
import numpy as np
import pytest

from ipvg import _core
from ipvg.checkpoint import save_safetensors
from ipvg.checkpoint.index import read_index
from ipvg.checkpoint.pth import read_pth
from ipvg.checkpoint.safetensors import MAX_HEADER, read_header

# ---- safetensors ----


def raw(path: Path, header, data: bytes = b"", length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def tensor(begin, end, dtype="F32", shape=(2,)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


A, B = tensor(0, 8), tensor(8, 16)

HEADERS = [
    ("not JSON", b"{,}", "not valid JSON"),
    ("not UTF-8", b'{"\xff":1}', "not UTF-8"),
    ("an array", b"[]", "does not start with"),
    ("a blank first", b" {}", "does not start with"),
    ("deep", b'{"a":' * 200_000, "nested too deeply"),
    ("NaN", b'{"a":NaN}', "NaN is not JSON"),
    ("a huge number", b'{"a":' + b"9" * 5000 + b"}", "not valid JSON"),
    ("twice", b'{"a":1,"a":2}', "'a' is there twice"),
    ("twice inside", b'{"a":{"dtype":"F32","dtype":"F16"}}', "'dtype' is there twice"),
    ("metadata no table", {"__metadata__": []}, "__metadata__ is not a table"),
    ("metadata no text", {"__metadata__": {"a": 1}}, "__metadata__ is not a table"),
    ("no table", {"a": 1}, "tensor 'a': expected exactly dtype"),
    ("no offsets", {"a": {"dtype": "F32", "shape": [2]}}, "tensor 'a': expected exactly dtype"),
    ("more keys", {"a": {**A, "x": 1}}, "tensor 'a': expected exactly dtype"),
    ("dtype", {"a": tensor(0, 8, "F33")}, "tensor 'a': unknown dtype 'F33'"),
    ("dtype a list", {"a": tensor(0, 8, [])}, "tensor 'a': unknown dtype"),
    ("shape a number", {"a": {**A, "shape": 2}}, "tensor 'a': its shape is not a list"),
    ("shape of floats", {"a": tensor(0, 8, shape=[2.0])}, "tensor 'a': its shape is not a list"),
    ("shape of bools", {"a": tensor(0, 8, shape=[True])}, "tensor 'a': its shape is not a list"),
    ("negative", {"a": tensor(0, 8, shape=[-2])}, "tensor 'a': a negative size"),
    ("two negatives", {"a": tensor(0, 8, shape=[-2, -1])}, "tensor 'a': a negative size"),
    ("overflow to 0", {"a": tensor(0, 0, shape=[1 << 32, 1 << 32])}, "more elements than any file"),
    ("overflow, empty", {"a": tensor(0, 0, shape=[1 << 62, 1 << 62, 0])}, "more elements than any file"),
    ("dimensions", {"a": tensor(0, 8, shape=[2] + [1] * 20)}, "21 dimensions"),
    ("offsets backwards", {"a": tensor(8, 0)}, "tensor 'a': data_offsets are no range"),
    ("offsets negative", {"a": tensor(-8, 0)}, "tensor 'a': data_offsets are no range"),
    ("offsets huge", {"a": tensor(10**4000, 10**4000 + 8)}, "tensor 'a': data_offsets are no range"),
    ("offsets one", {"a": {**A, "data_offsets": [0]}}, "tensor 'a': data_offsets are not two"),
    ("offsets float", {"a": {**A, "data_offsets": [0, 8.0]}}, "tensor 'a': data_offsets are not two"),
    ("size", {"a": tensor(0, 12)}, "tensor 'a': F32 of shape .2. takes 8 bytes, data_offsets give 12"),
    ("past the end", {"a": A, "b": tensor(8, 24, shape=(4,))}, "tensor 'b': its data end at .* truncated"),
    ("overlap", {"a": A, "b": tensor(4, 12), "c": tensor(12, 16, shape=(1,))}, "tensor 'b': its data overlap"),
    ("the same bytes", {"a": A, "b": A, "c": B}, "its data overlap"),
    ("hole", {"a": tensor(0, 4, shape=(1,)), "b": B}, "tensor 'b': its data leave a hole"),
    ("hole in front", {"b": B}, "tensor 'b': its data leave a hole"),
    ("rest", {"a": A}, "8 bytes after the last tensor belong to nothing"),
    ("no tensor", {}, "16 bytes after the last tensor belong to nothing"),
    ("empty name", {"": A, "b": B}, "a name is 1 to 1024 printable"),
    ("newline in a name", {"a\nb": A, "b": B}, r"tensor 'a\\nb': a name is 1 to 1024 printable"),
    ("half a surrogate", b'{"\\ud800":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}', "printable"),
    ("long name", {"a" * 2000: A, "b": B}, "a name is 1 to 1024"),
]


@pytest.mark.parametrize(("header", "message"), [h[1:] for h in HEADERS], ids=[h[0] for h in HEADERS])
def test_safetensors_headers_that_lie(tmp_path, header, message):
    path = raw(tmp_path / "x.safetensors", header, bytes(16))
    with pytest.raises(_core.FormatError, match=message) as error:
        read_header(path)
    assert "x.safetensors" in str(error.value)


@pytest.mark.parametrize(
    ("length", "message"),
    [
        (2**64 - 1, "a header of 18446744073709551615 bytes"),
        (MAX_HEADER + 1, "at most"),
        (1000, "is it truncated"),
        (0, "{"),
    ],
)
def test_safetensors_header_lengths_that_lie(tmp_path, length, message):
    with pytest.raises(_core.FormatError, match=message):
        read_header(raw(tmp_path / "x.safetensors", {"a": A, "b": B}, bytes(16), length))


def test_absurd_counts_are_refused(tmp_path):
    table = {str(i): tensor(0, 0, "U8", (0,)) for i in range(100_001)}
    with pytest.raises(_core.FormatError, match="100001 tensors"):
        read_header(raw(tmp_path / "x.safetensors", table))


def test_pipes_and_folders_are_no_files(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for read in (read_header, read_pth):
        with pytest.raises(_core.FormatError, match="not a regular file"):
            read(tmp_path / "pipe")
        with pytest.raises(FileNotFoundError):
            read(tmp_path / "nowhere")


def test_every_bit_of_a_safetensors_header_flipped(tmp_path):
    path = tmp_path / "x.safetensors"
    save_safetensors(path, {"a.weight": np.ones((2, 3), np.float32), "b": np.ones(4, np.float16)}, {"k": "v"})
    data = path.read_bytes()
    header = 8 + struct.unpack("<Q", data[:8])[0]
    refused = [files.refused_or_usable(read_header, path, changed) for changed in files.flips(data, range(header))]
    # A letter of a name or of the metadata may change unseen; the length, an offset, a dtype or a shape may not.
    assert sum(refused) > 0.7 * len(refused)


def test_every_length_of_a_safetensors_file_but_its_own_is_refused(tmp_path):
    path = tmp_path / "x.safetensors"
    save_safetensors(path, {"a.weight": np.ones((2, 3), np.float32), "b": np.ones(4, np.float16)})
    data = path.read_bytes()
    for n in [*range(len(data)), len(data) + 1]:
        assert files.refused_or_usable(read_header, path, (data + b"\0")[:n])


# ---- index ----


def shard_folder(tmp_path):
    save_safetensors(tmp_path / "a.safetensors", {"x": np.zeros(2, np.float32)})
    save_safetensors(tmp_path / "b.safetensors", {"y": np.zeros(2, np.float32)})
    return tmp_path / "m.safetensors.index.json"


PLACES = {"x": "a.safetensors", "y": "b.safetensors"}


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({}, "no weight_map"),
        ({"weight_map": []}, "no weight_map"),
        ({"weight_map": {}}, "no weight_map"),
        ({"weight_map": PLACES | {"x": "../a.safetensors"}}, "tensor 'x': '../a.safetensors' is no shard"),
        ({"weight_map": PLACES | {"x": "/etc/passwd"}}, "'/etc/passwd' is no shard"),
        ({"weight_map": PLACES | {"x": "..\\a.safetensors"}}, "is no shard"),
        ({"weight_map": PLACES | {"x": "a.safetensors\0"}}, "is no shard"),
        ({"weight_map": PLACES | {"x": "a.safetensors\n"}}, "is no shard"),
        ({"weight_map": PLACES | {"x": ".hidden.safetensors"}}, "is no shard"),
        ({"weight_map": PLACES | {"x": "a.bin"}}, "is no shard"),
        ({"weight_map": PLACES | {"x": 1}}, "is no shard"),
        ({"weight_map": PLACES | {"x": "c.safetensors"}}, "shard c.safetensors is not beside the index"),
        ({"weight_map": PLACES | {"x": "b.safetensors"}}, "tensor 'x' is not in b.safetensors"),
        ({"weight_map": PLACES | {"z": "a.safetensors"}}, "tensor 'z' is not in a.safetensors"),
        ({"weight_map": {"y": "b.safetensors", "z": "a.safetensors"}}, "tensor 'z' is not in a.safetensors"),
        ({"weight_map": {str(i): f"{i}.safetensors" for i in range(1001)}}, "1001 shards"),
        ({"weight_map": PLACES | {"a\tb": "a.safetensors"}}, "printable"),
    ],
)
def test_indexes_that_lie(tmp_path, table, message):
    index = shard_folder(tmp_path)
    index.write_text(json.dumps(table))
    with pytest.raises(_core.FormatError, match=message):
        read_index(index)


def test_a_tensor_in_a_shard_but_not_in_the_index_or_in_two_shards_is_refused(tmp_path):
    index = shard_folder(tmp_path)
    index.write_text(json.dumps({"weight_map": PLACES}))
    assert list(read_index(index)) == ["x", "y"]
    save_safetensors(tmp_path / "b.safetensors", {"y": np.zeros(2, np.float32), "w": np.zeros(1, np.float32)})
    with pytest.raises(_core.FormatError, match="tensor 'w' is not in the index"):
        read_index(index)
    save_safetensors(tmp_path / "b.safetensors", {"y": np.zeros(2, np.float32), "x": np.zeros(1, np.float32)})
    with pytest.raises(_core.FormatError, match=r"tensor 'x' is in a\.safetensors too"):
        read_index(index)


def test_every_bit_of_an_index_flipped(tmp_path):
    index = shard_folder(tmp_path)
    data = json.dumps({"metadata": {}, "weight_map": PLACES}).encode()
    for changed in files.flips(data, range(len(data))):
        index.write_bytes(changed)
        try:
            assert len(read_index(index)) == 2
        except _core.FormatError as error:
            assert str(tmp_path) in str(error)

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
from ipvg.checkpoint import Checkpoint, save_safetensors
from ipvg.checkpoint.entry import from_bfloat16
from ipvg.checkpoint.index import read_index
from ipvg.checkpoint.pth import read_pth
from ipvg.checkpoint.safetensors import MAX_HEADER, read_header

PTH = files.GOLDEN / "pth"
SAMPLES = json.loads((PTH / "pth.json").read_text())["files"]


def check_usable(entries):
    """What a reader accepted must be inside its files, for Python and for C."""
    weights = _core.Weights({name: e.source() for name, e in entries.items() if len(e.shape) <= 5 and e.dtype in USED})
    for name in weights.names():
        assert weights.array(name).tobytes() == entries[name].read().tobytes()


USED = ("float32", "bfloat16", "float16", "float64", "int64", "int32", "uint8")


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


def flips(data: bytes, positions):
    for position in positions:
        for bit in range(8):
            changed = bytearray(data)
            changed[position] ^= 1 << bit
            yield bytes(changed)


def refused_or_usable(read, path: Path, data: bytes, checked=None) -> bool:
    """Whether `data` was refused. An accepted file must be usable; every other exception ends the test. checked: a list
    of what was found usable before, to check nothing twice."""
    with path.open("r+b" if path.exists() else "wb") as f:  # in place: emptying a file takes 50 times longer
        f.write(data)
        f.truncate()
    try:
        entries = read(path)
    except _core.FormatError as error:
        assert path.name in str(error)
        return True
    if checked is None or entries not in checked:
        check_usable(entries)
        checked is None or checked.append(entries)
    return False


def test_every_bit_of_a_safetensors_header_flipped(tmp_path):
    path = tmp_path / "x.safetensors"
    save_safetensors(path, {"a.weight": np.ones((2, 3), np.float32), "b": np.ones(4, np.float16)}, {"k": "v"})
    data = path.read_bytes()
    header = 8 + struct.unpack("<Q", data[:8])[0]
    refused = [refused_or_usable(read_header, path, changed) for changed in flips(data, range(header))]
    # A letter of a name or of the metadata may change unseen; the length, an offset, a dtype or a shape may not.
    assert sum(refused) > 0.7 * len(refused)


def test_every_length_of_a_safetensors_file_but_its_own_is_refused(tmp_path):
    path = tmp_path / "x.safetensors"
    save_safetensors(path, {"a.weight": np.ones((2, 3), np.float32), "b": np.ones(4, np.float16)})
    data = path.read_bytes()
    for n in [*range(len(data)), len(data) + 1]:
        assert refused_or_usable(read_header, path, (data + b"\0")[:n])


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
    for changed in flips(data, range(len(data))):
        index.write_bytes(changed)
        try:
            assert len(read_index(index)) == 2
        except _core.FormatError as error:
            assert str(tmp_path) in str(error)


# ---- .pth ----


@pytest.mark.parametrize("name", [n for n, s in SAMPLES.items() if s["reader must"].startswith("load")])
def test_samples_that_must_load(name):
    entries = read_pth(PTH / name)
    assert set(entries) == set(SAMPLES[name]["tensors"])
    for tensor_name, wanted in SAMPLES[name]["tensors"].items():
        entry = entries[tensor_name]
        assert (entry.dtype, entry.shape) == (wanted["dtype"], tuple(wanted["shape"]))
        array = entry.read()
        values = from_bfloat16(array) if entry.dtype == "bfloat16" else array
        values = values.astype(np.float64).ravel()
        assert values[:6].tolist() == wanted["values"]
        assert values.sum() == pytest.approx(wanted["sum"], rel=1e-12, abs=1e-12)
    check_usable(entries)


REFUSED = {
    "hostile_os_system.pth": r"refused: it names 'posix\.system'",
    "hostile_truncated.pth": "the file is truncated",
    "hostile_huge_tensor.pth": r"'blocks\.0\.attn\.q\.weight': shape \[1000000, 6\].* does not fit the 48 elements",
    "legacy_not_zip.pth": "the format of torch before 1.6",
}


@pytest.mark.parametrize("name", [n for n, s in SAMPLES.items() if not s["reader must"].startswith("load")])
def test_samples_that_must_be_refused(name):
    with pytest.raises(_core.FormatError, match=REFUSED[name]):
        read_pth(PTH / name)


def test_every_sample_is_known():
    assert {p.name for p in PTH.glob("*.pth")} == set(SAMPLES)


def test_every_bit_of_a_pth_file_flipped(tmp_path):
    """Outside the storages; those are numbers, in which any bit may be set."""
    data = (PTH / "bf16_shared.pth").read_bytes()
    (record,) = [r for name, r in SAMPLES["bf16_shared.pth"]["records"].items() if name.endswith("data/0")]
    storage = range(record["data_at"], record["data_at"] + record["size"])
    path = tmp_path / "x.pth"
    positions = [i for i in range(len(data)) if i not in storage]
    checked: list = []
    refused = [refused_or_usable(read_pth, path, changed, checked) for changed in flips(data, positions)]
    assert 0.2 * len(refused) < sum(refused) < len(refused)


def test_every_length_of_a_pth_file_but_its_own_is_refused(tmp_path):
    data = (PTH / "module_state_dict.pth").read_bytes()
    for n in range(len(data)):
        assert refused_or_usable(read_pth, tmp_path / "x.pth", data[:n])
    assert refused_or_usable(read_pth, tmp_path / "x.pth", data + b"\0")


def pickled(tmp_path, pickle: bytes, monkeypatch, count=48, more=()) -> Path:
    """A .pth with that data.pkl and a storage of `count` floats."""
    path = tmp_path / "x.pth"
    monkeypatch.setattr(files, "state_dict_pickle", lambda table: pickle)
    files.write_pth(path, {"0": ("float32", (count,))}, [bytes(4 * count)])
    return path


def a_tensor(storage=b"", offset=0, shape=(6, 8), strides=(8, 1)) -> bytes:
    storage = storage or a_storage()
    out = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + files.integer(offset)
    return out + files.integers(shape) + files.integers(strides) + b"\x89ccollections\nOrderedDict\n)RtR"


def a_storage(kind="FloatStorage", key="0", count=48) -> bytes:
    return (
        b"("
        + files.text("storage")
        + f"ctorch\n{kind}\n".encode()
        + files.text(key)
        + files.text("cpu")
        + (files.integer(count) + b"tQ")
    )


def state(*items: bytes) -> bytes:
    return b"\x80\x02}(" + b"".join(items) + b"u."


W = files.text("w")
PICKLES = [
    (
        "os.system by REDUCE",
        b"\x80\x02cos\nsystem\n" + files.text("true") + b"\x85R.",
        r"refused: it names 'os\.system'",
    ),
    ("builtins.eval", b"\x80\x02cbuiltins\neval\n.", r"refused: it names 'builtins\.eval'"),
    ("a dotted trick", b"\x80\x02ctorch._utils\n_rebuild_tensor_v2.__globals__\n.", "refused: it names"),
    ("torch.load", b"\x80\x02ctorch\nload\n.", r"refused: it names 'torch\.load'"),
    ("control characters", b"\x80\x02c\x1b[31mos\nsystem\n.", r"refused: it names '\\x1b\[31mos\.system'"),
    ("a long name", b"\x80\x02c" + b"a" * 300 + b"\nb\n.", "a name that does not end"),
    ("STACK_GLOBAL", b"\x80\x02" + files.text("os") + files.text("system") + b"\x93.", "opcode 0x93"),
    ("INST", b"\x80\x02(ios\nsystem\n.", "opcode 0x69"),
    ("OBJ", b"\x80\x02(cos\nsystem\no.", "refused: it names"),
    ("NEWOBJ", b"\x80\x02ccollections\nOrderedDict\n)\x81.", "opcode 0x81"),
    ("EXT1", b"\x80\x02\x82\x01.", "opcode 0x82"),
    ("protocol 4", b"\x80\x04}.", "pickle protocol 4"),
    ("nothing", b"", "the pickle ends early"),
    ("no STOP", b"\x80\x02}", "the pickle ends early"),
    ("text past the end", b"\x80\x02X\xff\xff\xff\xffabc", "the pickle ends early"),
    ("text not UTF-8", b"\x80\x02X\x01\0\0\0\xff.", "not UTF-8"),
    ("empty stack", b"\x80\x02.", "the stack is empty"),
    ("no mark", b"\x80\x02}t.", "no mark"),
    ("a mark as value", b"\x80\x02(.", "the stack is empty"),
    ("a full stack", b"\x80\x02}}.", "full stack"),
    ("memo not set", b"\x80\x02h\x05.", "memo slot 5 was never set"),
    ("memo of a mark", b"\x80\x02(q\x05.", "nothing to remember"),
    ("call of a dict", b"\x80\x02})R.", "no known function"),
    ("OrderedDict of things", b"\x80\x02ccollections\nOrderedDict\n(K\x01tR.", "with 1 arguments"),
    ("BUILD on a tensor", state(W, a_tensor(), b"}b"), "expected an OrderedDict"),
    ("a key of tuples", b"\x80\x02})K\x01s.", "neither text nor integer"),
    ("a key without value", state(W), "a key without value"),
    ("a key twice", state(W, a_tensor(), W, a_tensor()), "'w' is there twice"),
    ("items of a list", b"\x80\x02](K\x01K\x02u.", "expected a dict"),
    ("append to a dict", b"\x80\x02}K\x01a.", "expected a list"),
    ("root a list", b"\x80\x02].", "expected a state dict .* found list"),
    ("root a function", b"\x80\x02ccollections\nOrderedDict\n.", "found Global"),
    ("a number as tensor", state(W, b"K\x01"), "tensor 'w': expected a tensor, found int"),
    ("a name of numbers", state(b"K\x07", a_tensor()), "printable"),
    ("a name with NUL", state(files.text("a\0b"), a_tensor()), "printable"),
    ("storage missing", state(W, a_tensor(a_storage(key="7"))), "record data/7, is not in the file"),
    ("storage key a path", state(W, a_tensor(a_storage(key="../../etc/passwd"))), "a storage with the key"),
    (
        "storage of a function",
        state(W, a_tensor(a_storage("FloatStorage").replace(b"ctorch\nFloatStorage\n", b"N"))),
        "unknown type",
    ),
    ("storage too long", state(W, a_tensor(a_storage(count=49))), "claims 49 elements of float32"),
    ("storage of another size", state(W, a_tensor(a_storage("DoubleStorage"))), "claims 48 elements of float64"),
    ("storage negative", state(W, a_tensor(a_storage(count=-1))), "not a natural number"),
    ("untyped storage", b"\x80\x02ctorch.storage\nUntypedStorage\n.", "refused"),
    ("persistent id of text", b"\x80\x02" + files.text("storage") + b"Q.", "not a storage"),
    ("offset past", state(W, a_tensor(offset=1)), "does not fit the 48 elements"),
    ("offset negative", state(W, a_tensor(offset=-1)), "a negative offset"),
    ("stride negative", state(W, a_tensor(strides=(-8, 1))), "a negative offset or stride"),
    ("size negative", state(W, a_tensor(shape=(-6, 8))), "a negative size"),
    ("stride 0 blown up", state(W, a_tensor(shape=(1 << 40, 8), strides=(0, 1))), "does not fit the 48"),
    ("stride huge", state(W, a_tensor(strides=(1 << 62, 1))), "does not fit the 48"),
    ("shape huge", state(W, a_tensor(shape=(1 << 62, 1 << 62))), "more elements than any file"),
    ("empty, outside", state(W, a_tensor(offset=49, shape=(0, 8))), "begins outside"),
    ("more sizes than strides", state(W, a_tensor(strides=(1,))), "more sizes than strides"),
    ("dimensions", state(W, a_tensor(shape=(1,) * 9, strides=(1,) * 9)), "up to 8 integers"),
    ("shape of texts", state(W, a_tensor().replace(files.integers((6, 8)), b"(" + W + W + b"t")), "up to 8 integers"),
    ("a tensor without storage", state(W, a_tensor(b"N")), "without storage"),
    (
        "parameter of nothing",
        b"\x80\x02ctorch._utils\n_rebuild_parameter\n(N\x88ccollections\nOrderedDict\n)RtR.",
        "3 arguments",
    ),
]


@pytest.mark.parametrize(("pickle", "message"), [p[1:] for p in PICKLES], ids=[p[0] for p in PICKLES])
def test_pickles_that_lie(tmp_path, monkeypatch, pickle, message):
    with pytest.raises(_core.FormatError, match=message) as error:
        read_pth(pickled(tmp_path, pickle, monkeypatch))
    assert "x.pth" in str(error.value)


def test_the_pickle_maker_of_these_tests_makes_good_ones_too(tmp_path, monkeypatch):
    turned = a_tensor(shape=(8, 6), strides=(1, 8))
    entries = read_pth(pickled(tmp_path, state(W, a_tensor(), files.text("t"), turned), monkeypatch))
    assert entries["w"].strides is None and entries["t"].strides == (1, 8)
    check_usable(entries)


def test_nested_tuples_take_no_time(tmp_path, monkeypatch):
    """2^5000 leaves in 20 kB: hashing, comparing or printing them would never end."""
    bomb = b"K\x01" + b"".join(b"q\x01h\x01\x86" for _ in range(5000))
    for pickle in (state(W, bomb), b"\x80\x02" + bomb + b".", b"\x80\x02}" + bomb + b"K\x01s."):
        with pytest.raises(_core.FormatError):
            read_pth(pickled(tmp_path, pickle, monkeypatch))


def test_a_pth_that_holds_a_bare_tensor(tmp_path, monkeypatch):
    entries = read_pth(pickled(tmp_path, b"\x80\x02" + a_tensor() + b".", monkeypatch))
    assert {name: e.shape for name, e in entries.items()} == {"tensor": (6, 8)}


ZIPS = [
    ("compressed", b"PK\1\2", 10, b"\x08\0", "is compressed"),
    ("encrypted", b"PK\1\2", 8, b"\x01\x08", "is encrypted"),
    ("another disk", b"PK\1\2", 34, b"\1\0", "another part"),
    ("a size past the end", b"PK\1\2", 20, struct.pack("<II", 10**6, 10**6), "run past"),
    ("a local header elsewhere", b"PK\1\2", 42, struct.pack("<I", 10**6), "no local header"),
    ("no 64-bit offset", b"PK\1\2", 42, b"\xff" * 4, "64-bit"),
    ("another name", b"PK\1\2", 46, b"X", "its local header has another name"),
    ("parts", b"PK\5\6", 4, b"\1\0", "contradict"),
    ("two counts", b"PK\5\6", 8, b"\2\0\2\0", "contradict"),
    ("two directories", b"PK\5\6", 16, struct.pack("<I", 40), "contradict"),
    ("a comment", b"PK\5\6", 20, b"\1\0", "truncated"),
    ("parts, 64 bits", b"PK\6\6", 16, b"\1\0", "contradict"),
    ("no 64-bit end record", b"PK\6\7", 8, b"\1\0", "no zip64 end record"),
    ("a 64-bit end record outside", b"PK\6\7", 15, b"\xff", "end record would be at"),
]


@pytest.mark.parametrize(("magic", "at", "patch", "message"), [z[1:] for z in ZIPS], ids=[z[0] for z in ZIPS])
def test_zips_that_lie(tmp_path, magic, at, patch, message):
    data = bytearray((PTH / "plain_fp32.pth").read_bytes())
    where = data.index(magic) + at
    data[where : where + len(patch)] = patch
    (tmp_path / "x.pth").write_bytes(data)
    with pytest.raises(_core.FormatError, match=message):
        read_pth(tmp_path / "x.pth")


def test_big_endian_and_a_missing_or_second_pickle_are_refused(tmp_path):
    data = (PTH / "plain_fp32.pth").read_bytes()
    (tmp_path / "x.pth").write_bytes(data.replace(b"little", b"big\0\0\0"))
    with pytest.raises(_core.FormatError, match="byte order"):
        read_pth(tmp_path / "x.pth")
    (tmp_path / "x.pth").write_bytes(data.replace(b"/data.pkl", b"/data.pkk"))
    with pytest.raises(_core.FormatError, match="0 records called data"):
        read_pth(tmp_path / "x.pth")


def end_record(count: int, length: int, offset: int) -> bytes:
    return struct.pack("<4sHHHHIIH", b"PK\5\6", 0, 0, count, count, length, offset, 0)


def test_directories_that_do_not_fit_their_end_record(tmp_path):
    path = tmp_path / "x.pth"
    files.write_pth(path, {"w": ("float32", (3,))}, [bytes(12)])
    whole, data = len(path.read_bytes()), path.read_bytes()[:-22]
    count, length, offset = struct.unpack("<HII", path.read_bytes()[-12:-2])
    assert whole - 22 == offset + length and len(read_pth(path)) == 1
    for record, message in [
        (end_record(count - 1, length, offset), "holds more than its 3"),
        (end_record(count + 1, length, offset), "damaged"),
        (end_record(count, length + 1, offset), "not in front of its end record"),
        (end_record(count, length - 1, offset), "ends inside an entry"),
        (end_record(count, length, offset + 10**6), "not in front of its end record"),
        (end_record(count, length - 5, offset + 5), "damaged"),
        (struct.pack("<4sHHHHIIH", b"PK\5\6", 1, 0, count, count, length, offset, 0), "several parts"),
    ]:
        path.write_bytes(data + record)
        with pytest.raises(_core.FormatError, match=message):
            read_pth(path)


def test_records_that_share_bytes_are_refused(tmp_path):
    path = tmp_path / "x.pth"
    files.write_pth(path, {"v": ("float32", (3,)), "w": ("float32", (3,))}, [bytes(12)] * 2)
    data = bytearray(path.read_bytes()[:-22])
    count, length, offset = struct.unpack("<HII", path.read_bytes()[-12:-2])
    entries = [i for i in range(offset, len(data)) if data[i : i + 4] == b"PK\1\2"]
    one = next(e for e in entries if data[e + 46 : e + 60] == b"archive/data/0")
    again = bytes(data) + bytes(data[one : one + 60]) + end_record(count + 1, length + 60, offset)
    path.write_bytes(again)
    with pytest.raises(_core.FormatError, match="data/0' is there twice"):
        read_pth(path)
    # The first record grown over the second.
    struct.pack_into("<II", data, one + 20, 100, 100)
    path.write_bytes(data + end_record(count, length, offset))
    with pytest.raises(_core.FormatError, match="data/0' overlaps the next one"):
        read_pth(path)


# ---- C checks it all again ----


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

""".pth files: every sample as it must be, and files that lie: FormatError with the reason, never code that runs."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import checkpoint_files as files
import numpy as np
import pytest

from ipvg import _core
from ipvg.checkpoint.entry import from_bfloat16
from ipvg.checkpoint.pth import read_pth

PTH = files.GOLDEN / "pth"
SAMPLES = json.loads((PTH / "pth.json").read_text())["files"]


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
    files.check_usable(entries)


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


@pytest.mark.slow
def test_every_bit_of_a_pth_file_flipped(tmp_path):
    """Outside the storages; those are numbers, in which any bit may be set."""
    data = (PTH / "bf16_shared.pth").read_bytes()
    (record,) = [r for name, r in SAMPLES["bf16_shared.pth"]["records"].items() if name.endswith("data/0")]
    storage = range(record["data_at"], record["data_at"] + record["size"])
    path = tmp_path / "x.pth"
    positions = [i for i in range(len(data)) if i not in storage]
    checked: list = []
    refused = [files.refused_or_usable(read_pth, path, changed, checked) for changed in files.flips(data, positions)]
    assert 0.2 * len(refused) < sum(refused) < len(refused)


def test_every_length_of_a_pth_file_but_its_own_is_refused(tmp_path):
    data = (PTH / "module_state_dict.pth").read_bytes()
    for n in range(len(data)):
        assert files.refused_or_usable(read_pth, tmp_path / "x.pth", data[:n])
    assert files.refused_or_usable(read_pth, tmp_path / "x.pth", data + b"\0")


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
    files.check_usable(entries)


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

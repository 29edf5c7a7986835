"""The prompt becomes the ids that the model was trained on: cleaning and tokenizer equal on every golden text."""

import gzip
import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ipvg import _core, text

GOLDEN = Path(__file__).parent / "golden"
STANDIN = gzip.decompress((GOLDEN / "tokenizer_standin.json.gz").read_bytes())
CASES = json.loads((GOLDEN / "tokenizer.json").read_text(encoding="utf-8"))["cases"]
PUBLISHED = json.loads((Path(text.__file__).parent / "data/umt5_published.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def standin(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    path.write_bytes(STANDIN)
    return text.Tokenizer(path)


def load(tmp_path, spec):
    path = tmp_path / "tokenizer.json"
    path.write_bytes(spec if isinstance(spec, bytes) else json.dumps(spec).encode())
    return text.Tokenizer(path)


@pytest.mark.parametrize("name", CASES)
def test_golden(standin, name):
    case = CASES[name]
    assert text.clean(case["text"]) == case["cleaned"]
    assert standin(case["text"]) == case["standin_ids"]


@pytest.mark.parametrize("name", PUBLISHED["cases"])
def test_published_cleaning(name):
    case = PUBLISHED["cases"][name]
    assert text.clean(case["text"]) == case["cleaned"]


def test_negative_prompt_is_wans():
    assert text.NEGATIVE == CASES["wan_negative"]["text"] == PUBLISHED["cases"]["wan_negative"]["text"]


def test_blanks_are_those_of_the_reference():
    """\\s of the regex module is Unicode's White_Space; str.split() takes U+001C to U+001F too."""
    white_space = [
        *range(9, 14),
        0x20,
        0x85,
        0xA0,
        0x1680,
        *range(0x2000, 0x200B),
        0x2028,
        0x2029,
        0x202F,
        0x205F,
        0x3000,
    ]
    assert [c for c in range(0x110000) if chr(c).isspace() and c not in range(0x1C, 0x20)] == white_space
    for c in range(0x1C, 0x20):
        for source in (f"a{chr(c)}b", f"a&#{c};b", f"a&amp;#{c};b"):
            assert text.clean(source) == "ab"


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.text(st.characters(), max_size=300))  # lone surrogates too
def test_any_text_has_ids(standin, prompt):
    cleaned = text.clean(prompt)
    assert cleaned == cleaned.strip() and "  " not in cleaned and not set("\t\n\r\x00\x1b") & set(cleaned)
    ids = standin(prompt)
    assert 1 <= len(ids) <= 512 and ids[-1] == text.EOS and all(0 <= i < standin.vocabulary for i in ids)


def test_cut_keeps_the_end_token(standin):
    prompt = "cat " * 1000
    ids = standin(prompt)
    assert len(ids) == 512 and ids[-1] == text.EOS and standin.count(prompt) > 512
    assert standin(prompt, max_tokens=7) == ids[:6] + [text.EOS]
    assert standin(prompt, max_tokens=1) == [text.EOS]


def test_tokens_are_the_pieces_of_the_ids(standin):
    assert standin.tokens("a cat")[-1] == "</s>"
    assert [standin.token_id(t) for t in standin.tokens("a cat")] == standin("a cat")
    assert standin.token_id("no such piece, surely") is None


@pytest.mark.parametrize("bad", [None, 3, b"cat", ["cat"]])
def test_text_must_be_str(standin, bad):
    with pytest.raises(TypeError, match="text: expected str"):
        standin(bad)


@pytest.mark.parametrize("bad, error", [(0, ValueError), (513, ValueError), (2.0, TypeError), (True, TypeError)])
def test_max_tokens(standin, bad, error):
    with pytest.raises(error, match="max_tokens"):
        standin("cat", max_tokens=bad)


@pytest.mark.parametrize(
    "normalizer",
    [
        {"type": "Precompiled", "precompiled_charsmap": ""},
        {"type": "Precompiled", "precompiled_charsmap": None},
        {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": "▁"},
        {
            "type": "Sequence",
            "normalizers": [
                {"type": "Precompiled", "precompiled_charsmap": ""},
                {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "},
            ],
        },
    ],
)
def test_normalizers_of_other_exports_change_nothing(tmp_path, normalizer):
    tokenizer = load(tmp_path, {**json.loads(STANDIN), "normalizer": normalizer})
    for case in CASES.values():
        assert tokenizer(case["text"]) == case["standin_ids"]


def test_truncation_and_padding_in_the_file_are_ours_to_decide(tmp_path):
    spec = json.loads(STANDIN)
    spec["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    spec["padding"] = {
        "strategy": {"Fixed": 64}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0,
        "pad_token": "<pad>",
    }  # fmt: skip
    assert load(tmp_path, spec)(CASES["plain"]["text"]) == CASES["plain"]["standin_ids"]


def without_eos(spec):
    return {**spec, "post_processor": None}


def renumbered(spec):
    vocab = [list(entry) for entry in spec["model"]["vocab"]]
    vocab[0][0], vocab[1][0] = vocab[1][0], vocab[0][0]
    return {**spec, "added_tokens": [], "model": {**spec["model"], "vocab": vocab}}


@pytest.mark.parametrize(
    "make, why",
    [
        (lambda spec: b"", "not JSON"),
        (lambda spec: b"\xff\xfe\x00", "not JSON"),
        (lambda spec: STANDIN[: len(STANDIN) // 2], "not JSON"),
        (lambda spec: b"[" * 100_000, "not JSON"),
        (lambda spec: [], "model"),
        (lambda spec: {"model": 3}, "model"),
        (lambda spec: {"model": {"type": "Unigram", "unk_id": 99, "vocab": [["a", 0.0]]}}, "tokenizer.json"),
        (lambda spec: {**spec, "normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}}, "recompiled"),
        (without_eos, "</s>"),
        (renumbered, "id"),
    ],
)
def test_a_file_that_is_no_such_tokenizer_is_refused(tmp_path, make, why):
    with pytest.raises(_core.FormatError, match=why) as caught:
        load(tmp_path, make(json.loads(STANDIN)))
    assert str(tmp_path / "tokenizer.json") in str(caught.value)


def test_a_missing_file_is_an_os_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        text.Tokenizer(tmp_path / "none.json")


def test_check_published_tells_another_tokenizer(standin):
    report = text.check_published(standin)
    assert report["ok"] is False and report["sha256_known"] is False and report["texts"] == len(PUBLISHED["cases"])
    assert {"what": "entries in the vocabulary", "expected": 256300, "found": standin.vocabulary} in report["failed"]
    assert any(f["what"] == "ids of 'boxing'" for f in report["failed"])


def test_check_published_accepts_what_is_published():
    """The real file is 16 MB; an object that answers as it must stands for it."""

    ids = {case["text"]: case["ids"] for case in PUBLISHED["cases"].values()}

    class Published:
        vocabulary = PUBLISHED["facts"]["vocabulary"]
        sha256 = PUBLISHED["tokenizer.json"]["sha256"]

        def __call__(self, prompt):
            return ids[prompt]

        def token_id(self, token):
            return {**PUBLISHED["facts"]["added"], **PUBLISHED["pieces seen"]}[token]

    assert text.check_published(Published()) == {"ok": True, "texts": 22, "failed": [], "sha256_known": True}

"""The verbatim check accepts every pure insertion and nothing else."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from ipvg import verbatim

WORDS = st.sampled_from(
    ["A", "a", "man", "Man", "walks", "well-known", "don't", "l’eau", "3.5", "42", "naïve", "Straße", "она", "идёт",
     "γυνή", "女", "人", "海滩", "走在", "ゆっくり", "カメラ", "한국어", "ผู้หญิง", "नमस्ते", "বাংলা", "தமிழ்", "שָׁלוֹם", "مَرْحَبًا",
     ".", ",", "!", "...", "—", "(", ")", "“", "”", "，", "。", "🙂", "👩\u200d🚀", "👩🏽", "🇩🇪"]
)  # fmt: skip
OTHER = st.sampled_from(["xyzzy", "Größe", "жук", "猫", "犬", "ねこ", ";", "7", "§", "✓"])  # none of them above
CAPTION = st.lists(WORDS, min_size=1, max_size=12)


@given(CAPTION, st.data())
def test_accepts_any_pure_insertion(words, data):
    reply = []
    for word in words:
        reply += data.draw(st.lists(OTHER | WORDS, max_size=3)) + [word]
    reply += data.draw(st.lists(OTHER | WORDS, max_size=3))
    assert verbatim.check(" ".join(words), " ".join(reply)) is None


@given(CAPTION, st.data())
def test_accepts_an_insertion_between_any_two_tokens_as_they_stand(words, data):
    """Also where no space stands: "walks" | "." and between Chinese characters."""
    caption = unicodedata.normalize("NFC", " ".join(words))
    at = data.draw(st.sampled_from([0, *(end for _, end in verbatim.spans(caption))]))
    assert verbatim.check(caption, f"{caption[:at]} xyzzy {caption[at:]}") is None


@given(CAPTION, st.data())
def test_refuses_a_dropped_token_whatever_is_inserted(words, data):
    dropped = data.draw(st.integers(0, len(words) - 1))
    reply = []
    for word in words[:dropped] + words[dropped + 1 :]:
        reply += data.draw(st.lists(OTHER, max_size=2)) + [word]
    reply += data.draw(st.lists(OTHER, max_size=2))
    assert verbatim.check(" ".join(words), " ".join(reply)) is not None


@given(CAPTION, OTHER, st.data())
def test_refuses_a_changed_token(words, other, data):
    changed = list(words)
    changed[data.draw(st.integers(0, len(words) - 1))] = other
    assert verbatim.check(" ".join(words), " ".join(changed)) is not None


@given(CAPTION, st.data())
def test_refuses_a_changed_order(words, data):
    order = data.draw(st.permutations(words))
    # Multi-character "words" of scripts without spaces are several tokens: compare those.
    before, after = verbatim.tokens(" ".join(words)), verbatim.tokens(" ".join(order))
    assume(before != after)
    assert verbatim.check(" ".join(words), " ".join(order)) is not None


@given(st.text(min_size=1, max_size=20), st.data())
def test_refuses_any_single_character_changed_or_dropped(caption, data):
    """Any Unicode text at all; the same up to white space, quotes and composition is no change."""

    def bare(text):
        return "".join(unicodedata.normalize("NFC", text).translate(verbatim._QUOTES).split())

    at = data.draw(st.integers(0, len(caption) - 1))
    with_ = data.draw(st.just("") | st.characters())
    reply = caption[:at] + with_ + caption[at + 1 :]
    assume(len(bare(reply)) <= len(bare(caption)) and bare(reply) != bare(caption))
    assert verbatim.check(caption, reply) is not None


@given(CAPTION, st.data())
def test_inserted_by_construction(words, data):
    """`insert` never gives a text that `check` refuses, wherever it inserts; what it inserts is there, in order."""
    caption = data.draw(st.sampled_from([" ", "  ", "\n"])).join(words)
    count = len(verbatim.tokens(caption))
    additions = data.draw(st.dictionaries(st.integers(0, count), st.sampled_from(["xyzzy", "Größe", "猫", "a b"])))
    text = verbatim.insert(caption, additions)
    assert verbatim.check(caption, text) is None
    expected = len(verbatim.tokens(caption)) + sum(len(verbatim.tokens(added)) for added in additions.values())
    assert len(verbatim.tokens(text)) == expected


@given(st.text(max_size=30), st.data())
def test_inserted_by_construction_into_any_text(caption, data):
    places = verbatim.spans(caption)
    assert "".join(caption[a:b] for a, b in places) == "".join(caption.split())  # nothing but white space is left out
    at = data.draw(st.integers(0, len(places)))
    try:
        text = verbatim.insert(caption, {at: "xyzzy"})
    except ValueError:  # e.g. after a lone joiner: refused, never silently damaged
        return
    assert verbatim.check(caption, text) is None and "xyzzy" in text


@given(st.text(st.characters(categories=["M"]), min_size=1, max_size=3), st.sampled_from("aकবก女👩"))
def test_refuses_signs_added_to_a_character(signs, character):
    """A vowel sign, an accent or a variation makes another word, in every script."""
    changed = unicodedata.normalize("NFC", character + signs)
    assert verbatim.check(f"x {character} y", f"x {changed} y") is not None


def test_an_addition_that_grows_together_with_a_token_is_refused():
    with pytest.raises(ValueError, match="would not stay whole"):
        verbatim.insert("女人", {1: "\u0301"})
    assert verbatim.insert("A man walks.", {1: "tall", 2: "with grey eyes", 4: "Slowly."}) == (
        "A tall man with grey eyes walks. Slowly."
    )
    assert verbatim.insert("一个女人走。", {2: "长发的"}) == "一个长发的女人走。"
    assert verbatim.insert("", {0: "x"}) == "x"


@pytest.mark.parametrize(
    ("caption", "reply"),
    [
        ("A man walks.", "a man walks."),  # capitals count
        ("A man walks.", "A man's dog walks."),  # a word inside another is not that word
        ("A man walks.", "A man-like robot walks."),
        ("A man walks.", "A tall man walks..."),  # another mark
        ("A man walks.", "A tall man walks"),
        ("3 cats", "3.5 cats"),
        ("一个女人走在海滩上。", "一个女人走在沙滩上。"),
        ("一个女人走在海滩上。", "女一个人走在海滩上。"),
        ("un café", "un cafe"),
        ("कम", "कमि"),  # a vowel sign makes another word
        ("বন", "বনে"),
        ("a 🚀", "a 👩\u200d🚀"),  # a rocket inside an astronaut
        ("a 👩", "a 👩🏽"),
        ("dogs", "dogs's"),
        ("the man, walking", "walking the man,"),
    ],
)
def test_refuses(caption, reply):
    assert verbatim.check(caption, reply)


@pytest.mark.parametrize(
    ("caption", "reply"),
    [
        ("A man walks.", "A man, bearded and about forty, walks."),
        ("一个女人走在海滩上。", "一个三十岁左右、面带微笑的女人走在海滩上。"),
        ("A 女人 walks.", "A smiling 年轻的女人 slowly walks."),
        ("It's \"here\".", "It’s “right here”."),  # the tokenizer's cleaning makes these quotes equal
        ("un café", "un cafe\u0301"),
    ],
)
def test_accepts(caption, reply):
    assert verbatim.check(caption, reply) is None


def test_says_what_is_missing():
    assert verbatim.check("A man walks.", "A man with a beard strolls.") == "'walks' is missing or changed"

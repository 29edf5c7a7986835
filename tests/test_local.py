"""The local enhancer: pictures of the bundled world read by its judges, words inserted by a grammar."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ipvg import grammar, verbatim
from ipvg._core import UnsupportedError

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "models" / "tiny" / "examples"
PHOTO = ROOT / "models" / "examples" / "astronaut.png"
WORDS = {"hair": "long red hair", "freckles": "freckles", "eyes": "blue eyes", "age": "old"}

# ---- the grammar ----


@pytest.mark.parametrize(
    ("caption", "enhanced"),
    [
        ("A man walks.", "A man of old age with long red hair and freckles walks."),  # "A old man" would be wrong
        ("An astronaut in a suit smiles.", "An old astronaut with long red hair and freckles in a suit smiles."),
        ("The race car driver, in red, swerved.",
         "The old race car driver with long red hair and freckles, in red, swerved."),
        ("A woman with blue eyes waves.", "A woman of old age with long red hair, freckles and blue eyes waves."),
        ("A young woman with black hair waves.", "A young woman with freckles, blue eyes and black hair waves."),
        ("She waves.", "She waves. The person has long red hair and freckles."),
    ],
)  # fmt: skip
def test_words_go_where_they_read_naturally(caption, enhanced):
    assert grammar.add_face(caption, WORDS)[0] == enhanced
    assert verbatim.check(caption, enhanced) is None


def test_what_the_caption_says_is_not_said_again():
    text, said = grammar.add_face("An old, bald man with blue eyes.", WORDS, most=5)
    assert said == ["freckles"] and text == "An old, bald man with freckles and blue eyes."
    assert grammar.add_face("A man.", {}) == ("A man.", [])


@pytest.mark.parametrize("caption", ["Rain on a window.", "一个女人走在海滩上。", "Woman's hat.", "", "..."])
def test_a_caption_without_a_person_is_said_to_be_one(caption):
    with pytest.raises(grammar.NoPerson):
        grammar.add_face(caption, WORDS)
    with pytest.raises(grammar.NoPerson):
        grammar.appearance(caption)


@settings(max_examples=150)
@given(
    st.lists(st.sampled_from(
        "a an the A The old woman man she in with walks smiling, driver . ; hair 女人 3.5 “x”".split()), max_size=12),
    st.dictionaries(st.sampled_from(sorted(WORDS)), st.sampled_from(["old", "blue eyes", "a mole"]), max_size=4),
    st.integers(1, 4),
)  # fmt: skip
def test_every_caption_stays_whole(words, topics, most):
    caption = " ".join(words)
    try:
        text, said = grammar.add_face(caption, topics, most)
    except grammar.NoPerson:
        return
    assert verbatim.check(caption, text) is None and set(said) <= set(topics) and len(said) <= most + 1


@pytest.mark.parametrize(
    ("caption", "sentence"),
    [
        ("A woman in a red t-shirt smiles and waves at a sandy beach.", "A woman in a red t-shirt smiles."),
        ("In a city at night, a person wearing a black turtleneck and glasses looks sad and nods.",
         "A person wearing a black turtleneck and glasses looks sad."),
        ("A video of a man with a full beard in a snowy field, in a blue striped shirt with a warm scarf. He waves.",
         "A man with a full beard in a blue striped shirt with a warm scarf."),
        ("An astronaut in an orange suit turns her head; behind her a flag moves in the wind.",
         "An astronaut in an orange suit."),
    ],
)  # fmt: skip
def test_appearance_is_what_can_be_seen_of_the_person(caption, sentence):
    assert grammar.appearance(caption) == sentence


# ---- the judges ----


@pytest.fixture(scope="module")
def world():
    pytest.importorskip("onnxruntime")
    pytest.importorskip("ipvg._media")
    from ipvg.world import World

    return World()


#: As a person sees the held-out portraits; the words are the world's own.
SEEN = {
    1: "short grey hair", 2: "a dark brown afro", 3: "a blond afro", 4: "side-parted white hair",
    5: "curly black hair", 6: "bob red hair",
}  # fmt: skip


@pytest.mark.parametrize("number", SEEN)
def test_portraits_of_the_world_are_read(world, number):
    from ipvg import read_image

    picture = read_image(EXAMPLES / f"person{number}.png")
    reading = world.read(picture)
    assert reading.belongs and reading.likeness > 30 and reading.words["hair"] == SEEN[number]
    assert ("beard" in reading.words) == (number == 4)
    larger = np.kron(picture, np.ones((3, 3, 1), np.uint8))  # another size, another shape: the middle square counts
    wide = np.pad(larger, ((0, 0), (80, 80), (0, 0)))
    assert world.read(wide).words["hair"] == SEEN[number]


def test_a_photograph_gets_no_words_and_is_told_why(world):
    from ipvg import LocalEnhancer, read_image

    assert not world.read(read_image(PHOTO)).belongs
    found = LocalEnhancer().face_aware("A woman smiles.", PHOTO)
    assert found.text == found.original and found.verbatim and "not of the bundled world" in found.problem
    noise = np.random.default_rng(0).integers(0, 256, (128, 128, 3), np.uint8)
    assert not world.read(noise).belongs and not world.read(np.full((64, 64, 3), 90, np.uint8)).words.get("beard")


def test_local_enhancer(world):
    from ipvg import LocalEnhancer
    from ipvg.local import Enhancer, as_enhancer

    enhancer = as_enhancer("local")
    assert isinstance(enhancer, Enhancer) and isinstance(enhancer, LocalEnhancer) and as_enhancer(None) is None
    found = enhancer.face_aware("A woman in a blue turtleneck smiles.", EXAMPLES / "person6.png")
    assert found.text.startswith("A woman with bob red hair and ") and found.verbatim and found.problem == ""
    assert found.details["said"][0] == "hair" and found.details["reading"]["sure"]["hair_colour"] > 0.9
    assert "no person" in enhancer.face_aware("Rain on a window.", EXAMPLES / "person6.png").problem
    assert enhancer.appearance("A woman in a hat smiles.").text == "A woman in a hat smiles."
    with pytest.raises(TypeError, match="prompt_enhancer"):
        as_enhancer(3)


def test_without_onnx_runtime_the_error_says_what_to_install(monkeypatch):
    from ipvg.judge import Judge

    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UnsupportedError, match=r"pip install 'ipvg\[local\]'"):
        Judge(ROOT / "models" / "tiny" / "judges" / "face.onnx")


def test_a_damaged_onnx_file_is_named(world, tmp_path):
    from ipvg import Embedder
    from ipvg._core import FormatError

    (tmp_path / "bad.onnx").write_bytes(b"not a model")
    with pytest.raises(FormatError, match=r"bad\.onnx"):
        Embedder(tmp_path / "bad.onnx")


def test_the_bundled_embedder_tells_people_apart(world):
    from ipvg import Embedder, read_image

    embed = Embedder.bundled()
    people = [read_image(EXAMPLES / f"person{n}.png") for n in (1, 2, 3)]
    assert embed.similarity(people[0], people[0][:, ::-1]) > embed.same
    assert max(embed.similarity(people[0], other) for other in people[1:]) < embed.same
    assert Embedder(lambda picture: None).similarity(people[0], people[1]) is None
    with pytest.raises(ValueError, match="finite"):
        Embedder(lambda picture: [0, 0])(people[0])
    with pytest.raises(TypeError, match="source"):
        Embedder(3)

"""Enhancements as files that people edit; one picture, many, imported ones; what generate makes of them."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("ipvg._media")

import ipvg
from ipvg import Enhancement, pairs
from ipvg.cli import main
from ipvg.enhancing import enhance, enhance_many
from ipvg.pairs import Pair
from ipvg.reference import VaceReference, choose, near_size
from ipvg.video import read_image, write_png

ROOT = Path(__file__).resolve().parent.parent
PERSON = ROOT / "models" / "tiny" / "examples" / "person6.png"
CAPTION = "A woman walks on the beach."
FACE = np.kron(np.arange(12, dtype=np.uint8).reshape(2, 2, 3) * 20, np.ones((16, 16, 1), np.uint8))
RED, BLUE = np.full_like(FACE, (200, 0, 0)), np.full_like(FACE, (0, 0, 200))


def model(instruction, text, image):
    if image is None:
        return "A woman."
    return text.replace("woman", "woman with freckles")


def brightness(picture):
    """An embedder for tests: the mean colour."""
    return picture.mean((0, 1)) - 60


# ---- one ----


def test_prompt_and_reference(tmp_path):
    told = []

    def maker(picture, sentence):
        told.append((picture, sentence))
        return [RED, FACE[::-1], BLUE]

    found = enhance(FACE, CAPTION, prompt_enhancer=model, reference_enhancer=maker, embedder=brightness)
    assert found.prompt == "A woman with freckles walks on the beach." and found.problem == "" and not found.flags
    assert found.appearance == "A woman." and told[0][1] == "A woman." and (told[0][0] == FACE).all()
    record = found.provenance["reference"]
    assert record["chosen"] == 1 and record["similarity"] == 1.0 and len(record["candidates"]) == 3
    assert (found.picture() == FACE[::-1]).all() and (found.picture("image") == FACE).all()
    path = found.save(tmp_path / "a.json")
    again = Enhancement.load(path)
    assert again.edited == () and again.prompt == found.prompt and (again.picture() == FACE[::-1]).all()
    table = json.loads(path.read_text())
    assert table["format"] == "ipvg enhancement 1" and table["reference"] == "a.reference.png"  # the folder may move
    assert again.save(path) and json.loads(path.read_text()) == table


def test_the_original_stays_when_no_candidate_is_like_it():
    made = [(RED, {"seed": 1}), (BLUE, {"seed": 2})]
    choice = choose(FACE, made, ipvg.Embedder(brightness), minimum=0.99)
    assert choice.chosen is None and (choice.picture == FACE).all() and "original stays" in choice.problem
    assert [row["seed"] for row in choice.record["candidates"]] == [1, 2]
    assert choose(FACE, made, None).chosen == 0
    assert "no face" in choose(FACE, made, ipvg.Embedder(lambda p: None)).problem


def test_similarity_that_was_not_measured_is_flagged():
    found = enhance(FACE, CAPTION, reference_enhancer=lambda picture, sentence: RED)
    assert found.provenance["reference"]["similarity"] is None and "not measured" in " ".join(found.flags)
    assert found.appearance == CAPTION and found.prompt == CAPTION


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({}, ValueError, "nothing to do"), ({"reference_enhancer": "vace"}, ValueError, "needs a pipeline"),
        ({"reference_enhancer": 3}, TypeError, "reference_enhancer"),
        ({"reference_enhancer": lambda p, s: []}, ValueError, "no picture"),
        ({"reference_enhancer": lambda p, s: np.zeros((4, 4))}, TypeError, "uint8"),
        ({"prompt_enhancer": "magic"}, TypeError, "prompt_enhancer"),
    ],
)  # fmt: skip
def test_wrong_arguments(arguments, error, says):
    with pytest.raises(error, match=says):
        enhance(FACE, CAPTION, **arguments)


def test_caption_that_changed_is_flagged():
    found = enhance(FACE, CAPTION, prompt_enhancer=lambda i, t, image: "A man strolls.")
    assert found.problem == "'woman' is missing or changed" and found.flags[0].startswith("prompt: ")


def test_an_images_endpoint_is_a_maker():
    class Editor:  # as ipvg.images.ImageEditor
        base_url, model, options = "http://x/v1", "painter", {"quality": "high"}

        def edit(self, picture, prompt, *, size, n):
            from ipvg.images import Edited

            return Edited((RED,), {"prompt": prompt, "images": [{"sha256": "0"}]}, {})

    found = enhance(FACE, CAPTION, reference_enhancer=Editor(), embedder=None)
    record = found.provenance["reference"]
    assert record["by"] == "endpoint" and record["model"] == "painter" and (found.picture() == RED).all()
    assert record["candidates"][0]["provenance"]["prompt"] == CAPTION


# ---- edited by hand ----


def edit(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_edits_are_taken_and_named(tmp_path):
    path = enhance(FACE, CAPTION, prompt_enhancer=model).save(tmp_path / "a.json")
    edit(path, prompt="A woman with green eyes walks on the beach.")
    found = Enhancement.load(path)
    assert found.edited == ("prompt",) and found.problem == "" and found.record()["verbatim"]
    write_png(tmp_path / "mine.png", RED)
    edit(path, reference="mine.png", prompt="A woman strolls.")
    found = Enhancement.load(path)
    assert found.edited == ("prompt", "reference") and (found.picture() == RED).all()
    assert found.problem == "'walks' is missing or changed" and not found.record()["verbatim"]
    write_png(tmp_path / "a.image.png", BLUE)  # the same name, another picture
    assert "image" in Enhancement.load(path).edited
    assert Enhancement.load(found.save(path)).edited == ("image", "prompt", "reference")  # saving does not forget


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"promt": "x"}, "'promt' is none of"), ({"prompt": 3}, "prompt: expected str"), ({"prompt": " "}, "is empty"),
        ({"reference": "gone.png"}, "no file"), ({"format": "2"}, "not an enhancement"), ({"flags": {}}, "flags"),
    ],
)  # fmt: skip
def test_a_slip_of_the_hand_is_named(tmp_path, changes, says):
    path = enhance(FACE, CAPTION, prompt_enhancer=model).save(tmp_path / "a.json")
    edit(path, **changes)
    with pytest.raises(ipvg.FormatError, match=says):
        Enhancement.load(path)
    for text in ("{", "[]", "\udce4".encode("utf-8", "surrogatepass").decode("latin-1"), "[" * 100000):
        path.write_text(text)
        with pytest.raises(ipvg.FormatError):
            Enhancement.load(path)


# ---- many ----


@pytest.fixture
def photo(tmp_path):
    write_png(tmp_path / "alice.png", FACE)
    return tmp_path / "alice.png"


def test_many_resume_and_keep_what_a_hand_changed(tmp_path, photo):
    listed = [Pair(f"p{i}", str(photo), f"{CAPTION} {i}") for i in range(5)]
    asked, lock = [], threading.Lock()

    def sometimes(instruction, text, image):
        with lock:
            asked.append(text)
        if text.endswith("3") and len(asked) < 9:
            raise OSError("no line")
        return model(instruction, text, image)

    def run(**more):
        return enhance_many(listed, tmp_path / "out", prompt_enhancer=sometimes, concurrency=2, **more)

    items = run()
    assert [item.done for item in items] == ["made", "made", "made", "failed", "made"]
    assert "no line" in str(items[3].error)
    edit(items[0].path, prompt="A woman with a scar walks on the beach. 0")
    asked += [""] * 9
    done = run()
    assert [item.done for item in done] == ["kept", "kept", "kept", "made", "kept"] and asked[-1].endswith("3")
    assert Enhancement.load(items[0].path).prompt.startswith("A woman with a scar")
    done = run(reference_enhancer=lambda picture, sentence: RED, embedder=None)  # other settings
    assert [item.done for item in done] == ["failed", "made", "made", "made", "made"]
    assert "edited by hand" in str(done[0].error) and Enhancement.load(done[1].path).picture()[0, 0, 0] == 200


def test_lists(tmp_path, photo):
    (tmp_path / "a.csv").write_text('id,image,prompt\none,alice.png,"A woman, smiling, waves."\n,alice.png,Hello.\n')
    found = pairs.read(tmp_path / "a.csv")
    assert found[0] == Pair("one", str(photo), "A woman, smiling, waves.") and found[1].id == "alice-2"
    (tmp_path / "a.jsonl").write_text(
        '{"img": "alice.png", "caption": "Hello."}\n\n{"image": "x/alice.png", "prompt": "P"}'
    )
    assert [p.prompt for p in pairs.read(tmp_path / "a.jsonl")] == ["Hello.", "P"]
    (tmp_path / "a.json").write_text('[{"img": "alice.png", "prompt": "Hello."}]')
    assert pairs.read(tmp_path / "a.json")[0].image == str(photo)
    for text, says in (('{"image": "a"}', "entry 1: prompt"), ("[]", "entry 1"), ("{", "bad"),
                       ('{"image": "a", "prompt": "b", "id": "../c"}', "id")):  # fmt: skip
        (tmp_path / "bad.jsonl").write_text(text)
        with pytest.raises(ipvg.FormatError, match=says):
            pairs.read(tmp_path / "bad.jsonl")


@pytest.fixture
def dataset(tmp_path):
    for name in ("id001", "id002"):
        folder = tmp_path / "data" / name
        folder.mkdir(parents=True)
        write_png(folder / "image.png", FACE)
        (folder / "prompt1.txt").write_text("The chef, in white, cooks.\n")
        (folder / "prompt2.txt").write_text("The diver swims.")
    return tmp_path / "data"


def test_the_released_prompts_are_imported(tmp_path, dataset):
    assert [p.id for p in pairs.read(dataset)] == ["id001_1", "id001_2", "id002_1", "id002_2"]
    table = {
        "id001": {"1": "The chef, a young man with a beard, in white, cooks.", "2": "The diver, a woman, dives."},
        "id002": ["The chef, with a calm face, in white, cooks."],
    }
    (tmp_path / "all.json").write_text(json.dumps(table))
    found = pairs.released(tmp_path / "all.json", dataset)
    assert [one.id for one in found] == ["id001_1", "id001_2", "id002_1"]
    assert found[0].caption == "The chef, in white, cooks." and not found[0].flags
    assert "'swims' is missing or changed" in found[1].flags[0]
    assert "not known" in pairs.released(tmp_path / "all.json")[0].flags[0]
    assert main(["enhance", "--released", str(tmp_path / "all.json"), "--dataset", str(dataset), "--out",
                 str(tmp_path / "out")]) == 0  # fmt: skip
    again = Enhancement.load(tmp_path / "out" / "id002_1.json")
    assert again.prompt == table["id002"][0] and again.provenance["prompt"]["by"] == "imported" and not again.edited
    (tmp_path / "all.json").write_text('{"id009": {"1": "x"}}')
    with pytest.raises(ipvg.FormatError, match=r"id009: expected prompt1\.txt"):
        pairs.released(tmp_path / "all.json", dataset)


def test_released_prompts_answer_from_the_cache(tmp_path, photo):
    pytest.importorskip("ipvg._remote")
    chat = ipvg.PromptEnhancer("gpt-4.1", "http://127.0.0.1:9/v1", "", cache=tmp_path / "c", offline=True)
    text = "A woman with freckles walks on the beach."
    assert chat.remember("face_aware", CAPTION, text, photo) and not chat.remember("face_aware", CAPTION, "x", photo)
    found = chat.face_aware(CAPTION, photo)
    assert found.text == text and found.cached and found.model == "imported"


# ---- with the models ----


def test_one_frame_vace_and_generate(small_checkpoint, tmp_path):
    pytest.importorskip("onnxruntime")
    pipe = ipvg.Pipeline.load(small_checkpoint, threads=1)
    maker = VaceReference(pipe, 2, steps=1, size=(48, 48), seed=7)
    picture = read_image(PERSON)
    caption = "A woman in a blue turtleneck smiles."
    found = pipe.enhance(str(PERSON), caption, prompt_enhancer="local", reference_enhancer=maker)
    record = found.provenance["reference"]
    assert record["by"] == "vace" and [row["seed"] for row in record["candidates"]] == [7, 8]
    assert record["chosen"] is None and "original stays" in found.flags[0]  # untrained weights make noise
    assert all(-1 <= row["similarity"] < 0.63 for row in record["candidates"])
    assert found.prompt.startswith("A woman with bob red hair") and (found.picture() == picture).all()
    first, again = maker(picture, "A woman."), maker(picture, "A woman.")
    assert (first[0][0] == again[0][0]).all() and (first[0][0] != first[1][0]).any()
    assert first[0][0].shape == (48, 48, 3)

    path = found.save(tmp_path / "a.json")
    edit(path, prompt="A woman with blue eyes in a blue turtleneck smiles.")
    found = Enhancement.load(path)
    video = pipe.generate(found, size=(48, 48), frames=1, steps=1)
    assert video.manifest["job"]["texts"]["cond"] == found.prompt
    assert video.manifest["enhancement"]["edited"] == ["prompt"] and video.manifest["enhancement"]["verbatim"]


def test_sizes_of_references():
    assert near_size((128, 128), (128, 128)) == (128, 128)
    assert near_size((600, 900), (832, 480)) == (512, 768)
    assert near_size((4000, 10), (832, 480))[1] == 32


# ---- the command ----


def test_command(tmp_path, small_checkpoint, capsys):
    pytest.importorskip("onnxruntime")
    out, video = tmp_path / "a.json", tmp_path / "a.mp4"
    prompt = "A woman in a blue turtleneck smiles."
    assert main(["enhance", "--image", str(PERSON), "--prompt", prompt, "--out", str(out), "--quiet"]) == 0
    assert "prompt: A woman with bob red hair" in capsys.readouterr().out
    edit(out, prompt="A woman with blue eyes in a blue turtleneck smiles.")
    tiny = ["--size", "48x48", "--frames", "1", "--steps", "1", "--threads", "1", "--quiet"]
    job = ["generate", "--checkpoint", str(small_checkpoint), "--enhanced", str(out), "--out", str(video), *tiny]
    assert main(job) == 0
    made = ipvg.manifest.read(f"{video}.json")
    assert made["enhancement"]["edited"] == ["prompt"] and made["settings"]["references"] == [str(PERSON)]
    assert made["job"]["texts"]["cond"] == "A woman with blue eyes in a blue turtleneck smiles."
    assert main(["rerun", f"{video}.json", "--quiet"]) == 0

    (tmp_path / "list.csv").write_text(f"id,image,prompt\nx,{PERSON},{prompt}\ny,{tmp_path / 'none.png'},{prompt}\n")
    many = ["enhance", "--list", str(tmp_path / "list.csv"), "--out", str(tmp_path / "many"), "--quiet"]
    capsys.readouterr()
    assert main(many) == 1  # y has no picture; x is made all the same
    said = capsys.readouterr()
    assert "ipvg: y: " in said.err and "made: 1" in said.out and (tmp_path / "many" / "x.json").is_file()
    assert main(many) == 1 and "kept: 1" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "give one of --image"), (["--image", "a.png"], "needs --prompt"),
        (["--image", "a.png", "--prompt", "x", "--by", "none"], "nothing to do"),
        (["--image", "a.png", "--prompt", "x", "--reference", "magic"], "none, vace or endpoint:MODEL"),
        (["--image", "a.png", "--prompt", "x", "--cache", "c"], "chat model"),
        (["--image", "a.png", "--prompt", "x", "--by", "gpt-4o", "--offline"], "needs a cache"),
    ],
)  # fmt: skip
def test_wrong_usage(tmp_path, capsys, arguments, says):
    with pytest.raises(SystemExit) as ended:
        main(["enhance", *arguments, "--out", str(tmp_path / "a.json")])
    assert ended.value.code == 2 and says in capsys.readouterr().err

"""Answers of an images endpoint in a cache: a call is paid for once, and comes back without a key or a network."""

from __future__ import annotations

import json
import sqlite3
import threading

import numpy as np
import pytest

pytest.importorskip("ipvg._remote")
pytest.importorskip("ipvg._media")

from chat_client import KEY, QUICK
from chat_server import Server, http, script
from test_remote_images import FACE, MADE, PROMPT, in_base64, reply

from ipvg import Enhancement, FormatError, OfflineMiss
from ipvg.cache import Cache, CacheWarning
from ipvg.chat import RemoteError
from ipvg.cli import main
from ipvg.images import ImageEditor, encode_png

pytestmark = pytest.mark.usefixtures("no_settings_from_outside")

NOWHERE = "http://127.0.0.1:9/v1"
USAGE = {"input_tokens": 3, "output_tokens": 4, "total_tokens": 7}


def made(*pictures) -> bytes:
    return reply(*(in_base64(encode_png(p), revised_prompt="Red.") for p in pictures), usage=USAGE)


def editor(url=NOWHERE, key=KEY, **arguments) -> ImageEditor:
    return ImageEditor("mock", url, key, limits=QUICK, **arguments)


@pytest.fixture
def filled(tmp_path):
    """(cache, base_url, what the service said) after one call for two pictures."""
    with Server(script(made(MADE, FACE))) as server:
        first = editor(server.url, cache=tmp_path / "c").edit(FACE, PROMPT, n=2)
        assert not first.cached and len(server.requests) == 1
        return Cache(tmp_path / "c"), server.url, first


def test_second_call_is_answered_by_the_cache_and_offline(filled):
    cache, url, first = filled  # the server is gone
    for again in (editor(url, cache=cache), editor(url, "", cache=cache, offline=True)):
        found = again.edit(FACE, PROMPT, n=2)
        assert found.cached and (found.provenance, found.usage) == (first.provenance, first.usage)
        assert all((a == b).all() for a, b in zip(found.images, (MADE, FACE), strict=True))
    assert len(cache) == 1


@pytest.mark.parametrize(
    ("arguments", "call"),
    [
        ({}, {"prompt": "Another."}), ({}, {"n": 1}), ({}, {"size": "1024x1024"}), ({}, {"image": MADE}),
        ({}, {"image": [FACE]}), ({}, {"image": [FACE, FACE]}), ({"options": {"quality": "high"}}, {}),
        ({"upload": "jpeg"}, {}), ({"max_side": 20}, {}), ({}, {"image": FACE.reshape(30, 40, 3)}),
    ],
)  # fmt: skip
def test_everything_that_changes_the_answer_is_in_the_key(filled, arguments, call):
    cache, url, _ = filled
    with pytest.raises(OfflineMiss, match="has no pictures of mock at http") as caught:
        editor(url, cache=cache, offline=True, **arguments).edit(**{"image": FACE, "prompt": PROMPT, "n": 2, **call})
    assert KEY not in str(caught.value)


def test_model_and_service_are_in_the_key(filled):
    cache, url, _ = filled
    for other in (ImageEditor("other", url, "", cache=cache, offline=True), editor(cache=cache, offline=True)):
        with pytest.raises(OfflineMiss):
            other.edit(FACE, PROMPT, n=2)


def test_what_does_not_change_the_answer_is_not(filled, tmp_path):
    """Another key, other limits, a path in place of pixels."""
    cache, url, _ = filled
    (tmp_path / "face.png").write_bytes(encode_png(FACE))
    found = ImageEditor("mock", url, "another", cache=cache).edit(tmp_path / "face.png", PROMPT, n=2)
    assert found.cached


def test_picture_behind_an_address_is_kept_too(tmp_path):
    files = Server(script(http(encode_png(MADE), type="image/png")))
    with files, Server(script(reply({"url": f"{files.url}/a.png?sig=s3cret"}))) as server:
        editor(server.url, cache=tmp_path / "c").edit(FACE, "x")
    found = editor(server.url, cache=tmp_path / "c", offline=True).edit(FACE, "x")
    assert (found.images[0] == MADE).all() and found.provenance["images"][0]["from"] == "url"
    assert all(b"s3cret" not in p.read_bytes() for p in tmp_path.rglob("*") if p.is_file())


def test_failures_are_not_cached(tmp_path):
    answers = [http({"error": {"message": "no"}}, 400), reply(in_base64(encode_png(MADE)[:-60])), made(MADE)]
    with Server(script(*answers)) as server:
        asking = editor(server.url, cache=tmp_path / "c")
        for text in ("no", "cannot be decoded"):
            with pytest.raises(RemoteError, match=text):
                asking.edit(FACE, "x")
        assert len(asking.cache) == 0 and not asking.edit(FACE, "x").cached and asking.edit(FACE, "x").cached


def test_equal_calls_at_once_are_one(tmp_path):
    with Server(script(made(MADE))) as server:
        asking, found = editor(server.url, cache=tmp_path / "c"), []
        threads = [threading.Thread(target=lambda: found.append(asking.edit(FACE, "x"))) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(server.requests) == 1 and sorted(f.cached for f in found) == [False] + [True] * 5
        assert all((f.images[0] == MADE).all() for f in found)


def test_chat_and_pictures_share_a_file(filled):
    cache, url, _ = filled
    answer = {"content": "x", "finish_reason": "stop", "model": "m", "prompt_tokens": 1, "completion_tokens": 1}
    assert cache.put({"n": 0}, answer) == answer and cache.get({"n": 0}) == answer and len(cache) == 2
    assert editor(url, cache=cache, offline=True).edit(FACE, PROMPT, n=2).cached


def test_file_of_an_older_version_takes_pictures(tmp_path):
    with sqlite3.connect(tmp_path / "c.sqlite") as db:
        db.execute("CREATE TABLE answers (key TEXT PRIMARY KEY, request TEXT, answer TEXT, stored REAL)")
    db.close()
    with Server(script(made(MADE))) as server:
        assert not editor(server.url, cache=tmp_path / "c.sqlite").edit(FACE, "x").cached
    assert editor(server.url, cache=tmp_path / "c.sqlite", offline=True).edit(FACE, "x").cached


def test_full_disk_loses_no_picture(tmp_path):
    large = np.random.default_rng(3).integers(0, 256, (200, 200, 3), np.uint8)
    with Server(script(made(large))) as server:
        asking = editor(server.url, cache=tmp_path / "c")
        with asking.cache._open() as db:
            db.execute(f"PRAGMA max_page_count = {db.execute('PRAGMA page_count').fetchone()[0] + 2}")
        with pytest.warns(CacheWarning, match="full"):
            assert (asking.edit(FACE, "x").images[0] == large).all()
        assert len(asking.cache) == 0


def test_no_key_in_the_file(filled, tmp_path):
    cache, _, _ = filled
    cache.close()
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or KEY.encode() not in path.read_bytes()


# ---- as lines ----


def test_export_and_load(filled, tmp_path):
    cache, url, first = filled
    assert cache.export(tmp_path / "all.jsonl") == 1
    other = Cache(tmp_path / "other")
    assert other.load(tmp_path / "all.jsonl") == 1 and other.load(tmp_path / "all.jsonl") == 0
    found = editor(url, cache=other, offline=True).edit(FACE, PROMPT, n=2)
    assert found.provenance == first.provenance and (found.images[1] == FACE).all()
    other.export(tmp_path / "again.jsonl")
    assert (tmp_path / "again.jsonl").read_bytes() == (tmp_path / "all.jsonl").read_bytes()


def test_lines_without_their_picture_are_refused(filled, tmp_path):
    cache, _, _ = filled
    cache.export(tmp_path / "all.jsonl")
    answer, *pictures = (tmp_path / "all.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(pictures) == 2
    changed = json.dumps({"picture": "AAAA"})
    wrong = json.loads(answer)
    wrong["answer"]["images"][0]["sha256"] = 3
    for lines, text in [
        ([answer, pictures[0]], ":1: the answer's picture .* is missing"), ([answer, changed, pictures[1]], "missing"),
        ([answer, '{"picture": "@"}'], ":2: picture: not base64"), (['{"picture": 3}'], ":1: picture: not base64"),
        ([json.dumps(wrong), *pictures], ":1: sha256: expected str"),
    ]:  # fmt: skip
        (tmp_path / "part.jsonl").write_text("\n".join(lines), encoding="utf-8")
        other = Cache(tmp_path / "other")
        with pytest.raises(FormatError, match=text):
            other.load(tmp_path / "part.jsonl")
        with other._open() as db:
            assert len(other) == 0 and db.execute("SELECT count(*) FROM pictures").fetchone()[0] == 0


@pytest.mark.parametrize("statement", ["DELETE FROM pictures", "UPDATE pictures SET data = x'00'"])
def test_picture_that_is_gone_or_changed_is_named(filled, statement):
    cache, url, _ = filled
    with cache._open() as db, db:
        db.execute(statement)
    with pytest.raises(FormatError, match=r"the picture .* of an answer is (missing|changed)"):
        editor(url, cache=cache, offline=True).edit(FACE, PROMPT, n=2)


def test_offline_needs_a_cache():
    with pytest.raises(ValueError, match="offline: needs a cache"):
        editor(offline=True)


def test_command_asks_once_and_replays_offline(tmp_path, monkeypatch, capsys):
    image, cache, out = tmp_path / "face.png", tmp_path / "c", tmp_path / "a.json"
    image.write_bytes(encode_png(FACE))
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with Server(script(made(MADE))) as server:
        command = ["enhance", "--image", str(image), "--prompt", PROMPT, "--by", "none", "--reference", "endpoint:mock",
                   "--candidates", "1", "--embedder", "none", "--base-url", server.url, "--cache", str(cache),
                   "--out", str(out), "--quiet"]  # fmt: skip
        assert main(command) == 0 and len(server.requests) == 1
    first = Enhancement.load(out)
    out.unlink()
    monkeypatch.delenv("OPENAI_API_KEY")
    assert main([*command, "--offline"]) == 0  # the server is gone
    again = Enhancement.load(out)
    assert (again.picture() == first.picture()).all() and (again.picture() == MADE).all()
    out.unlink()
    assert main([*command[:4], "Another sentence.", *command[5:], "--offline"]) == 1
    said = capsys.readouterr().err
    assert "has no pictures of mock" in said and "internal error" not in said and not out.exists()

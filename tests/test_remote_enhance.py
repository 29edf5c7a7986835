"""PromptEnhancer and its cache against a chat service on loopback."""

from __future__ import annotations

import base64
import dataclasses
import json
import multiprocessing
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import warnings

import numpy as np
import pytest

pytest.importorskip("ipvg._remote")
pytest.importorskip("ipvg._media")

from chat_client import KEY
from chat_server import Server, completion, http, script

import ipvg
from ipvg.cache import Cache, CacheWarning, key_of
from ipvg.chat import Limits, RemoteError
from ipvg.enhance import OfflineMiss, PromptEnhancer
from ipvg.instructions import Instructions
from ipvg.video import encode_jpeg, read_image

pytestmark = pytest.mark.usefixtures("no_settings_from_outside")

CAPTION = "A woman walks on the beach."
FACE = np.kron(np.arange(12, dtype=np.uint8).reshape(2, 2, 3) * 20, np.ones((20, 30, 1), np.uint8))
LIMITS = Limits(connect=5, total=30, silence=0, deadline=60, attempts=1, first_wait=0.02)
ANSWER = {"content": "x", "finish_reason": "stop", "model": "m", "prompt_tokens": 1, "completion_tokens": 1}


def reply(text: str) -> bytes:
    return http(completion(text))


def caption_of(request) -> str:
    content = request.json["messages"][1]["content"]
    return content if isinstance(content, str) else content[0]["text"]


def insert(request, connection) -> bytes:
    """What a good model does."""
    return reply(caption_of(request).replace("woman", "woman with freckles"))


def enhancer(server, **arguments) -> PromptEnhancer:
    return PromptEnhancer("mock", server.url, KEY, **{"limits": LIMITS, **arguments})


# ---- PE and IE ----


def test_face_aware():
    with Server(insert) as server:
        e = enhancer(server, prices=(2.0, 10.0))
        found = e.face_aware(CAPTION, FACE)
    assert found.text == "A woman with freckles walks on the beach." and str(found) == found.text
    assert found.verbatim is True and not found.repaired and not found.cached and found.problem == ""
    assert found.model == "mock-1" and found.instructions == Instructions().version
    assert (e.usage.calls, e.usage.prompt_tokens, e.usage.completion_tokens) == (1, 11, 7)
    assert e.usage.price == pytest.approx((11 * 2 + 7 * 10) / 1e6)
    body = server.requests[0].json
    assert body["max_tokens"] == 5000
    assert body["messages"][0] == {"role": "system", "content": Instructions().face_aware}
    assert [p["type"] for p in body["messages"][1]["content"]] == ["text", "image_url"]
    json.dumps(found.to_dict())


def test_appearance():
    with Server(script(reply("A young woman in a red dress."))) as server:
        found = enhancer(server).appearance(CAPTION)
    assert found.text == "A young woman in a red dress." and found.verbatim is None
    assert server.requests[0].json["messages"][1] == {"role": "user", "content": CAPTION}


def test_changed_caption_is_repaired_once():
    with Server(script(reply("A happy woman strolls on the beach."), insert)) as server:
        found = enhancer(server).face_aware(CAPTION, FACE)
    assert found.verbatim and found.repaired and found.usage.calls == 2 and len(server.requests) == 2
    roles = [m["role"] for m in server.requests[1].json["messages"]]
    assert roles == ["system", "user", "assistant", "user"]
    last = server.requests[1].json["messages"][-1]["content"]
    assert "'walks' is missing or changed" in last and CAPTION in last


def test_caption_that_stays_changed_is_said_to_be():
    with Server(script(reply("A happy woman strolls on the beach."))) as server:
        found = enhancer(server).face_aware(CAPTION, FACE)
    assert found.verbatim is False and found.repaired and found.problem == "'walks' is missing or changed"
    assert found.text == "A happy woman strolls on the beach." and len(server.requests) == 2


def test_quotation_marks_around_the_reply_are_taken_off():
    with Server(script(reply('"A woman with freckles walks\non the beach."\n'))) as server:
        assert enhancer(server).face_aware(CAPTION, FACE).text == "A woman with freckles walks on the beach."


def test_picture_is_scaled_and_carries_nothing_but_pixels():
    secret = b"Exif\0\0GPS 48.8584 N 2.2945 E"
    jpeg = encode_jpeg(np.tile(FACE, (20, 30, 1)), max_side=4096)
    tagged = jpeg[:2] + b"\xff\xe1" + (len(secret) + 2).to_bytes(2, "big") + secret + jpeg[2:]
    with Server(insert) as server:
        enhancer(server, max_side=512).face_aware(CAPTION, tagged)
    sent = base64.b64decode(server.requests[0].json["messages"][1]["content"][1]["image_url"]["url"].split(",")[1])
    assert secret in tagged and b"GPS" not in sent and b"Exif" not in sent and b"Lavc" not in sent
    pixels = read_image(sent)
    assert max(pixels.shape) == 512
    mean = np.abs(pixels.mean((0, 1)) - read_image(tagged).mean((0, 1))).max()
    assert mean < 2  # the same picture: colours of the whole within JPEG's error


def test_preview_sends_nothing_and_is_what_would_be_sent():
    with Server(insert) as server:
        e = enhancer(server)
        seen = e.preview("face_aware", CAPTION, FACE)
        assert not server.requests and not seen["cached"] and KEY not in str(seen)
        e.face_aware(CAPTION, FACE)
        assert seen["bytes"] == len(server.requests[0].body) and seen["url"] == f"{server.url}/chat/completions"
        assert seen["body"]["messages"][0] == server.requests[0].json["messages"][0]


def test_callable():
    calls = []

    def model(instruction, text, image):
        calls.append((instruction, text, image))
        return "A woman with freckles walks on the beach." if len(calls) > 1 else "No."

    e = PromptEnhancer(model)
    found = e.face_aware(CAPTION, FACE)
    assert found.verbatim and found.repaired and found.model == "model" and not found.cached
    assert calls[0][0] == Instructions().face_aware and calls[0][1] == CAPTION and (calls[1][2] == FACE).all()
    assert e.appearance(CAPTION).text == "A woman with freckles walks on the beach." and calls[-1][2] is None
    with pytest.raises(ValueError, match="cache"):
        PromptEnhancer(model, cache="x")
    with pytest.raises(TypeError, match="answer"):
        PromptEnhancer(lambda *_: None).appearance(CAPTION)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"concurrency": 0}, ValueError), ({"concurrency": "8"}, TypeError), ({"model": 3}, TypeError),
        ({"max_tokens": 0}, ValueError), ({"offline": True}, ValueError), ({"prices": ("a", "b")}, TypeError),
        ({"quality": 101}, ValueError), ({"instructions": "be nice"}, TypeError), ({"base_url": "x"}, ValueError),
    ],
)  # fmt: skip
def test_wrong_arguments(arguments, error):
    with pytest.raises(error, match=next(iter(arguments))):
        PromptEnhancer(**arguments)


def test_empty_prompt():
    with pytest.raises(ValueError, match="prompt"):
        PromptEnhancer("m", "http://127.0.0.1:9", "").appearance("  ")


# ---- cache ----


def test_cache_answers_the_second_time_and_offline(tmp_path):
    with Server(insert) as server:
        first = enhancer(server, cache=tmp_path / "c").face_aware(CAPTION, FACE)
        again = enhancer(server, cache=tmp_path / "c").face_aware(CAPTION, FACE)
        offline = enhancer(server, cache=tmp_path / "c", offline=True, limits=None)
        replayed = offline.face_aware(CAPTION, FACE)
        assert len(server.requests) == 1
        assert not first.cached and again.cached and replayed.cached and first.text == again.text == replayed.text
        with pytest.raises(OfflineMiss, match="Another caption") as caught:
            offline.face_aware("Another caption.", FACE)
        assert "mock" in str(caught.value) and len(server.requests) == 1


def test_everything_that_changes_the_answer_is_in_the_key(tmp_path):
    other = FACE.copy()
    other[0, 0, 0] += 1
    instructions = dataclasses.replace(Instructions(), face_aware="Say it differently.")
    variants = [{}, {"options": {"seed": 1}}, {"max_tokens": 7}, {"max_side": 16}, {"quality": 50}]
    variants += [{"instructions": instructions}]
    with Server(insert) as server:
        for n, arguments in enumerate(variants, 1):
            enhancer(server, cache=tmp_path / "c", **arguments).face_aware(CAPTION, FACE)
            assert len(server.requests) == n
        enhancer(server, cache=tmp_path / "c").face_aware(CAPTION, other)
        enhancer(server, cache=tmp_path / "c").face_aware(CAPTION, FACE.reshape(60, 40, 3))
        PromptEnhancer("mock-2", server.url, KEY, cache=tmp_path / "c").face_aware(CAPTION, FACE)
        PromptEnhancer("mock", server.url + "/other", KEY, cache=tmp_path / "c").face_aware(CAPTION, FACE)
        assert len(server.requests) == len(variants) + 4
        PromptEnhancer("mock", server.url, "another-key-123", cache=tmp_path / "c").face_aware(CAPTION, FACE)
        assert len(server.requests) == len(variants) + 4  # the key does not change the answer


def test_failures_are_not_cached(tmp_path):
    with Server(script(http(completion(None, refusal="No.")), insert)) as server:
        e = enhancer(server, cache=tmp_path / "c")
        with pytest.raises(RemoteError, match=r"No\."):
            e.face_aware(CAPTION, FACE)
        assert e.face_aware(CAPTION, FACE).verbatim


def test_key_is_in_no_file_and_no_repr(tmp_path):
    with Server(insert) as server:
        e = enhancer(server, cache=tmp_path / "c")
        found = e.face_aware(CAPTION, FACE)
        e.cache.export(tmp_path / "all.jsonl")
        assert KEY in server.requests[0].headers["authorization"]
        assert KEY not in f"{e!r} {e} {found!r} {found.to_dict()} {vars(e)} {e.cache!r} {e.usage!r}"
        e.cache.close()
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) >= 2 and not any(KEY.encode() in path.read_bytes() for path in files)


def test_export_and_load(tmp_path):
    with Server(insert) as server:
        e = enhancer(server, cache=tmp_path / "a")
        texts = [e.face_aware(f"{CAPTION} {i}", FACE).text for i in range(3)]
        assert e.cache.export(tmp_path / "x.jsonl") == 3
        other = Cache(tmp_path / "b")
        assert other.load(tmp_path / "x.jsonl") == 3 and other.load(tmp_path / "x.jsonl") == 0 and len(other) == 3
        e = enhancer(server, cache=other, offline=True)
        assert [e.face_aware(f"{CAPTION} {i}", FACE).text for i in range(3)] == texts


def good_line(**changes) -> dict:
    request = {"model": "m"}
    return {"key": key_of(request), "request": request, "answer": ANSWER, **changes}


@pytest.mark.parametrize(
    "line",
    [
        b"nonsense", b"[]", b"3", b"\xff", b"[" * 100_000, b'{"key": "\\ud800"}',
        json.dumps(good_line(key="0" * 64)).encode(), json.dumps(good_line(request={"model": "n"})).encode(),
        json.dumps(good_line(request=3)).encode(), json.dumps(good_line(answer=None)).encode(),
        json.dumps(good_line(answer={**ANSWER, "content": 3})).encode(),
        json.dumps(good_line(answer={**ANSWER, "prompt_tokens": True})).encode(),
        json.dumps(good_line(answer={**ANSWER, "more": 1})).encode(),
        json.dumps(good_line(answer={**ANSWER, "content": "\ud800"})).encode(),
    ],
)  # fmt: skip
def test_wrong_line_is_named_and_nothing_is_loaded(tmp_path, line):
    (tmp_path / "x.jsonl").write_bytes(json.dumps(good_line()).encode() + b"\n" + line + b"\n")
    cache = Cache(tmp_path / "c")
    with pytest.raises(ipvg.FormatError, match=r"x\.jsonl:2: "):
        cache.load(tmp_path / "x.jsonl")
    assert len(cache) == 0


def test_file_that_is_no_cache(tmp_path):
    (tmp_path / "c.sqlite").write_bytes(b"no database at all, but long enough to be looked at" * 40)
    with pytest.raises(ipvg.FormatError, match="not a cache"):
        Cache(tmp_path / "c.sqlite").get({})


def test_full_disk_loses_no_answer(tmp_path):
    with Server(script(reply("A woman " + "very " * 40000 + "walks on the beach."))) as server:
        e = enhancer(server, cache=tmp_path / "c")
        with e.cache._open() as db:
            db.execute(f"PRAGMA max_page_count = {db.execute('PRAGMA page_count').fetchone()[0] + 2}")
        with pytest.warns(CacheWarning, match="full"):
            assert e.face_aware(CAPTION, FACE).verbatim
        assert len(e.cache) == 0


def test_limit_on_files_loses_no_answer(tmp_path):
    """Writing fails below SQLite, as it does on a full disk; the file must be whole afterwards."""
    program = (
        "import resource, signal, sys, warnings\nfrom ipvg.cache import Cache, CacheWarning\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\ncache = Cache(sys.argv[1])\n"
        "answer = {'content': 'x' * 1000000, 'finish_reason': 'stop', 'model': 'm', 'prompt_tokens': 1,\n"
        "          'completion_tokens': 1}\n"
        "cache.put({'n': 0}, {**answer, 'content': 'small'})\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (200000, 200000))\n"
        "with warnings.catch_warnings(record=True) as seen:\n"
        "    warnings.simplefilter('always')\n"
        "    assert cache.put({'n': 1}, answer) == answer\n"
        "assert [w.category for w in seen] == [CacheWarning], seen\n"
        "assert cache.get({'n': 0})['content'] == 'small' and cache.get({'n': 1}) is None\n"
    )
    done = subprocess.run([sys.executable, "-c", program, tmp_path / "c"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    cache = Cache(tmp_path / "c")
    assert len(cache) == 1
    with cache._open() as db:
        assert db.execute("PRAGMA integrity_check").fetchone()[0] == "ok"


def _put(folder, name, barrier, queue):
    warnings.simplefilter("error", CacheWarning)
    for c in range(20):  # most of what can go wrong is in the making of a file
        cache = Cache(folder / f"{c}.sqlite")
        barrier.wait()
        queue.put([cache.put({"i": i}, {**ANSWER, "content": f"{name} {i}"})["content"] for i in range(20)])


def test_two_processes_that_write_the_same_keys(tmp_path):
    context = multiprocessing.get_context("spawn")
    barrier, queues = context.Barrier(2, timeout=60), [context.Queue(), context.Queue()]
    workers = [context.Process(target=_put, args=(tmp_path, n, barrier, q)) for n, q in zip("ab", queues)]
    for worker in workers:
        worker.start()
    for c in range(20):
        said = [queue.get(timeout=60) for queue in queues]
        cache = Cache(tmp_path / f"{c}.sqlite")
        kept = [cache.get({"i": i})["content"] for i in range(20)]
        assert len(cache) == 20 and said == [kept, kept]
        with sqlite3.connect(cache.path) as db:
            assert db.execute("PRAGMA journal_mode").fetchone()[0] == "wal"
            assert db.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
        db.close()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0


# ---- many ----


def test_many_in_order_with_bounded_concurrency(tmp_path):
    inside, most, lock = 0, 0, threading.Lock()

    def answer(request, connection):
        nonlocal inside, most
        with lock:
            inside += 1
            most = max(most, inside)
        time.sleep(0.05)
        with lock:
            inside -= 1
        return insert(request, connection)

    seen = []
    with Server(answer) as server:
        e = enhancer(server, concurrency=4, cache=tmp_path / "c")
        prompts = [f"A woman walks {i % 20}." for i in range(40)]
        found = e.face_aware_many([(p, FACE) for p in prompts], progress=lambda *a: seen.append(a))
    assert [f.text for f in found] == [p.replace("woman", "woman with freckles") for p in prompts]
    assert most <= 4 and server.connections <= 4 and len(server.requests) == 20  # equal calls are sent once
    assert seen[-1] == ("face-aware prompts", 40, 40) and (e.usage.calls, e.usage.cached) == (20, 20)


def test_failure_in_a_batch():
    def answer(request, connection):
        return http(b"no", 400) if "bad" in caption_of(request) else insert(request, connection)

    with Server(answer) as server:
        e = enhancer(server, concurrency=2)
        found = e.appearance_many(["a woman", "bad", "b woman"], errors="return")
        assert isinstance(found[1], RemoteError) and found[1].status == 400 and found[2].text
        with pytest.raises(RemoteError):
            e.appearance_many(["bad"] * 3)


def test_interrupt_at_any_time(tmp_path):
    """Ctrl-C after 0 to 25 ms of a call with a connection, a wait, a body in two pieces and a write to the cache:
    the call ends with KeyboardInterrupt or is done, and the next one works."""
    program = (
        "import signal, sys\nfrom ipvg import PromptEnhancer\n"
        "signal.signal(signal.SIGALRM, signal.default_int_handler)\n"
        "e = PromptEnhancer('m', sys.argv[1], '', cache=sys.argv[2])\n"
        "e.appearance('first')\nstopped = done = 0\n"
        "for i in range(150):\n"
        "    try:\n"
        "        signal.setitimer(signal.ITIMER_REAL, 0.0001 + 0.025 * (i * 0.618 % 1))\n"
        "        e.appearance(str(i))\n"
        "        signal.setitimer(signal.ITIMER_REAL, 0)\n"
        "        done += 1\n"
        "    except KeyboardInterrupt: stopped += 1\n"
        "    finally: signal.setitimer(signal.ITIMER_REAL, 0)\n"
        "assert e.appearance('last').text and len(e.cache) >= done + 2\nprint(stopped, done)\n"
    )

    def slow(request, connection):
        data = reply("A woman.")
        time.sleep(0.005)
        connection.sendall(data[:-50])
        time.sleep(0.005)
        return data[-50:] if len(server.requests) % 3 else connection.sendall(data[-50:])  # None: closes the connection

    with Server(slow) as server:
        command = [sys.executable, "-c", program, server.url, tmp_path / "c"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert min(map(int, done.stdout.split())) > 10, done.stdout


def test_ctrl_c_ends_a_batch(tmp_path):
    program = (
        "import sys\nfrom ipvg import PromptEnhancer\n"
        "try: PromptEnhancer('m', sys.argv[1], '').appearance_many([str(i) for i in range(50)])\n"
        "except KeyboardInterrupt: print('stopped')\n"
    )
    with Server(lambda r, c: time.sleep(20)) as server:
        child = subprocess.Popen([sys.executable, "-c", program, server.url], stdout=subprocess.PIPE, text=True)
        while len(server.requests) < 8:
            time.sleep(0.02)
        began = time.monotonic()
        child.send_signal(signal.SIGINT)
        assert child.communicate(timeout=15)[0] == "stopped\n" and time.monotonic() - began < 4
        assert len(server.requests) == 8

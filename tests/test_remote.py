"""The chat client: what is sent, what comes back, what is wrong with either."""

from __future__ import annotations

import base64
import io
import json
import os
import pickle
import sys

import pytest

pytest.importorskip("ipvg._remote")

from chat_client import HELLO, KEY, QUICK, ask, refused
from chat_server import Server, completion, http, script

import ipvg
from ipvg.chat import Endpoint, RemoteError

pytestmark = pytest.mark.usefixtures("no_settings_from_outside")

# ---- what is sent, what comes back ----


def test_request_and_answer():
    picture = bytes(range(256))
    options = {"max_tokens": 5000, "seed": 2**53, "temperature": 0.7}
    messages = (("system", ("Be brief.",)), ("user", ("Wer ist das? 谁 🙂 \"\\\n", ("image/jpeg", picture))))
    answer, (request,) = ask(script(http()), messages=messages, options=options)
    assert answer == {
        "content": "A fine reply.", "finish_reason": "stop", "model": "mock-1", "prompt_tokens": 11,
        "completion_tokens": 7,
    }  # fmt: skip
    assert request.line == "POST /v1/chat/completions HTTP/1.1"
    assert request.headers["authorization"] == f"Bearer {KEY}"
    assert request.headers["content-type"] == "application/json"
    assert "accept-encoding" not in request.headers and "expect" not in request.headers
    url = "data:image/jpeg;base64," + base64.b64encode(picture).decode()
    assert request.json == {
        "model": "mock",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": [
                {"type": "text", "text": "Wer ist das? 谁 🙂 \"\\\n"}, {"type": "image_url", "image_url": {"url": url}}
            ]},
        ],
        "max_tokens": 5000, "seed": 2**53, "temperature": 0.7,
    }  # fmt: skip


@pytest.mark.parametrize("size", range(7))
def test_base64_of_every_remainder(size):
    data = os.urandom(size)
    _, (request,) = ask(script(http()), messages=(("user", (("image/png", data),)),))
    assert base64.b64decode(request.json["messages"][0]["content"][0]["image_url"]["url"].split(",")[1]) == data


def test_no_key_no_header():
    _, (request,) = ask(script(http()), key="")
    assert "authorization" not in request.headers


@pytest.mark.parametrize("value", ["a\ud800b", "a\0b"])
def test_text_that_cannot_be_sent(value):
    endpoint = Endpoint("mock", "http://127.0.0.1:9/v1", "", limits=QUICK)
    with pytest.raises(ValueError, match="message: holds a"):
        endpoint.ask((("user", (value,)),), {})


@pytest.mark.parametrize("options", [{"a": float("nan")}, {"a": float("inf")}, {"a": 2**60}, {"a": None}, {"a": [1]}])
def test_options_that_cannot_be_sent(options):
    with pytest.raises((ValueError, TypeError), match="a: expected"):
        Endpoint("mock", "http://127.0.0.1:9/v1", "", limits=QUICK).ask(HELLO, options)


def test_content_in_parts():
    answer, _ = ask(script(http(completion([{"type": "text", "text": "one "}, {"type": "text", "text": "two"}]))))
    assert answer["content"] == "one two"


@pytest.mark.parametrize("start", ["", "x", "xy", "xyz"])
def test_long_names_are_cut_between_characters(start):
    body = {**completion(reason=start + "🙂" * 40), "model": start + "é🙂" * 100}
    answer, _ = ask(script(http(body)))
    assert len(answer["model"].encode()) in range(122, 128) and body["model"].startswith(answer["model"])
    assert len(answer["finish_reason"].encode()) in range(26, 32)


def test_usage_may_be_missing():
    body = completion()
    del body["usage"]
    assert ask(script(http(body)))[0]["prompt_tokens"] == -1


# ---- answers that are none ----


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"", "an empty answer"),
        (b'{"choices": [{"mess', "a string without an end"),
        (b'{"choices": [', "not JSON, or cut short"),
        (b"{} {}", "more than one JSON value"),
        (b'{"choices": []}', "choices: the list is empty"),
        (b"{}", "choices: expected a list"),
        (b'{"choices": {}}', "choices: expected a list"),
        (b"[]", "choices: expected a list"),
        (b'{"choices": [3]}', "choices[0].message: expected an object"),
        (b'{"choices": [{"message": {"content": 3}}]}', "choices[0].message.content: expected text"),
        (b'{"choices": [{"message": {"content": [{"text": 3}]}}]}', "a part of it is no text"),
        (b'{"choices": [{"message": {"content": null}}]}', "the answer has no text"),
        (b'{"choices": [{"message": {"content": "a\xff"}}]}', "bytes that are not UTF-8"),
        (b'{"choices": [{"message": {"content": "\xed\xa0\x80"}}]}', "bytes that are not UTF-8"),
        (b'{"choices": [{"message": {"content": "\\ud800"}}]}', "a lone surrogate"),
        (b'{"choices": [{"message": {"content": "\\udc00\\ud800"}}]}', "a lone surrogate"),
        (b'{"choices": [{"message": {"content": "a\\u0000b"}}]}', "a NUL character"),
        (b'{"choices": [{"message": {"content": "a\0b"}}]}', "a NUL byte"),
        (b"{}\0", "a NUL byte"),
        (b"[" * 100_000, "more than 64 levels"),
        (b"[" + b"0," * 200_000 + b"0]", "more than 100000 values"),
        (b'{"error": {"message": "quota is used up"}}', "quota is used up"),
        (b'{"error": "model is loading"}', "model is loading"),
        (b'{"error": {}}', "an error that is not explained"),
        (b'{"error": "\x7f"}', "an error that is not explained"),
        (b"<html><body>Log in</body></html>", "not JSON"),
    ],
)  # fmt: skip
def test_useless_answer(body, text):
    error = refused(script(http(body, headers=["x-request-id: req-7"])), text, attempts=3)
    assert error.status == 200 and error.request_id == "req-7" and error.attempts == 1


def test_wrong_content_type_is_named():
    answer = http(b"<html>", type="text/html; charset=utf-8")
    refused(script(answer), "text/html; charset=utf-8: is the base URL right?")


def test_finish_reasons_and_refusal():
    refused(script(http(completion("half a sen", "length"))), "raise max_tokens")
    refused(script(http(completion("", "content_filter"))), "its content filter stopped the answer")
    refused(script(http(completion(None, refusal="I can't look at faces."))), "refused: I can't look at faces.")


# ---- arguments, and the key ----


@pytest.mark.parametrize(
    "url", ["", "localhost:8000", "ftp://a/v1", "http://", "https://u:pass-word@a/v1", "http://a/v1?key=pass-word",
    "http://a b"],
)  # fmt: skip
def test_wrong_base_url(url):
    if not url:
        assert Endpoint("m", url, "x").base_url == "https://api.openai.com/v1"
        return
    with pytest.raises(ValueError, match="base_url: ") as caught:
        Endpoint("m", url, KEY)
    assert "pass-word" not in str(caught.value)


@pytest.mark.parametrize("key", ["a b", f"{KEY}\r\nX-Evil: 1", f"{KEY}é", b"bytes"])
def test_wrong_key_is_not_shown(key):
    with pytest.raises(ValueError, match="api_key") as caught:
        Endpoint("m", "http://a/v1", key)
    assert KEY not in str(caught.value)


def test_openai_needs_a_key():
    with pytest.raises(ValueError, match="OPENAI_API_KEY"):
        Endpoint("gpt-4o").ask(HELLO, {})


def test_settings_of_the_environment(monkeypatch):
    with Server(script(http())) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url + "/")
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        Endpoint("m").ask(HELLO, {})
    assert server.requests[0].headers["authorization"] == f"Bearer {KEY}"


def test_key_shows_nowhere(capfd):
    endpoint = Endpoint("m", "http://127.0.0.1:9/v1", KEY, limits=QUICK)
    shown = io.StringIO()
    print(endpoint, vars(endpoint), f"{endpoint._key} {endpoint._key!r}", endpoint.body(HELLO, {}), file=shown)
    with pytest.raises(RemoteError) as caught:
        endpoint.ask(HELLO, {})
    print(caught.value, vars(caught.value), caught.value.args, file=shown)
    with pytest.raises(TypeError):
        pickle.dumps(endpoint._key)
    with pytest.raises(ValueError) as wrong:
        Endpoint("m", "http://127.0.0.1:9/v1", KEY, limits=QUICK).ask((("user", ("\0",)),), {})
    print(wrong.value, *capfd.readouterr(), file=shown)
    assert KEY not in shown.getvalue() and KEY[3:] not in shown.getvalue()


def test_short_placeholder_keys_damage_no_text():
    body = json.dumps(completion("none of it is EMPTY")).encode()
    assert ask(script(http(body)), key="EMPTY")[0]["content"] == "none of it is EMPTY"


def test_without_the_extension_module(monkeypatch):
    monkeypatch.setitem(sys.modules, "ipvg._remote", None)
    monkeypatch.delattr(ipvg, "_remote")
    with pytest.raises(ipvg.UnsupportedError, match="apt-get install pkg-config libcurl4-openssl-dev libcjson-dev"):
        Endpoint("m", "http://127.0.0.1:9/v1", "").ask(HELLO, {})

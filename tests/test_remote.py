"""The chat client against everything that a service and the way to it can do wrong, on loopback."""

from __future__ import annotations

import base64
import contextlib
import email.utils
import gzip
import io
import json
import os
import pickle
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time

import pytest

pytest.importorskip("ipvg._remote")

from chat_server import Server, completion, drip, http, script

import ipvg
from ipvg.chat import Endpoint, Limits, RemoteError

KEY = "sk-test-0123456789abcdef"
HELLO = (("user", ("Hello.",)),)
QUICK = Limits(connect=2, total=5, silence=0, deadline=8, attempts=1, first_wait=0.02, max_bytes=1 << 20)


@pytest.fixture(autouse=True)
def no_settings_from_outside(monkeypatch):
    for name in list(os.environ):
        if name.lower().endswith("_proxy") or name.startswith("OPENAI_") or name == "SSL_CERT_FILE":
            monkeypatch.delenv(name)


def limits(**changes) -> Limits:
    return Limits(**{**vars(QUICK), **changes})


def ask(answer, *, key=KEY, messages=HELLO, options=None, tls=None, ca_file=None, **changes):
    """(answer or RemoteError, requests) of one `ask` to a server that behaves so."""
    with Server(answer, tls=tls) as server:
        endpoint = Endpoint("mock", server.url, key, limits=limits(**changes), ca_file=ca_file)
        try:
            result = endpoint.ask(messages, options or {})
        except RemoteError as error:
            assert KEY not in str(error) and KEY not in repr(error) and f"127.0.0.1:{server.port}" in str(error)
            result = error
        return result, server.requests


def refused(answer, text, **arguments) -> RemoteError:
    error, requests = ask(answer, **arguments)
    assert isinstance(error, RemoteError) and text in str(error), error
    assert requests or text
    return error


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


def test_connection_is_used_again():
    with Server(script(http())) as server:
        endpoint = Endpoint("mock", server.url, KEY, limits=QUICK)
        for _ in range(5):
            endpoint.ask(HELLO, {})
        assert len(server.requests) == 5 and server.connections == 1


def test_no_key_no_header():
    _, (request,) = ask(script(http()), key="")
    assert "authorization" not in request.headers


def test_proxy_of_the_environment(monkeypatch):
    with Server(script(http())) as proxy:
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy.port}")
        answer = Endpoint("mock", "http://nowhere.invalid/v1", "", limits=QUICK).ask(HELLO, {})
    assert answer["content"] == "A fine reply."
    assert proxy.requests[0].line == "POST http://nowhere.invalid/v1/chat/completions HTTP/1.1"


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


# ---- no answer ----


def test_refused_connection():
    with socket.create_server(("127.0.0.1", 0)) as s:
        port = s.getsockname()[1]
    with pytest.raises(RemoteError, match="2 attempts") as caught:
        Endpoint("mock", f"http://127.0.0.1:{port}/v1", KEY, limits=limits(attempts=2)).ask(HELLO, {})
    assert caught.value.status is None and caught.value.attempts == 2 and caught.value.retriable


def reset(request, connection):
    connection.sendall(http()[:-20])
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # close() sends RST


def test_reset_mid_body_is_tried_again():
    answer, requests = ask(script(reset, reset, http()), attempts=3)
    assert answer["content"] == "A fine reply." and len(requests) == 3
    assert refused(script(reset), "", attempts=2).attempts == 2


def test_cut_short_mid_body():
    assert refused(script(lambda r, c: c.sendall(http()[:-20])), "").retriable


def test_slow_headers_and_slow_body():
    for answer in (drip(http(), 0.05), drip(http()[-200:], 0.05, start=http()[:-200])):
        began = time.monotonic()
        assert refused(answer, "timed out", total=0.5).retriable
        assert time.monotonic() - began < 2


def test_silence():
    def silent(request, connection):
        time.sleep(6)

    began = time.monotonic()
    refused(silent, "not a byte for 1 seconds", silence=1)
    assert time.monotonic() - began < 4


def test_chunked_garbage():
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    refused(script(lambda r, c: c.sendall(head + b"zzzz\r\n{}\r\n")), "")
    refused(script(lambda r, c: c.sendall(head + b"ffffffffffffffffff\r\n{}")), "")


def test_answer_that_is_not_http():
    refused(script(lambda r, c: c.sendall(b"SSH-2.0-OpenSSH_9.2\r\n" * 3)), "")


def test_too_large_answer_stops_at_the_limit():
    sent = []

    def large(request, connection):
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 52428800\r\n\r\n")
        for _ in range(800):
            connection.sendall(b"x" * 65536)
            sent.append(65536)

    error = refused(large, "larger than 1048576 bytes", attempts=3)
    assert error.attempts == 1 and not error.retriable and sum(sent) < 20 << 20


def test_gzip_bomb_is_not_inflated():
    bomb = gzip.compress(b" " * (50 << 20))
    refused(script(http(bomb, headers=["Content-Encoding: gzip"])), "JSON that cannot be used")


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


# ---- statuses ----


def test_401_says_what_the_service_says_but_not_the_key():
    for echo in (KEY, "".join(f"\\u{ord(c):04x}" for c in KEY)):
        body = f'{{"error": {{"message": "Incorrect API key: {echo}.", "code": "invalid_api_key"}}}}'.encode()
        error = refused(script(http(body, 401, ["x-request-id: req-9"])), "Incorrect API key: *****", attempts=5)
        assert error.status == 401 and error.request_id == "req-9" and error.attempts == 1 and not error.retriable


@pytest.mark.parametrize("status", [400, 403, 404, 413, 422])
def test_final_statuses_are_not_tried_again(status):
    error = refused(script(http({"error": {"message": "no"}}, status)), "no", attempts=4)
    assert error.attempts == 1 and error.status == status


@pytest.mark.parametrize("status", [408, 409, 429, 500, 502, 503, 529])
def test_passing_statuses_are_tried_again(status):
    answer, requests = ask(script(http(b"busy", status), http()), attempts=2)
    assert answer["content"] == "A fine reply." and len(requests) == 2
    error = refused(script(http(b"busy", status)), "busy", attempts=3)
    assert error.attempts == 3 and error.retriable


def test_retry_after_in_both_forms():
    for form in ("1", email.utils.formatdate(time.time() + 2.5, usegmt=True)):
        began = time.monotonic()
        answer, requests = ask(script(http(b"", 429, [f"Retry-After: {form}"]), http()), attempts=2)
        assert answer["content"] and len(requests) == 2 and 0.9 < time.monotonic() - began < 5


@pytest.mark.parametrize(
    ("headers", "least", "most"),
    [
        (["Retry-After: soon"], 0, 0.9), (["Retry-After: -5"], 0, 0.9), (["Retry-After: "], 0, 0.9),
        (["Retry-After: Wed, 21 Oct 2015 07:28:00 GMT"], 0, 0.9), (["retry-after-ms: 300"], 0.28, 0.9),
        (["retry-after-ms: 300", "Retry-After: 1"], 0.28, 0.9), (["retry-after-ms: x"], 0, 0.9),
    ],
)  # fmt: skip
def test_other_forms_of_retry_after(headers, least, most):
    began = time.monotonic()
    answer, requests = ask(script(http(b"", 429, headers), http()), attempts=2)
    assert answer["content"] and len(requests) == 2 and least < time.monotonic() - began < most


def test_retry_after_beyond_the_deadline_ends_at_once():
    began = time.monotonic()
    error = refused(script(http(b"come back tomorrow", 429, ["Retry-After: 86400"])), "tomorrow", attempts=5)
    assert error.attempts == 1 and time.monotonic() - began < 2


def test_storm_of_500_ends_with_the_deadline():
    began = time.monotonic()
    error = refused(script(http(b"down", 500)), "down", attempts=100, first_wait=0.1, deadline=1.5)
    assert 2 <= error.attempts < 15 and time.monotonic() - began < 2.5


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_redirect_is_not_followed(status):
    with Server(script(http())) as other:
        to = f"Location: {other.url}/chat/completions"
        refused(script(http(b"", status, [to])), "a redirect, which is not followed")
        assert not other.requests


# ---- what services differ in ----


def test_max_completion_tokens_when_the_service_asks_for_it():
    refusal = {"message": "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."}

    def model(request, connection):
        return http({"error": refusal}, 400) if "max_tokens" in request.json else http()

    with Server(model) as server:
        endpoint = Endpoint("o9", server.url, KEY, limits=limits(attempts=3))
        for _ in range(2):
            assert endpoint.ask(HELLO, {"max_tokens": 7, "seed": 1})["content"]
        sent = [{k: v for k, v in r.json.items() if k not in ("model", "messages")} for r in server.requests]
    assert sent == [{"max_tokens": 7, "seed": 1}] + [{"max_completion_tokens": 7, "seed": 1}] * 2


def test_other_refusals_are_not_asked_again_under_another_name():
    for status, text in ((400, "max_tokens is too large"), (404, "max_completion_tokens"), (400, "no")):
        error, requests = ask(script(http({"error": {"message": text}}, status)), options={"max_tokens": 7}, attempts=3)
        assert error.status == status and len(requests) == 1
    always = script(http({"error": {"message": "use max_completion_tokens"}}, 400))
    assert len(ask(always, options={"max_tokens": 7})[1]) == 2
    assert len(ask(always, options={"max_completion_tokens": 7})[1]) == 1


def test_azure():
    with Server(script(http({"error": {"message": f"no: {KEY}"}}, 400), http())) as server:
        endpoint = Endpoint("m", f"{server.url}/deployments/d/?api-version=2024-10-21", KEY, limits=QUICK)
        with pytest.raises(RemoteError, match=r"no: \*\*\*"):
            endpoint.ask(HELLO, {})
        assert endpoint.ask(HELLO, {})["content"]
    for request in server.requests:
        assert request.line == "POST /v1/deployments/d/chat/completions?api-version=2024-10-21 HTTP/1.1"
        assert request.headers["api-key"] == KEY and "authorization" not in request.headers


@pytest.mark.parametrize("query", ["?", "?key=pass-word", "?api-version=1&key=pass-word", "?api-version=1#a", "#"])
def test_queries_that_a_base_url_must_not_have(query):
    with pytest.raises(ValueError, match="base_url: ") as caught:
        Endpoint("m", f"http://a/v1{query}", KEY)
    assert "pass-word" not in str(caught.value)


# ---- TLS ----


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    if not shutil.which("openssl"):
        pytest.skip("needs the openssl command")
    folder = tmp_path_factory.mktemp("tls")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost", "-addext",
         "subjectAltName=IP:127.0.0.1", "-keyout", folder / "key.pem", "-out", folder / "cert.pem"],
        check=True, capture_output=True,
    )  # fmt: skip
    return folder


def tls_of(folder):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    return context


def test_self_signed_certificate(certificate):
    error, requests = ask(script(http()), tls=tls_of(certificate), attempts=3)
    assert "its certificate is not trusted" in str(error) and error.attempts == 1 and not requests
    answer, (request,) = ask(script(http()), tls=tls_of(certificate), ca_file=certificate / "cert.pem")
    assert answer["content"] and request.headers["authorization"]


def http2(listener, context, seen):
    """Enough of RFC 9113 to answer one call after the other: no header is read, none compressed."""

    def frame(kind, flags, stream, data=b""):
        return len(data).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + data

    with context.wrap_socket(listener.accept()[0], server_side=True) as connection, connection.makefile("rb") as stream:
        seen.append(connection.selected_alpn_protocol())
        assert stream.read(24).startswith(b"PRI * HTTP/2.0")
        connection.sendall(frame(4, 0, 0))
        body = b""
        while head := stream.read(9):
            data, kind, flags = stream.read(int.from_bytes(head[:3], "big")), head[3], head[4]
            number = int.from_bytes(head[5:], "big")
            if kind == 4 and not flags & 1:
                connection.sendall(frame(4, 1, 0))
            if kind == 0:
                body += data
                if data:
                    room = len(data).to_bytes(4, "big")
                    connection.sendall(frame(8, 0, 0, room) + frame(8, 0, number, room))
            if kind in (0, 1) and flags & 1:
                seen.append(body)
                answer, body = json.dumps(completion()).encode(), b""
                type = b"application/json"
                connection.sendall(frame(1, 4, number, b"\x88\x0f\x10" + bytes([len(type)]) + type))
                connection.sendall(frame(0, 1, number, answer))


def test_http2_when_the_service_has_it(certificate):
    context, seen = tls_of(certificate), []
    context.set_alpn_protocols(["h2", "http/1.1"])
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=http2, args=(listener, context, seen), daemon=True).start()
        url = f"https://127.0.0.1:{listener.getsockname()[1]}/v1"
        endpoint = Endpoint("mock", url, KEY, limits=QUICK, ca_file=certificate / "cert.pem")
        picture = os.urandom(300_000)  # more than a window of flow control
        for message in ("one", ("image/png", picture)):
            assert endpoint.ask((("user", (message,)),), {})["content"] == "A fine reply."
    assert seen[0] == "h2" and len(seen) == 3 and json.loads(seen[1])["messages"][0]["content"] == "one"
    assert len(seen[2]) > 400_000


def test_proxy_of_https_sees_neither_key_nor_body(certificate, monkeypatch):
    with Server(script(http()), tls=tls_of(certificate)) as server:

        def tunnel(request, connection):
            with socket.create_connection(("127.0.0.1", server.port)) as other:
                connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")

                def pump(a, b):
                    with contextlib.suppress(OSError):
                        while data := a.recv(65536):
                            b.sendall(data)

                back = threading.Thread(target=pump, args=(other, connection), daemon=True)
                back.start()
                pump(connection, other)

        with Server(tunnel) as proxy:
            monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{proxy.port}")
            endpoint = Endpoint("m", server.url, KEY, limits=QUICK, ca_file=certificate / "cert.pem")
            assert endpoint.ask(HELLO, {})["content"] and server.requests[0].headers["authorization"]
            (seen,) = proxy.requests
            assert seen.line.startswith("CONNECT 127.0.0.1:")
            assert KEY not in str(seen) and "authorization" not in str(seen)
            monkeypatch.setenv("no_proxy", "127.0.0.1")
            endpoint = Endpoint("m", server.url, KEY, limits=QUICK, ca_file=certificate / "cert.pem")
            assert endpoint.ask(HELLO, {})["content"] and len(proxy.requests) == 1


# ---- cancelling ----


def test_cancel_from_another_thread_within_a_tenth_of_a_second():
    waits = script(http(b"", 500)), {"attempts": 9, "first_wait": 5}
    for answer, changes in ((lambda r, c: time.sleep(5), {}), waits):
        with Server(answer) as server:
            endpoint = Endpoint("mock", server.url, KEY, limits=limits(**changes))
            stopped = []

            def run(endpoint=endpoint, stopped=stopped):
                with pytest.raises(ipvg.Cancelled):
                    endpoint.ask(HELLO, {})
                stopped.append(time.monotonic())

            thread = threading.Thread(target=run)
            thread.start()
            time.sleep(0.5)
            began = time.monotonic()
            endpoint.cancel()
            thread.join()
            assert stopped[0] - began < 0.3  # 0.05 s on an idle machine
            server.answer = script(http())
            assert endpoint.ask(HELLO, {})["content"]  # of use again


def test_ctrl_c(tmp_path):
    program = (
        "import sys; from ipvg.chat import *\n"
        "try: Endpoint('m', sys.argv[1], '').ask((('user', ('x',)),), {})\n"
        "except KeyboardInterrupt: print('stopped')\n"
    )
    with Server(lambda r, c: time.sleep(20)) as server:
        child = subprocess.Popen([sys.executable, "-c", program, server.url], stdout=subprocess.PIPE, text=True)
        while not server.requests:
            time.sleep(0.02)
        time.sleep(0.2)
        began = time.monotonic()
        child.send_signal(signal.SIGINT)
        assert child.communicate(timeout=10)[0] == "stopped\n" and time.monotonic() - began < 3


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


def test_a_forked_process_leaves_the_connection_alone():
    program = (
        "import os, sys; from ipvg.chat import *\n"
        "e = Endpoint('m', sys.argv[1], '')\n"
        "ask = lambda: e.ask((('user', ('x',)),), {})['content']\n"
        "ask(); child = os.fork()\n"
        "if child == 0: ask(); os._exit(0)\n"
        "assert os.waitpid(child, 0)[1] == 0; print(ask())\n"
    )
    with Server(script(http())) as server:
        done = subprocess.run([sys.executable, "-c", program, server.url], capture_output=True, text=True, timeout=60)
        assert done.stdout == "A fine reply.\n", done.stderr
        assert len(server.requests) == 3 and server.connections == 2


def test_without_the_extension_module(monkeypatch):
    monkeypatch.setitem(sys.modules, "ipvg._remote", None)
    monkeypatch.delattr(ipvg, "_remote")
    with pytest.raises(ipvg.UnsupportedError, match="apt-get install pkg-config libcurl4-openssl-dev libcjson-dev"):
        Endpoint("m", "http://127.0.0.1:9/v1", "").ask(HELLO, {})

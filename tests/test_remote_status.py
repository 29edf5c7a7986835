"""The chat client and HTTP's statuses: which are tried again, and when; what services differ in."""

from __future__ import annotations

import email.utils
import time

import pytest

pytest.importorskip("ipvg._remote")

from chat_client import HELLO, KEY, QUICK, ask, limits, refused
from chat_server import Server, http, script

from ipvg.chat import Endpoint, RemoteError

pytestmark = pytest.mark.usefixtures("no_settings_from_outside")

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

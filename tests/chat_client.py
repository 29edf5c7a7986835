"""How tests ask a chat service on loopback: one call, and what it came to."""

from __future__ import annotations

from chat_server import Server

from ipvg.chat import Endpoint, Limits, RemoteError

KEY = "sk-test-0123456789abcdef"
HELLO = (("user", ("Hello.",)),)
QUICK = Limits(connect=2, total=5, silence=0, deadline=8, attempts=1, first_wait=0.02, max_bytes=1 << 20)


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

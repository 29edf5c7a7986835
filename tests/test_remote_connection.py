"""The chat client's connection: broken, slow, encrypted, through a proxy, cancelled."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
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

from chat_client import HELLO, KEY, QUICK, ask, limits, refused
from chat_server import Server, completion, drip, http, script

import ipvg
from ipvg.chat import Endpoint, RemoteError

pytestmark = pytest.mark.usefixtures("no_settings_from_outside")

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


# ---- used again, shared, through a proxy ----


def test_connection_is_used_again():
    with Server(script(http())) as server:
        endpoint = Endpoint("mock", server.url, KEY, limits=QUICK)
        for _ in range(5):
            endpoint.ask(HELLO, {})
        assert len(server.requests) == 5 and server.connections == 1


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


def test_proxy_of_the_environment(monkeypatch):
    with Server(script(http())) as proxy:
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy.port}")
        answer = Endpoint("mock", "http://nowhere.invalid/v1", "", limits=QUICK).ask(HELLO, {})
    assert answer["content"] == "A fine reply."
    assert proxy.requests[0].line == "POST http://nowhere.invalid/v1/chat/completions HTTP/1.1"


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

"""A chat service on loopback for tests: records what it is sent, answers or fails as a script says."""

from __future__ import annotations

import json
import socket
import threading
import time
from dataclasses import dataclass, field


@dataclass
class Request:
    """One request as it came."""

    line: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self):
        return json.loads(self.body)


def completion(content="A fine reply.", reason="stop", **message) -> dict:
    said = {"role": "assistant", "content": content, **message}
    return {
        "id": "chatcmpl-1", "object": "chat.completion", "model": "mock-1",
        "choices": [{"index": 0, "finish_reason": reason, "message": said}],
        "usage": {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18},
    }  # fmt: skip


def http(body=None, status=200, headers=(), type="application/json") -> bytes:
    """A whole answer; body: bytes or what goes into JSON."""
    data = body if isinstance(body, bytes) else json.dumps(completion() if body is None else body).encode()
    lines = [f"HTTP/1.1 {status} X", f"Content-Length: {len(data)}", *headers]
    if type:
        lines.append(f"Content-Type: {type}")
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + data


@dataclass
class Server:
    """with Server(answer) as server: ... server.url, server.requests

    answer(request, connection): bytes to send, or None when it has dealt with the connection itself, which is then
    closed. tls: an ssl.SSLContext.
    """

    answer: object
    tls: object = None
    requests: list[Request] = field(default_factory=list)
    connections: int = 0

    def __enter__(self):
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.port = self._listener.getsockname()[1]
        self.url = f"{'https' if self.tls else 'http'}://127.0.0.1:{self.port}/v1"
        self._open = set()
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_):
        # A close alone would not wake accept(), which could then still take a connection.
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in list(self._open):
            connection.close()

    def _accept(self):
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            self._open.add(connection)
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, raw):
        connection = raw
        try:
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self.tls:
                connection = self.tls.wrap_socket(raw, server_side=True)
                self._open.add(connection)
            with connection.makefile("rb") as stream:
                while request := _read(stream):
                    self.requests.append(request)
                    data = self.answer(request, connection)
                    if data is None:
                        break
                    connection.sendall(data)
        except OSError:
            pass
        finally:
            self._open -= {raw, connection}
            connection.close()


def _read(stream) -> Request | None:
    line = stream.readline().decode("latin-1").strip()
    if not line:
        return None
    headers = {}
    while text := stream.readline().decode("latin-1").strip():
        name, _, value = text.partition(":")
        headers[name.lower()] = value.strip()
    return Request(line, headers, stream.read(int(headers.get("content-length", 0))))


def script(*answers):
    """Answers in order, the last one for ever after. An answer: bytes, or a function of (request, connection)."""
    left, lock = list(answers), threading.Lock()

    def answer(request, connection):
        with lock:
            this = left.pop(0) if len(left) > 1 else left[0]
        return this(request, connection) if callable(this) else this

    return answer


def drip(data: bytes, pause: float, start: bytes = b""):
    """Sends byte by byte."""

    def answer(request, connection):
        connection.sendall(start)
        for i in range(len(data)):
            connection.sendall(data[i : i + 1])
            time.sleep(pause)

    return answer

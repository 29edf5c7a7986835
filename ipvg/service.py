"""A service that speaks OpenAI's API: address, key, limits, connections that are used again, and how it fails.

Needs the optional extension module ``ipvg._remote`` (libcurl, cJSON). The rules of an exchange are those of
csrc/remote/http.h and retry.h. What is asked is in chat.py and images.py.
"""

from __future__ import annotations

import os
import threading
import urllib.parse
from contextlib import contextmanager
from dataclasses import astuple, dataclass

from . import _arguments
from ._core import BackendError

OPENAI = "https://api.openai.com/v1"


class RemoteError(BackendError):
    """A service did not give a usable answer.

    status: of HTTP; None when no answer came. request_id: what the service calls the request, "" if it says nothing.
    attempts: how often it was tried. retriable: whether the same call may succeed later.
    """

    def __init__(self, text: str, *, status: int | None = None, request_id: str = "", attempts: int = 0,
                 retriable: bool = False):  # fmt: skip
        super().__init__(text)
        self.status, self.request_id, self.attempts, self.retriable = status, request_id, attempts, retriable


class Secret:
    """An API key that does not show itself: not in repr, str, format or a pickle."""

    __slots__ = ("_value",)

    def __init__(self, value: str):
        self._value = value

    def reveal(self) -> str:
        return self._value

    def __repr__(self) -> str:
        return "Secret(...)"

    def __reduce__(self):
        raise TypeError("an API key is not pickled; make the object again where it is needed")


@dataclass(frozen=True)
class Limits:
    """connect, total, silence: seconds for a connection, an exchange, and without a byte (a model that thinks is
    silent; 0: no limit). deadline: seconds for all attempts and the waits between them. first_wait: seconds before the
    second attempt, doubled from then on. max_bytes: of an answer."""

    connect: float = 10.0
    total: float = 300.0
    silence: float = 120.0
    deadline: float = 600.0
    attempts: int = 5
    first_wait: float = 0.5
    max_bytes: int = 4 << 20

    def __post_init__(self) -> None:
        for name in ("connect", "total", "deadline"):
            _arguments.number(name, getattr(self, name), 0.001, 86400)
        for name in ("silence", "first_wait"):
            _arguments.number(name, getattr(self, name), 0, 86400)
        _arguments.integer("attempts", self.attempts, 1, 100)
        _arguments.integer("max_bytes", self.max_bytes, 1024, 1 << 30)


def _remote():
    try:
        from . import _remote as module
    except ImportError as error:
        from ._core import UnsupportedError

        raise UnsupportedError(
            f"chat services need libcurl and cJSON, and ipvg._remote cannot be loaded ({error}). On Debian and Ubuntu: "
            "apt-get install pkg-config libcurl4-openssl-dev libcjson-dev, then install ipvg again from its source. "
            "A Python callable in place of a model's name works without."
        ) from error
    return module


class Service:
    """model: the service's name of it. base_url: to which "/chat/completions" and the like are added; None:
    OPENAI_BASE_URL, else OpenAI. "?api-version=..." behind it makes it one of Azure's, which want the key in a header
    of their own. api_key: None: OPENAI_API_KEY; "" for a server that wants none. ca_file: certificates to trust instead
    of the system's; None: SSL_CERT_FILE, else the system's.

    Any number of threads may ask at once. Raises ValueError and TypeError (arguments), ipvg.UnsupportedError.
    """

    def __init__(self, model: str, base_url: str | None = None, api_key: str | None = None, *,
                 limits: Limits | None = None, ca_file: str | os.PathLike | None = None):  # fmt: skip
        self.model = _arguments.instance("model", model, str)
        self.base_url = _checked_url(base_url or os.environ.get("OPENAI_BASE_URL") or OPENAI)
        key = os.environ.get("OPENAI_API_KEY", "") if api_key is None else api_key
        if not isinstance(key, str) or not key.isascii() or any(not "!" <= c <= "~" for c in key):
            raise ValueError("api_key: expected printable ASCII without spaces (it is not shown here)")
        self._key = Secret(key)
        self.limits = _arguments.instance("limits", limits or Limits(), Limits)
        ca_file = os.environ.get("SSL_CERT_FILE") if ca_file is None else ca_file
        self._ca_file = os.fspath(ca_file) if ca_file else None
        self._process = os.getpid()
        self._idle: list = []
        self._running: set = set()
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.model!r}, {self.base_url!r})"

    def url(self, path: str) -> str:
        """Where a call goes: base_url with a path added, before its "?" if it has one."""
        base, mark, query = self.base_url.partition("?")
        return f"{base}{path}{mark}{query}"

    def cancel(self) -> None:
        """Ends every call that runs now, within 0.1 s."""
        with self._lock:
            for client in self._running:
                client.cancel()

    def _send(self, call, path: str, what) -> dict:
        """What came of `call`, a client's chat or edit; raises RemoteError when that is no answer."""
        key = self._key.reveal() or None
        if key is None and self.base_url == OPENAI:
            raise ValueError("api_key: OpenAI needs one; give api_key or set OPENAI_API_KEY")
        said = call(self.url(path), key, "?" in self.base_url, astuple(self.limits), self._ca_file, what)
        if said["error"] is not None:
            raise self._failure(said["error"], said)
        return said

    @contextmanager
    def _client(self):
        with self._lock:
            if self._process != os.getpid():  # after a fork the connections are the parent's: not to be used or closed
                self._inherited, self._idle, self._running = (self._idle, self._running), [], set()
                self._process = os.getpid()
            client = self._idle.pop() if self._idle else _remote().Client()
            client.ready()  # from here on a cancel() is for this holder
            self._running.add(client)
        try:
            yield client
        finally:
            with self._lock:
                self._running.discard(client)
                self._idle.append(client)

    def _failure(self, problem: str, said: dict) -> RemoteError:
        status = said["status"] or None
        details = [self.model]
        details += [f"HTTP {status}"] if status else []
        details += [f"request {said['request_id']}"] if said["request_id"] else []
        details += [f"{said['attempts']} attempts"] if said["attempts"] > 1 else []
        if status == 401:
            details.append("the key is wrong or missing")
        return RemoteError(
            f"{self.base_url}: {problem} ({', '.join(details)})",
            status=status, request_id=said["request_id"], attempts=said["attempts"], retriable=said["fault"],
        )  # fmt: skip


def _checked_url(url: str) -> str:
    try:
        parts = urllib.parse.urlsplit(_arguments.instance("base_url", url, str))
        _ = parts.port
    except ValueError as error:
        raise ValueError(f"base_url: {error}") from None
    if "@" in parts.netloc:  # not shown: it may hold a password
        raise ValueError("base_url: names a user or password; give the key as api_key")
    names = [name for name, _ in urllib.parse.parse_qsl(parts.query, keep_blank_values=True)]
    if parts.fragment or "#" in url or names != ["api-version"] * bool("?" in url):
        raise ValueError("base_url: expected only api-version behind '?', no '#' (not shown: a key may stand there)")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"base_url: expected http://... or https://..., got {_arguments.short(url)}")
    if not url.isascii() or any(c <= " " or c == "\x7f" for c in url):
        raise ValueError("base_url: expected ASCII without spaces")
    base, mark, query = url.partition("?")
    return f"{base.rstrip('/')}{mark}{query}"

"""Answers of services in an SQLite file: an experiment repeats without a key, and a call is paid for once.

>>> cache = Cache("runs/cache.sqlite")
>>> cache.get(request)                       # None, or the answer
>>> cache.put(request, answer)               # the answer that counts: the first one stored
>>> cache.export("answers.jsonl"); Cache("other.sqlite").load("answers.jsonl")

A request is a dict of everything that changes its answer (endpoint, model, messages, options; pictures by the hash of
their pixels), an answer a dict of texts and numbers; pictures of an answer lie beside it, as the service sent them,
named by the SHA-256 of their bytes. None of it holds an API key. Several threads and processes may use one file: it is
in WAL mode, and of two answers to one request the first stays.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import sqlite3
import threading
import time
import warnings
from collections.abc import Iterable
from contextlib import contextmanager
from pathlib import Path

from ._core import FormatError

_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, request TEXT, answer TEXT, stored REAL)",
    "CREATE TABLE IF NOT EXISTS pictures (sha256 TEXT PRIMARY KEY, data BLOB)",
)
_CHAT = {"content": str, "finish_reason": str, "model": str, "prompt_tokens": int, "completion_tokens": int}
_IMAGES = {"images": list, "uploaded": list, "request_id": str, "input_tokens": int, "output_tokens": int}
_IMAGE = {"sha256": str, "from": str, "prompt": str}
_MAX_LINE = 1 << 28  # a picture in base64
_PATIENCE = 60  # seconds to wait for another process


_inherited: list = []  # connections of a parent process: SQLite must neither use nor close them after a fork


class CacheWarning(UserWarning):
    """An answer could not be stored; it was returned all the same, since it is paid for."""


class OfflineMiss(LookupError):
    """`offline=True`, and the cache has no answer to a call: the text says to which."""


def key_of(request: dict) -> str:
    """SHA-256 (hex) of a request, whatever the order of its items."""
    return hashlib.sha256(_text(request).encode("utf-8", "surrogatepass")).hexdigest()


class Cache:
    """Opened at first use; `path` is created with its folder. A folder stands for its file "answers.sqlite".

    Raises OSError (the folder) and ipvg.FormatError (a file that is not such a cache) at the first use.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        if self.path.is_dir() or not self.path.suffix:
            self.path /= "answers.sqlite"
        self._local = threading.local()  # SQLite's connections belong to a thread, and must not pass a fork
        self._lock = threading.Lock()
        self._asking: dict[str, tuple[threading.Lock, int]] = {}

    def __repr__(self) -> str:
        return f"Cache({str(self.path)!r})"

    def __len__(self) -> int:
        with self._open() as db:
            return db.execute("SELECT count(*) FROM answers").fetchone()[0]

    def get(self, request: dict) -> dict | None:
        """The answer to a request, None if there is none."""
        with self._open() as db:
            row = db.execute("SELECT answer FROM answers WHERE key = ?", (key_of(request),)).fetchone()
        return None if row is None else _checked_answer(row[0], f"{self.path}")

    def picture(self, sha256: str) -> bytes:
        """A picture of an answer, as it was stored. Raises ipvg.FormatError when it is not there or was changed."""
        with self._open() as db:
            row = db.execute("SELECT data FROM pictures WHERE sha256 = ?", (sha256,)).fetchone()
        if row is None or hashlib.sha256(row[0]).hexdigest() != sha256:
            raise FormatError(
                f"{self.path}: the picture {sha256[:16]} of an answer is {'changed' if row else 'missing'}"
            )
        return row[0]

    def put(self, request: dict, answer: dict, pictures: Iterable[bytes] = ()) -> dict:
        """Stores an answer unless the request has one; the stored one. A full disk makes a CacheWarning, no error."""
        try:
            with self._open() as db, db:
                if self._insert(db, request, answer):
                    for data in pictures:
                        self._insert_picture(db, data)
        except (sqlite3.Error, OSError) as error:
            warnings.warn(f"{self.path}: the answer is not stored: {error}", CacheWarning, stacklevel=2)
            return answer
        return self.get(request) or answer

    @contextmanager
    def alone(self, request: dict):
        """One thread at a time for one request: of equal calls in this process, one is sent."""
        key = key_of(request)
        with self._lock:
            lock, users = self._asking.get(key, (None, 0))
            lock = lock or threading.Lock()
            self._asking[key] = lock, users + 1
        try:
            with lock:
                yield
        finally:
            with self._lock:
                lock, users = self._asking.pop(key)
                if users > 1:
                    self._asking[key] = lock, users - 1

    def export(self, path: str | os.PathLike) -> int:
        """Writes all answers as JSON lines, in the order of their keys, then their pictures, a line each; whole or not
        at all. How many answers."""
        path = Path(path)
        part = path.with_name(f".{path.name}.{os.getpid()}.part")
        count = 0
        try:
            with self._open() as db, part.open("w", encoding="utf-8") as out:
                for key, request, answer in db.execute("SELECT key, request, answer FROM answers ORDER BY key"):
                    line = {"key": key, "request": json.loads(request), "answer": json.loads(answer)}
                    out.write(_text(line) + "\n")
                    count += 1
                for (data,) in db.execute("SELECT data FROM pictures ORDER BY sha256"):
                    out.write(_text({"picture": base64.b64encode(data).decode("ascii")}) + "\n")
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
        return count

    def load(self, path: str | os.PathLike) -> int:
        """Takes the JSON lines of an `export` in; how many were new. All of the file or nothing.

        Raises OSError and ipvg.FormatError, which names the line: not JSON, wrong types, a request that does not
        belong to its key, an answer whose picture is neither in the file nor here.
        """
        added, wanted = 0, {}
        with open(path, "rb") as lines, self._open() as db, db:
            for number, line in enumerate(iter(lambda: lines.readline(_MAX_LINE + 1), b""), 1):
                where = f"{os.fspath(path)}:{number}"
                if len(line) > _MAX_LINE:
                    raise FormatError(f"{where}: a line of more than {_MAX_LINE} bytes")
                if not line.strip():
                    continue
                item = _parsed(line, where)
                if isinstance(item, dict) and set(item) == {"picture"}:
                    self._insert_picture(db, _decoded(item["picture"], where))
                    continue
                if not isinstance(item, dict) or not isinstance(item.get("request"), dict):
                    raise FormatError(f"{where}: expected an object with key, request and answer")
                if item.get("key") != key_of(item["request"]):
                    raise FormatError(f"{where}: the request does not belong to its key; it was changed")
                answer = _checked_answer(json.dumps(item.get("answer")), where)
                wanted.update((image["sha256"], where) for image in answer.get("images", ()))
                added += self._insert(db, item["request"], answer)
            for sha256, where in wanted.items():
                if db.execute("SELECT 1 FROM pictures WHERE sha256 = ?", (sha256,)).fetchone() is None:
                    raise FormatError(f"{where}: the answer's picture {sha256[:16]} is missing")
        return added

    def close(self) -> None:
        """Closes this thread's connection; the next use opens it again."""
        db = getattr(self._local, "db", None)
        self._local.db = None
        if db is not None:
            db.close()

    @staticmethod
    def _insert(db, request: dict, answer: dict) -> int:
        row = (key_of(request), _text(request), _text(answer), time.time())
        return db.execute("INSERT OR IGNORE INTO answers VALUES (?, ?, ?, ?)", row).rowcount

    @staticmethod
    def _insert_picture(db, data: bytes) -> None:
        db.execute("INSERT OR IGNORE INTO pictures VALUES (?, ?)", (hashlib.sha256(data).hexdigest(), data))

    @contextmanager
    def _open(self):
        if getattr(self._local, "db", None) is None or self._local.process != os.getpid():
            _inherited.append(getattr(self._local, "db", None))
            self.path.parent.mkdir(parents=True, exist_ok=True)
            db = sqlite3.connect(self.path, timeout=_PATIENCE, check_same_thread=False, factory=_Connection)
            try:
                _to_wal(db)
                for statement in ("PRAGMA synchronous = NORMAL", *_SCHEMA):
                    db.execute(statement)
            except sqlite3.DatabaseError as error:
                db.close()
                if isinstance(error, sqlite3.OperationalError):
                    raise
                raise FormatError(f"{self.path}: not a cache of answers ({error})") from None
            self._local.db, self._local.process = db, os.getpid()
        yield self._local.db


class _Connection(sqlite3.Connection):
    """Closed with its thread, without a word: nobody else can know that a pool's thread has ended."""

    def __del__(self) -> None:
        self.close()


def _to_wal(db: sqlite3.Connection) -> None:
    """SQLite's own waiting leaves this one out: while another process makes the change, it fails at once."""
    end = time.monotonic() + _PATIENCE
    while True:
        try:
            db.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > end:
                raise
            time.sleep(0.01)


def _text(value) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))


def _parsed(text, where: str):
    try:
        value = json.loads(text)
        _text(value).encode()  # lone surrogates pass json.loads
        return value
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{where}: not JSON that can be used: {error}") from None


def _decoded(text, where: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (TypeError, ValueError) as error:
        raise FormatError(f"{where}: picture: not base64: {error}") from None


def _checked_answer(text: str, where: str) -> dict:
    answer = _parsed(text, where)
    fields = _IMAGES if isinstance(answer, dict) and "images" in answer else _CHAT
    _check_fields(answer, fields, where, "an answer")
    for image in answer.get("images", ()):
        _check_fields(image, _IMAGE, where, "an answer's picture")
    return answer


def _check_fields(table, fields: dict[str, type], where: str, what: str) -> None:
    if not isinstance(table, dict) or set(table) != set(fields):
        raise FormatError(f"{where}: {what} has {', '.join(fields)}")
    for name, kind in fields.items():
        if type(table[name]) is not kind:
            raise FormatError(f"{where}: {name}: expected {kind.__name__}")

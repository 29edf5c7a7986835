"""Every allocation of the Python layer fails once: MemoryError, nothing kept, and the same objects then give the same.

tests/failing.c is preloaded into Python and lets the n-th allocation fail: of ipvg's own modules; of these and Python's
allocator. The core alone, under ASan: tests/c/test_allocation.c.
"""

from __future__ import annotations

import ctypes
import dataclasses
import gc
import os
import shutil
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
OURS, PYTHON = 0, 1
KEY = "sk-secret123"
#: What CPython's os.fspath says without memory; only the sources of Weights, given as Path, go through it.
FSPATH = "TypeError: expected str, bytes or os.PathLike object"

#: (name, call, bytes of what it gives, how many allocations of ours it has at least)
Case = tuple[str, Callable[[], object], Callable[[object], bytes], int]


def nothing(result) -> bytes:
    return b""


# ---- what is called ----


class Lent:
    """An array as another library would lend it."""

    def __init__(self, array: np.ndarray):
        self.__dlpack__, self.__dlpack_device__ = array.__dlpack__, array.__dlpack_device__


def models(folder: Path) -> Iterator[Case]:
    from checkpoint_files import CONFIGS, make_official

    from ipvg import _core
    from ipvg.checkpoint import Checkpoint

    checkpoint = Checkpoint.open(make_official(folder / "checkpoint", pth=False))
    device = _core.Device("cpu", threads=1)
    parts = {name: checkpoint.components[name] for name in CONFIGS}
    kinds = {"dit": _core.Dit, "vae": _core.Vae, "text": _core.TextEncoder}
    made = {}
    yield "Device", partial(_core.Device, "cpu", 1), nothing, 2
    for name, part in parts.items():
        entries = {key: entry.source() for key, entry in part.entries.items()}
        config = dataclasses.asdict(part.config)
        yield f"Weights of {name}", partial(_core.Weights, entries), lambda w: str(w.names()).encode(), 20
        weights = _core.Weights(entries)
        yield kinds[name].__name__, partial(kinds[name], device, config, weights), nothing, 1
        made[name] = kinds[name](device, config, weights)

    def afresh(call, *arguments, **options):  # with the scratch to be taken anew
        def run():
            device.release()
            return call(*arguments, **options)

        return run

    frames = np.linspace(-1, 1, 3 * 5 * 16 * 16, dtype=np.float32).reshape(3, 5, 16, 16)
    latent = made["vae"].encode(frames)
    yield "TextEncoder.encode", afresh(made["text"].encode, [1, 2, 3]), bytes, 1
    yield "Vae.encode", afresh(made["vae"].encode, frames), bytes, 3
    yield "Vae.decode", afresh(made["vae"].decode, latent), bytes, 3
    yield "Vae.decode_stream", lambda: list(made["vae"].decode_stream(latent)), lambda x: b"".join(map(bytes, x)), 4
    dit = made["dit"]
    x = np.linspace(-1, 1, 4 * 2 * 2 * 2, dtype=np.float32).reshape(4, 2, 2, 2)
    states, given = np.ones((3, 20), np.float32), np.ones((12, 2, 2, 2), np.float32)
    yield "Dit.text", afresh(dit.text, states), nothing, 3
    yield "Dit.context", afresh(dit.context, given), nothing, 3
    text, context = dit.text(states), dit.context(given)
    yield "Dit.forward", afresh(dit.forward, x, 500, text, context, skip=[1], blur=([0], 0.7)), bytes, 1
    schedule = _core.Schedule("unipc", 3, 5.0)
    yield "Schedule", partial(_core.Schedule, "unipc", 3, 5.0), nothing, 4
    branches = [
        (text, context, {}, False, 0),
        (text, context, {"scale": [0.5, 0.5], "nag": (text, 2.0, 2.5, 0.5)}, True, 0),
    ]
    make = partial(
        _core.Sampler, dit, schedule, branches, np.ones((3, 2)), x, [("apg", 0, 1, True, 0.5, 3.0, 0.0)]
    )  # fmt: skip
    yield "Sampler", afresh(make), nothing, 8
    run = make()
    state = [np.array(view) for view in run.state()]
    yield "Sampler.state", run.state, lambda s: b"".join(bytes(view) for view in s), 0

    def step():
        run.load(0, 0, state)
        device.release()
        run.step()
        return np.asarray(run.tensor("latent"))

    yield "Sampler.step", step, bytes, 1
    yield "Sampler.load", partial(run.load, 0, 0, state), nothing, 0
    tensor = run.tensor("latent")
    yield "Sampler.tensor", partial(run.tensor, "latent", skip=1), lambda t: bytes(np.asarray(t)), 0
    yield "Tensor read", partial(np.asarray, tensor, np.float64), bytes, 0
    yield "Tensor.copy", tensor.copy, lambda t: bytes(np.asarray(t)), 1
    yield "Tensor lent", partial(np.from_dlpack, tensor), bytes, 1
    yield "Tensor lent as a copy", partial(tensor.__dlpack__, copy=True), nothing, 2
    yield "Sampler.set_latent of lent memory", partial(run.set_latent, Lent(x)), nothing, 0
    yield "Sampler.set_latent of a tensor", partial(run.set_latent, tensor), nothing, 1
    solver = _core.Solver(device, schedule, x)
    yield "Solver", partial(_core.Solver, device, schedule, x), nothing, 1
    yield "Solver.x", lambda: solver.x, bytes, 0
    picture = np.arange(7 * 5 * 3, dtype=np.uint8).reshape(7, 5, 3)
    yield "fit_reference", partial(_core.fit_reference, picture, 8, 6, True), bytes, 5
    yield "cover_frames", partial(_core.cover_frames, picture[None], 6, 8), bytes, 8


def media(folder: Path) -> Iterator[Case]:
    from ipvg import _media

    picture = bytes(range(256)) * 12  # 32 x 32
    png, clip = str(folder / "a.png").encode(), str(folder / "a.mp4").encode()
    data = bytearray(32 * 32 * 3)
    yield "write_png", partial(_media.write_png, png, picture, 32, 32), nothing, 1
    yield "read_image", partial(_media.read_image, png, None, True), lambda r: bytes(r[0]), 2
    yield "encode_jpeg", partial(_media.encode_jpeg, picture, 32, 32, 32, 90), bytes, 1

    def write():
        writer = _media.Writer(clip, 32, 32, 16, 1, 10, "ultrafast")
        for _ in range(3):
            writer.write(picture)
        writer.finish()

    def read():
        reader, n = _media.Reader(clip, None, True), 0
        while reader.next(data):
            n += 1
        return n

    yield "Writer", write, nothing, 2
    yield "Reader", read, lambda n: bytes([n]) + bytes(data), 2


def remote(folder: Path) -> Iterator[Case]:
    """Each exchange over a new TLS connection."""
    from chat_server import Server, http, script

    from ipvg import _remote

    if not shutil.which("openssl"):
        sys.exit("needs the openssl command")
    key, cert = folder / "key.pem", folder / "cert.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost", "-addext",
         "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", cert], check=True, capture_output=True,
    )  # fmt: skip
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(cert, key)
    messages = (("system", ("Be brief.",)), ("user", ("What?", ("image/jpeg", b"\xff\xd8\xff"))))
    body = partial(_remote.body, "mock", messages, {"max_tokens": 5, "user": "me", "store": False})
    yield "body", body, bytes, 1
    yield "Client", _remote.Client, nothing, 1
    with Server(script(http()), tls=tls) as server:
        os.environ["no_proxy"] = "*"

        def chat():
            client, limits = _remote.Client(), (5.0, 20.0, 10.0, 20.0, 1, 0.1, 1 << 20)
            said = client.chat(f"{server.url}/chat/completions", KEY, False, limits, str(cert), body())
            client.close()
            return said

        yield "Client.chat", chat, lambda said: repr((said["error"], said["content"])).encode(), 6


GROUPS = {"models": models, "media": media, "remote": remote}


# ---- in the child ----


def fail_each(library, case: Case, who: int) -> int:
    """How many allocations there were. What each that failed came to is checked here."""
    name, call, digest, _ = case
    expected = digest(call())
    for n in range(1, 100_000):
        gc.collect(0)
        held = library.failing_live()
        try:
            result = library.failing_call(call, n, who)
        except MemoryError as error:
            outcome = "MemoryError" if who != OURS or str(error) else "a MemoryError without a text"
            del error
        except BaseException as error:
            outcome = f"{type(error).__name__}: {error}"
        else:
            outcome = "the same" if digest(result) == expected else "something else"
            del result
        if not library.failing_happened():
            assert outcome == "the same", f"{name}: {outcome} without a failure"
            return n - 1
        # Python may do without an allocation (of a free list, say), we never do.
        good = outcome == "MemoryError" or (outcome == "the same" and who != OURS) or outcome.startswith(FSPATH)
        assert good, f"{name}, allocation {n}: {outcome}"
        assert digest(call()) == expected, f"{name} after allocation {n} had failed"
        if who == OURS:
            gc.collect(0)
            assert library.failing_live() <= held, f"{name}, allocation {n}: something is kept"
    raise AssertionError(f"{name}: no end")


def main(group: str, folder: Path, who: str) -> None:
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    library = ctypes.PyDLL(os.environ.pop("LD_PRELOAD"))
    library.failing_call.restype = ctypes.py_object
    library.failing_call.argtypes = [ctypes.py_object, ctypes.c_long, ctypes.c_int]
    library.failing_live.restype = ctypes.c_long
    from ipvg import _core, _media, _remote

    modules = [_core, _media, _remote]
    for module in modules:
        assert library.failing_watch(os.fsencode(module.__file__)) >= 1
    for case in GROUPS[group](folder):
        count = fail_each(library, case, int(who))
        print(f"{case[0]}: {count}", flush=True)
        assert int(who) != OURS or count >= case[3], case[0]


# ---- the tests ----


@pytest.fixture(scope="module")
def preloaded(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("failing") / "failing.so"
    compiler = os.environ.get("CC", "cc").split()
    # initial-exec: the other way to a thread's variables may allocate, which would come back here without end.
    flags = ["-std=c11", "-O1", "-shared", "-fPIC", "-ftls-model=initial-exec"]
    command = [*compiler, *flags, str(ROOT / "tests/failing.c"), "-o", str(path)]
    subprocess.run(command, check=True)
    return path


@pytest.mark.parametrize("who", [OURS, PYTHON], ids=["ours", "python"])
@pytest.mark.parametrize("group", GROUPS)
def test_each_fails_once(group, who, preloaded, tmp_path):
    done = subprocess.run(
        [sys.executable, __file__, group, str(tmp_path), str(who)], text=True, capture_output=True, timeout=300,
        env={**os.environ, "LD_PRELOAD": str(preloaded)},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3])

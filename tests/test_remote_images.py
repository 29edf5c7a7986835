"""The images endpoint on loopback: what is sent, what comes back, and all that a service can do wrong."""

from __future__ import annotations

import base64
import contextlib
import email
import email.policy
import hashlib
import json
import struct
import threading
import time
import zlib

import numpy as np
import pytest

pytest.importorskip("ipvg._remote")
pytest.importorskip("ipvg._media")

from chat_client import KEY, QUICK
from chat_server import Server, http, script

import ipvg
from ipvg.chat import Limits, RemoteError
from ipvg.images import ImageEditor, encode_png
from ipvg.video import encode_jpeg, read_image

pytestmark = pytest.mark.usefixtures("no_settings_from_outside")

PROMPT = "A woman in a red dress. 谁 🙂 \"\\\r\n;name=x"
FACE = np.random.default_rng(1).integers(0, 256, (40, 30, 3), np.uint8)
MADE = np.random.default_rng(2).integers(0, 256, (24, 32, 3), np.uint8)


def reply(*items, **more) -> bytes:
    return http({"created": 1, "data": list(items), **more})


def in_base64(data: bytes, **more) -> dict:
    return {"b64_json": base64.b64encode(data).decode(), **more}


def form_of(request) -> list:
    """(name, file name or None, type, bytes) of each field, by Python's own parser."""
    head = f"Content-Type: {request.headers['content-type']}\r\n\r\n".encode()
    message = email.message_from_bytes(head + request.body, policy=email.policy.HTTP)
    return [
        (p.get_param("name", header="content-disposition"), p.get_filename(),
         p.get_content_type() if p["content-type"] else None, p.get_payload(decode=True))
        for p in message.iter_parts()
    ]  # fmt: skip


def edit(answer, *, image=FACE, prompt=PROMPT, key=KEY, size=None, n=1, changes=None, **arguments):
    """(Edited or RemoteError, requests) of one `edit` by a server that behaves so."""
    limits = Limits(**{**vars(QUICK), **(changes or {})})
    with Server(answer) as server:
        editor = ImageEditor("mock", server.url, key, limits=limits, **arguments)
        try:
            result = editor.edit(image, prompt, size=size, n=n)
        except RemoteError as error:
            assert KEY not in str(error) and f"127.0.0.1:{server.port}" in str(error)
            result = error
        return result, server.requests


def refused(answer, text, **arguments) -> RemoteError:
    error, _ = edit(answer, **arguments)
    assert isinstance(error, RemoteError) and text in str(error), error
    return error


# ---- what is sent, what comes back ----


def test_request_and_base64_reply():
    usage = {"input_tokens": 320, "output_tokens": 4160, "total_tokens": 4480}
    options = {"input_fidelity": "high", "output_compression": 90, "guidance": 0.25, "stream": False}
    answer = script(reply(in_base64(encode_png(MADE), revised_prompt="Red."), in_base64(encode_png(FACE)), usage=usage))
    found, (request,) = edit(answer, size="1024x1536", n=2, options=options)
    assert len(found.images) == 2 and (found.images[0] == MADE).all() and (found.images[1] == FACE).all()
    assert found.usage == {"input_tokens": 320, "output_tokens": 4160}
    assert request.line == "POST /v1/images/edits HTTP/1.1"
    assert request.headers["authorization"] == f"Bearer {KEY}" and "expect" not in request.headers
    assert request.headers["content-type"].startswith("multipart/form-data; boundary=")
    *fields, (name, filename, type, data) = form_of(request)
    assert {name: data.decode() for name, _, _, data in fields} == {
        "prompt": PROMPT, "model": "mock", "n": "2", "size": "1024x1536", "input_fidelity": "high",
        "output_compression": "90", "guidance": "0.25", "stream": "false",
    }  # fmt: skip
    assert all(filename is None and type is None for _, filename, type, _ in fields)
    assert (name, filename, type) == ("image", "image.png", "image/png") and (read_image(data) == FACE).all()
    seen = found.provenance
    assert seen["uploaded"] == [hashlib.sha256(data).hexdigest()] and seen["prompt"] == PROMPT and seen["n"] == 2
    digest = hashlib.sha256(MADE.tobytes()).hexdigest()
    assert seen["images"][0] == {"sha256": digest, "size": "32x24", "from": "base64", "prompt": "Red."}
    json.dumps(seen)


def test_several_pictures_and_jpeg():
    found, (request,) = edit(script(reply(in_base64(encode_jpeg(MADE)))), image=[FACE, MADE], upload="jpeg")
    files = form_of(request)[-2:]
    assert [f[:3] for f in files] == [
        ("image[]", "image.jpg", "image/jpeg"), ("image[]", "image1.jpg", "image/jpeg"),
    ]  # fmt: skip
    assert [read_image(f[3]).shape for f in files] == [FACE.shape, MADE.shape]
    assert found.images[0].shape == MADE.shape and found.usage == {"input_tokens": -1, "output_tokens": -1}


def test_upload_is_scaled_and_carries_nothing_but_pixels():
    secret = b"Exif\0\0GPS 48.8584 N 2.2945 E"
    jpeg = encode_jpeg(np.tile(FACE, (20, 10, 1)))
    tagged = jpeg[:2] + b"\xff\xe1" + (len(secret) + 2).to_bytes(2, "big") + secret + jpeg[2:]
    for upload in ("png", "jpeg"):
        _, (request,) = edit(script(reply(in_base64(encode_png(MADE)))), image=tagged, max_side=256, upload=upload)
        sent = form_of(request)[-1][3]
        assert secret in tagged and b"GPS" not in request.body and b"Exif" not in request.body
        assert read_image(sent).shape == (256, 96, 3)
        assert np.abs(read_image(sent).mean((0, 1)) - read_image(tagged).mean((0, 1))).max() < 2


@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 2, 3), (7, 5, 3), (300, 1, 3)])
def test_png_is_lossless(shape):
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    assert (read_image(encode_png(pixels)) == pixels).all()


def test_url_reply_is_fetched_without_the_key():
    picture = http(encode_png(MADE), type="image/png")
    with Server(script(picture)) as files:
        found, (request,) = edit(script(reply({"url": f"{files.url}/a.png?sig=1", "b64_json": None})))
        assert (found.images[0] == MADE).all() and found.provenance["images"][0]["from"] == "url"
        (got,) = files.requests
    assert got.line == "GET /v1/a.png?sig=1 HTTP/1.1" and got.body == b""
    assert "authorization" in request.headers and "authorization" not in got.headers and KEY not in str(got.headers)


def test_url_reply_on_the_service_itself_gets_no_key_either():
    def answer(request, connection):
        if request.line.startswith("GET"):
            return http(encode_png(MADE), type="image/png")
        return reply({"url": f"http://{request.headers['host']}/v1/files/a.png"})

    found, requests = edit(answer)
    assert (found.images[0] == MADE).all() and "authorization" not in requests[1].headers


def test_data_url_reply():
    url = "data:image/png;base64," + base64.b64encode(encode_png(MADE)).decode()
    assert (edit(script(reply({"url": url})))[0].images[0] == MADE).all()


# ---- addresses that are not fetched ----


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("http://198.51.100.7/a.png?sig=s3cret", "http://198.51.100.7 is not encrypted"),
        ("http://127.0.0.1.example.com/", "is not encrypted"),
        ("file:///etc/passwd", "not an address"),
        ("file://localhost/etc/passwd", "url: "),
        ("ftp://127.0.0.1/a.png", "expected https, got ftp"),
        ("gopher://127.0.0.1/", "expected https, got gopher"),
        ("https://user:s3cret@127.0.0.1/a.png", "names a user or password"),
        ("//127.0.0.1/a.png", "not an address"),
        ("/a.png", "not an address"),
        ("https://a b/s3cret", "not an address"),
        ("https://127.0.0.1:1/\u00e9?s3cret", "printable ASCII"),
        ("https://127.0.0.1:99999/", "not an address"),
        ("data:image/png,x", "a data URL that is not base64"),
        ("data:image/png;base64,s3cret", "damaged base64"),
    ],
)
def test_address_that_is_not_fetched(url, text):
    assert "s3cret" not in str(refused(script(reply({"url": url})), text))


def test_http_from_a_service_elsewhere_needs_leave(monkeypatch):
    """The service looks as if it were elsewhere: both are behind a proxy that is on loopback."""

    def proxy(request, connection):
        if request.line.startswith("POST"):
            return reply({"url": "http://files.invalid/a.png"})
        return http(encode_png(MADE), type="image/png")

    with Server(proxy) as server:
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{server.port}")
        with pytest.raises(RemoteError, match="http_urls=True"):
            ImageEditor("m", "http://service.invalid/v1", KEY, limits=QUICK).edit(FACE, "x")
        assert len(server.requests) == 1
        found = ImageEditor("m", "http://service.invalid/v1", KEY, limits=QUICK, http_urls=True).edit(FACE, "x")
        assert (found.images[0] == MADE).all() and KEY not in str(server.requests[2].headers)


def test_loopback_address_from_a_service_elsewhere_is_not_fetched(monkeypatch):
    with Server(script(reply({"url": "http://localhost:8080/admin"}))) as server:
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{server.port}")
        with pytest.raises(RemoteError, match="http://localhost is not encrypted"):
            ImageEditor("m", "http://service.invalid/v1", KEY, limits=QUICK).edit(FACE, "x")
        assert len(server.requests) == 1


# ---- pictures that are none ----


def png_that_says(width: int, height: int) -> bytes:
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))


@pytest.mark.parametrize(
    ("item", "text"),
    [
        ({}, "data[0]: has neither b64_json nor url"),
        (3, "data[0]: has neither b64_json nor url"),
        ({"b64_json": "@@@@"}, "data[0].b64_json: damaged base64"),
        ({"b64_json": "AAAA=A"}, "data[0].b64_json: damaged base64"),
        ({"b64_json": "A"}, "data[0].b64_json: damaged base64"),
        (in_base64(b"<svg/>"), "data[0].b64_json: not a PNG, JPEG or WebP picture (6 bytes)"),
        (in_base64(b"GIF89a" + b"\0" * 40), "not a PNG, JPEG or WebP picture"),
        (in_base64(b"#EXTM3U\nfile:///etc/passwd\n"), "not a PNG, JPEG or WebP picture"),
        (in_base64(png_that_says(60000, 60000)), "a picture of 60000 x 60000 pixels"),
        (in_base64(png_that_says(2**31 - 1, 2**31 - 1)), "a picture of 2147483647 x"),
        (in_base64(png_that_says(100, 0)), "not a PNG, JPEG or WebP picture"),
        (in_base64(png_that_says(100, 100)), "cannot be decoded"),
        (in_base64(encode_png(MADE)[:-60]), "cannot be decoded"),
    ],
)
def test_useless_picture(item, text):
    refused(script(reply(item)), text)


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"", "an empty answer"), (b"{}", "data: expected a list; this is no answer of an images endpoint"),
        (b'{"data": []}', "data: expected 1 to 16 pictures, got 0"), (b'{"data": {}}', "data: expected a list"),
        (b'{"data": [' + b"{}," * 20 + b"{}]}", "data: expected 1 to 16 pictures, got 21"),
        (b'{"error": {"message": "moderation_blocked"}}', "moderation_blocked"),
        (b'{"data": [{"url": "\\ud800"}]}', "a lone"),
        (b'{"data": [{"b64_json": "AA', "a string without an end"), (b"[" * 1000, "more than 64 levels"),
    ],
)  # fmt: skip
def test_useless_reply(body, text):
    refused(script(http(body)), text)


def test_wrong_type_status_or_redirect_of_a_url_reply():
    answers = [
        (http(b"<html>", type="text/html"), "the picture came as text/html"),
        (http(b"<html>", type=""), "the picture: not a PNG, JPEG or WebP picture"),
        (http({"error": {"message": "expired"}}, 403), "expired"),
        (http(b"", 302, ["Location: http://127.0.0.1:1/"]), "a redirect, which is not followed"),
        (http(b"x" * (2 << 20), type="image/png"), "larger than 1048576 bytes"),
        (http(encode_png(MADE)[:-60], type="image/png"), "cannot be decoded"),
    ]
    for answer, text in answers:
        with Server(script(answer)) as files:
            refused(script(reply({"url": files.url})), text)


def test_passing_faults_are_tried_again_with_the_whole_form():
    busy = [http(b"busy", 503), http(b"slow down", 429, ["Retry-After: 0"])]
    found, requests = edit(script(*busy, reply(in_base64(encode_png(MADE)))), changes={"attempts": 4})
    assert (found.images[0] == MADE).all() and len(requests) == 3
    forms = [form_of(r) for r in requests]
    assert forms[0] == forms[1] == forms[2] and len(forms[0]) == 4
    picture = [http(b"", 500), http(encode_png(MADE), type="application/octet-stream")]
    with Server(script(*picture)) as files:
        found, _ = edit(script(reply({"url": files.url})), changes={"attempts": 2})
        assert (found.images[0] == MADE).all() and len(files.requests) == 2


def test_401_and_the_key():
    echo = http({"error": {"message": f"Incorrect API key: {KEY}."}}, 401, [f"x-request-id: {KEY}"])
    error = refused(script(echo), "Incorrect API key: *****")
    assert error.status == 401 and not error.retriable and KEY not in error.request_id
    # A service that puts the key where it hopes to get it back, or into a manifest.
    found, _ = edit(script(reply(in_base64(encode_png(MADE), revised_prompt=f"a \\u0073{KEY}"))))
    assert KEY not in str(found.provenance)
    url = "http://127.0.0.1:9/" + "".join(f"%{ord(c):02x}" for c in KEY)
    error = refused(script(reply({"url": url})), "")
    assert KEY not in str(error) and KEY.encode().hex() not in str(error).replace("%", "")


def test_cancel():
    for at in ("edit", "fetch"):
        release = threading.Event()

        def wait(request, connection, release=release):
            release.wait(5)

        with Server(wait) as slow:
            service = slow if at == "edit" else Server(script(reply({"url": slow.url})))
            with service if at == "fetch" else contextlib.nullcontext():
                editor = ImageEditor("m", service.url, KEY, limits=QUICK)
                stopped = []

                def run(editor=editor, stopped=stopped):
                    with pytest.raises(ipvg.Cancelled):
                        editor.edit(FACE, "x")
                    stopped.append(time.monotonic())

                thread = threading.Thread(target=run)
                thread.start()
                while not slow.requests:
                    time.sleep(0.02)
                began = time.monotonic()
                editor.cancel()
                thread.join()
                release.set()
                assert stopped[0] - began < 0.3  # 0.05 s on an idle machine


@pytest.mark.parametrize(
    ("arguments", "call", "error"),
    [
        ({"upload": "gif"}, {}, ValueError), ({"max_side": 0}, {}, ValueError), ({"model": 3}, {}, TypeError),
        ({"options": {"a": None}}, {}, TypeError), ({"options": {"a\r\nb": "c"}}, {}, ValueError),
        ({}, {"n": 0}, ValueError), ({}, {"n": 11}, ValueError), ({}, {"size": "large"}, ValueError),
        ({}, {"size": 3}, TypeError), ({}, {"prompt": " "}, ValueError), ({}, {"prompt": None}, TypeError),
        ({}, {"prompt": "a\0b"}, ValueError), ({}, {"prompt": "\ud800"}, ValueError), ({}, {"image": []}, ValueError),
        ({}, {"image": 3}, TypeError), ({"limits": 3}, {}, TypeError),
    ],
)  # fmt: skip
def test_wrong_arguments(arguments, call, error):
    with pytest.raises(error):
        ImageEditor(**{"model": "m", "base_url": "http://127.0.0.1:9/v1", "api_key": "", **arguments}).edit(
            **{"image": FACE, "prompt": "x", **call}
        )


def test_key_shows_nowhere(capfd):
    editor = ImageEditor("m", "http://127.0.0.1:9/v1", KEY, limits=QUICK)
    with pytest.raises(RemoteError) as caught:
        editor.edit(FACE, "x")
    shown = f"{editor} {editor!r} {vars(editor)} {caught.value} {vars(caught.value)} {capfd.readouterr()}"
    assert KEY not in shown and KEY[3:] not in shown

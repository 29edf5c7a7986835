"""The same call by OpenAI's own client and by ours, to one recording server: the same body, the headers that matter."""

from __future__ import annotations

import base64
import email
import email.policy

import numpy as np
import openai
import pytest
from chat_server import Server, http, script

from ipvg.chat import Endpoint
from ipvg.images import ImageEditor, encode_png

KEY = "sk-test-0123456789abcdef"
TEXT = "Wer ist das? 谁 🙂 \"\\\n"
FACE = np.random.default_rng(1).integers(0, 256, (40, 30, 3), np.uint8)
OPTIONS = {"max_tokens": 5000, "temperature": 0.7, "seed": 2**53, "top_p": 0.1, "store": False, "user": "me"}


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def same_headers(ours, theirs, names):
    assert {n: ours.headers.get(n) for n in names} == {n: theirs.headers.get(n) for n in names}


@pytest.mark.parametrize("options", [{}, OPTIONS, {"max_completion_tokens": 9, "reasoning_effort": "low"}])
def test_chat(options):
    picture = encode_png(FACE)
    url = "data:image/png;base64," + base64.b64encode(picture).decode()
    with Server(script(http())) as server:
        ours = Endpoint("gpt-4o", server.url, KEY)
        ours.ask((("system", ("Be brief.",)), ("user", (TEXT, ("image/png", picture)))), options)
        parts = [{"type": "text", "text": TEXT}, {"type": "image_url", "image_url": {"url": url}}]
        messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": parts}]
        openai.OpenAI(base_url=server.url, api_key=KEY).chat.completions.create(
            model="gpt-4o", messages=messages, **options
        )
        first, second = server.requests
    assert first.json == second.json and first.line == second.line
    same_headers(first, second, ("authorization", "content-type", "accept"))


def test_azure():
    with Server(script(http())) as server:
        base = server.url.removesuffix("/v1")
        ours = Endpoint("gpt-4o", f"{base}/openai/deployments/gpt-4o?api-version=2024-10-21", KEY)
        ours.ask((("user", ("x",)),), {})
        theirs = openai.AzureOpenAI(azure_endpoint=base, api_key=KEY, api_version="2024-10-21")
        theirs.chat.completions.create(model="gpt-4o", messages=[{"role": "user", "content": "x"}])
        first, second = server.requests
    assert first.json == second.json and first.line == second.line
    same_headers(first, second, ("api-key", "authorization", "content-type"))


def form_of(request):
    head = f"Content-Type: {request.headers['content-type']}\r\n\r\n".encode()
    parts = email.message_from_bytes(head + request.body, policy=email.policy.HTTP).iter_parts()
    return sorted(
        (p.get_param("name", header="content-disposition"), p.get_filename() or "",
         p.get_content_type() if p["content-type"] else "", p.get_payload(decode=True))
        for p in parts
    )  # fmt: skip


@pytest.mark.parametrize("count", [1, 2])
def test_images_edit(count):
    png = encode_png(FACE)
    reply = http({"created": 1, "data": [{"b64_json": base64.b64encode(png).decode()}]})
    options = {"input_fidelity": "high", "output_compression": 90}
    with Server(script(reply)) as server:
        ours = ImageEditor("gpt-image-1", server.url, KEY, options=options)
        ours.edit(FACE if count == 1 else [FACE] * count, TEXT, size="1024x1536", n=2)
        names = ["image.png", "image1.png"]
        files = [(names[i], png, "image/png") for i in range(count)]
        openai.OpenAI(base_url=server.url, api_key=KEY).images.edit(
            model="gpt-image-1", image=files[0] if count == 1 else files, prompt=TEXT, size="1024x1536", n=2, **options
        )
        first, second = server.requests
    assert form_of(first) == form_of(second) and first.line == second.line
    same_headers(first, second, ("authorization", "accept"))

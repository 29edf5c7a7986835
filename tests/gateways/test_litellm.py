"""LiteLLM's proxy, as it comes from PyPI, between us and mock answers; on loopback."""

from __future__ import annotations

import base64
import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from chat_server import Server, http, script

from ipvg import PromptEnhancer, RemoteError
from ipvg.images import ImageEditor, encode_png

KEY = "sk-gateway-0123456789abcdef"
CAPTION = "A woman walks on the beach."
FACE = np.random.default_rng(1).integers(0, 256, (40, 30, 3), np.uint8)
MADE = np.random.default_rng(2).integers(0, 256, (24, 32, 3), np.uint8)
CONFIG = """
model_list:
  - model_name: mock-chat
    litellm_params: {{model: openai/gpt-4o, api_key: none, mock_response: "A woman with freckles walks on the beach."}}
  - model_name: mock-image
    litellm_params: {{model: openai/gpt-image-1, api_key: none, api_base: "{upstream}"}}
general_settings: {{master_key: {key}}}
litellm_settings: {{telemetry: false, num_retries: 0}}
"""


@pytest.fixture(scope="module")
def upstream():
    picture = base64.b64encode(encode_png(MADE)).decode()
    with Server(script(http({"created": 1, "data": [{"b64_json": picture}]}))) as server:
        yield server


@pytest.fixture(scope="module")
def gateway(tmp_path_factory, upstream):
    folder = tmp_path_factory.mktemp("litellm")
    (folder / "config.yaml").write_text(CONFIG.format(upstream=upstream.url, key=KEY))
    with socket.create_server(("127.0.0.1", 0)) as s:
        port = s.getsockname()[1]
    command = [Path(sys.executable).with_name("litellm"), "--config", folder / "config.yaml", "--host", "127.0.0.1"]
    environment = {**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True", "no_proxy": "127.0.0.1"}
    with (folder / "log").open("wb") as log:
        child = subprocess.Popen([*command, "--port", str(port)], stdout=log, stderr=log, env=environment)
    try:
        end = time.monotonic() + 120
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health/liveliness", timeout=5).close()
                break
            except OSError:
                assert child.poll() is None and time.monotonic() < end, (folder / "log").read_text()[-2000:]
                time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        child.terminate()
        child.wait(30)


def test_face_aware(gateway, tmp_path):
    enhancer = PromptEnhancer("mock-chat", gateway, KEY, cache=tmp_path / "c")
    found = enhancer.face_aware(CAPTION, FACE)
    assert found.text == "A woman with freckles walks on the beach." and found.verbatim and not found.repaired
    assert found.usage.calls == 1 and found.usage.prompt_tokens > 0 and found.usage.uncounted == 0
    offline = PromptEnhancer("mock-chat", gateway, KEY, cache=tmp_path / "c", offline=True)
    assert offline.face_aware(CAPTION, FACE).cached


def test_wrong_key_and_wrong_model(gateway):
    wrong = "sk-wrong-0123456789abcdef"
    for model, key in (("mock-chat", wrong), ("no-such-model", KEY)):
        with pytest.raises(RemoteError) as caught:
            PromptEnhancer(model, gateway, key).appearance(CAPTION)
        assert 400 <= caught.value.status < 500 and caught.value.attempts == 1 and key not in str(caught.value)
        assert len(str(caught.value)) > len(gateway) + 20  # says what the gateway said


def test_images_edit(gateway, upstream):
    found = ImageEditor("mock-image", gateway, KEY).edit(FACE, "A woman in a red dress.", size="1024x1024")
    assert len(found.images) == 1 and (found.images[0] == MADE).all()
    sent = upstream.requests[-1]
    assert sent.line.startswith("POST /v1/images/edits") and KEY not in str(sent.headers)
    assert encode_png(FACE) in sent.body
    assert b"A woman in a red dress." in sent.body and b"1024x1024" in sent.body

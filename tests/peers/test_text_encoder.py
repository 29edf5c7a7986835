"""umT5 from either layout against transformers' UMT5EncoderModel."""

from dataclasses import asdict

import numpy as np
import pytest
import torch

from ipvg import _core
from ipvg.checkpoint import Checkpoint
from ipvg.parity import FP32, relative_l2
from ipvg.text import Tokenizer

from . import checkpoints


@pytest.fixture(scope="module", params=["official", "diffusers"])
def pair(request, folders):
    """(transformers' model, ipvg's encoder) of the same weights."""
    text = Checkpoint.open(folders[request.param]).components["text"]
    return checkpoints.text_encoder(), _core.TextEncoder(_core.Device("cpu"), asdict(text.config), text.weights())


@pytest.mark.parametrize("length", [1, 2, 31, 226, 512])
def test_states(pair, length):
    peer, encoder = pair
    ids = np.random.default_rng(length).integers(0, 2560, length)
    with torch.no_grad():
        reference = peer(torch.from_numpy(ids)[None]).last_hidden_state[0].numpy()
    assert relative_l2(encoder.encode(ids), reference) < FP32["umt5"]


def test_a_padded_batch_gives_the_states_of_each_text_alone(pair):
    """How the peers call it: padded to 512 with a mask, then trimmed."""
    peer, encoder = pair
    texts = [np.arange(3, 20), np.arange(100, 400)]
    ids = torch.zeros(2, 512, dtype=torch.int64)
    mask = torch.zeros(2, 512, dtype=torch.int64)
    for row, text in enumerate(texts):
        ids[row, : len(text)], mask[row, : len(text)] = torch.from_numpy(text), 1
    with torch.no_grad():
        reference = peer(ids, attention_mask=mask).last_hidden_state.numpy()
    for row, text in enumerate(texts):
        assert relative_l2(encoder.encode(text), reference[row, : len(text)]) < FP32["umt5"]


@pytest.mark.parametrize("layout", ["official", "diffusers"])
def test_tokenizer(folders, layout):
    """The same ids as transformers' own class, on texts that need no cleaning."""
    from transformers import AutoTokenizer

    peer = AutoTokenizer.from_pretrained(folders["diffusers"] / "tokenizer")
    tokenizer = Tokenizer(Checkpoint.open(folders[layout]).tokenizer_path)
    for text in ("A cat walks on the grass, realistic style.", "", "cat " * 700, "snow <extra_id_3> and </s> ice"):
        peers = peer(text.strip(), truncation=True, max_length=512)["input_ids"]
        assert tokenizer(text) == peers

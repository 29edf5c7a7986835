"""In bfloat16 ipvg strays no further from float32 than 1.2 times what PyTorch does with the same weights and inputs."""

from dataclasses import asdict

import numpy as np
import pytest
import torch

from ipvg import _core
from ipvg.checkpoint import DitConfig, TextConfig
from ipvg.parity import relative_l2

from . import checkpoints

SLACK = 1.2
HEADS, HEAD_DIM, FFN = 4, 128, 1536  # narrower nets err by chance, not by what their arithmetic is


def weights(model, component):
    return _core.Weights({k: t.numpy() for k, t in checkpoints.official_state(model, component).items()})


def test_transformer():
    peer = checkpoints.transformer(HEADS, HEAD_DIM, FFN)
    config = DitConfig(
        dim=HEADS * HEAD_DIM,
        ffn_dim=FFN,
        num_heads=HEADS,
        num_layers=5,
        vace_layers=(0, 1, 3),
        text_dim=checkpoints.TEXT_DIM,
    )
    rng = np.random.default_rng(0)
    x, context = (rng.standard_normal((c, 3, 12, 16), np.float32) for c in (16, 96))
    states = rng.standard_normal((512, checkpoints.TEXT_DIM), np.float32)

    def theirs(dtype):
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
            return peer(
                hidden_states=torch.from_numpy(x)[None],
                timestep=torch.tensor([500]),
                encoder_hidden_states=torch.from_numpy(states)[None],
                control_hidden_states=torch.from_numpy(context)[None],
                return_dict=False,
            )[0][0].float().numpy()  # fmt: skip

    def ours(dtype):
        model = _core.Dit(_core.Device("cpu", dtype=dtype), asdict(config), weights(peer, "dit"))
        return model.forward(x, 500, model.text(states), model.context(context))

    reference = theirs("float32")
    assert relative_l2(ours("bfloat16"), reference) <= SLACK * relative_l2(theirs("bfloat16"), reference)


@pytest.mark.parametrize("length", [40, 512])
def test_text_encoder(length):
    peer = checkpoints.text_encoder(heads=8, d_kv=64, layers=4, d_model=512, d_ff=1024)
    config = TextConfig(vocab=2560, dim=512, dim_attn=512, dim_ffn=1024, num_heads=8, num_layers=4)
    ids = np.random.default_rng(length).integers(0, 2560, length)
    encoder = _core.TextEncoder(_core.Device("cpu", dtype="bfloat16"), asdict(config), weights(peer, "text"))
    with torch.no_grad():
        reference = peer(torch.from_numpy(ids)[None]).last_hidden_state[0].numpy()
        theirs = peer.bfloat16()(torch.from_numpy(ids)[None]).last_hidden_state[0].float().numpy()
    assert relative_l2(encoder.encode(ids), reference) <= SLACK * relative_l2(theirs, reference)

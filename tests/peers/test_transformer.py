"""The diffusion transformer from either layout against diffusers' WanVACETransformer3DModel."""

from dataclasses import asdict

import numpy as np
import pytest
import torch

from ipvg import _core
from ipvg.checkpoint import Checkpoint, DitConfig
from ipvg.parity import FP32, relative_l2

from . import checkpoints


@pytest.fixture(scope="module", params=["official", "diffusers"])
def pair(request, folders):
    """(diffusers' model, ipvg's) of the same weights."""
    dit = Checkpoint.open(folders[request.param]).components["dit"]
    return checkpoints.transformer(), _core.Dit(_core.Device("cpu"), asdict(dit.config), dit.weights())


def draw(seed, frames=3, height=6, width=8, tokens=20, context_frames=None):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((16, frames, height, width), np.float32)
    context = rng.standard_normal((96, context_frames or frames, height, width), np.float32)
    return x, context, rng.standard_normal((tokens, checkpoints.TEXT_DIM), np.float32)


def reference(peer, x, t, states, context, scale=1.0):
    text = np.zeros((512, states.shape[1]), np.float32)
    text[: len(states)] = states
    scales = torch.ones(len(peer.config.vace_layers)) * torch.as_tensor(scale)
    with torch.no_grad():
        v = peer(
            hidden_states=torch.from_numpy(x)[None],
            timestep=torch.tensor([t]),
            encoder_hidden_states=torch.from_numpy(text)[None],
            control_hidden_states=torch.from_numpy(context)[None],
            control_hidden_states_scale=scales,
            return_dict=False,
        )[0]
    return v[0].numpy()


def ours(model, x, t, states, context, **options):
    return model.forward(x, t, model.text(states), model.context(context, frames=x.shape[1]), **options)


@pytest.mark.parametrize("t", [0, 17, 500, 999])
def test_velocity(pair, t):
    peer, model = pair
    x, context, states = draw(t)
    assert relative_l2(ours(model, x, t, states, context), reference(peer, x, t, states, context)) < FP32["forward"]


@pytest.mark.parametrize(
    "sizes",
    [{"frames": 1, "height": 2, "width": 2}, {"frames": 5, "height": 10, "width": 4}, {"tokens": 1}, {"tokens": 512}],
)
def test_sizes(pair, sizes):
    peer, model = pair
    x, context, states = draw(7, **sizes)
    assert relative_l2(ours(model, x, 321, states, context), reference(peer, x, 321, states, context)) < FP32["forward"]


@pytest.mark.parametrize("scale", [0.0, 0.5, (1.0, 0.25, -2.0)])
def test_context_scale(pair, scale):
    peer, model = pair
    x, context, states = draw(8)
    want = reference(peer, x, 600, states, context, scale)
    assert relative_l2(ours(model, x, 600, states, context, scale=scale), want) < FP32["forward"]


def test_a_shorter_context_is_padded_at_the_end(pair):
    peer, model = pair
    x, context, states = draw(9, frames=4, context_frames=3)
    assert relative_l2(ours(model, x, 900, states, context), reference(peer, x, 900, states, context)) < FP32["forward"]


@pytest.mark.parametrize("heads, head_dim", [(2, 128), (5, 32), (4, 12)])
def test_head_sizes(heads, head_dim):
    """How a head's pairs divide over time, height and width depends on its size."""
    peer = checkpoints.transformer(heads, head_dim)
    state = {name: t.numpy() for name, t in checkpoints.official_state(peer, "dit").items()}
    config = DitConfig(
        dim=heads * head_dim,
        ffn_dim=320,
        num_heads=heads,
        num_layers=5,
        vace_layers=(0, 1, 3),
        text_dim=checkpoints.TEXT_DIM,
    )
    model = _core.Dit(_core.Device("cpu"), asdict(config), _core.Weights(state))
    x, context, states = draw(10, frames=4, height=8, width=6)
    assert relative_l2(ours(model, x, 250, states, context), reference(peer, x, 250, states, context)) < FP32["forward"]

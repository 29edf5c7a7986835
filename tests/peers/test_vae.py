"""The video VAE from either layout against diffusers' AutoencoderKLWan."""

from dataclasses import asdict

import numpy as np
import pytest
import torch

from ipvg import _core
from ipvg.checkpoint import Checkpoint
from ipvg.parity import FP32, recipe, relative_l2

from . import checkpoints


@pytest.fixture(scope="module", params=["official", "diffusers"])
def pair(request, folders):
    """(diffusers' model, ipvg's) of the same weights."""
    vae = Checkpoint.open(folders[request.param]).components["vae"]
    return checkpoints.vae(), _core.Vae(_core.Device("cpu"), asdict(vae.config), vae.weights())


def statistics(peer):
    return (np.array(x, np.float32)[:, None, None, None] for x in (peer.config.latents_mean, peer.config.latents_std))


@pytest.mark.parametrize("frames, height, width", [(1, 16, 16), (1, 40, 24), (5, 32, 48), (13, 16, 24)])
def test_encode(pair, frames, height, width):
    peer, vae = pair
    video = (
        recipe.pixels("peers/video", (frames, height, width, 3)).astype(np.float32).transpose(3, 0, 1, 2) / 127.5 - 1
    )
    with torch.no_grad():
        mu = peer.encode(torch.from_numpy(np.ascontiguousarray(video))[None]).latent_dist.mode()[0].numpy()
    mean, std = statistics(peer)
    assert relative_l2(vae.encode(video), (mu - mean) * (1 / std)) < FP32["vae"]


@pytest.mark.parametrize("frames, height, width", [(1, 2, 2), (1, 5, 3), (2, 4, 6), (4, 2, 3)])
def test_decode(pair, frames, height, width):
    peer, vae = pair
    latent = recipe.normal("peers/latent", (16, frames, height, width))
    mean, std = statistics(peer)
    with torch.no_grad():
        want = peer.decode(torch.from_numpy(latent / (1 / std) + mean)[None], return_dict=False)[0][0].numpy()
    assert (np.abs(want) < 1).mean() > 0.5  # the peer clamps: most of it must say something
    assert relative_l2(vae.decode(latent).clip(-1, 1), want) < FP32["vae"]

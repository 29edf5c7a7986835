"""Every task's context is the one that diffusers' WanVACEPipeline prepares from the same frames, mask and reference."""

import numpy as np
import pytest
import torch
from diffusers import WanVACEPipeline
from PIL import Image

from ipvg import tasks
from ipvg.parity import FP32, recipe, relative_l2
from ipvg.pipeline import Pipeline

SIZE, FRAMES = (48, 32), 9
CLIP = recipe.pixels("peers/clip", (FRAMES, 32, 48, 3))
# A size of whole 8 x 8 cells: diffusers rounds others first. One reference: it reverses the order of several.
PHOTO = recipe.pixels("peers/photo", (32, 48, 3))
PLACE = {"size": SIZE, "frames": FRAMES}
REGION = np.zeros((32, 48), bool)
REGION[8:20, 16:40] = True

JOBS = {
    "text": lambda: tasks.text(**PLACE),
    "image": lambda: tasks.image([PHOTO], size=SIZE),
    "references": lambda: tasks.references([PHOTO], **PLACE),
    "control": lambda: tasks.control(CLIP, references=[PHOTO], **PLACE),
    "inpaint": lambda: tasks.inpaint(CLIP, REGION, references=[PHOTO], **PLACE),
    "outpaint": lambda: tasks.outpaint(CLIP[:, :, :32], left=0.25, right=0.25, **PLACE),
    "first-frame": lambda: tasks.first_frame(PHOTO, references=[PHOTO[::-1]], **PLACE),
    "last-frame": lambda: tasks.last_frame(PHOTO, **PLACE),
    "first-last": lambda: tasks.first_last(PHOTO, PHOTO[:, ::-1], **PLACE),
    "extend-after": lambda: tasks.extend_after(CLIP, keep=5, references=[PHOTO], **PLACE),
    "extend-before": lambda: tasks.extend_before(CLIP, keep=5, **PLACE),
}


@pytest.fixture(scope="module")
def peer(folders):
    return WanVACEPipeline.from_pretrained(folders["diffusers"], torch_dtype=torch.float32)


@torch.no_grad()
def theirs(peer, job):
    def pictures(frames):
        return None if frames is None else [Image.fromarray(frame) for frame in frames]

    mask = job["mask"]
    mask = None if mask is None else pictures(np.rint(mask * 255).astype(np.uint8)[..., None].repeat(3, 3))
    references = pictures(job["references"]) or None
    video, mask, references = peer.preprocess_conditions(
        pictures(job["video"]), mask, references, 1, SIZE[1], SIZE[0], job["frames"], torch.float32, "cpu"
    )
    latents = peer.prepare_video_latents(video, mask, references, device="cpu")
    return torch.cat([latents, peer.prepare_masks(mask, references)], dim=1)[0].numpy()


def test_every_task_is_here():
    assert set(JOBS) == set(tasks.TASKS)


@pytest.mark.parametrize("name", JOBS)
def test_the_context(peer, folders, name):
    job = JOBS[name]()
    got, want = Pipeline.load(folders["official"]).encode_source(**job).context, theirs(peer, job)
    assert got.shape == want.shape and np.array_equal(got[32:], want[32:]), "the mask goes through no network"
    assert relative_l2(got[:32], want[:32]) < FP32["vae"]

"""How one pair of one arm is made and looked at. Runs in workers: processes on a CPU, threads that share a GPU."""

from __future__ import annotations

import dataclasses
import functools
import json
import threading
import time

import numpy as np

from .arms import Arm

FRAMES = (0, 4, 8, 12, 16)  # what the probe looks at
SHOWN = 6  # pairs whose first, middle and last frame are kept for the picture
SEED = 7000  # of pair 0's noise, the same in every arm
RATIO_PAIRS = 16

_worker: dict = {}
_own = threading.local()


@dataclasses.dataclass(frozen=True)
class Setting:
    """What a run's results depend on, besides the arm. data: path of pairs.npz."""

    data: str
    checkpoint: str
    device: str = "cpu"
    dtype: str = "float32"
    steps: int = 20
    shift: float = 3.0


def begin(setting: Setting) -> None:
    """Of a worker: everything is loaded at first use."""
    _worker["setting"] = setting


def pipeline():
    """A thread's own: a device's queue takes one call at a time."""
    from ipvg import Pipeline

    s = _worker["setting"]
    if getattr(_own, "setting", None) != s:
        _own.setting, _own.pipe = s, Pipeline.load(s.checkpoint, device=s.device, threads=1, dtype=s.dtype)
    return _own.pipe


def folder_of_judges():
    from ipvg.judge import folder

    return folder()


@functools.lru_cache(None)
def judge(name: str):
    from ipvg.judge import Judge

    return Judge(folder_of_judges() / f"{name}.onnx")


@functools.lru_cache(None)
def table(key: str) -> np.ndarray:
    with np.load(where(_worker["setting"].data, key)) as data:
        return data[key]


def where(data: str, key: str) -> str:
    """The file that has this array of the pairs: clips lie in one of their own."""
    return data.removesuffix(".npz") + ".clips.npz" if key.endswith("_clip") else data


@functools.lru_cache(512)
def states(prompt: str) -> np.ndarray:
    return pipeline().encode_text({"one": prompt})["one"]


@functools.lru_cache(256)
def source(pairs: str, whose: str, pair: int, path: str):
    if whose == "enhanced":
        picture = enhancements(path)["picture"][pair]
    else:
        pictures = table(f"{pairs}_reference")
        picture = pictures[(pair + (whose == "stranger")) % len(pictures)]
    return pipeline().encode_source([picture])


@functools.lru_cache(1)
def enhancements(path: str) -> dict:
    with np.load(path) as data:
        return {k: data[k] for k in ("picture", "record")}


def one(job: tuple[Arm, int, str]) -> dict[str, np.ndarray]:
    """(arm, pair, file of the "enhanced" arm) -> arrays of that pair."""
    arm, pair, path = job
    began, cpu = time.perf_counter(), time.thread_time()
    found = {"enhanced": enhanced, "ratios": ratios}.get(arm.kind, clip)(arm, pair, path)
    found["device"] = np.array(_worker["setting"].device)
    found["seconds"] = np.array([time.perf_counter() - began, time.thread_time() - cpu], np.float32)
    return found


def texts(arm: Arm, pair: int, path: str) -> dict[str, np.ndarray]:
    from ipvg.text import NEGATIVE

    caption = str(table(f"{arm.pairs}_caption")[pair])
    if arm.prompt == "enhanced":
        caption = json.loads(str(enhancements(path)["record"][pair]))["prompt"]
    return {"cond": states(caption), "negative": states(NEGATIVE), "null": states("")}


def sampler(arm: Arm, pair: int, path: str):
    s = _worker["setting"]
    place = source(arm.pairs, arm.reference, pair, path)
    return pipeline().sampler(
        texts(arm, pair, path), place, arm.rule, steps=arm.steps or s.steps, shift=s.shift, seed=SEED + pair
    )


def clip(arm: Arm, pair: int, path: str) -> dict[str, np.ndarray]:
    forwards = 0
    if arm.kind == "clip":
        run = sampler(arm, pair, path)
        run.run()
        frames, forwards = pipeline().decode(run.latents).frames, run.forwards
    else:
        frames = table(f"{arm.pairs}_clip")[pair]
        if arm.kind == "codec":
            from ipvg.video import to_float

            frames = pipeline().decode(pipeline().vae.encode(to_float(frames))).frames
    found = {**look(frames), "forwards": np.array(forwards)}
    return found | ({"shown": frames[[0, len(frames) // 2, -1]]} if pair < SHOWN else {})


def look(frames: np.ndarray) -> dict[str, np.ndarray]:
    """uint8 (17, 128, 128, 3), or the probe's five frames alone -> what the judges see, and how it moves.

    face: (frames, 128) embeddings. seen: (frames,) logits, above 0 where a face is seen. probe, traits: logits, of five
    frames and of the middle one. uneven: mean distance of a frame from the mean of its neighbours, grey levels of 255.
    motion: mean distance of a frame from the next. clipped: share of values that are within 2 of black or white."""
    x = np.ascontiguousarray(frames.transpose(0, 3, 1, 2), np.float32) / 127.5 - 1
    middle, five = x[len(x) // 2], x if len(x) == len(FRAMES) else x[list(FRAMES)]
    level = frames.astype(np.float32)
    return {
        "face": judge("face")(x).astype(np.float16),
        "seen": judge("seen")(x)[:, 0],
        "probe": judge("probe")(five[None])[0],
        "traits": judge("traits")(np.stack([middle, middle[..., ::-1]])).mean(0),
        "uneven": np.abs(level[1:-1] - (level[:-2] + level[2:]) / 2).mean(),
        "motion": np.abs(level[1:] - level[:-1]).mean(),
        "clipped": np.float32(((frames < 3) | (frames > 252)).mean()),
    }


def enhanced(arm: Arm, pair: int, path: str) -> dict[str, np.ndarray]:
    """PE by the local enhancer, IE by one-frame VACE, the candidate most like the reference: picture (128, 128, 3)."""
    from ipvg import VaceReference
    from ipvg.enhancing import enhance

    s = _worker["setting"]
    maker = VaceReference(pipeline(), 4, seed=SEED + 1000 * pair, steps=s.steps, shift=s.shift, guidance=arm.rule)
    reference, caption = table("conflict_reference")[pair], str(table("conflict_caption")[pair])
    found = enhance(reference, caption, pipe=pipeline(), prompt_enhancer="local", reference_enhancer=maker)
    record = {"caption": caption, "prompt": found.prompt, "appearance": found.appearance, "flags": found.flags,
              "similarity": found.provenance["reference"]["similarity"]}  # fmt: skip
    return {"picture": found.pictures.get("reference", reference), "record": np.array(json.dumps(record))}


def ratios(arm: Arm, pair: int, path: str) -> dict[str, np.ndarray]:
    """Along the arm's own trajectory: how far the other predictions are from cond. rms: (steps, predictions) of the
    difference over the video's latents; first column |cond|. cosine: of the difference to that of the absent slot."""
    run, model = sampler(arm, pair, path), pipeline().dit
    place, words = run.source, {k: model.text(v) for k, v in texts(arm, pair, path).items()}
    frames = place.latent_shape[1]
    context = {k: model.context(place.variant(k), frames=frames) for k in ("present", "drop", "absent")}
    asked = {"uncond": ("negative", "present", ()), "null": ("null", "present", ()), "drop": ("cond", "drop", ()),
             "absent": ("cond", "absent", ()), "drop, block 2": ("cond", "drop", (2,)),
             "absent, block 2": ("cond", "absent", (2,))}  # fmt: skip
    asked |= {f"block {k}": ("cond", "present", (k,)) for k in range(model.config["num_layers"])}
    rms, cosine = [], []
    latent = np.array(run.latent)
    for step in run:
        seen = latent  # what the model saw at this step
        t, cond = step.timestep, np.array(step.velocity["cond"])
        gap = {n: (cond - model.forward(seen, t, words[text], context[reference], skip=skip))[:, place.references :]
               for n, (text, reference, skip) in asked.items()}  # fmt: skip
        size = {n: np.sqrt(np.mean(d.astype(np.float64) ** 2)) for n, d in gap.items()}
        rms.append([np.sqrt(np.mean(cond[:, place.references :].astype(np.float64) ** 2)), *size.values()])
        cosine.append([np.mean(d * gap["absent"], dtype=np.float64) / max(size[n] * size["absent"], 1e-12)
                       for n, d in gap.items()])  # fmt: skip
        latent = np.array(step.latent)
    return {"rms": np.float32(rms), "cosine": np.float32(cosine), "names": np.array(["cond", *asked]),
            "sigma": np.float32(run.schedule.sigmas[:-1])}  # fmt: skip

"""A run in a file: `Sampler.snapshot` and `Sampler.restore`.

One .safetensors file: the solver's five tensors and APG's running differences, the VACE context, the prompts' states;
in its metadata, under "ipvg", JSON with all settings, the step, the seed and the versions.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from . import __version__, _core
from .checkpoint.safetensors import read_header, read_metadata
from .checkpoint.write import save_safetensors
from .guidance import Guidance
from .schedule import Schedule
from .source import Source

if TYPE_CHECKING:
    from .sampler import Sampler

FORMAT, VERSION = "ipvg.snapshot", 1
SOLVER = ("x", "anchor", "x0_0", "x0_1", "x0_2")


def save(sampler: Sampler, path: str | os.PathLike) -> None:
    state, schedule, source = sampler._state(), sampler.schedule, sampler.source
    tensors = dict(zip(SOLVER, state.solver, strict=True))
    tensors |= {f"running_{i}": array for i, array in enumerate(state.running)}
    tensors["context"] = source.context
    texts = {name: t for name, t in sampler._prepared.states.items() if not isinstance(t, _core.DitText)}
    tensors |= {f"text.{name}": np.asarray(t, dtype=np.float32) for name, t in texts.items()}
    about = {
        "format": FORMAT,
        "version": VERSION,
        "ipvg": __version__,
        "threads": sampler._core.device.threads,
        "device": sampler._core.device.name,
        "model": sampler.model.config,
        "weights": sampler._prepared.fingerprints,
        "index": state.index,
        "forwards": state.forwards,
        "elapsed": state.elapsed,
        "seed": sampler.seed,
        "schedule": [schedule.steps, schedule.shift, schedule.solver, schedule.sigmas_from, schedule.begin],
        "source": {"references": source.references, "frames": source.frames, "size": list(source.size)},
        "guidance": sampler.guidance.to_dict(),
        "running": len(state.running),
        "texts": list(texts),
    }
    save_safetensors(path, tensors, {"ipvg": json.dumps(about)})


def fingerprints(weights: _core.Weights) -> dict[str, str]:
    """Tensor name -> 8 hex digits of its dtype, shape and some of its bytes: small tensors whole, of others 16 pieces
    of 64 bytes: cheap even where 28 GB are mapped."""
    out = {}
    for name in weights.names():
        array = weights.array(name)
        data = array.reshape(-1).view(np.uint8) if array.size else np.zeros(0, np.uint8)
        digest = hashlib.blake2b(f"{array.dtype}{array.shape}".encode(), digest_size=4)
        if data.size <= 4096:
            digest.update(data.tobytes())
        else:
            for start in np.linspace(0, data.size - 64, 16).astype(np.int64):
                digest.update(data[start : start + 64].tobytes())
        out[name] = digest.hexdigest()
    return out


def _name_changes(path: Path | str, then: Mapping[str, str], now: Mapping[str, str]) -> None:
    changed = [name for name in now if then.get(name) != now[name]]
    if changed:
        few = ", ".join(changed[:3]) + (", ..." if len(changed) > 3 else "")
        warnings.warn(
            f"{path}: made with other weights: {len(changed)} of {len(now)} tensors of the model have changed since "
            f"({few}); the rest will not be what it would have been",
            stacklevel=4,
        )


def read(path: str | os.PathLike) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """What a snapshot says, and its tensors. Raises OSError, ipvg.FormatError."""
    path = Path(path)
    text = read_metadata(path).get("ipvg", "null")
    try:
        about = json.loads(text)
    except ValueError as error:
        raise _core.FormatError(f"{path}: {error}") from None
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        raise _core.FormatError(f"{path}: not a snapshot of a run")
    if about.get("version") != VERSION:
        raise _core.FormatError(f"{path}: snapshot version {about.get('version')!r}, this build reads {VERSION}")
    return about, {name: entry.read() for name, entry in read_header(path).items()}


def load(
    kind: type[Sampler],
    path: str | os.PathLike,
    model: _core.Dit,
    texts: Mapping[str, Any] | None,
    source: Source | None,
    options: dict[str, Any],
) -> Sampler:
    from .sampler import State

    about, tensors = read(path)
    try:
        config, threads = about["model"], about["threads"]
        schedule, rule = Schedule(*about["schedule"]), Guidance.from_dict(about["guidance"])
        states = {name: tensors[f"text.{name}"] for name in about["texts"]}
        if source is None:
            s = about["source"]
            source = Source(tensors["context"], s["references"], s["frames"], tuple(s["size"]))
        state = State(
            about["index"],
            about["forwards"],
            about["elapsed"],
            [tensors[name] for name in SOLVER],
            [tensors[f"running_{i}"] for i in range(about["running"])],
        )
    except (KeyError, TypeError, ValueError) as error:
        raise _core.FormatError(f"{path}: a snapshot that lacks or garbles {error}") from None
    if config != model.config:
        wrong = next(k for k in {**config, **model.config} if config.get(k) != model.config.get(k))
        raise ValueError(
            f"{path}: a snapshot of a model with {wrong} {config.get(wrong)}, this one has {model.config.get(wrong)}"
        )
    run = kind(
        model, {**states, **(texts or {})}, source, guidance=rule, schedule=schedule,
        noise=np.zeros(source.latent_shape, np.float32), **options,
    )  # fmt: skip
    if "weights" in about:
        _name_changes(path, about["weights"], run._prepared.fingerprints)
    run.seed = about["seed"]
    run._load(state, run._apgs())
    if about["ipvg"] != __version__ or threads != run._core.device.threads:
        warnings.warn(
            f"{path}: written by ipvg {about['ipvg']} on {threads} threads; with {__version__} on "
            f"{run._core.device.threads} the rest may differ in rounding",
            stacklevel=3,
        )
    return run

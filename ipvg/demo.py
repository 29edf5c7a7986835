"""`ipvg demo`: a picture and a sentence, through all three enhancements and every stage, into an mp4."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import jobs
from .enhancing import enhance
from .pipeline import Pipeline, bundled
from .reference import VaceReference

#: The picture wears something else, in another place: what reference enhancement is for.
PICTURE = "person6.png"
PROMPT = "A woman in a blue turtleneck smiles and nods in a green forest."

#: What the untrained checkpoint runs with: large enough to exercise everything, small enough for two cores.
UNTRAINED = {"size": (192, 192), "frames": 17, "steps": 8}
SMALLEST = {"size": (64, 48), "frames": 5, "steps": 2}
STILL = {"size": (96, 96), "steps": 4}  # the reference's candidates, when they can only be noise


def run(
    out: Path,
    *,
    picture: str | Path | None = None,
    prompt: str | None = None,
    smallest: bool = False,
    threads: int | None = None,
    progress: Callable[[str, int, int], None] = print,
) -> tuple[dict[str, str], dict[str, Any]]:
    """Writes demo.mp4, demo.png and demo.json (prompt and reference, enhanced) into the folder `out`, which is made if
    need be: PE by the local enhancer, IE by one-frame VACE, GE by tpige_code. picture, prompt: None: bundled ones. Of a
    photograph the small checkpoint keeps little: it knows its rendered world alone, and the flags say so.

    Returns (what -> path, record); record["noise"] says that the weights are untrained, record["flags"] what the
    enhancements had to say. FileNotFoundError outside a copy of the repository, which holds the picture and the
    weights; ipvg.UnsupportedError without ONNX Runtime.
    """
    began = time.monotonic()
    picture = Path(picture or _repository() / "models" / "tiny" / "examples" / PICTURE).absolute()
    folder, trained = checkpoint()
    size = SMALLEST if smallest else {} if trained else UNTRAINED
    out.mkdir(parents=True, exist_ok=True)
    pipe = Pipeline.load(folder, threads=threads)
    still = {name: SMALLEST[name] for name in ("size", "steps")} if smallest else {} if trained else STILL
    maker = VaceReference(pipe, candidates=2 if still else 4, **still)
    enhanced = enhance(
        str(picture), prompt or PROMPT, pipe=pipe, prompt_enhancer="local", reference_enhancer=maker, id="demo",
        progress=progress,
    )  # fmt: skip
    path = enhanced.save(out / "demo.json")
    settings = jobs.resolve({"enhanced": str(path), "checkpoint": str(folder), "threads": threads, **size})
    video, pipe = jobs.make(settings, progress)
    files = {"picture": str(picture), "enhancement": str(path), "reference": enhanced.reference}
    files |= jobs.save(video, out / "demo.mp4", pipe)
    files["contact_sheet"] = str(video.save_contact_sheet(out / "demo.png"))
    record = {"noise": not trained, "flags": enhanced.flags, "seconds": round(time.monotonic() - began, 3)}
    return files, {**settings, **record}


def checkpoint() -> tuple[Path, bool]:
    """(folder, trained): the bundled checkpoint, or the untrained one that models/recipe.py makes."""
    try:
        return bundled(), True
    except FileNotFoundError:
        root = _repository()
    spec = importlib.util.spec_from_file_location("ipvg_recipe_checkpoint", root / "models" / "recipe.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.write(root / "build" / "recipe-checkpoint"), False


def _repository() -> Path:
    root = Path(__file__).resolve().parent.parent
    if not (root / "models" / "tiny" / "examples" / PICTURE).is_file():
        raise FileNotFoundError("the demo's picture is not installed with ipvg: run it in a copy of the repository")
    return root

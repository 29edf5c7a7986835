"""`ipvg demo`: the bundled photo and a sentence, through every stage, into an mp4 and a contact sheet."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import jobs
from .pipeline import bundled

PROMPT = "An astronaut in an orange suit smiles and turns her head; behind her a flag moves slowly in the wind."

#: What the untrained checkpoint runs with: large enough to exercise everything, small enough for two cores.
UNTRAINED = {"size": (192, 192), "frames": 17, "steps": 8}
SMALLEST = {"size": (64, 48), "frames": 5, "steps": 2}


def run(
    out: Path, *, smallest: bool = False, threads: int | None = None, progress: Callable[[str, int, int], None] = print
) -> tuple[dict[str, str], dict[str, Any]]:
    """Writes demo.mp4 and demo.png into the folder `out`, which is made if need be.

    Returns (what -> path, record); record["noise"] says that the weights are untrained. FileNotFoundError outside a
    copy of the repository, which holds the picture and the weights.
    """
    began = time.monotonic()
    picture = _repository() / "models" / "examples" / "astronaut.png"
    checkpoint, trained = _checkpoint()
    size = SMALLEST if smallest else {} if trained else UNTRAINED
    settings = jobs.resolve(
        {"prompt": PROMPT, "images": [str(picture)], "checkpoint": str(checkpoint), "threads": threads, **size}
    )
    video, pipe = jobs.make(settings, progress)
    out.mkdir(parents=True, exist_ok=True)
    files = {"picture": str(picture), **jobs.save(video, out / "demo.mp4", pipe)}
    files["contact_sheet"] = str(video.save_contact_sheet(out / "demo.png"))
    return files, {**settings, "noise": not trained, "seconds": round(time.monotonic() - began, 3)}


def _checkpoint() -> tuple[Path, bool]:
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
    if not (root / "models" / "examples" / "astronaut.png").is_file():
        raise FileNotFoundError("the demo's picture is not installed with ipvg: run it in a copy of the repository")
    return root

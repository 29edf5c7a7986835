"""Identity-preserving text-to-video: Wan2.1-VACE with TPIGE, on a C core.

>>> import ipvg
>>> video = ipvg.generate("A woman walks on the beach.", [ipvg.read_image("alice.png")], checkpoint="Wan2.1-VACE-1.3B")
>>> video.save("alice.mp4")

Each stage can be opened: see `ipvg.Pipeline`, `ipvg.guidance`, `ipvg.parity`. Names are loaded at first use, so that
`import ipvg` is quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from . import _openmp

__version__ = "0.1.0"

if TYPE_CHECKING:
    from . import guidance, jobs, long, lora, manifest, parity, seams, settings, tasks
    from ._core import BackendError, Cancelled, Device, FormatError, Tensor, UnsupportedError
    from .chat import RemoteError
    from .checkpoint import Checkpoint
    from .cuda import error as cuda_error
    from .enhance import Enhanced, OfflineMiss, PromptEnhancer
    from .enhancement import Enhancement
    from .face import Embedder
    from .grid import side_by_side
    from .guidance import Branch, Guidance
    from .local import LocalEnhancer
    from .lora import Lora
    from .memory import estimate as memory_estimate
    from .pipeline import Pipeline, generate
    from .reference import EndpointReference, VaceReference
    from .sampler import Sampler, Step, noise
    from .schedule import Schedule
    from .source import Source
    from .text import NEGATIVE
    from .video import Video, read_image, read_video

_HOME = {
    "_core": ("BackendError", "Cancelled", "Device", "FormatError", "Tensor", "UnsupportedError"),
    "chat": ("RemoteError",),
    "checkpoint": ("Checkpoint",),
    "enhance": ("Enhanced", "OfflineMiss", "PromptEnhancer"),
    "enhancement": ("Enhancement",),
    "face": ("Embedder",),
    "grid": ("side_by_side",),
    "guidance": ("Branch", "Guidance"),
    "local": ("LocalEnhancer",),
    "lora": ("Lora",),
    "pipeline": ("Pipeline", "generate"),
    "reference": ("EndpointReference", "VaceReference"),
    "sampler": ("Sampler", "Step", "noise"),
    "schedule": ("Schedule",),
    "source": ("Source",),
    "text": ("NEGATIVE",),
    "video": ("Video", "read_image", "read_video"),
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}
_MODULES = ("guidance", "jobs", "long", "lora", "manifest", "parity", "seams", "settings", "tasks")

__all__ = ["__version__", "cuda_error", "memory_estimate", *_MODULES, *_MODULE_OF]

_openmp.load()


def __getattr__(name: str):
    if name in _MODULES:
        return importlib.import_module(f".{name}", __name__)
    if name == "memory_estimate":
        value = importlib.import_module(".memory", __name__).estimate
    elif name == "cuda_error":
        value = importlib.import_module(".cuda", __name__).error
    elif name in _MODULE_OF:
        value = getattr(importlib.import_module(f".{_MODULE_OF[name]}", __name__), name)
    else:
        raise AttributeError(f"module 'ipvg' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__():
    return sorted({*globals(), *__all__})

"""The way to the CUDA backend, which is an extension of its own and is loaded when a device is asked for."""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
from pathlib import Path
from types import ModuleType

#: Libraries of NVIDIA's pip wheels, in the order in which they need each other: (package, its file).
_WHEELS = (
    ("nvidia.cu13", "lib/libcudart.so.13"),
    ("nvidia.cu13", "lib/libnvrtc.so.13"),
    ("nvidia.cu13", "lib/libcublasLt.so.13"),
    ("nvidia.cudnn", "lib/libcudnn.so.9"),
)
_GET = (
    "It needs CUDA 13 and cuDNN 9 when ipvg is built: NVIDIA's toolkit (CUDA_HOME names it), or "
    "pip install nvidia-cuda-nvcc nvidia-cuda-runtime nvidia-cuda-cccl nvidia-nvvm nvidia-cuda-crt nvidia-cublas "
    "nvidia-cudnn-cu13, then build ipvg again."
)


def load() -> ModuleType:
    """The module ipvg._cuda. Raises ImportError that says what is missing and how to get it."""
    try:
        return importlib.import_module("ipvg._cuda")
    except ModuleNotFoundError:
        raise ImportError(f"ipvg was built without CUDA. {_GET}") from None
    except ImportError as error:
        first = error
    for package, file in _WHEELS:  # not on the loader's paths: perhaps beside us, as PyTorch has them too
        spec = importlib.util.find_spec(package) if importlib.util.find_spec("nvidia") else None
        for folder in (spec.submodule_search_locations or ()) if spec else ():
            if (Path(folder) / file).is_file():
                ctypes.CDLL(str(Path(folder) / file), mode=ctypes.RTLD_GLOBAL)
                break
    try:
        return importlib.import_module("ipvg._cuda")
    except ImportError:
        raise ImportError(
            f"the CUDA extension does not load: {first}. pip install 'ipvg[cuda]' brings the libraries"
        ) from None


def error() -> str | None:
    """Why `device="cuda"` cannot be used here, or None if it can. Looks for a GPU; takes a moment the first time."""
    from . import _core

    try:
        _core.Device("cuda")
    except (_core.UnsupportedError, _core.BackendError, MemoryError) as reason:
        return str(reason)
    return None

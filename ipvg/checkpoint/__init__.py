"""Checkpoints: untrusted files to an index of tensors under official names. Start at checkpoint.py."""

from .checkpoint import Checkpoint, Component
from .config import DitConfig, TextConfig, VaeConfig
from .entry import Entry, from_bfloat16, to_bfloat16
from .shapes import expected
from .write import save_safetensors

__all__ = [
    "Checkpoint",
    "Component",
    "DitConfig",
    "Entry",
    "TextConfig",
    "VaeConfig",
    "expected",
    "from_bfloat16",
    "save_safetensors",
    "to_bfloat16",
]

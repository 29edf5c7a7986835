"""Identity-preserving text-to-video: Wan2.1-VACE with TPIGE. See README.md."""

__version__ = "0.1.0"

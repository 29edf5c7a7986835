"""Builds the extension modules. `_core` needs oneDNN; `_media` needs FFmpeg and is left out, with a word, without it."""

import subprocess
from glob import glob

import numpy
from setuptools import Extension, setup

C_FLAGS = ["-std=c11", "-O3", "-Wall", "-Wextra", "-fvisibility=hidden", "-fopenmp", "-D_GNU_SOURCE"]


def pkg_config(*packages):
    """(compile flags, link flags) of pkg-config packages, or None if one is missing."""
    try:
        out = [subprocess.run(["pkg-config", flag, *packages], check=True, capture_output=True, text=True).stdout.split()
               for flag in ("--cflags", "--libs")]
    except (OSError, subprocess.CalledProcessError):
        return None
    return out


def sources(*patterns):
    return sorted(path for pattern in patterns for path in glob(pattern))


extensions = [
    Extension(
        "ipvg._core",
        sources("csrc/base/*.c", "csrc/ops/*.c", "csrc/ops/cpu/*.c", "csrc/model/*.c", "csrc/sample/*.c")
        + [p for p in sources("csrc/python/*.c") if not p.endswith(("media.c", "remote.c"))],
        include_dirs=[numpy.get_include()],
        extra_compile_args=C_FLAGS,
        extra_link_args=["-fopenmp", "-ldnnl", "-lm"],
    )
]

media = pkg_config("libavformat", "libavcodec", "libavutil", "libswscale")
if media and sources("csrc/python/media.c"):
    extensions.append(
        Extension(
            "ipvg._media",
            sources("csrc/base/*.c", "csrc/io/*.c") + ["csrc/python/media.c"],
            include_dirs=[numpy.get_include()],
            extra_compile_args=C_FLAGS + media[0],
            extra_link_args=["-fopenmp", *media[1]],
        )
    )
elif not media:
    print("ipvg: FFmpeg's development files were not found, so reading and writing pictures and video is left out.\n"
          "      apt-get install pkg-config libavformat-dev libavcodec-dev libavutil-dev libswscale-dev, then build again.")

setup(ext_modules=extensions, package_data={"ipvg": ["data/*.json"]})

"""`pip install .`: what the wheel holds, that it works away from the repository, and what a missing library does."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
pytestmark = pytest.mark.skipif(
    subprocess.run([*PIP, "--version"], capture_output=True).returncode != 0, reason="this environment has no pip"
)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [*PIP, "wheel", str(ROOT), "--no-deps", "--no-build-isolation", "-w", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (found,) = folder.glob("*.whl")
    return found


def test_the_wheel_holds_the_package_and_nothing_else(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    assert {f"ipvg/_core{suffix}", "ipvg/cli/__init__.py", "ipvg/py.typed", "ipvg/_core.pyi"} <= names
    assert {name.split("/")[0].split("-")[0] for name in names} == {"ipvg"}
    assert not [name for name in names if "test" in name or "golden/" in name or name.endswith((".c", ".h"))]


def test_it_works_away_from_the_repository(wheel, tmp_path):
    subprocess.run([*PIP, "install", "--no-deps", "--target", str(tmp_path / "site"), str(wheel)], check=True)
    code = "import ipvg, ipvg._core, numpy; print(ipvg.__file__); print(ipvg.noise(1, (2, 3)).shape)"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [str(tmp_path / "site" / "ipvg" / "__init__.py"), "(2, 3)"]
    demo = [sys.executable, "-m", "ipvg", "demo"]
    done = subprocess.run(demo, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 1 and "copy of the repository" in done.stderr and "Traceback" not in done.stderr


def test_a_missing_optional_library_is_named_and_the_rest_is_built(tmp_path):
    command = [sys.executable, "setup.py", "-q", "build_ext", "--build-lib", str(tmp_path)]
    environment = {**os.environ, "PKG_CONFIG_LIBDIR": str(tmp_path), "PKG_CONFIG_PATH": "", "CUDA_HOME": ""}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "built without reading and writing pictures and video" in done.stderr
    assert "apt-get install pkg-config libavfilter-dev libavformat-dev" in done.stderr
    assert [path.name.split(".")[0] for path in (tmp_path / "ipvg").iterdir()] == ["_core"]


def test_a_missing_required_library_is_one_sentence(tmp_path):
    """A compiler that finds no oneDNN: the build stops with what to install, not with pages of errors."""
    compiler = tmp_path / "cc"
    compiler.write_text('#!/bin/sh\ncase "$*" in *probe.c*-ldnnl*) echo no >&2; exit 1;; esac\nexec cc "$@"\n')
    compiler.chmod(0o755)
    command = [sys.executable, "setup.py", "-q", "build_ext", "--build-lib", str(tmp_path / "lib")]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, "CC": str(compiler)}, capture_output=True, text=True)
    assert done.returncode != 0 and "oneDNN was not found" in done.stderr and "libdnnl-dev" in done.stderr
    assert "Traceback" not in done.stderr


def test_import_is_light():
    """What `import ipvg` loads besides NumPy: itself. benchmarks/import_time.py has the milliseconds."""
    code = "import numpy, sys; before = set(sys.modules); import ipvg; print(*set(sys.modules) - before)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    # __future__ is there already in an editable install; importlib is frozen into the interpreter (3.10 shows it late)
    frozen = {"__future__", "importlib", "importlib._bootstrap", "importlib._bootstrap_external"}
    assert set(done.stdout.split()) - frozen == {"ipvg", "ipvg._openmp"}

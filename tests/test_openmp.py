"""How long OpenMP's threads spin: bounded, unless the user has said something else."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ipvg import _core, _openmp

pytestmark = pytest.mark.skipif(
    "libgomp" not in Path("/proc/self/maps").read_text(), reason="_core was built with another OpenMP runtime"
)
PROGRAM = "import ipvg, os; from ipvg import _core; print('GOMP_SPINCOUNT' in os.environ)"


def spins(**settings):
    """(libgomp's own word on its bound, whether the environment holds one afterwards)"""
    environ = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    environ |= {"OMP_DISPLAY_ENV": "verbose", **settings}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environ, capture_output=True, text=True, check=True)
    (count,) = re.findall(r"GOMP_SPINCOUNT = '(\w+)'", done.stderr)
    return count, done.stdout.strip()


def test_it_is_bounded_and_the_environment_is_as_before():
    assert _core and spins() == (_openmp.TURNS, "False")


def test_what_the_user_has_set_stays():
    assert spins(GOMP_SPINCOUNT="77") == ("77", "True")
    assert spins(OMP_WAIT_POLICY="passive") == ("0", "False")
    assert spins(OMP_WAIT_POLICY="active")[0] not in (_openmp.TURNS, "0")

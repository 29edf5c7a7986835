"""How long OpenMP's threads spin: bounded, unless the user has said something else."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ipvg import _core, _openmp

ROOT = Path(__file__).resolve().parent.parent
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


FORK = """
import os, signal, sys
sys.path.insert(0, "tests")
from test_vae import model, video
vae = model()
before = vae.encode(video(1, 64, 64)).tobytes()
child = os.fork()
signal.alarm(30)
same = vae.encode(video(1, 64, 64)).tobytes() == before
if not child:
    os._exit(0 if same else 1)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), same)
"""


def test_a_forked_process_and_its_parent_go_on():
    """multiprocessing's fork: without the pause the child waits for ever for threads that it has not."""
    done = subprocess.run([sys.executable, "-c", FORK], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.split() == ["0", "True"], done.stderr

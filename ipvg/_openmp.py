"""How long the threads of OpenMP wait in a loop for each other before they sleep.

libgomp's own bound is 300,000 turns, milliseconds of each core at every end of a loop where other programs want it: two
threads then run small models several times slower. It reads the bound once, when it is loaded, hence from here, before
`_core` does; what the user has set stays, and nothing is left in the environment for other programs or libraries.
"""

import ctypes
import os

TURNS = "10000"


def load() -> None:
    if "GOMP_SPINCOUNT" in os.environ or "OMP_WAIT_POLICY" in os.environ:
        return
    os.environ["GOMP_SPINCOUNT"] = TURNS
    try:
        ctypes.CDLL("libgomp.so.1")
    except OSError:
        pass  # another runtime (a build by Clang), or none: _core says what it misses
    finally:
        del os.environ["GOMP_SPINCOUNT"]

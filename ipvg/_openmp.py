"""How long the threads of OpenMP wait in a loop for each other before they sleep, and what becomes of them in a fork.

libgomp's own bound is 300,000 turns, milliseconds of each core at every end of a loop where other programs want it: two
threads then run small models several times slower. It reads the bound once, when it is loaded, hence from here, before
`_core` does; what the user has set stays, and nothing is left in the environment for other programs or libraries.

A process that is forked off (multiprocessing's usual way until Python 3.14) has none of its parent's threads, and
libgomp would wait for them for ever: the one that forks lets them go before, and starts new ones when it needs them.
"""

import ctypes
import os

TURNS = "10000"
HARD = 2  # omp_pause_hard


def load() -> None:
    ours = "GOMP_SPINCOUNT" not in os.environ and "OMP_WAIT_POLICY" not in os.environ
    if ours:
        os.environ["GOMP_SPINCOUNT"] = TURNS
    try:
        library = ctypes.CDLL("libgomp.so.1")
        os.register_at_fork(before=lambda: library.omp_pause_resource_all(HARD))
    except OSError:
        pass  # another runtime (a build by Clang), or none: _core says what it misses
    finally:
        if ours:
            del os.environ["GOMP_SPINCOUNT"]

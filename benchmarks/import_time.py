"""How long `import ipvg` takes: the median of fresh processes, less than 0.3 s.

    python benchmarks/import_time.py

Prints milliseconds for Python alone, NumPy, `import ipvg`, which loads nothing else, and the first use of the whole
interface, which loads NumPy and the C core. Exit status 1 above the limit.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

LIMIT = 0.3  # seconds, without the interpreter's own start


def seconds(code: str, runs: int = 9) -> float:
    """Median wall time of a fresh interpreter that runs `code`; the first run, which reads the disk, does not count."""
    times = []
    for _ in range(runs + 1):
        began = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True)
        times.append(time.perf_counter() - began)
    return statistics.median(times[1:])


def main() -> int:
    bare = seconds("pass")
    numpy = seconds("import numpy") - bare
    ours = seconds("import ipvg") - bare
    used = seconds("import ipvg; ipvg.Pipeline, ipvg.guidance, ipvg.parity, ipvg.read_image") - bare
    listing = "import sys, ipvg; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", listing], check=True, capture_output=True, text=True).stdout.split()
    heavy = [name for name in ("torch", "transformers", "tokenizers", "ftfy", "PIL") if name in loaded]
    print(f"python {1e3 * bare:.0f} ms | import numpy +{1e3 * numpy:.0f} ms | import ipvg +{1e3 * ours:.0f} ms")
    print(f"first use of everything +{1e3 * used:.0f} ms, NumPy included")
    print(f"limit {1e3 * LIMIT:.0f} ms: {'ok' if ours < LIMIT else 'EXCEEDED'}; heavy modules: {heavy or 'none'}")
    return 0 if ours < LIMIT else 1


if __name__ == "__main__":
    sys.exit(main())

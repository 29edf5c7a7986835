"""1,000 calls, 32 at once, to a chat service on loopback that takes 200 ms: seconds against the ideal, and memory.

    PYTHONPATH=. python benchmarks/remote.py [calls] [concurrency]
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

LATENCY = 0.2
TESTS = Path(__file__).resolve().parent.parent / "tests"
SERVER = f"""
import sys, time
sys.path.insert(0, {str(TESTS)!r})
from chat_server import Server, http
def answer(request, connection):
    time.sleep({LATENCY})
    return http()
with Server(answer) as server:
    print(server.url, flush=True)
    sys.stdin.read()
"""


def main(calls: int = 1000, concurrency: int = 32) -> None:
    from ipvg import PromptEnhancer

    os.environ["no_proxy"] = "127.0.0.1"
    command = [sys.executable, "-c", SERVER]
    with (
        tempfile.TemporaryDirectory() as folder,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server,
    ):
        enhancer = PromptEnhancer("mock", server.stdout.readline().strip(), "", cache=folder, concurrency=concurrency)
        enhancer.appearance_many([f"warm-up {i}" for i in range(concurrency)])
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        began = time.perf_counter()
        enhancer.appearance_many([f"caption {i}" for i in range(calls)])
        seconds = time.perf_counter() - began
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        server.stdin.close()
    ideal = -(-calls // concurrency) * LATENCY
    print(f"{calls} calls, {concurrency} at once: {seconds:.2f} s", end=" ")
    print(f"= {seconds / ideal:.2f} x ideal, +{grown / 1024:.1f} MiB")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))

"""Over 1,000 steps memory stays flat: sampling with forks and snapshots, encoding, decoding, again and again.

CI takes 200 steps; IPVG_SOAK=1000 pytest tests/test_soak.py takes as many as you like.
"""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from ipvg import guidance
from ipvg.pipeline import Pipeline

ROOT = Path(__file__).resolve().parent.parent
STEPS = int(os.environ.get("IPVG_SOAK", "200"))

# In a process of its own. After each job of ten steps: resident memory, scratch of the device.
CHILD = """
import ctypes, gc, json, sys
sys.path[:0] = [".", "tests"]
from pathlib import Path
import test_vae
from test_sampler import make_model, make_source
from test_snapshot import RULE, states
from ipvg import _core, guidance
from ipvg.sampler import Sampler
from ipvg.schedule import Schedule

golden, file, rows = Path(sys.argv[1]), sys.argv[2] + "/run.safetensors", []
model = make_model(golden)
vae, frames = test_vae.model(), test_vae.video(5, 16, 16)
for job in range(int(sys.argv[3]) // 10):
    source = make_source(frames=5, size=(32, 32))
    rule = guidance.apg(5, momentum=0.5) if job % 2 else guidance.nag()
    run = Sampler(model, states(model), source, guidance=rule, schedule=Schedule(10), seed=job)
    for _ in range(5):
        run.step()
    fork = run.fork()
    run.snapshot(file)
    run = Sampler.restore(file, model)
    run.run()
    fork.step()
    device = run._core.device
    vae.decode(vae.encode(frames))
    list(vae.decode_stream(test_vae.latent(2, 2, 2)))
    del source, run, fork
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what malloc keeps of freed memory comes and goes by 12 MiB
    resident = int(open("/proc/self/statm").read().split()[1]) * 4096
    rows.append((resident, device.scratch))
print(json.dumps(rows))
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's /proc")
def test_memory_is_flat(golden_dir, tmp_path):
    command = [sys.executable, "-c", CHILD, str(golden_dir), str(tmp_path), str(STEPS)]
    # Large blocks go back to the system when they are freed: whether the heap keeps one depends on what lies above it.
    environment = {**os.environ, "MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}
    out = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert out.returncode == 0, out.stderr
    resident, scratch = np.array(json.loads(out.stdout)).T
    warm = len(resident) // 4  # libraries keep kernels and caches of the first jobs
    assert len(set(scratch[warm:])) <= 1, scratch
    # A leak of one latent a job, 6 KiB here, would show over 1,000 steps.
    assert resident[warm:].max() - resident[warm] < 1 << 18, (resident - resident[warm]) // 1024


def test_two_pipelines_in_two_threads_give_the_same_bytes_as_alone(small_checkpoint):
    picture = np.arange(40 * 30 * 3, dtype=np.uint8).reshape(40, 30, 3)
    jobs = [("a cat", guidance.tpige_code(), 1), ("a dog by the sea", guidance.apg(4), 2)]

    def make(prompt, rule, seed):
        pipe = Pipeline.load(small_checkpoint, threads=1)
        video = pipe.generate(prompt, [picture], guidance=rule, seed=seed, size=(32, 32), frames=5, steps=2)
        return video.frames.tobytes()

    alone, together = [make(*job) for job in jobs], [None, None]
    assert alone[0] != alone[1]

    def work(i):
        together[i] = [make(*jobs[i]) for _ in range(2)]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert together == [[alone[0]] * 2, [alone[1]] * 2]

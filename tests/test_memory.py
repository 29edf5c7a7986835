"""A job takes no more memory than was estimated before it began."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# In a process of its own: the high-water mark is the process's. A first small job touches every page of the weights and
# warms the libraries up, so that what comes on top is scratch, latents and pixels.
CHILD = """
import json, sys
import numpy as np
sys.path.insert(0, "models")
import recipe
from ipvg import memory
from ipvg.pipeline import Pipeline

def status(field):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(field))

pipe = Pipeline.load(recipe.write(sys.argv[1]), threads=2)
size, frames, picture = (192, 128), 9, np.zeros((60, 50, 3), np.uint8)
pipe.generate("a cat", [picture], size=(16, 16), frames=5, steps=1)
pipe.device.release()
estimate = memory.estimate(pipe.checkpoint, width=size[0], height=size[1], frames=frames)
base = status("VmRSS")
with open("/proc/self/clear_refs", "w") as f:
    f.write("5")  # the mark starts anew
pipe.generate("a cat", [picture], size=size, frames=frames, steps=2)
print(json.dumps({"peak": status("VmHWM") - base, "estimate": estimate}))
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc/self/clear_refs")
def test_peak_is_within_five_percent_of_the_estimate(tmp_path):
    out = subprocess.run(
        [sys.executable, "-c", CHILD, str(tmp_path / "small")], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    found = json.loads(out)
    estimate = sum(found["estimate"].values())
    allowed = 1.05 * estimate - found["estimate"]["weights"]  # those are in memory already
    assert 0.5 * allowed < found["peak"] < allowed, found

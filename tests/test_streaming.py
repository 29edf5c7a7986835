"""Weights under a memory limit: the same bytes, within it, whatever the branches skip; an error that says how much is
needed. On a GPU, and on the emulated device (tests/test_cuda.py), whose streams do nothing before somebody waits."""

import gc
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import test_dit
import test_umt5
from test_sampler import make_source

import ipvg
from ipvg import _core, guidance, memory
from ipvg.sampler import Sampler
from ipvg.schedule import Schedule

ROOT = Path(__file__).resolve().parent.parent

pytestmark = pytest.mark.skipif(ipvg.cuda_error() is not None, reason=f"no GPU: {ipvg.cuda_error()}")

EMULATED = "emulated" in str(getattr(sys.modules.get("ipvg._cuda"), "__file__", ""))


def device(extra=None, dtype="bfloat16"):
    """extra: bytes beyond what CUDA takes for itself; None: no limit."""
    free = _core.Device("cuda", dtype=dtype)
    return free if extra is None else _core.Device("cuda", dtype=dtype, memory_limit=free.memory["fixed"] + extra)


def needs(dit, size):
    """(least, most) bytes of a forward of `size`, with every block streamed and with none."""
    m = dit.memory(*size)
    latents = 2 * 4 * dit.config["in_dim"] * np.prod(size)
    rest = m["scratch"] + m["text"] + m["context"] + int(latents)
    return rest + m["least"], rest + m["weights"]


@pytest.mark.parametrize(("dtype", "more", "streamed"), [
    ("float32", 0.5, 7), ("bfloat16", 0.5, 7), ("bfloat16", 1.5, 6), ("bfloat16", 3.5, 4), ("bfloat16", 40, 2)
])  # fmt: skip
def test_the_same_bytes_however_many_blocks_are_streamed(dtype, more, streamed):
    """Four main blocks, three of VACE; the last two are always in the slots. more: blocks that find room to stay."""
    given = test_dit.inputs()
    dit = test_dit.model(device=device(dtype=dtype))
    want, block = test_dit.run(dit, *given), dit.memory(1, 2, 2)["block"]
    limited = device(needs(dit, given[0].shape[1:])[0] + int(more * block), dtype)
    ours = test_dit.model(device=limited)
    for _ in range(2):  # the second begins with what the first has sent ahead
        assert test_dit.run(ours, *given).tobytes() == want.tobytes()
    assert ours.streamed == streamed
    assert limited.memory["peak"] <= limited.memory["limit"]


OPTIONS = [
    {},
    {"skip": (2,)},
    {"skip": (0, 1, 2, 3), "keep_hint": True},
    {"scale": (0.5, 0.0, 0.0)},  # later VACE blocks are left out
    {"identity": (1,), "skip": (3,)},
]


def test_blocks_that_are_left_out():
    """What has been sent ahead is then not what comes: forwards of different branches after each other."""
    given = test_dit.inputs()
    dit = test_dit.model(device=device())
    ours = test_dit.model(device=device(needs(dit, given[0].shape[1:])[0] + 8192))
    assert ours.streamed == 7
    for options in [*OPTIONS, *reversed(OPTIONS)]:
        assert test_dit.run(ours, *given, **options).tobytes() == test_dit.run(dit, *given, **options).tobytes(), (
            options
        )


def test_a_block_that_stays_is_whole_before_it_is_used():
    """The last one always stays; alone it follows no block that would be waited for."""
    given, only = test_dit.inputs(), {"scale": 0.0, "skip": (0, 1, 2)}
    dit = test_dit.model(device=device())
    limited = device(needs(dit, given[0].shape[1:])[0] + int(1.5 * dit.memory(1, 2, 2)["block"]))
    ours = test_dit.model(device=limited)
    assert test_dit.run(ours, *given, **only).tobytes() == test_dit.run(dit, *given, **only).tobytes()


def sampler(dit, rule):
    width = dit.config["text_dim"]
    texts = {
        name: np.random.default_rng(n).standard_normal((5, width), np.float32) for n, name in enumerate(rule.texts)
    }
    return Sampler(dit, texts, make_source(), guidance=rule, schedule=Schedule(3, 5.0), seed=1)


SMALL = test_dit.CONFIG | {"in_dim": 16, "out_dim": 16, "vace_in_dim": 96}


def test_a_sampler_makes_room_and_allocates_nothing_in_its_loop():
    """Three branches, one of which skips a block; blocks that stay go when something else needs their memory."""
    rule, dit = guidance.tpige_code(), test_dit.model(config=SMALL, device=device())
    want = sampler(dit, rule).run()
    m, shape = dit.memory(*make_source().latent_shape[1:], **memory._forward(rule, 1)), make_source().latent_shape
    latents = 12 * 4 * int(np.prod(shape))
    limited = device(m["least"] + m["scratch"] + 2 * m["text"] + 2 * m["context"] + latents + 3 * m["block"])
    ours = test_dit.model(config=SMALL, device=limited)
    run = sampler(ours, rule)
    held, streamed = limited.memory, ours.streamed
    assert 2 < streamed < 7
    assert run.run().tobytes() == want.tobytes()
    assert (limited.memory, ours.streamed) == (held, streamed)
    text = test_umt5.model(device=limited)
    assert ours.streamed > streamed, "umT5 found room without taking it from the blocks that stayed"
    del text, run
    gc.collect()
    run = sampler(ours, rule)
    assert ours.streamed == streamed, "the room was not used again"
    assert run.run().tobytes() == want.tobytes()
    assert limited.memory["peak"] <= limited.memory["limit"]


def test_the_text_encoder_streams():
    ids = [[3], [5, 7, 1, 1, 2]]
    free = test_umt5.model(device=device())
    limited = device(free.memory()["least"] + free.scratch(5) + 4096)
    ours = test_umt5.model(device=limited)
    for text in ids * 2:
        assert ours.encode(text).tobytes() == free.encode(text).tobytes()
    assert limited.memory["peak"] <= limited.memory["limit"] < limited.memory["fixed"] + free.memory()["weights"]


def test_too_small_a_limit_is_named_and_the_device_goes_on():
    given = test_dit.inputs()
    dit = test_dit.model(device=device())
    want, least = test_dit.run(dit, *given), needs(dit, given[0].shape[1:])[0]
    with pytest.raises(MemoryError, match="CUDA and its libraries take"):
        _core.Device("cuda", memory_limit=1)
    limited = device(dit.memory(1, 2, 2)["least"] // 2)
    with pytest.raises(MemoryError, match=r"memory_limit of .* so at least .* MiB"):
        test_dit.model(device=limited)
    assert limited.memory["used"] == limited.memory["fixed"] + limited.scratch  # nothing is left behind
    limited = device(least + 8192)
    ours = test_dit.model(device=limited)
    with pytest.raises(MemoryError, match="memory_limit"):
        test_dit.run(ours, *test_dit.inputs(size=(9, 40, 40)))
    assert test_dit.run(ours, *given).tobytes() == want.tobytes()


def test_a_limit_is_of_a_gpu():
    with pytest.raises(ValueError, match="memory_limit"):
        _core.Device("cpu", memory_limit=1 << 40)
    with pytest.raises(ValueError, match="memory_limit"):
        _core.Device("cuda", memory_limit=0)
    with pytest.raises(TypeError, match="memory_limit"):
        _core.Device("cuda", memory_limit="8 GB")
    assert _core.Device().memory is None


def test_8_bit_weights_stream():
    config = test_dit.CONFIG | {"dim": 64, "num_heads": 4, "ffn_dim": 96}
    given, dit = test_dit.inputs(config), test_dit.model(config=config, device=device(dtype="fp8"))
    limited = device(needs(dit, given[0].shape[1:])[0] + int(1.5 * dit.memory(1, 2, 2)["block"]), "fp8")
    ours = test_dit.model(config=config, device=limited)
    assert test_dit.run(ours, *given).tobytes() == test_dit.run(dit, *given).tobytes()
    assert ours.streamed == 6
    assert limited.memory["peak"] <= limited.memory["limit"]


# ==== a whole job ====

PICTURE, JOB = np.zeros((20, 20, 3), np.uint8), {"size": (32, 32), "frames": 5, "steps": 2}
LONGEST = "a cat " * 600  # texts as long as a plan takes them to be


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    sys.path.insert(0, str(ROOT / "models"))
    import recipe

    return recipe.write(tmp_path_factory.mktemp("checkpoint") / "small")


def load(checkpoint, limit=None, **options):
    return ipvg.Pipeline.load(checkpoint, device="cuda", dtype="bfloat16", memory_limit=limit, **options)


def estimated(pipe, **options):
    job = {"width": JOB["size"][0], "height": JOB["size"][1], "frames": JOB["frames"], "dtype": "bfloat16"}
    return memory.estimate(pipe.checkpoint, device="cuda", **job, **options)


def test_a_job_takes_what_was_estimated_and_streams_to_the_same_video(checkpoint):
    """Within 5 % of what comes on top of CUDA's own share, which is the larger part of so small a job."""
    pipe = load(checkpoint)
    want, held = pipe.generate(LONGEST, [PICTURE], negative=LONGEST, **JOB), pipe.device.memory
    assert sum(estimated(pipe).values()) - held["fixed"] == pytest.approx(held["peak"] - held["fixed"], rel=0.05)
    assert "text_encoder" not in vars(pipe)
    plan = memory.Plan(pipe.checkpoint, *JOB["size"], JOB["frames"], None, 1, "bfloat16", pipe.device)
    limit = plan.least(False)
    pipe = load(checkpoint, limit)
    made, held = pipe.generate(LONGEST, [PICTURE], negative=LONGEST, **JOB), pipe.device.memory
    assert np.array_equal(made.frames, want.frames)
    assert pipe.dit.streamed and held["peak"] <= limit
    told = sum(estimated(pipe, memory_limit=limit).values()) - held["fixed"]
    assert told == pytest.approx(held["peak"] - held["fixed"], rel=0.05)


def test_a_job_that_cannot_fit_says_what_would(checkpoint):
    pipe = load(checkpoint, "950 MB")
    with pytest.raises(MemoryError, match=r"this job takes .* at least .* What would fit, streamed: size=\("):
        pipe.generate("a cat", [PICTURE], size=(512, 512), frames=81)
    with pytest.raises(MemoryError, match=r"memory_limit: 850000000 bytes are too few .* at least \d+"):
        estimated(pipe, memory_limit="850MB")
    assert pipe.encode_text({"cond": "a cat"})["cond"].shape[1] == pipe.dit.config["text_dim"]


def test_the_text_encoder_stays_by_option(checkpoint):
    pipe = load(checkpoint, keep_text_encoder=True)
    pipe.encode_text({"cond": "a cat"})
    encoder = pipe.text_encoder
    pipe.encode_text({"cond": "a dog"})
    assert pipe.text_encoder is encoder


# ==== on a GPU: its own count ====

CHILD = """
import hashlib, json, sys, time
sys.path.insert(0, "tests")
import test_dit, test_streaming
from ipvg import _core
config, size = test_streaming.LARGE, (8, 60, 104)
free = _core.Device("cuda", dtype="bfloat16")
shapes = {name: (None, 0, "float32", shape) for name, shape in test_dit.shapes(config).items()}
least, most = test_streaming.needs(_core.Dit(free, config, _core.Weights(shapes)), size)
limit = int(free.memory["fixed"] + least + 0.4 * (most - least)) if sys.argv[1] == "limited" else None
del free
device = _core.Device("cuda", dtype="bfloat16", memory_limit=limit)
dit, given = test_dit.model(config=config, device=device), test_dit.inputs(config, size=size)
seconds = []
for _ in range(6):
    began = time.perf_counter()
    velocity = test_dit.run(dit, *given)
    seconds.append(time.perf_counter() - began)
found = {"hash": hashlib.sha256(velocity.tobytes()).hexdigest(), "seconds": min(seconds), "streamed": dit.streamed}
print(json.dumps(found | device.memory), flush=True)
sys.stdin.readline()  # memory is looked at from outside
"""

#: Ten blocks of the 1.3B model.
LARGE = test_dit.CONFIG | {"dim": 1536, "num_heads": 12, "ffn_dim": 8960, "num_layers": 8, "vace_layers": [0, 4]}
LARGE |= {"in_dim": 16, "out_dim": 16, "vace_in_dim": 96, "text_dim": 64}


def used_of_the_gpu():
    told = subprocess.run(
        ["nvidia-smi", "--id=0", "--query-gpu=memory.used", "--format=csv,noheader,nounits"],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    return int(told.split()[0]) << 20


def in_a_child(kind):
    """What it says, and the most that the GPU held more than before while it lived."""
    before, most = used_of_the_gpu(), 0
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, kind], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0, cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT) + os.pathsep + os.environ.get("PYTHONPATH", "")},
    )  # fmt: skip
    os.set_blocking(child.stdout.fileno(), False)
    line = b""
    while not line.endswith(b"\n") and child.poll() is None:
        most = max(most, used_of_the_gpu() - before)
        line += child.stdout.read() or b""
        time.sleep(0.05)
    child.communicate(b"\n")
    assert child.returncode == 0
    return {**json.loads(line), "measured": most}


@pytest.mark.skipif(EMULATED, reason="the emulated device has no nvidia-smi, and is slow")
def test_the_gpu_itself_counts_no_more_than_the_limit():
    """1 GB of weights. Alone on its GPU: another process's memory would count too."""
    whole, limited = in_a_child("whole"), in_a_child("limited")
    for name, found in (("whole", whole), ("limited", limited)):
        # what CUDA takes for itself: "fixed" allows for it on any GPU
        found["own"] = found["measured"] - (found["peak"] - found["fixed"])
        mib = {key: found[key] >> 20 for key in ("limit", "peak", "measured", "fixed", "own")}
        took = f"{found['streamed']} of 10 blocks streamed, {found['seconds'] * 1e3:.1f} ms a forward with its text"
        print(f"{name}: {took}; MiB: {mib}")
    assert limited["hash"] == whole["hash"]
    assert 2 < limited["streamed"] < 10
    assert limited["measured"] <= limited["limit"]
    assert limited["own"] == pytest.approx(whole["own"], abs=16 << 20) and whole["own"] <= whole["fixed"]

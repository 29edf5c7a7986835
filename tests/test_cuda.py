"""The CUDA engine without a GPU: golden cases on the emulated device, cuDNN plans from a description of one.

What only a GPU can show: cuBLASLt, fused attention and convolutions themselves, and every timing.
"""

import ctypes
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def run(*command, **environment):
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=os.environ | environment)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def parity(stage, *cases):
    return run(sys.executable, "-m", "tests.cuda.parity", stage, *cases)


def test_golden_text_encoder_on_the_emulated_device():
    parity("umt5", "L5", "pos")


def test_golden_transformer_on_the_emulated_device():
    """All intermediates of one forward; the device's memory is closed to the host and filled with NaN."""
    parity("dit", "A/t500")


def test_golden_transformer_in_bfloat16_on_the_emulated_device():
    """Its error is at most 1.5 times PyTorch's own, though its products are not cuBLASLt's."""
    assert "1 comparisons, 0 fail" in run(
        sys.executable, "-m", "tests.cuda.parity", "dit", "B/t500_text1", "--dtype", "bfloat16"
    )


def test_branches_share_work_on_the_emulated_device():
    """Their velocities are the bytes of separate forwards here too, in float32 and in bfloat16."""
    module, cases = "tests/test_sharing.py::", ["test_every_preset[tpige_code]"]
    cases += [f"test_shared_work_gives_the_bytes_of_separate_forwards[{seed}]" for seed in (1, 5)]
    run(sys.executable, "-m", "tests.cuda.emulated", "pytest", "-q", *[module + c for c in cases], IPVG_DEVICE="cuda")


def test_fp8_on_the_emulated_device():
    """The products are a plain loop over the E4M3 numbers and their scales; quantising is the engine's own."""
    run(sys.executable, "-m", "tests.cuda.emulated", "pytest", "-q", "tests/test_fp8.py", IPVG_DEVICE="cuda")


def test_arrays_are_shared_on_the_emulated_device():
    """With another library whose stream does nothing until somebody waits for it."""
    run(sys.executable, "-m", "tests.cuda.emulated", "pytest", "-q", "tests/test_dlpack.py", IPVG_DEVICE="cuda")


def test_streaming_on_the_emulated_device():
    """A missing wait shows there: copies are done as late as possible, or as early as a full buffer makes them."""
    run(sys.executable, "-m", "tests.cuda.emulated", "pytest", "-q", "tests/test_streaming.py")


@pytest.mark.skipif(not os.environ.get("IPVG_TEST_CUDA"), reason="minutes: `make test-cuda` (IPVG_TEST_CUDA=1)")
def test_the_benchmark_of_identity_on_the_emulated_device():
    """A pair of each kind of arm: the CPU's figures."""
    command = ("pytest", "-q", "tests/test_evidence.py", "-k", "each_kind")
    run(sys.executable, "-m", "tests.cuda.emulated", *command, IPVG_DEVICE="cuda")


def test_golden_autoencoder_on_the_emulated_device():
    """Rings of frames, their turned weights, missing history; every block's output."""
    parity("vae", "stages_encode_9x16x24", "stages_decode_3x16x24")
    run(sys.executable, "-m", "tests.cuda.emulated", "pytest", "-q", "tests/test_vae.py", "-k", "never_waits")


def test_an_unknown_gpu_name_is_named():
    import ipvg

    with pytest.raises(ValueError, match="cuda:x"):
        ipvg.Device("cuda:x")
    with pytest.raises(TypeError, match="device name"):
        ipvg.Device(3)


def test_cuda_error_says_why_there_is_none():
    """On a machine with a GPU and the extension there is nothing to say."""
    import ipvg

    text = ipvg.cuda_error()
    assert text is None or any(word in text for word in ("built without CUDA", "does not load", "no GPU"))


def cudnn():
    """(include folders, library folders) of cuDNN and the CUDA runtime, or None."""
    home = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda"))
    if (home / "include/cudnn.h").is_file():
        return [home / "include"], [home / "lib64", home / "lib"]
    spec = importlib.util.find_spec("nvidia")
    for root in map(Path, spec.submodule_search_locations if spec else ()):
        if (root / "cudnn/include/cudnn.h").is_file():
            return [root / "cu13/include", root / "cudnn/include"], [root / "cu13/lib", root / "cudnn/lib"]
    return None


def stub(name, names, libraries, folder):
    """A library `name` that has all names of that pattern which cuDNN's libraries mention, and does nothing."""
    found = {path.resolve() for x in libraries for path in x.glob("libcudnn_*.so*")}
    names = set().union(*(re.findall(rb"\x00(%b)(?=\x00)" % names, path.read_bytes()) for path in found))
    source = folder / f"{name}.c"
    functions = (f"int {name.decode()}(void) {{ return 34; }}\n" for name in sorted(names))  # CUDA_ERROR_STUB_LIBRARY
    source.write_text("".join(functions))
    run("gcc", "-shared", "-fPIC", f"-Wl,-soname,{name}", str(source), "-o", str(folder / name))


@pytest.mark.skipif(
    cudnn() is None, reason="cuDNN is neither in CUDA_HOME nor installed as NVIDIA's pip wheel: make cudnn"
)
def test_every_shape_of_the_real_models_has_a_cudnn_plan(tmp_path):
    include, libraries = cudnn()
    shared = next(path for folder in libraries for path in sorted(folder.glob("libcudnn.so*")))
    run(
        "gcc", "-std=c11", "-D_GNU_SOURCE", "-O1", "-Wall", "-Wextra", "-Werror", *[f"-I{path}" for path in include],
        "tests/cuda/plans.c", "csrc/ops/cuda/dnn_plan.c", "csrc/base/context.c", "csrc/base/tensor.c", str(shared),
        f"-Wl,-rpath,{shared.parent}", "-fopenmp", "-lm", "-ldl", "-o", str(tmp_path / "plans"),
    )  # fmt: skip
    # Attention's engines want a driver's library to be there, and cuDNN cuBLASLt's: such as do nothing are enough.
    for name, names in (("libcuda.so.1", rb"cu[A-Z]\w{3,60}"), ("libcublasLt.so.13", rb"cublasLt\w{3,60}")):
        try:
            ctypes.CDLL(name)
        except OSError:
            stub(name, names, libraries, tmp_path)
    path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("LD_LIBRARY_PATH")]))
    told = run(str(tmp_path / "plans"), "tests/cuda/h100.json", LD_LIBRARY_PATH=path).splitlines()
    assert told[-1].startswith("156 shapes, 0 without a plan, 0 unseen")

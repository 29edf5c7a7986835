"""Builds the extension modules: `_core` (needs oneDNN) and, where its libraries are, `_media` (FFmpeg) and `_remote`
(libcurl, cJSON). A module whose libraries are missing is left out with a word about what to install.

    python setup.py build_ext --inplace      # for work in this folder; compiles only what changed
    pip install .

`_cuda` (the GPU) is built where CUDA 13 and cuDNN 9 are: in the toolkit that CUDA_HOME names, or as NVIDIA's pip wheels
in the Python that builds (so with --no-build-isolation), or some here and some there. IPVG_CUDA_ARCH=90 compiles its
kernels for that architecture alone, in a fifth of the time.

CC chooses the compiler. DNNL_ROOT names a oneDNN outside the system's folders. IPVG_JOBS limits the compilers at work.
"""

import hashlib
import importlib.util
import os
import platform
import shlex
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from glob import glob
from pathlib import Path

import numpy
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

C_FLAGS = ["-std=c11", "-O3", "-Wall", "-Wextra", "-fvisibility=hidden", "-fopenmp", "-D_GNU_SOURCE"]

OPTIONAL = {
    "media": (
        ["libavfilter", "libavformat", "libavcodec", "libavutil", "libswscale"],
        "reading and writing pictures and video",
        "libavfilter-dev libavformat-dev libavcodec-dev libavutil-dev libswscale-dev",
    ),
    "remote": (
        ["libcurl", "libcjson"],
        "prompt enhancement through a chat service",
        "libcurl4-openssl-dev libcjson-dev",
    ),
}


def sources(*patterns):
    return sorted(path for pattern in patterns for path in glob(pattern))


def pkg_config(*packages):
    """(compile flags, link flags), or None when a package or pkg-config itself is missing."""
    try:
        return [
            subprocess.run(["pkg-config", flag, *packages], check=True, capture_output=True, text=True).stdout.split()
            for flag in ("--cflags", "--libs")
        ]
    except (OSError, subprocess.CalledProcessError):
        return None


def dnnl():
    """(compile flags, link flags) of oneDNN. Debian's package has no pkg-config file and lies on the default paths."""
    root = os.environ.get("DNNL_ROOT")
    if root:
        lib = next((p for p in (f"{root}/lib64", f"{root}/lib") if glob(f"{p}/libdnnl.*")), f"{root}/lib")
        return [f"-I{root}/include"], [f"-L{lib}", f"-Wl,-rpath,{lib}", "-ldnnl"]
    return pkg_config("dnnl") or ([], ["-ldnnl"])


def cuda():
    """(nvcc, include folders, library folders) of CUDA and cuDNN, or None where nobody has put them for us. What the
    toolkit at CUDA_HOME lacks (cuDNN, often cuBLAS) may come from the wheels."""
    home = os.environ.get("CUDA_HOME")
    spec = importlib.util.find_spec("nvidia")
    folders = spec.submodule_search_locations if spec else ()
    roots = [*([home] if home else []), *(f"{root}/{part}" for root in folders for part in ("cu13", "cudnn"))]
    nvcc = next((f"{root}/bin/nvcc" for root in roots if os.path.exists(f"{root}/bin/nvcc")), None)
    include = [path for root in roots if os.path.isdir(path := f"{root}/include")]
    lib = [path for root in roots for path in (f"{root}/lib64", f"{root}/lib") if os.path.isdir(path)]
    headers = ("cuda_runtime.h", "cublasLt.h", "cudnn.h")
    missing = [name for name in headers if not any(os.path.isfile(f"{path}/{name}") for path in include)]
    if nvcc and not missing:
        return nvcc, include, lib
    if home:
        print(
            f"ipvg: built without CUDA: {', '.join(missing) or 'bin/nvcc'} is neither in CUDA_HOME ({home}) nor among "
            f"NVIDIA's pip wheels of {sys.executable}.",
            file=sys.stderr,
        )
    return None


def library(folders, name):
    """A wheel has libx.so.9 but not libx.so."""
    found = [path for folder in folders for path in sorted(glob(f"{folder}/lib{name}.so*"))]
    return [found[0]] if found else [f"-l{name}"]


def cuda_extension():
    found = cuda()
    if not found:
        return []
    _, include, lib = found
    beside = ["$ORIGIN/../nvidia/cu13/lib", "$ORIGIN/../nvidia/cudnn/lib"]  # site-packages, where the wheels are
    out = extension(
        "_cuda",
        sources("csrc/base/*.c", "csrc/ops/ops.c", "csrc/ops/cuda/*.c") + ["csrc/python/cuda.c"],
        [f"-I{folder}" for folder in include],
        [arg for name in ("cudart", "cublasLt", "cudnn") for arg in library(lib, name)]
        + [f"-Wl,-rpath,{folder}" for folder in [*beside, *lib]] + ["-lstdc++"],
    )
    out.py_limited_api = True
    return [out]


#: What the kernels are compiled for: A100, H100/H200, B200, RTX 50, and PTX for what comes after.
ARCHITECTURES = ("80", "90", "100", "120", "120-ptx")


def kernels(nvcc, include, folder):
    """The objects of kernels/*.cu, compiled where a source, a header or the command changed."""
    wanted = os.environ.get("IPVG_CUDA_ARCH", ",".join(ARCHITECTURES)).split(",")
    flags = ["-O3", "-std=c++17", "-Werror", "all-warnings", "-Xcompiler", "-fPIC,-fvisibility=hidden,-Wall"]
    for name in wanted:
        number, _, ptx = name.partition("-")
        number += "a" * (number == "90")  # with what only 9.0 has: warp groups' products
        flags += ["-gencode", f"arch=compute_{number},code={'compute' if ptx else 'sm'}_{number}"]
    headers = max(os.path.getmtime(path) for path in [*glob("kernels/*.h"), *glob("kernels/*.cuh")])
    Path(folder).mkdir(parents=True, exist_ok=True)

    def one(source):
        target = Path(folder, Path(source).stem + ".cu.o")
        command = [nvcc, *flags, *[f"-I{path}" for path in include], "-c", source, "-o", str(target)]
        stamp = Path(f"{target}.key")
        key = hashlib.sha256(shlex.join(command).encode()).hexdigest()
        fresh = target.exists() and stamp.exists() and stamp.read_text() == key
        if not fresh or target.stat().st_mtime < max(headers, os.path.getmtime(source)):
            target.unlink(missing_ok=True)
            done = subprocess.run(command, stderr=subprocess.PIPE, text=True)
            told = [line for line in done.stderr.splitlines() if "(C7519)" not in line]  # fences that ptxas adds
            print(*told, sep="\n", end="\n" * bool(told), file=sys.stderr)
            done.check_returncode()
            stamp.write_text(key)
        return str(target)

    jobs = int(os.environ.get("IPVG_JOBS") or len(os.sched_getaffinity(0)))
    with ThreadPoolExecutor(max(jobs, 1)) as pool:
        return list(pool.map(one, sources("kernels/*.cu")))


def extension(name, files, flags, libs):
    headers = glob("csrc/**/*.h", recursive=True)
    return Extension(
        f"ipvg.{name}",
        files,
        depends=headers,
        include_dirs=[numpy.get_include()],
        extra_compile_args=C_FLAGS + flags,
        extra_link_args=["-fopenmp", *libs, "-lm"],
    )


def extensions():
    optional = {f"csrc/python/{name}.c" for name in (*OPTIONAL, "cuda")}
    glue = [path for path in sources("csrc/python/*.c") if path not in optional]
    core = sources("csrc/base/*.c", "csrc/ops/*.c", "csrc/ops/cpu/*.c", "csrc/model/*.c", "csrc/sample/*.c")
    flags, libs = dnnl()
    out = [extension("_core", core + glue, flags, libs)]
    out += cuda_extension()
    folders = {"media": "csrc/io/*.c", "remote": "csrc/remote/*.c"}
    for name, (packages, what, debian) in OPTIONAL.items():
        if not sources(f"csrc/python/{name}.c"):
            continue
        found = pkg_config(*packages)
        if found:
            files = sources("csrc/base/*.c", folders[name]) + [f"csrc/python/{name}.c"]
            out.append(extension(f"_{name}", files, *found))
        else:
            print(
                f"ipvg: built without {what}: {', '.join(packages)} not found (through pkg-config).\n"
                f"      On Debian and Ubuntu: apt-get install pkg-config {debian}; then build again.",
                file=sys.stderr,
            )
    return out


class Build(build_ext):
    """Compiles in parallel and only what changed since the last build in this folder."""

    def finalize_options(self):
        super().finalize_options()
        # One folder for `build_ext`, `pip install .` and editable installs, so that none compiles what another did.
        self.build_temp = os.path.join("build", f"temp.{sys.implementation.cache_tag}-{platform.machine()}")

    def build_extensions(self):
        self.compiler.compile = self._compile
        self.force = True  # setuptools looks at times alone; _compile also at the compiler and its flags
        self._require("Python's headers", "Python.h", [], "apt-get install python3-dev")
        flags, libs = dnnl()
        self._require("oneDNN", "oneapi/dnnl/dnnl.h", flags + libs, "apt-get install libdnnl-dev, or set DNNL_ROOT")
        for ext in self.extensions:
            if ext.name == "ipvg._cuda":
                nvcc, include, _ = cuda()
                ext.extra_objects = kernels(nvcc, include, os.path.join(self.build_temp, "kernels"))
        super().build_extensions()

    def _require(self, what, header, flags, remedy):
        """Stops with one sentence, not with pages of compiler output, when a library is missing."""
        with tempfile.TemporaryDirectory() as folder:
            program = Path(folder, "probe.c")
            program.write_text(f"#include <{header}>\nint main(void) {{ return 0; }}\n")
            include = [f"-I{path}" for path in self.compiler.include_dirs]
            link = [*self.compiler.compiler_so, *include, str(program), "-o", str(Path(folder, "probe")), *flags]
            done = subprocess.run([arg for arg in link if arg != "-c"], capture_output=True, text=True)
        if done.returncode:
            reason = done.stderr.strip().splitlines()[:1]
            raise SystemExit(f"ipvg: {what} was not found ({header}). {remedy}.\n      {reason[0] if reason else ''}")

    def _compile(self, sources, output_dir=None, macros=None, include_dirs=None, debug=0, extra_preargs=None,
                 extra_postargs=None, depends=None):  # fmt: skip
        cc = self.compiler
        macros, objects, extra, pp, build = cc._setup_compile(
            output_dir, macros, include_dirs, sources, depends, extra_postargs
        )
        cc_args = cc._get_cc_args(pp, debug, extra_preargs)
        newest = max((os.path.getmtime(path) for path in depends or []), default=0)

        def one(obj):
            source, suffix = build[obj]
            command = shlex.join([*cc.compiler_so, *cc_args, *extra])
            stamp = Path(f"{obj}.key")
            key = hashlib.sha256(command.encode()).hexdigest()
            if os.path.exists(obj) and stamp.exists() and stamp.read_text() == key:
                if os.path.getmtime(obj) >= max(newest, os.path.getmtime(source)):
                    return
            Path(obj).unlink(missing_ok=True)
            cc._compile(obj, source, suffix, cc_args, extra, pp)
            stamp.write_text(key)

        jobs = int(os.environ.get("IPVG_JOBS") or len(os.sched_getaffinity(0)))
        with ThreadPoolExecutor(max(jobs, 1)) as pool:
            list(pool.map(one, objects))
        return objects


setup(ext_modules=extensions(), cmdclass={"build_ext": Build})

#!/bin/bash
# Packs into FOLDER what a machine with a GPU and no network lacks: oneDNN, Python's headers, and the pure packages that ipvg and
# benchmarks/engine.py import (nvcc, cuDNN, cuBLAS, torch and transformers have to be there).
#
#     tests/cuda/pack.sh FOLDER            where there is a network, for PYTHON (default python3.12), whose headers are taken
#     . FOLDER/setup.sh                    there, in the repository's root: unpacks to /tmp/prefix and says where things are
set -eu
out=${1:?which folder?}
python=${PYTHON:-python3.12}
version=$($python -c 'import sys; print("%d.%d" % sys.version_info[:2])')
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$out" "$work/prefix/lib" "$work/prefix/include" "$work/prefix/site"

libraries=/usr/lib/$(gcc -print-multiarch)
for name in libdnnl.so.2 libOpenCL.so.1; do # Debian's libdnnl-dev; its oneDNN is linked against OpenCL
    strip --strip-unneeded -o "$work/prefix/lib/$name" "$(readlink -f "$libraries/$name")"
done
ln -s libdnnl.so.2 "$work/prefix/lib/libdnnl.so"
cp -rL /usr/include/dnnl*.h /usr/include/oneapi "$work/prefix/include/"
cp -r "$($python -c 'import sysconfig; print(sysconfig.get_path("include"))')" "$work/prefix/include/python$version"

"$python" -m pip download -q --disable-pip-version-check --no-deps --only-binary=:all: --python-version "$version" -d "$work/wheels" \
    diffusers==0.42.1 ftfy wcwidth importlib_metadata zipp
for wheel in "$work"/wheels/*.whl; do "$python" -m zipfile -e "$wheel" "$work/prefix/site"; done
find "$work/prefix/site/diffusers/pipelines" -mindepth 1 -maxdepth 1 -type d ! -name wan -exec rm -r {} + # only Wan's is used

tar -C "$work" -c prefix | xz --x86 --lzma2=preset=9e,dict=64MiB >"$out/prefix.tar.xz"
cat >"$out/setup.sh" <<END
tar -C /tmp -xf "$out/prefix.tar.xz"
export DNNL_ROOT=/tmp/prefix LD_LIBRARY_PATH=/tmp/prefix/lib\${LD_LIBRARY_PATH:+:\$LD_LIBRARY_PATH}
export LIBRARY_PATH=/tmp/prefix/lib CPATH=/tmp/prefix/include/python$version PYTHONPATH=\$PWD:/tmp/prefix/site
export PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1
END
ls -l "$out"

#!/bin/bash
# Packs into FOLDER what a machine with a GPU and no network lacks: oneDNN, Python's headers, the part of FFmpeg that writes an mp4,
# and the pure packages that ipvg and benchmarks/engine.py import (nvcc, cuDNN, cuBLAS, torch and transformers have to be there).
#
#     tests/cuda/pack.sh FOLDER            where there is a network, for PYTHON (default python3.12), whose headers are taken; nasm
#     . FOLDER/setup.sh                    there, in the repository's root: unpacks to /tmp/prefix and says where things are
set -eu
out=${1:?which folder?}
python=${PYTHON:-python3.12}
headers=$($python -c 'import sys; print("%d.%d" % sys.version_info[:2])')
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$out" "$work/prefix/lib" "$work/prefix/include" "$work/prefix/site"

libraries=/usr/lib/$(gcc -print-multiarch)
for name in libdnnl.so.2 libOpenCL.so.1; do # Debian's libdnnl-dev; its oneDNN is linked against OpenCL
    strip --strip-unneeded -o "$work/prefix/lib/$name" "$(readlink -f "$libraries/$name")"
done
ln -s libdnnl.so.2 "$work/prefix/lib/libdnnl.so"
cp -rL /usr/include/dnnl*.h /usr/include/oneapi "$work/prefix/include/"
cp -r "$($python -c 'import sysconfig; print(sysconfig.get_path("include"))')" "$work/prefix/include/python$headers"

# Debian's FFmpeg needs dozens of other libraries: what is wanted of it, built from Debian's source, is 4 MB with x264.
packages="libavfilter libavformat libavcodec libavutil libswscale"
version=$(dpkg-query -W -f '${source:Upstream-Version}' libavcodec-dev)
strip --strip-unneeded -o "$work/prefix/lib/libx264.so.164" "$(readlink -f "$libraries/libx264.so.164")"
ln -s libx264.so.164 "$work/prefix/lib/libx264.so"
(
    cd "$work" && apt-get download -qq libx264-dev && dpkg -x libx264-dev_*.deb x264 && pc=$(find x264 -name x264.pc) &&
        sed -i "s|^prefix=.*|prefix=$work/x264/usr|; s|-L/usr[^ ]*|-L$work/prefix/lib|" "$pc" &&
        curl -sf "http://deb.debian.org/debian/pool/main/f/ffmpeg/ffmpeg_$version.orig.tar.xz" | tar xJ && cd "ffmpeg-$version" &&
        PKG_CONFIG_PATH=$work/${pc%/*} ./configure --prefix="$work/prefix" --enable-shared --disable-static --disable-everything \
            --disable-autodetect --disable-programs --disable-doc --disable-network --disable-avdevice --disable-swresample \
            --disable-postproc --enable-gpl --enable-libx264 --enable-encoder=libx264 --enable-muxer=mp4 --enable-protocol=file &&
        make -j"$(nproc)" install
) >"$work/ffmpeg.log" 2>&1 || { tail "$work/ffmpeg.log" >&2; exit 1; }
rm -r "$work/prefix/share" "$work/prefix/lib/pkgconfig"
mkdir "$work/prefix/bin"
cat >"$work/prefix/bin/pkg-config" <<END
#!/bin/sh
[ "\$*" = "--cflags $packages" ] || [ "\$*" = "--libs $packages" ] || exit 1
echo -I/tmp/prefix/include -L/tmp/prefix/lib $(printf -- '-l%s ' ${packages//lib/})
END
chmod +x "$work/prefix/bin/pkg-config"

"$python" -m pip download -q --disable-pip-version-check --no-deps --only-binary=:all: --python-version "$headers" -d "$work/wheels" \
    diffusers==0.42.1 ftfy wcwidth importlib_metadata zipp
for wheel in "$work"/wheels/*.whl; do "$python" -m zipfile -e "$wheel" "$work/prefix/site"; done
find "$work/prefix/site/diffusers/pipelines" -mindepth 1 -maxdepth 1 -type d ! -name wan -exec rm -r {} + # only Wan's is used

tar -C "$work" -c prefix | xz --x86 --lzma2=preset=9e,dict=64MiB >"$out/prefix.tar.xz"
cat >"$out/setup.sh" <<END
tar -C /tmp -xf "$out/prefix.tar.xz"
export DNNL_ROOT=/tmp/prefix LD_LIBRARY_PATH=/tmp/prefix/lib\${LD_LIBRARY_PATH:+:\$LD_LIBRARY_PATH}
export LIBRARY_PATH=/tmp/prefix/lib CPATH=/tmp/prefix/include/python$headers PYTHONPATH=\$PWD:/tmp/prefix/site
export PATH=/tmp/prefix/bin:\$PATH PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1
END
ls -l "$out"

#!/bin/bash
# Everything that only a GPU can show, in steps that do not stop each other:
#
#     tests/cuda/gpu.sh                    all of them, in the order below
#     tests/cuda/gpu.sh build parity       these
#
# build     the extensions, for PYTHON (default python3) and this GPU's architecture, in this folder
# error     ipvg.cuda_error(): None where all is well
# plans     cuDNN's plans for the shapes of the real models, by the real driver
# ops       every kernel, and the engine's products, attention, convolutions and copies, against the CPU backend: random
#           sizes, types, alignments; poisoned results
# parity    every stage against the golden tensors, float32
# bf16      outputs in bfloat16: at most 1.5 times PyTorch's own error on the same case (tests/bfloat16.py)
# fp8       what cuBLASLt takes of 8-bit products (fp8.c), the transformer with them (errors are printed), tests/test_fp8.py
# rates     our own kernels beside the rate at which this GPU copies, alone and between matrix products (rates.c)
# attention cuDNN's attention, our own kernel and the three steps at the models' sizes: microseconds, errors (attention.c)
# gpu       tests/test_gpu.py: as the CPU computes, the same bytes twice, cancelling, threads, memory
# stream    tests/test_streaming.py: weights under a memory limit, the same bytes, and nvidia-smi's count of it (alone on the GPU)
# memcheck, initcheck   compute-sanitizer over ops, a small forward, a small video there and back
# racecheck compute-sanitizer over every kernel of our own, after ops
# bench     benchmarks/engine.py, a few rows: ours, diffusers and the card's ceilings; needs torch, diffusers, transformers
#
# Needs nvcc (PATH or CUDA_HOME), cuDNN and cuBLAS (there, or NVIDIA's pip wheels in PYTHON), oneDNN (DNNL_ROOT or the
# system's). All output goes to $OUT/gpu.log (default out/), a table of the steps to the screen. Exit 1: a step failed.
set -u
cd "$(dirname "$0")/../.."
out=${OUT:-out}
python=${PYTHON:-python3}
mkdir -p "$out" build/gpu
log=$out/gpu.log
[ -n "${CUDA_HOME:-}" ] || { nvcc=$(command -v nvcc || ls /usr/local/cuda/bin/nvcc 2>/dev/null) && CUDA_HOME=$(dirname "$(dirname "$(readlink -f "$nvcc")")"); }
export CUDA_HOME=${CUDA_HOME:-} PYTHONUNBUFFERED=1 PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
failed=0

# step NAME SECONDS COMMAND...: its output goes to a file; `gather` brings the files together.
step() {
    local name=$1 limit=$2 began=$SECONDS status
    shift 2
    timeout -k 10 "$limit" "$@" >"build/gpu/$name.out" 2>&1 </dev/null
    status=$?
    case $status in 0) status=ok ;; 124 | 137) status="over ${limit} s" ;; *) status="exit $status" ;; esac
    printf '%-22s %-12s %4d s  %s\n' "$name" "$status" $((SECONDS - began)) \
        "$(grep -v '^ *$' "build/gpu/$name.out" | tail -n 1 | cut -c1-150)" >"build/gpu/$name.row"
}
gather() {
    local name
    wait
    for name; do
        { echo; echo "==== $(cat "build/gpu/$name.row")"; cat "build/gpu/$name.out"; } >>"$log"
        cat "build/gpu/$name.row"
        grep -q "^$name *ok " "build/gpu/$name.row" || failed=1
    done
}

build() {
    local arch
    arch=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | head -n 1 | tr -d .)
    export IPVG_CUDA_ARCH=${IPVG_CUDA_ARCH:-${arch:-90}}
    step build 300 "$python" setup.py -q build_ext --inplace
    gather build
}

# Include and library flags of CUDA, cuDNN and oneDNN as setup.py finds them.
flags() {
    "$python" - "$@" <<'PYTHON'
import runpy, sys, setuptools
setuptools.setup = lambda **_: None
found = runpy.run_path("setup.py")
_, include, lib = found["cuda"]()
compile, link = found["dnnl"]()
libs = [x for name in sys.argv[1:] for x in found["library"](lib, name)]
print(*[f"-I{x}" for x in include], *compile, *libs, *[f"-Wl,-rpath,{x}" for x in lib], *link)
PYTHON
}

plans_program() {
    local libraries
    libraries=$(flags cudart cudnn) || return
    gcc -std=c11 -D_GNU_SOURCE -O1 -Wall -Wextra tests/cuda/plans.c csrc/ops/cuda/dnn_plan.c csrc/base/context.c \
        csrc/base/tensor.c $libraries -fopenmp -lm -ldl -o build/gpu/plans && build/gpu/plans gpu
}

fp8_program() {
    local libraries
    libraries=$(flags cudart cublasLt) || return
    gcc -std=c11 -D_GNU_SOURCE -O2 -Wall -Wextra -fopenmp tests/cuda/fp8.c $libraries -lm -o build/gpu/fp8 && build/gpu/fp8
}

rates_program() {
    local libraries
    libraries=$(flags cudart cublas) || return
    gcc -std=c11 -D_GNU_SOURCE -O2 -Wall -Wextra tests/cuda/rates.c build/temp.*/kernels/*.cu.o $libraries -lstdc++ -lm \
        -o build/gpu/rates && build/gpu/rates
}

attention_program() {
    local libraries
    libraries=$(flags cudart cublasLt cudnn) || return
    gcc -std=c11 -D_GNU_SOURCE -O2 -Wall -Wextra -Wno-psabi -fopenmp tests/cuda/attention.c csrc/base/*.c csrc/ops/ops.c \
        $(ls csrc/ops/cuda/*.c | grep -v /attention.c) build/temp.*/kernels/*.cu.o $libraries -lstdc++ -lm \
        -o build/gpu/attention && build/gpu/attention
}

KERNELS="test_rows test_flat test_attention" # have no library of NVIDIA's
OPS="$KERNELS test_engine test_copies"
ops_program() {
    local name engine libraries jobs=() status=0
    libraries=$(flags cudart cublasLt cudnn) || return
    for name in $OPS; do
        engine=
        [[ " $KERNELS " = *" $name "* ]] || engine=$(ls csrc/ops/cuda/*.c)
        gcc -std=c11 -D_GNU_SOURCE -O2 -g -Wno-psabi -fopenmp "tests/cuda/$name.c" csrc/base/*.c csrc/ops/ops.c \
            csrc/ops/cpu/*.c $engine build/temp.*/kernels/*.cu.o $libraries -lstdc++ -lm \
            -o "build/gpu/$name" &
        jobs+=($!)
    done
    for name in "${jobs[@]}"; do wait "$name" || status=1; done
    return $status
}
# Runs them all with so many rounds, through a tool if one is given.
run_ops() {
    local name rounds=$1 status=0
    shift
    for name in $OPS; do "$@" "build/gpu/$name" "$rounds" || status=1; done
    return $status
}
ops() { ops_program && run_ops 60; }

sanitizer() {
    local tool=$1
    shift
    compute-sanitizer --tool "$tool" --error-exitcode 3 --print-limit 20 "$@" || return
}
check_ops() { run_ops 3 sanitizer "$1"; }
# racecheck itself breaks down in cuBLASLt's kernels for Hopper: it sees the programs that have none but ours.
check_races() { OPS=$KERNELS run_ops 1 sanitizer racecheck; }
check_dit() { sanitizer "$1" "$python" -m tests.cuda.parity dit A/t500 --device cuda --dtype "$2"; }
check_vae() { sanitizer "$1" "$python" -m tests.cuda.parity vae stages_encode_9x16x24 stages_decode_3x16x24 --device cuda --dtype "$2"; }
export -f check_races plans_program fp8_program rates_program attention_program ops_program run_ops ops flags sanitizer check_ops check_dit check_vae
export python out OPS KERNELS

run() {
    local stage names=() job
    case $1 in
    build) build ;;
    error)
        step error 60 "$python" -c 'import sys, ipvg; e = ipvg.cuda_error(); print(e); sys.exit(e is not None)'
        gather error
        ;;
    plans) step plans 240 bash -c plans_program && gather plans ;;
    ops) step ops 240 bash -c ops && gather ops ;;
    parity) # at once: most of the time is spent in making the weights, on one core each
        for stage in text umt5 vae context dit schedule endtoend; do
            names+=("parity-$stage")
            step "parity-$stage" 200 "$python" -m ipvg.parity --device cuda --verbose --stage "$stage" &
        done
        gather "${names[@]}"
        ;;
    bf16)
        for stage in umt5 vae dit; do
            names+=("bf16-$stage")
            step "bf16-$stage" 200 "$python" -m tests.cuda.parity "$stage" --device cuda --dtype bfloat16 &
        done
        gather "${names[@]}"
        ;;
    fp8)
        step fp8-cublas 200 bash -c fp8_program
        step fp8-dit 200 "$python" -m tests.cuda.parity dit A/t500 A/t999 A/t3 A/t500_short --device cuda --dtype fp8
        IPVG_DEVICE=cuda step fp8-tests 200 "$python" -m pytest -p no:cacheprovider -q tests/test_fp8.py
        gather fp8-cublas fp8-dit fp8-tests
        ;;
    rates) step rates 120 bash -c rates_program && gather rates ;;
    attention) step attention 200 bash -c attention_program && gather attention ;;
    gpu) step gpu 400 "$python" -m pytest -p no:cacheprovider -x --maxfail=20 --durations=10 tests/test_gpu.py && gather gpu ;;
    stream) step stream 240 "$python" -m pytest -p no:cacheprovider -s --durations=5 tests/test_streaming.py && gather stream ;;
    racecheck) step racecheck 200 bash -c check_races && gather racecheck ;;
    memcheck | initcheck)
        step "$1-ops" 200 bash -c "check_ops $1" &
        step "$1-dit" 200 bash -c "check_dit $1 bfloat16" &
        step "$1-vae" 200 bash -c "check_vae $1 bfloat16" &
        gather "$1-ops" "$1-dit" "$1-vae"
        ;;
    bench)
        [ -z "$(nvidia-smi --query-compute-apps=pid --format=csv,noheader 2>/dev/null)" ] ||
            echo "bench: another process is at work on a GPU here; if it is this one, the times mean nothing" | tee -a "$log"
        step bench 580 "$python" benchmarks/engine.py --out "$out" --rows forward13,step13,umt5,vae_decode,load13,vae_encode
        gather bench
        ;;
    *) echo "gpu.sh: no step '$1'; see the head of this file" >&2 && failed=1 ;;
    esac
}

{ date; nvidia-smi 2>&1 | head -n 15; "$python" --version; echo "CUDA_HOME=$CUDA_HOME DNNL_ROOT=${DNNL_ROOT:-}"; } >>"$log" 2>&1
for name in ${*:-build error plans ops parity bf16 fp8 rates attention gpu stream memcheck racecheck bench}; do run "$name"; done
exit $failed

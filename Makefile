# make demo    a picture and a sentence become out/demo.mp4 and a contact sheet (IMAGE=me.jpg PROMPT='A man laughs.': yours)
# make test    everything that CI runs: lint, sanitizers, parity, tests, README's examples
# Both do all set-up on a bare Debian 12 or Ubuntu 24.04: packages, .venv, pip, build. A second call does nothing twice.
#
# Also: build, lint, format, sanitize, kernels, parity (IPVG_GOLDEN=folder), bench, fuzz (MINUTES=10), test-peers (needs several GB), test-gateways (0.75 GB), clean.
# PYTHON=python3.12 VENV=.venv312 make ...   another Python.   CC=clang make ...   another compiler.

PYTHON ?= python3
VENV ?= .venv
PY := $(VENV)/bin/python
MINUTES ?= 10
CPUS := $(shell nproc 2>/dev/null || echo 2)

BUILD_PACKAGES := build-essential pkg-config python3-dev python3-venv libdnnl-dev \
    libavfilter-dev libavformat-dev libavcodec-dev libavutil-dev libswscale-dev \
    $(if $(wildcard csrc/remote),libcurl4-openssl-dev libcjson-dev)
TEST_PACKAGES := ffmpeg clang libomp-dev zsh fish
FUZZ_PACKAGES := libclang-rt-dev

.PHONY: demo test test-cuda build lint format sanitize parity bench fuzz test-peers test-gateways packages test-packages clean
.DELETE_ON_ERROR:
.SUFFIXES:

demo: build
	@$(VENV)/bin/ipvg demo --out out $(if $(IMAGE),--image '$(IMAGE)') $(if $(PROMPT),--prompt '$(PROMPT)')

# The parts that stop early come first; pytest's closing line is the last thing to read.
test: test-packages build
	@$(MAKE) --no-print-directory lint
	@$(MAKE) --no-print-directory sanitize
	@$(MAKE) --no-print-directory kernels
	@$(MAKE) --no-print-directory parity cudnn
	$(PY) -m pytest

# ---- set-up ----

packages:
	@sh .ci/packages $(BUILD_PACKAGES)

test-packages:
	@sh .ci/packages $(BUILD_PACKAGES) $(TEST_PACKAGES)

$(VENV)/.ready: .ci/requirements.txt | packages
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "ipvg needs Python 3.10 or newer; try PYTHON=...")'
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install -q --disable-pip-version-check -r .ci/requirements.txt
	@touch $@

C_FILES := $(shell find csrc -name '*.[ch]' 2>/dev/null)

# setup.py compiles only what changed; the second line registers this folder and the `ipvg` command in the venv, once.
build: $(VENV)/.built
$(VENV)/.built: setup.py pyproject.toml $(C_FILES) $(VENV)/.ready | packages
	$(PY) setup.py -q build_ext --inplace
	@test $(VENV)/.linked -nt pyproject.toml || { $(PY) -m pip install -q --disable-pip-version-check --no-deps \
	    --no-build-isolation -e . && touch $(VENV)/.linked; }
	@touch $@

# ---- checks ----

lint: $(VENV)/.ready
	@$(PY) tests/lint.py

format: $(VENV)/.ready
	$(VENV)/bin/clang-format -i $(C_FILES) $(wildcard tests/c/*.[ch] kernels/* tests/cuda/*.[ch]* tests/cuda/fake/*)
	$(PY) -m ruff check -q --fix .
	$(PY) tests/errors.py

parity: build
	@$(PY) -m ipvg.parity

# The CUDA engine on an emulated device, with the test of it that takes minutes, and cuDNN's plans.
test-cuda: build cudnn
	IPVG_TEST_CUDA=1 $(PY) -m pytest tests/test_cuda.py

bench: build
	@for f in benchmarks/*.py; do echo "== $$f"; $(PY) $$f || exit 1; done

fuzz: test-packages build
	@sh .ci/packages $(FUZZ_PACKAGES)
	@$(PY) -c 'import atheris' 2>/dev/null || $(PY) -m pip install -q --disable-pip-version-check atheris
	$(PY) -m tests.fuzz --minutes $(MINUTES)

test-peers: build
	@test -x .venv-peers/bin/python || $(PYTHON) -m venv .venv-peers
	.venv-peers/bin/python -m pip install -q --disable-pip-version-check -r .ci/requirements.txt -r .ci/requirements-peers.txt
	PYTHONPATH=. .venv-peers/bin/python -m pytest tests/peers

test-gateways: build
	@test -x .venv-gateways/bin/python || $(PYTHON) -m venv .venv-gateways
	.venv-gateways/bin/python -m pip install -q --disable-pip-version-check -r .ci/requirements.txt -r .ci/requirements-gateways.txt
	PYTHONPATH=. .venv-gateways/bin/python -m pytest tests/gateways

# C tests under AddressSanitizer and UndefinedBehaviorSanitizer: all of the core that does not need Python.
SAN := build/sanitize
comma := ,
SAN_FLAGS := -std=c11 -g -O1 -Wall -Wextra -fno-omit-frame-pointer -fsanitize=address,undefined \
    -fno-sanitize-recover=undefined -fopenmp -D_GNU_SOURCE -DIPVG_MAX_PIXELS=65536 -Icsrc -Wno-psabi \
    $(if $(shell grep -m1 -o avx512f /proc/cpuinfo),,-DIPVG_EMULATED_AVX512='"$(CURDIR)/tests/c/avx512.h"')
MEDIA := libavfilter libavformat libavcodec libavutil libswscale
REMOTE := libcurl libcjson
has = $(shell pkg-config --exists $(1) 2>/dev/null && echo yes)
libs = $(if $(call has,$(1)),$(shell pkg-config --libs $(1)))
SAN_DIRS = base ops ops/cpu model sample $(if $(call has,$(MEDIA)),io) $(if $(call has,$(REMOTE)),remote)
SAN_LIBS = -ldnnl $(call libs,$(MEDIA)) $(call libs,$(REMOTE)) -lm
SAN_SOURCES = $(foreach d,$(SAN_DIRS),$(wildcard csrc/$(d)/*.c))
SAN_OBJECTS = $(SAN_SOURCES:%.c=$(SAN)/%.o)
SAN_TESTS := $(patsubst tests/c/%.c,$(SAN)/%,$(wildcard tests/c/test_*.c))

sanitize: | packages
	@$(MAKE) --no-print-directory -j$(CPUS) $(SAN_TESTS)
	@for t in $(SAN_TESTS); do \
	    ASAN_OPTIONS=detect_stack_use_after_return=1 LSAN_OPTIONS=suppressions=tests/c/lsan.txt:print_suppressions=0 \
	    OMP_NUM_THREADS=2 $$t > $$t.log 2>&1 || { tail -40 $$t.log; echo "sanitize: $$t failed"; exit 1; }; \
	done; echo "sanitize: $(words $(SAN_TESTS)) C tests pass under ASan and UBSan"

# GCC's fake stack, which finds a use after return, is aligned for AVX2 only (its bug 110027): AVX-512 would fault.
$(SAN)/csrc/ops/cpu/%_v4.o: SAN_FLAGS += --param=asan-use-after-return=0
$(SAN)/%.o: %.c $(filter %.h,$(C_FILES))
	@mkdir -p $(@D)
	@$(CC) $(SAN_FLAGS) -c $< -o $@
$(SAN)/test_%: tests/c/test_%.c $(SAN_OBJECTS)
	@$(CC) $(SAN_FLAGS) $< $(SAN_OBJECTS) $(SAN_LINK) $(SAN_LIBS) -o $@
# Calls of our own objects that ask for memory go through the test (tests/c/failing.h).
FAILING := malloc calloc realloc aligned_alloc strdup realpath mmap
FAILING_FFMPEG := av_calloc fopen av_malloc av_malloc_array av_frame_alloc av_packet_alloc avcodec_alloc_context3 sws_alloc_context \
    avformat_alloc_context avformat_new_stream avio_alloc_context avfilter_graph_alloc
$(SAN)/test_allocation $(SAN)/test_allocation_io: tests/c/failing.h
$(SAN)/test_allocation: SAN_LINK = $(FAILING:%=-Wl,--wrap=%)
$(SAN)/test_allocation_io: SAN_LINK = $(patsubst %,-Wl$(comma)--wrap=%,$(FAILING) $(FAILING_FFMPEG))
.SECONDARY: $(SAN_OBJECTS)

# The CUDA kernels: run on an emulated device (tests/cuda/emulator.h) under the same sanitizers, against the CPU backend; and
# compiled by nvcc, this machine's or that of NVIDIA's wheels (0.1 GB). ARCHS="80 90 100 120" make kernels for all that a
# release has, with PTX of the last.
ARCHS ?= 90
NVCC_ARCHS := $(patsubst 90,90a,$(ARCHS))# with what only 9.0 has
NVCC ?= $(firstword $(shell command -v nvcc) $(wildcard /usr/local/cuda/bin/nvcc $(VENV)/lib/python3*/site-packages/nvidia/cu13/bin/nvcc))
NVCC_WHEELS := $(foreach p,cuda-nvcc nvvm cuda-crt cuda-cccl cuda-runtime,'nvidia-$(p)==13.0.*')
KERNEL_FILES := $(wildcard kernels/*) $(wildcard tests/cuda/*.h tests/cuda/fake/*.h)
EMU_CXX := $(if $(findstring clang,$(CC)),clang++,g++)
EMU_FLAGS = $(filter-out -std=c11,$(SAN_FLAGS)) -ffp-contract=off -Itests/cuda/fake
EMU_OBJECTS := $(patsubst %.cu,$(SAN)/%.cu.o,$(wildcard kernels/*.cu)) $(patsubst %,$(SAN)/tests/cuda/%.o,block memory stream)
EMU_TESTS := $(patsubst tests/cuda/test_%,$(SAN)/cuda_%,$(basename $(wildcard tests/cuda/test_*.c tests/cuda/test_*.cc)))
EMU_HOST := $(patsubst %,$(SAN)/csrc/ops/cuda/%.o,attention backend conv copy graph linear memory planes rows share) $(patsubst %,$(SAN)/tests/cuda/%.o,blas dnn)
NVCC_OBJECTS := $(patsubst kernels/%.cu,build/nvcc/%.o,$(wildcard kernels/*.cu))
NVCC_FLAGS = -std=c++17 -O3 -Werror all-warnings -Xcompiler -Wall,-Wextra,-fPIC -t0 \
    $(foreach a,$(NVCC_ARCHS),-gencode arch=compute_$(a),code=sm_$(a)) \
    -gencode arch=compute_$(lastword $(NVCC_ARCHS)),code=compute_$(lastword $(NVCC_ARCHS))

.PHONY: kernels nvcc-objects
kernels: $(VENV)/.ready | packages
	@$(if $(NVCC),,$(PY) -m pip install -q --disable-pip-version-check $(NVCC_WHEELS))
	@$(MAKE) --no-print-directory -j$(CPUS) $(EMU_TESTS) nvcc-objects
	@for t in $(EMU_TESTS); do \
	    LSAN_OPTIONS=suppressions=tests/c/lsan.txt:print_suppressions=0 OMP_NUM_THREADS=2 \
	    $$t > $$t.log 2>&1 || { tail -40 $$t.log; echo "kernels: $$t failed"; exit 1; }; \
	done; echo "kernels: $(words $(EMU_TESTS)) tests pass on the emulated device"
	@echo "kernels: compiled by nvcc for sm $(ARCHS)"

# cuDNN, which says without a GPU whether it has a plan for a shape (tests/test_cuda.py): this machine's or NVIDIA's wheel, 0.5 GB.
CUDNN_WHEELS := nvidia-cudnn-cu13==9.28.1.4 $(foreach p,runtime nvrtc crt,'nvidia-cuda-$(p)==13.0.*')
.PHONY: cudnn
cudnn: $(VENV)/.ready
	@test -f "$${CUDA_HOME:-/usr/local/cuda}/include/cudnn.h" || \
	    $(PY) -m pip install -q --disable-pip-version-check --no-deps $(CUDNN_WHEELS)

nvcc-objects: $(NVCC_OBJECTS)
build/nvcc/%.o: kernels/%.cu $(KERNEL_FILES)
	@mkdir -p $(@D)
	@$(NVCC) $(NVCC_FLAGS) -c $< -o $@
$(SAN)/kernels/%.cu.o: kernels/%.cu $(KERNEL_FILES)
	@mkdir -p $(@D)
	@$(EMU_CXX) -std=c++17 $(EMU_FLAGS) -Wno-unknown-pragmas -x c++ -c $< -o $@
$(SAN)/tests/cuda/%.o: tests/cuda/%.cc $(KERNEL_FILES)
	@mkdir -p $(@D)
	@$(EMU_CXX) -std=c++17 $(EMU_FLAGS) -c $< -o $@
$(SAN)/tests/cuda/%.o: tests/cuda/%.c $(KERNEL_FILES)
	@mkdir -p $(@D)
	@$(CC) $(SAN_FLAGS) -Itests/cuda/fake -c $< -o $@
$(SAN)/csrc/ops/cuda/%.o: csrc/ops/cuda/%.c $(KERNEL_FILES) $(filter %.h,$(C_FILES))
	@mkdir -p $(@D)
	@$(CC) $(SAN_FLAGS) -Itests/cuda/fake -c $< -o $@
$(SAN)/cuda_engine $(SAN)/cuda_copies: $(EMU_HOST)
$(SAN)/cuda_%: $(SAN)/tests/cuda/test_%.o $(EMU_OBJECTS) $(SAN_OBJECTS)
	@$(EMU_CXX) $(EMU_FLAGS) $^ $(SAN_LIBS) -o $@
.SECONDARY: $(EMU_OBJECTS) $(EMU_HOST)

clean:
	rm -rf build out .venv/.built ipvg/*.so

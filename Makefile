# Every target sets up what it needs: a virtual environment in .venv with the versions of constraints.txt, and the
# native parts built into it. Needs Python 3.10+ with its headers, a C++20 compiler and make.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -q
# More arguments for pip, e.g. PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu" for torch without CUDA.
PIP_ARGS ?=
PYTEST_ARGS ?=

NATIVE := CMakeLists.txt $(shell find cmake cpp cuda -type f 2>/dev/null)

.PHONY: help setup demo serve test lint format bench clean

help:
	@echo "make demo    build everything, serve the embedded model on a real tritonserver, show it working, stop"
	@echo "make serve   the same, but stay up and print curl lines to try"
	@echo "make test    every test that needs no GPU"
	@echo "make lint    formatting, lint and types"
	@echo "make bench   scheduler, kernels, engine and response path on this machine"

$(VENV)/.tools: constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) install $(PIP_ARGS) -c constraints.txt pip scikit-build-core pybind11 cmake ninja
	@touch $@

# --no-build-isolation keeps one build directory, so a second build compiles only what changed.
$(VENV)/.installed: $(VENV)/.tools pyproject.toml $(NATIVE)
	$(PIP) install $(PIP_ARGS) -c constraints.txt --no-build-isolation -e '.[server,test,dev]'
	@touch $@

setup: $(VENV)/.installed

demo: setup
	$(BIN)/quire demo

serve: setup
	$(BIN)/quire serve

test: setup
	$(BIN)/python -m pytest -m "not gpu" $(PYTEST_ARGS)

CXX_FILES = $(shell git ls-files 'cpp/*.h' 'cpp/*.cc' 'cuda/*.h' 'cuda/*.cu' 'cuda/*.cuh')

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(CXX_FILES)

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_FILES)

bench: setup
	$(BIN)/quire bench all

clean:
	rm -rf $(VENV) build dist

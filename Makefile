# Everything a newcomer needs: `make train` and `make test`. `make help` lists the rest.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
BUILD = $(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir build
WORKERS ?= auto
TESTS ?= tests
CASES ?=
SHAPES ?= 2400
KERNELS ?= native
NATIVE := $(shell find ffi -type f)
CPP := $(filter %.h %.cpp %.inc %.cuh %.cu,$(NATIVE))

.PHONY: help train paper test test-full foreign coverage lint format docs wheel sdist-check asan isa-check \
  cuda-check benchmark figures clean
.DEFAULT_GOAL := help

# Packages are installed uncompiled, so what is imported must be kept compiled.
unexport PYTHONDONTWRITEBYTECODE

help:  ## List the targets.
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 18
	@echo "Variables: PYTHON=$(PYTHON) VENV=$(VENV) WORKERS=$(WORKERS) TESTS=$(TESTS) CASES=$(CASES) SHAPES=$(SHAPES) KERNELS=$(KERNELS)"

# The environment is made anew when its requirements or the native sources change. Of the kernels
# those for this processor are compiled; KERNELS=all compiles all. Python compiles of the packages
# what is imported, when it is.
$(VENV)/.installed: pyproject.toml $(NATIVE)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "bandjax needs Python 3.11 or newer; name one with PYTHON=python3.11, say")'
	@echo 'Making the environment $(VENV): packages and kernels, one to two minutes.'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --no-compile --editable '.[experiments]' \
	  -C build-dir=$(VENV)/build -C cmake.define.BANDJAX_KERNELS=$(KERNELS)
	@touch $@

# Installed already: of their extras alone.
$(VENV)/.paper: pyproject.toml $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --no-compile 'bandjax[paper]'
	@touch $@

$(VENV)/.testers: pyproject.toml $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --no-compile 'bandjax[test]'
	@touch $@

$(VENV)/.linters: pyproject.toml $(VENV)/.testers
	$(BIN)/python -m pip install --quiet --no-compile 'bandjax[lint]'
	@touch $@

$(VENV)/.docs: pyproject.toml $(VENV)/.testers
	$(BIN)/python -m pip install --quiet --no-compile 'bandjax[docs]'
	@touch $@

$(VENV)/.packagers: pyproject.toml $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --no-compile 'bandjax[package]'
	@touch $@

train: $(VENV)/.installed  ## Train a ResNet on handwritten digits, dense and band-limited, and compare.
	$(BIN)/python -m experiments.train --model resnet8 --data digits \
	  --epochs 10 --batch-size 64 --schedule onecycle \
	  --band none compression=0.5 compression=0.75,remat=blocks,residual-dtype=bfloat16

paper: $(VENV)/.paper  ## Remake every figure of the paper at its smoke budget (minutes, no data needed).
	$(BIN)/python -m experiments.paper all --budget smoke

test: $(VENV)/.testers  ## Run the tests: of large sets of cases a part.
	$(BIN)/python -m pytest $(TESTS) $(CASES) --numprocesses $(WORKERS) --dist worksteal $(COVERAGE)

test-full: CASES = -m ""
test-full: test  ## Run every case of every test (slower).

foreign: TESTS = tests/foreign
foreign: test-full  ## Run what Flax's and JAX's own tests of convolutions do, on this library.

coverage: COVERAGE = --cov --cov-report=term --cov-fail-under=95
coverage: test  ## Run the tests and measure which lines and branches they reach (slower).

lint: $(VENV)/.linters  ## Check format, style, types, and the rules of imports and lengths.
	$(BIN)/python -m pytest -q tests/test_rules.py tests/experiments/test_rooms.py
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(CPP)
	@if command -v actionlint >/dev/null; then actionlint .github/workflows/*.yml; \
	else echo 'workflows: no actionlint on this machine'; fi

format: $(VENV)/.linters  ## Format the code.
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/clang-format -i $(CPP)

# Notebooks that did not change are not run again, while build/ is there.
docs: $(VENV)/.docs  ## Build the site, run its notebooks, follow its links: build/docs/html.
	$(BIN)/python -m sphinx --builder html --fail-on-warning --keep-going --quiet \
	  --doctree-dir build/docs/trees docs build/docs/html
	$(BIN)/python docs/check_links.py build/docs/html

# From the source archive, so that this is seen to be whole. Not on Linux the tag is right already.
wheel: $(VENV)/.packagers  ## Build the source archive, and from it a wheel for package indexes: dist/.
	rm -rf build/wheel dist
	mkdir -p build
	$(BIN)/pyproject-build --outdir build/wheel -C cmake.define.BANDJAX_KERNELS=all . >build/wheel.log 2>&1 \
	  || { cat build/wheel.log; exit 1; }
	mkdir -p dist && mv build/wheel/*.tar.gz dist
	if [ "$$(uname)" = Linux ]; then \
	  PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python -m auditwheel repair --wheel-dir dist build/wheel/*.whl; \
	else mv build/wheel/*.whl dist; fi

# Without the clone's source on the path, and without any compiler.
sdist-check: wheel  ## Check archive and wheel; test the wheel in an environment with no compiler.
	$(BIN)/python .ci/check_wheel.py dist
	rm -rf build/bare
	$(BIN)/python -m venv build/bare
	CXX=/bin/false CC=/bin/false build/bare/bin/python -m pip install --quiet --no-compile \
	  dist/*.whl beartype flatbuffers pytest pytest-xdist
	cd build && bare/bin/python -m bandjax
	build/bare/bin/pytest --numprocesses $(WORKERS) \
	  $(addprefix tests/native/test_,extension.py handlers.py native.py native_fft.py precision.py)

asan: $(VENV)/.installed  ## Run the CPU kernels on random shapes under sanitizers.
	$(BUILD)/asan -C build-dir=build/asan -C cmake.define.BANDJAX_FUZZ=ON .
	build/asan/fuzz 20190613 $(SHAPES)

# The linker keeps one copy of a weak function, and it may be that of an object compiled for AVX.
# What lies in, or is made for, the namespace of an instruction set has no namesake.
isa-check: $(VENV)/.installed  ## Check that AVX code cannot stand in for portable code.
	test -n "$$(find $(VENV)/build -name '*_avx*.o')"
	@! find $(VENV)/build -name '*_avx*.o' -exec nm --defined-only --demangle {} + \
	  | grep ' W ' | grep -v 'bandjax::avx'

# For the CPU alone: bandjax_hold (XLA's own barriers hold on a GPU), convolutions by columns, directly
# and by windows, and the packing of codecs.
cuda-check: $(VENV)/.installed  ## Compile the CUDA kernels for every architecture, and load them.
	rm -rf build/cuda
	$(BIN)/python -m pip install --quiet --no-deps --target build/cuda -C cmake.define.BANDJAX_CUDA=ON .
	cd build/cuda/bandjax && $(abspath $(BIN))/python -c 'import _ffi; \
	  alone = {"bandjax_hold", "bandjax_columns", "bandjax_columns_gradients"} | {f"bandjax_{n}{b}" for n, b in [(n, b) for n in ("direct", "windows") for b in ("", "_filter")] + [(n, b) for n in ("pack", "unpack") for b in ("", "_bits")]}; \
	  assert _ffi.cpu_handlers().keys() - _ffi.cuda_handlers().keys() == alone; \
	  print(_ffi.CUDA_ARCHITECTURES)'

benchmark: $(VENV)/.installed  ## Time ResNet-18's layers against their peers (a quarter of an hour).
	$(BIN)/python -m experiments.benchmarks

figures: $(VENV)/.installed  ## Draw the README's picture again.
	$(BIN)/python -m experiments.figures.overview

clean:  ## Remove the environment and what tools leave behind.
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .coverage build dist

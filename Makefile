# Every target is one plain command; README shows the same lines for people without make.
# Without --no-compile pip spends as long again on modules that are never imported.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
OUT ?= out/demo

# The files whose tests are of kernels: collecting all files would take longer than these tests.
KERNEL_TESTS = $(shell grep -rl 'mark\.kernel' tests)

.PHONY: demo test check types tests kernels-plain kernels-checked notebooks bench clean clean-kernels

demo: $(VENV)/.installed
	$(BIN)/stillpet demo -o $(OUT)

test: $(VENV)/.installed-dev
	$(MAKE) check
	$(MAKE) --jobs=2 types kernels-plain kernels-checked
	$(MAKE) tests

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-compile --editable .
	touch $@

$(VENV)/.installed-dev: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-compile --editable '.[dev]'
	touch $@

check:
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types:
	$(BIN)/mypy

tests:
	$(BIN)/pytest -n 2 --dist worksteal

# The compiled kernels hide index slips: run their tests as plain Python, then compiled with
# bounds checks, in a cache of their own (the cache does not remember that flag).
kernels-plain:
	NUMBA_DISABLE_JIT=1 $(BIN)/pytest -q -m "kernel and not slow" $(KERNEL_TESTS)

kernels-checked:
	NUMBA_BOUNDSCHECK=1 NUMBA_CACHE_DIR=.numba-boundscheck $(BIN)/pytest -q -m kernel $(KERNEL_TESTS)

notebooks:
	$(BIN)/pytest -q -m notebook

bench:
	$(BIN)/pytest benchmarks -o python_files='bench_*.py' -o python_functions='bench_*'

clean: clean-kernels
	rm -rf $(VENV) out .numba-* .mypy_cache .ruff_cache .pytest_cache .hypothesis

clean-kernels:
	find listmode recon benchmarks -name '*.nb[ci]' -delete

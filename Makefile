# For a fresh machine: `make demo` and `make test`; also `make docs`, `make notebooks`,
# `make gpu-counts` and `make gpu-budgets`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
JOBS ?= 2

GPU_VENV := .venv-gpu
GPU_PYTHON := JAX_PLATFORMS=cpu $(GPU_VENV)/bin/python

.PHONY: demo test lint docs notebooks small-benchmarks fuzz gpu-counts gpu-budgets \
	clean

demo: $(VENV)/.run
	$(BIN)/elk-ssm demo

test: $(VENV)/.dev lint docs
	$(BIN)/python -m pytest -n $(JOBS) --durations=15

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The site, into site/. Warnings are errors; nothing is fetched.
docs: $(VENV)/.dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

# Scripts of notebooks/ into executed .ipynb beside them; NOTEBOOKS=name for some.
notebooks: $(VENV)/.dev
	$(PIP) install --constraint constraints.txt --group notebooks
	$(BIN)/python -m notebooks.execute $(NOTEBOOKS)

# Every benchmark of the command line at a small size; minutes, no files.
BENCHMARKS = activity argru_draws chains convergence differential_equations forced \
	gradients kalman lyapunov predictions search sharding speed structured

small-benchmarks: $(VENV)/.dev
	set -e; for name in $(BENCHMARKS); do $(BIN)/elk-ssm bench $$name --small; done

# Random cases of what docs/trust.md promises, drawn anew for another SEED. Tests that
# shrink what fails: HYPOTHESIS_PROFILE=long python -m pytest tests/properties
CASES ?= 12000
SEED ?= 0

fuzz: $(VENV)/.dev
	JAX_PLATFORMS=cpu $(BIN)/python -m benchmarks.fuzz --cases $(CASES) --seed $(SEED)

# Programs compiled for an H100 that is only described, and counted; no GPU is needed.
gpu-counts: $(GPU_VENV)/.run
	$(GPU_PYTHON) -m benchmarks.gpu_counts

# The same of a few programs; fails when a count is above its ceiling.
gpu-budgets: $(GPU_VENV)/.run
	$(GPU_PYTHON) -m benchmarks.gpu_counts --check

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "elk_ssm needs Python 3.11 or newer; try make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --upgrade "pip>=25.1"

# constraints.txt pins what was tested, so that a fresh install is repeatable.
$(VENV)/.run: $(BIN)/python pyproject.toml constraints.txt
	$(PIP) install --constraint constraints.txt --editable '.[plots]'
	touch $@

$(VENV)/.dev: $(VENV)/.run
	$(PIP) install --constraint constraints.txt --group dev
# Only aeon's data files are read; its own requirements do not fit the pinned numpy.
	$(PIP) install --no-deps aeon==1.6.0
	touch $@

# All that is installed is in constraints-gpu.txt, and the package itself beside it.
$(GPU_VENV)/.run: pyproject.toml constraints-gpu.txt
	$(PYTHON) -m venv $(GPU_VENV)
	$(GPU_VENV)/bin/python -m pip --disable-pip-version-check --quiet install \
		--requirement constraints-gpu.txt
	$(GPU_VENV)/bin/python -m pip --disable-pip-version-check --quiet install \
		--no-deps --editable .
	touch $@

clean:
	rm -rf $(VENV) $(GPU_VENV) build dist site .pytest_cache .mypy_cache .ruff_cache

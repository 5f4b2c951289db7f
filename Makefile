# For a fresh machine: `make demo` and `make test`; also `make docs`, `make notebooks`,
# `make test-oldest`, `make test-latest`, `make wheel`, `make audit`, `make gpu-counts` and
# `make gpu-budgets`. PYTHON= chooses the interpreter of a new environment.
ASKED := $(PYTHON)
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# What pip says of caches and roots is not about this package; its errors are shown.
export PIP_DISABLE_PIP_VERSION_CHECK = 1
export PIP_ROOT_USER_ACTION = ignore
QUIET := --quiet --quiet
PIP := $(BIN)/python -m pip $(QUIET)
JOBS ?= 2

GPU_VENV := .venv-gpu
GPU_PYTHON := JAX_PLATFORMS=cpu $(GPU_VENV)/bin/python

.PHONY: demo test test-oldest test-latest wheel sdist audit lint docs notebooks \
	small-benchmarks fuzz gpu-counts gpu-budgets clean

demo: $(VENV)/.run
	$(BIN)/elk-ssm demo

test: $(VENV)/.dev lint docs
	$(BIN)/python -m pytest -n $(JOBS) --durations=15

# The first of some interpreters that is there and runs; those of pyenv are not on PATH.
PYENV := $(wildcard $(PYENV_ROOT)/versions)
first = $(shell for python in $(1) $(PYTHON); do \
	$$python -c "import ensurepip, venv" >/dev/null 2>&1 && echo $$python && break; done)
named = python$(1) $(lastword $(wildcard $(PYENV)/$(1).*/bin/python))
OLDEST_PYTHON = $(or $(ASKED),$(call first,$(call named,3.11)))
LATEST_PYTHON = $(or $(ASKED),$(call first,$(foreach v,3.14 3.13 3.12,$(call named,$(v)))))

# What leans on JAX's inner parts, and one file of each task; FAST=tests for more.
FAST ?= tests/test_release.py tests/test_branches.py tests/test_closures.py \
	tests/test_platforms.py tests/test_recurrence.py tests/test_solution.py \
	tests/surrogate/test_dependence.py \
	tests/kernels/test_rollout.py tests/parallel/test_driver.py \
	tests/kalman/test_filtering.py tests/nssm/test_draws.py tests/interop/test_dynamax.py \
	tests/interop/test_cells_detect.py tests/interop/test_arviz.py \
	tests/solve/test_custom_rules.py::test_gradients_are_those_of_the_scan \
	tests/evaluate/test_compilation.py::test_nothing_recompiles_for_a_new_lambda \
	tests/cli/test_output.py tests/cli/reading

# The lower bounds of pyproject.toml exactly, and the newest of everything. Programs are
# traced for every platform here, and in `make test` for the CPU that there is.
EVERYWHERE := ELK_SSM_PLATFORMS=all
test-oldest: .venv-oldest/.run
	$(EVERYWHERE) ELK_VERSIONS=oldest .venv-oldest/bin/python -m pytest -n $(JOBS) $(FAST)

test-latest: .venv-latest/.run
	$(EVERYWHERE) ELK_VERSIONS=latest .venv-latest/bin/python -m pytest -n $(JOBS) $(FAST)

# Built, installed into an empty environment, and used there from an empty folder.
wheel: $(BIN)/python
	rm -rf dist .venv-wheel
	$(PIP) wheel --no-deps --wheel-dir dist .
	$(PYTHON) -m venv .venv-wheel
	.venv-wheel/bin/python -m pip $(QUIET) install --constraint constraints.txt dist/*.whl
	.venv-wheel/bin/python -I tests/smoke.py dist/*.whl

sdist: $(BIN)/python
	$(PIP) install --constraint constraints.txt hatchling
	$(BIN)/python -m hatchling build --target sdist

# The pins against PyPI's advisories; fails as well where these cannot be asked.
audit:
	test -x .venv-audit/bin/pip-audit || $(PYTHON) -m venv .venv-audit
	.venv-audit/bin/python -m pip $(QUIET) install pip-audit
	.venv-audit/bin/pip-audit --strict --no-deps --disable-pip -r constraints.txt

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
BENCHMARKS = activity argru_draws chains convergence differential_equations \
	dynamax_objects first_result forced gradients kalman lyapunov paper predictions \
	search series sharding speed structured

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
	$(GPU_VENV)/bin/python -m pip $(QUIET) install --requirement constraints-gpu.txt
	$(GPU_VENV)/bin/python -m pip $(QUIET) install --no-deps --editable .
	touch $@

.venv-oldest/.run: pyproject.toml constraints-oldest.txt
	$(OLDEST_PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/python -m pip $(QUIET) install --upgrade "pip>=25.1"
	.venv-oldest/bin/python -m pip $(QUIET) install \
		--constraint constraints-oldest.txt --editable '.[all]' --group versions
	touch $@

.venv-latest/.run: pyproject.toml
	$(LATEST_PYTHON) -m venv .venv-latest
	.venv-latest/bin/python -m pip $(QUIET) install --upgrade "pip>=25.1"
	.venv-latest/bin/python -m pip $(QUIET) install --upgrade \
		--editable '.[plots,data]' --group versions
	touch $@

clean:
	rm -rf $(VENV) $(GPU_VENV) .venv-oldest .venv-latest .venv-wheel .venv-audit build dist site .pytest_cache .mypy_cache .ruff_cache

# make lab, make test: everything else is in `make help`. Needs Python 3.11 to 3.13 and make, and nothing else.

VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11; do \
	$$python -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null && echo $$python && break; done)
PIP := $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt
ifeq ($(TORCH)-$(shell uname -s),cpu-Linux)
PIP += --extra-index-url https://download.pytorch.org/whl/cpu
endif

.PHONY: help install lab test test-fast test-deep test-triton build clean
.DEFAULT_GOAL := help

help:  ## show this list
	@sed -n 's/^\([a-z-]*\):[^#]*## /  make \1	/p' Makefile | expand -t 20
	@echo "  TORCH=cpu         with any of them on Linux: PyTorch without CUDA, which saves several GB"
	@echo "  UNIT=04           with lab and build: that unit"

install: $(VENV)/.installed  ## make .venv and install the course in it, pinned

lab: install  ## open JupyterLab in your workspace
	@$(BIN)/course lab $(UNIT)

test: $(VENV)/.tested  ## lint, test, and run every notebook
	@$(BIN)/python tests/run.py

test-fast: $(VENV)/.tested  ## the same without slow tests, browser and notebooks
	@$(BIN)/python tests/run.py --fast

test-deep: $(VENV)/.tested  ## the tests that repeat a lot; takes hours
	@$(BIN)/python tests/run.py --deep

test-triton: $(VENV)/.tested  ## the tests of kernels with the oldest Triton that is supported
	@$(BIN)/python tests/older_triton.py

build: install  ## build the notebooks whose sources changed
	@$(BIN)/course build $(UNIT)

clean:  ## remove .venv and what tests and builds leave; your workspace stays
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .hypothesis .cache course/_data
	find course tests -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/bin/python:
	@test -n "$(PYTHON)" && $(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null || \
		{ echo "The course needs Python 3.11 to 3.13: install one, or name yours with make PYTHON=/path/to/python3.12." >&2; exit 2; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
		{ echo "$(PYTHON) cannot make an environment: on Debian and Ubuntu, install the package python3-venv." >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) -e .
	@touch $@

$(VENV)/.tested: $(VENV)/.installed
	$(PIP) -e '.[test]'
	@touch $@

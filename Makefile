# Every target does its own set-up, in .venv, and does it again when pyproject.toml or
# constraints.txt changed. Paths are relative, so that a clone may lie in any directory.

# The Python that makes .venv: the first of these that is 3.11 or later.
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11 python; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo "$$p" && break; done)

CONFIG = experiments/bytes_gpt.py
WORKDIR = runs/$(basename $(notdir $(CONFIG)))
ARGS =
# Where PyTorch's CPU build has an index of its own: TORCH_ARGS="--index-url ...".
TORCH_ARGS =

RUN = .venv/bin/python
PIP = $(RUN) -m pip --disable-pip-version-check install --quiet
PYTEST = $(RUN) -m pytest -n 2
PINS = pyproject.toml constraints.txt

.DEFAULT_GOAL := help
.NOTPARALLEL:
.DELETE_ON_ERROR:
.PHONY: help train test test-peers test-compilers test-all lint format notebooks bench clean

help: ## print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-14s %s\n", $$1, $$2 }' Makefile

train: .venv/base.stamp ## train the byte-level GPT; CONFIG=experiments/NAME.py WORKDIR=runs/NAME ARGS="--config.seed=1"
	$(RUN) -m launch.train --config="$(CONFIG)" --workdir="$(WORKDIR)" $(ARGS)

test: .venv/dev.stamp ## the tests, less the slow ones; ARGS="-k name"
	$(PYTEST) -m "not slow and not compilers" tests --ignore=tests/peers $(ARGS)

test-peers: .venv/peers.stamp ## compare with PyTorch and others live; TORCH_ARGS= goes to the install of torch
	$(PYTEST) tests/peers $(ARGS)

test-compilers: .venv/compilers.stamp ## compile for TPUs and GPUs that are not there
	PYTHONPATH=.venv/compilers $(PYTEST) -m compilers tests --ignore=tests/peers $(ARGS)

test-all: .venv/peers.stamp ## every test, and the notebooks
	$(PYTEST) -m "not compilers" tests $(ARGS)
	$(MAKE) test-compilers notebooks

lint: .venv/dev.stamp ## format, lint and types, changing nothing
	$(RUN) -m ruff format --check .
	$(RUN) -m ruff check .
	$(RUN) -m mypy

format: .venv/dev.stamp ## put every file into the format, and mend what ruff can mend
	$(RUN) -m ruff format .
	$(RUN) -m ruff check --fix .

notebooks: .venv/dev.stamp ## execute the notebooks at toy size
	SMOKE=1 JAX_PLATFORMS=cpu $(RUN) -m pytest --nbmake notebooks $(ARGS)

bench: .venv/peers.stamp ## time ours against the peers; ARGS="--workload=..."
	$(RUN) -m launch.benchmark $(ARGS)

clean: ## remove .venv and the caches; runs/ stays
	rm -rf .venv build dist ./*.egg-info .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Some systems package Python without ensurepip: then the outer pip brings pip in.
.venv/python.stamp:
	@if [ -z "$(PYTHON)" ]; then \
		echo "error: no Python 3.11 or later among python3, python3.11 ...: install one, or name it: make PYTHON=/path/to/python3" >&2; exit 2; fi
	@"$(PYTHON)" -c 'import sys; v = sys.version_info; v >= (3, 11) or sys.exit("error: PYTHON=$(PYTHON) is %d.%d: choose 3.11 or later" % v[:2])'
	@echo "making .venv with $(PYTHON) (a minute or two, once)"
	@.venv/bin/python -m pip --version >/dev/null 2>&1 || "$(PYTHON)" -m venv --clear .venv \
		|| { "$(PYTHON)" -m venv --clear --without-pip .venv && "$(PYTHON)" -m pip --python .venv/bin/python install --quiet pip; }
	@touch $@

.venv/base.stamp: .venv/python.stamp $(PINS)
	$(PIP) -e . -c constraints.txt
	@touch $@

.venv/dev.stamp: .venv/python.stamp $(PINS)
	$(PIP) -e '.[dev]' -c constraints.txt
	@touch $@ .venv/base.stamp

# Beside the rest and not in it: where JAX finds these it looks for their chips when it starts.
.venv/compilers.stamp: .venv/dev.stamp
	$(PIP) --no-deps --upgrade --target .venv/compilers libtpu jax-cuda13-plugin jax-cuda13-pjrt -c constraints.txt
	@touch $@

.venv/peers.stamp: .venv/dev.stamp
	$(PIP) torch -c constraints.txt $(TORCH_ARGS)
	$(PIP) -e '.[dev,peers]' -c constraints.txt
	@touch $@

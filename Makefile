# Two commands: `make demo` and `make test`. Both set up .venv first, from PyPI.

SHELL := /bin/sh
BIN := .venv/bin
READY := .venv/.ready
# Tests and demo need no more than these; GPU machines and other frameworks: make setup EXTRAS=all,dev
EXTRAS ?= dev
# Processes of the fast tests, which wait for servers at times, and of the slow ones, which start others.
FAST_WORKERS ?= 3
WORKERS ?= 2
# Of those on Kubernetes, the ones of whole runs go first: CI's time may be over before the last.
ON_PODS := $(patsubst %,tests/kubernetes/test_%.py,run schedule teams first_users)
ON_PODS += $(filter-out $(ON_PODS),$(sort $(wildcard tests/kubernetes/test_*.py)))
# The first Python of a version that we support.
PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null && echo $$p && break; done)

.PHONY: help setup demo test coverage test-slow test-kubernetes test-image lint format clean

help:
	@echo "make demo       set up, and run the main job on a demo warehouse (a minute)"
	@echo "make test       set up, and run the fast tests"
	@echo "make coverage   the same, and what lines they reach (takes half as long again)"
	@echo "make test-slow  the others: kills, servers, Ray, training runs"
	@echo "make test-image the image for the tests on the Kubernetes of ../shared/kubernetes"
	@echo "make test-kubernetes  those on a real Kubernetes: SP_RAY_TEST_KUBECONFIG names its kubeconfig"
	@echo "make lint       ruff and mypy"
	@echo "make clean      remove what the demo and the tools left; .venv stays"

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "error: no Python 3.11, 3.12 or 3.13 found. Install one: sudo apt install python3" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv || { rm -rf .venv; \
		echo "error: $(PYTHON) cannot make a virtual environment. On Debian and Ubuntu: sudo apt install python3-venv" >&2; exit 1; }
	@test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	@echo "Setting up .venv (a minute or two, PyTorch is large)"
	@VIRTUAL_ENV=$(CURDIR)/.venv $(BIN)/uv pip install --quiet --constraint constraints.txt --editable '.[$(EXTRAS)]'
	@touch $@

demo: setup
	@test -d demo/warehouse || $(BIN)/sp-ray demo demo/warehouse
	@$(BIN)/sp-ray run examples/shows.yaml

test: setup
	$(BIN)/python -m pytest -m "not slow and not kubernetes" -n $(FAST_WORKERS) --dist loadfile

coverage: setup
	$(BIN)/python -m pytest -m "not slow and not kubernetes" -n $(FAST_WORKERS) --dist loadfile --cov --cov-report=term

test-slow: setup
	$(BIN)/python -m pytest -m "slow and not kubernetes" -n $(WORKERS) --dist loadfile --durations 15

test-kubernetes: setup
	$(BIN)/python -m pytest -m kubernetes $(ON_PODS) --durations 15

test-image: setup
	@tests/kubernetes/image.sh

lint: setup
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: setup
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean:
	rm -rf demo runs .mypy_cache .ruff_cache .pytest_cache .coverage build dist

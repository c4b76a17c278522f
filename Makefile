# Every target sets up what it needs. `make` alone prints this list.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup test test-all test-fast lint format bench demo demo-digits constraints clean

NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for p in python3.11 python3 python3.12 python3.13; do $$p -c '$(NEW_ENOUGH)' 2>/dev/null && echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

help: ## Print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY) ## Make the environment .venv (about 5 minutes and 7 GB the first time; nothing to do after that)

$(READY): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" && $(PYTHON) -c '$(NEW_ENOUGH)' \
		|| { echo "Longhaul needs Python 3.11 or newer; give one with: make setup PYTHON=/path/to/python3.11"; exit 2; }
	@echo "Installing into $(VENV): about 5 minutes and 7 GB of disk the first time."
	$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	DS_BUILD_OPS=0 $(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	@touch $@

test: setup ## Run the tests
	$(BIN)/python -m pytest -m "not exhaustive" --durations=20

test-all: setup ## Run the tests on every engine and ZeRO stage, too (about twice the time)
	$(BIN)/python -m pytest

test-fast: setup ## Run the tests that take less than about 20 seconds each
	$(BIN)/python -m pytest -m "not slow"

lint: setup ## Check style, types, layers and shape
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python tools/shape.py

format: setup ## Format the code and put its imports in order
	$(BIN)/ruff check --fix --exit-zero
	$(BIN)/ruff format

bench: setup ## Run the benchmarks, each against its peer
	@for script in benchmarks/*.py; do echo "== $$script"; $(BIN)/python "$$script"; done

demo: setup ## Radio scenes, three detectors trained, exported, served, and asked by a stream (under 8 minutes on two cores)
	$(BIN)/python jobs/demo.py

demo-digits: setup ## Train, export, serve and ask a small classifier, start to end (under 5 minutes)
	$(BIN)/python jobs/demo_digits.py

constraints: ## Write constraints.txt anew: the newest versions that pyproject.toml allows
	rm -rf build/constraints-venv
	$(PYTHON) -m venv build/constraints-venv
	build/constraints-venv/bin/python -m pip install --quiet --upgrade pip
	DS_BUILD_OPS=0 build/constraints-venv/bin/python -m pip install --quiet -e '.[dev]'
	{ grep '^#' constraints.txt; build/constraints-venv/bin/python -m pip freeze --all --exclude-editable --exclude pip | sort -f; } > build/constraints.txt
	mv build/constraints.txt constraints.txt
	rm -rf build/constraints-venv

clean: ## Remove caches and what the demo left; keep .venv, runs and models
	rm -rf .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis .demo build
	find . -path ./$(VENV) -prune -o -name __pycache__ -prune -exec rm -rf {} +

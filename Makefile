# `make demo` and `make test` do all their set-up in .venv; they need Python 3.11 or later and a package index.
SHELL := /bin/sh
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
INSTALLED := .venv/.installed
TOOLS := .venv/.installed-with-tools

.DEFAULT_GOAL := help
.PHONY: help demo test check format bench clean

help: ## Show what can be made
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST)

$(INSTALLED): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "Python 3.11 or later is needed; name one with: make PYTHON=/path/to/python3" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	@touch $(INSTALLED)

# What only tests, checks and benchmarks need, some 300 MB of it, is not in a newcomer's way.
$(TOOLS): $(INSTALLED)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --group dev
	@touch $(TOOLS)

demo: $(INSTALLED) ## Run the main job: batch norm on real digits, three arms, a table, figures, a report
	$(BIN)/bn-lightning demo

test: $(TOOLS) ## Run every test and doctest
	$(BIN)/python -m pytest --numprocesses=2 --dist=worksteal

check: $(TOOLS) ## Lint, check the format, the types and the floors
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(TOOLS) ## Format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(TOOLS) ## Run the benchmarks; minutes
	for script in insertion planning recalibration folding monitoring monitoring_cost monitoring_accuracy monitor_warnings measures measures_in_training runner; do $(BIN)/python benchmarks/$$script.py || exit 1; done

clean: ## Remove what was installed and cached here
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache

# `make` lists the targets. PYTHON chooses the interpreter that creates .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PYTEST_ARGS ?= -q -n auto --maxprocesses 4 --dist loadfile -m "not slurm and not browser"

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help venv lint types pytest test docs demo bench coverage clean

help:  ## List the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "  %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

venv: $(STAMP)  ## Create .venv with the package, its tasks and the tools

# One pip command for everything: torch and torchvision have to be chosen together.
$(STAMP): setup.cfg pyproject.toml
	@echo "==> $(VENV): installing (the first time takes minutes)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[all,docs,dev]"
	@touch $@

lint: $(STAMP)  ## Check style, imports, formatting
	@echo "==> ruff"
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --check --quiet .

types: $(STAMP)  ## Check types
	@echo "==> mypy"
	@$(BIN)/mypy --no-error-summary

pytest: $(STAMP)  ## Run tests and doctests; PYTEST_ARGS are pytest's
	@echo "==> pytest"
	@$(BIN)/python -m pytest $(PYTEST_ARGS)

test: lint types pytest  ## Run every check: lint, types, tests and doctests

# One thread for each of two processes: tutorials run in both.
docs: $(STAMP)  ## Build the site in docs/_build/html; tutorials run, warnings are errors
	@echo "==> docs"
	@OMP_NUM_THREADS=1 $(BIN)/python -m sphinx -W --keep-going -q -j 2 -b html \
		-d docs/_build/doctrees docs docs/_build/html

demo: $(STAMP)  ## Run the short demonstration
	@$(BIN)/python scripts/demo.py

bench: $(STAMP)  ## Measure speed
	@$(BIN)/python -m benchmarks

coverage: $(STAMP)  ## Run the tests and show lines and branches they miss
	@$(BIN)/python -m pytest $(PYTEST_ARGS) --cov --cov-report=term-missing

clean:  ## Remove .venv, caches and build products (not data, logs or results)
	@rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis \
		.coverage htmlcov docs/_build docs/reference/generated
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

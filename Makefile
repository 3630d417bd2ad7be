# Everything is one line into `python3 -m sandbox` or the virtual environment: on a bare Debian 12, root and make are enough.
SHELL := /bin/sh
PYTHON ?= python3
BIN := .venv/bin
SANDBOX := $(PYTHON) -B -m sandbox
TIERS := tests/unit tests/guard tests/scenario tests/contract tests/integration

.DEFAULT_GOAL := help
.PHONY: help python venv requirements crds fmt style types test demo e2e check bench sandbox-up sandbox-down images clean

help: ## Show what there is to make.
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

python:
	@command -v $(PYTHON) >/dev/null || { apt-get -q update && apt-get -q -y --no-install-recommends install python3; }

venv: python ## Install the tools and packages into .venv, by hash.
	@$(SANDBOX) environment

requirements: python ## Compile requirements/*.txt from pyproject.toml (UPGRADE=1: to the newest versions allowed).
	@$(SANDBOX) environment --requirements $(if $(UPGRADE),--upgrade)

crds: venv ## Generate the CustomResourceDefinitions from the models.
	@$(BIN)/python -m greentrain.api.crd --write

fmt: venv ## Format the sources.
	@$(BIN)/ruff check --quiet --fix . ; $(BIN)/ruff format .

style: venv ## Check style, spelling, layers and that the CRDs are the models'.
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/codespell && $(BIN)/lint-imports && $(BIN)/python -m greentrain.api.crd --check

types: venv ## Check types, tests included.
	@$(BIN)/mypy

test: python ## Run the unit, guard, scenario, contract and integration tests.
	@$(SANDBOX) environment --with-binaries
	@$(BIN)/pytest -n 2 --dist loadfile $(TIERS)

demo: python ## From nothing to a trained model: sandbox, images, chart and the digits job (about 10 min the first time).
	@$(SANDBOX) demo

e2e: python ## Run the end-to-end tests in a sandbox of two nodes, bringing up what is missing.
	@GREENTRAIN_SANDBOX_NODES=2 $(SANDBOX) demo --without-job
	@$(BIN)/pytest tests/e2e

check: ## Everything that must hold: style, types, test, demo, e2e, in that order.
	@$(MAKE) --no-print-directory style
	@$(MAKE) --no-print-directory types
	@$(MAKE) --no-print-directory test
	@$(MAKE) --no-print-directory demo
	@$(MAKE) --no-print-directory e2e

bench: python ## Run the benchmarks of docs/benchmarks.md in the sandbox.
	@$(SANDBOX) demo --without-job
	@$(BIN)/python -m tests.bench

sandbox-up: python ## Bring the sandbox up.
	@$(SANDBOX) up

sandbox-down: python ## Remove the sandbox: processes, mounts, network, cgroups.
	@$(SANDBOX) down

images: python ## Build the images that changed.
	@$(SANDBOX) images

clean: ## Remove .venv and what the tools leave here; the cache (~/.cache/greentrain) stays.
	@rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis dist build
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

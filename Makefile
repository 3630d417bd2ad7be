# Everything is one line into `python3 -m sandbox` or the virtual environment: on a bare Debian 12, root and make are enough.
SHELL := /bin/sh
PYTHON ?= python3
BIN := .venv/bin
SANDBOX := $(PYTHON) -B -m sandbox
# Bytecode is kept even where the environment says not to write any: TensorFlow, which many tests start, then takes 3 s of a
# core instead of 7. Nothing is written beside the sources.
PYTEST := env PYTHONDONTWRITEBYTECODE= PYTHONPYCACHEPREFIX=$(CURDIR)/.venv/bytecode $(BIN)/pytest
# Three workers, because tests wait as much as they work; one that is done takes from the end of what is left to the others,
# so what takes longest stands first.
SIDE_BY_SIDE := -n 3 --dist worksteal
TIERS := tests/integration tests/contract tests/scenario tests/guard tests/unit
LIVES := tests/scenario tests/integration/agent

.DEFAULT_GOAL := help
.PHONY: help python venv requirements crds fmt style types test seeds long choose demo e2e check replay bench sandbox-up sandbox-down images clean

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

test: python ## Run the unit, guard, scenario, contract and integration tests, with a chosen fifth of the seeds.
	@$(SANDBOX) environment --with-binaries
	@$(PYTEST) $(SIDE_BY_SIDE) --seeds chosen $(TIERS)

seeds: python ## Run what make test leaves out: the other seeds, and what is asked of all of them together.
	@$(SANDBOX) environment --with-binaries
	@$(PYTEST) $(SIDE_BY_SIDE) --seeds others $(LIVES)

long: python ## Run seeds that no other tier runs (FIRST=200 LAST=999); about 20 min on two cores.
	@$(SANDBOX) environment --with-binaries
	@$(PYTEST) $(SIDE_BY_SIDE) --seeds $(or $(FIRST),200)-$(or $(LAST),999) $(LIVES)

choose: venv ## Choose again which seeds make test runs, by what happens in each life.
	@$(BIN)/python -m tests.choose

demo: python ## From nothing to a trained model: sandbox, images, chart and the budgeted job (about 10 min the first time).
	@$(SANDBOX) demo

e2e: python ## Run the end-to-end tests in a sandbox of two nodes: quiet ones side by side, disruptive ones, Kueue's.
	@GREENTRAIN_SANDBOX_NODES=2 $(SANDBOX) demo --without-job
	@$(PYTEST) -n 4 --dist load --maxschedchunk 1 tests/e2e/quiet
	@$(PYTEST) --whole tests/e2e/alone
	@$(SANDBOX) kueue
	@$(PYTEST) tests/e2e/kueue; status=$$?; $(SANDBOX) kueue --remove && exit $$status

check: python ## Everything that a change must pass: style, types, test, seeds, demo, e2e, in that order; minutes and slowest tests.
	@$(PYTHON) -B -m sandbox.checks $(MAKE)

replay: venv ## Decide a pass again by a stored snapshot, as in: make replay FILE=team.digits.json
	@$(BIN)/greentrain replay $(FILE)

bench: python ## Run the benchmarks of docs/reference/benchmarks.md in the sandbox.
	@$(SANDBOX) demo --without-job
	@$(BIN)/python -m tests.bench

sandbox-up: python ## Bring the sandbox up; KUEUE=1 adds Kueue, with a queue over its GPUs.
	@$(SANDBOX) up
	@$(if $(filter 1,$(KUEUE)),$(SANDBOX) kueue)

sandbox-down: python ## Remove the sandbox: processes, mounts, network, cgroups.
	@$(SANDBOX) down

images: python ## Build the images that changed.
	@$(SANDBOX) images

clean: ## Remove .venv and what the tools leave here; the cache (~/.cache/greentrain) stays.
	@rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis dist build
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

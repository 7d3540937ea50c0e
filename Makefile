# Everything a person or CI runs. Only python3 (3.11 or newer) and make are asked for; `env` brings the rest.

PYTHON ?= python3
BIN := .venv/bin
TESTS ?= tests
WORKERS ?= auto
PYTEST = $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist worksteal

# The tests start hundreds of processes: without compiled files each of them would compile the project anew.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help env demo test lint check format bench docs lock clean

help: ## say what there is
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' Makefile | while IFS='	' read -r name what; do printf '  make %-8s %s\n' "$$name" "$$what"; done

env: ## make .venv from the lock (at once when it is up to date)
	@$(PYTHON) .ci/make_env.py

demo: env ## an update reaches a fleet, a bad one fails, the group goes back; KEEP=1 leaves it running
	@$(BIN)/lastgood demo $(if $(KEEP),--keep)

test: env ## every test; TESTS=tests/protocol for some
	$(PYTEST) $(TESTS)

lint: env ## format, lint, types and import rules
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

check: lint test ## format, lint, types, import rules, then every test

format: env ## format, and mend what the linter can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: env ## the table of speed and memory, each figure beside a floor
	@$(BIN)/python -m tests.bench

docs: env ## write the generated pages of docs/ anew
	@$(BIN)/python docs/generate.py

# uv reads no configuration of pip's and writes the hashes of every published artefact, for every platform.
# UPGRADE=1 takes the newest versions; else what is locked stays.
LOCKING = $(BIN)/uv pip compile pyproject.toml --quiet --no-config --universal --python-version 3.11 \
	--generate-hashes --no-header --no-annotate --no-emit-index-url --no-emit-find-links $(if $(UPGRADE),--upgrade)

lock: env ## write the hash-locked requirements anew; UPGRADE=1 for newer versions
	$(LOCKING) --extra dev --output-file requirements.lock
	$(LOCKING) --constraints requirements.lock --output-file requirements-agent.lock

clean: ## remove what was made, .venv included
	rm -rf .venv .venv.lock build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

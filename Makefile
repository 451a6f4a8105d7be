# Every target does all the set-up that it needs; only Python 3.11+ and make have to be there.
#   make demo [INPUT=path]   the whole flow on this machine, without network or Docker
#   make up                  everything on this machine, for the configuration in tailrace.toml
#   make test                checks and tests
#   make help                the other targets
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
RUN    := $(VENV)/.installed-run
DEV    := $(VENV)/.installed-dev
JOBS   ?= 2

export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help demo up test check lint format types imports rules bench chaos matrix soak fuzz compose-test clean

help:
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 16

demo: $(RUN) ## the main job end to end on sample messages; INPUT=path takes your own files
	@$(BIN)/python -m ops.demo $(if $(INPUT),"$(INPUT)")

up: $(RUN) ## database, collector, worker and web page on this machine
	@$(BIN)/tailrace up

test: check ## make check, then all tests that need no Docker; a part of them on another PostgreSQL where one is installed
	$(BIN)/python tests/long/matrix.py part
	$(BIN)/python -m pytest -n $(JOBS) --dist loadscope

check: lint types imports rules ## style, types, import contracts, size budgets, alert rules

lint: $(DEV) ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(DEV) ## rewrites the code in the house style
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format .

types: $(DEV) ## mypy --strict
	$(BIN)/mypy

imports: $(DEV) ## which module may import which
	$(BIN)/lint-imports --no-cache

rules: $(DEV) ## size budgets and house rules; alert rules where promtool is installed
	$(BIN)/python -m pytest -q -p no:cacheprovider tests/test_architecture.py
	@if command -v promtool > /dev/null; then promtool test rules ops/prometheus/alerts_test.yml; fi

bench: $(DEV) ## rates and CPU per record, beside a bare loop of the same durable work
	@$(BIN)/python -m ops.bench $(ARGS)

chaos: $(DEV) ## real programs, killed, cut off, starved; an independent verdict; MINUTES=3 SEED= PGBIN= POOLER=1 SYNC=off PLANT=fence
	@MINUTES="$(MINUTES)" SEED="$(SEED)" PGBIN="$(PGBIN)" POOLER="$(POOLER)" SYNC="$(SYNC)" PLANT="$(PLANT)" $(BIN)/python tests/chaos/driver.py

matrix: $(DEV) ## suite and chaos on other servers, through PgBouncer, without prepared statements, asynchronous; CELLS="old pooler"
	@$(BIN)/python tests/long/matrix.py $(CELLS)

soak: $(DEV) ## memory, descriptors, connections, dead rows, WAL and idle statements over MINUTES=10 of load
	@MINUTES="$(MINUTES)" $(BIN)/python tests/long/soak.py

fuzz: $(DEV) ## bytes from outside, many of them: files, webhook, positions, configuration, answers of services; for about MINUTES=10
	@MINUTES="$(MINUTES)" JOBS="$(JOBS)" $(BIN)/python tests/long/fuzz.py

compose-test: ## the image and the Compose file for real; needs a Docker engine with Compose 2
	@$(PYTHON) tests/e2e/compose.py

clean: ## removes what the targets above made in this folder
	rm -rf $(VENV) dist .mypy_cache .ruff_cache .pytest_cache .hypothesis

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: $(PYTHON) is not Python 3.11 or newer; name one with: make PYTHON=python3.13 ..." >&2; exit 2; }
	@$(PYTHON) -m venv $(VENV) || \
	  { rm -rf $(VENV); echo "error: $(PYTHON) cannot make a virtual environment; on Debian: apt install python3-venv" >&2; exit 2; }

$(RUN): pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet -e '.[embedded]'
	@touch $@

$(DEV): pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet -e '.[bluesky,embedded,github,rss,telegram,x,zstd,dev]'
	@touch $@ $(RUN)

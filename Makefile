# Thin fronts; each target sets up what it needs. `make help` lists them.
SHELL := /bin/sh
.DEFAULT_GOAL := help
.PHONY: help env demo test test-fast soak check bench dist clean

# The first Python on the PATH that is new enough; PYTHON=/path/to/python overrides.
MINIMUM := import sys; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python; do \
	$$p -c '$(MINIMUM)' 2>/dev/null && { echo $$p; break; }; done)

BIN := .venv/bin
STAMP := .venv/.up-to-date
PROJECTS := $(wildcard pyproject.toml core/pyproject.toml plugins/*/pyproject.toml contrib/*/pyproject.toml)
PACKAGES := $(dir $(wildcard core/src/*/__init__.py plugins/*/src/*/__init__.py contrib/*/src/*/__init__.py))
PYTEST := $(BIN)/python -m pytest
# Most tests wait rather than compute: two processes a core.
PARALLEL := -n $(shell expr 2 \* $$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 1)) --dist worksteal
WITH_SERVERS := $(BIN)/python -m tests.support.servers run --
# Arguments for pytest: make test ARGS='-k redis -x'
ARGS ?=
# What the demo works on; default: the standard library's sources.
FOLDER ?=
# pytest says 5 when a selection holds no test, which is no fault of a target that selects.
NONE_IS_FINE := || [ $$? -eq 5 ]

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## /  make \1\t/' | expand -t 18

env: $(STAMP) ## .venv with everything in the tree, editable, and the tools

$(STAMP): $(PROJECTS) constraints.txt tests/support/install.py Makefile
	@[ -n '$(PYTHON)' ] && '$(PYTHON)' -c '$(MINIMUM)' || { \
		echo 'make: taskq needs Python 3.11 or newer; name one with PYTHON=/path/to/python3' >&2; exit 1; }
	'$(PYTHON)' tests/support/install.py --env

demo: env ## start a worker, fan a task out over real files, reduce to a table (FOLDER=…, ARGS=--keep)
	$(BIN)/python docs/examples/demo/run.py $(ARGS) $(if $(FOLDER),'$(FOLDER)')

test: env ## everything but the soak tests, with real servers
	$(WITH_SERVERS) $(PYTEST) $(PARALLEL) -p tests.support.second_chance $(ARGS)

test-fast: env ## without servers, under a minute
	$(PYTEST) $(PARALLEL) -m 'not server and not slow' $(ARGS)

soak: env ## thousands of random faults (TASKQ_SEED=… repeats one run)
	TASKQ_SOAK=1 $(WITH_SERVERS) $(PYTEST) -m soak -o timeout=3600 $(ARGS) $(NONE_IS_FINE)

check: env ## lint, format, types, import contracts: all of them, then fail if one did
	@failed=; try() { echo "$$*"; "$$@" || failed="$$failed $${1##*/}"; }; \
	try $(BIN)/ruff check .; \
	try $(BIN)/ruff format --check .; \
	try $(BIN)/mypy $(PACKAGES) tests/support; \
	try $(BIN)/python -m tests.support.contracts; \
	[ -z "$$failed" ] || { echo "check: failed:$$failed" >&2; exit 1; }

bench: env ## rates and ratios, printed
	$(BIN)/python -m tests.support.servers run --durable -- $(BIN)/python -m tests.bench $(ARGS)

dist: env ## all wheels, ours and what they need, into dist/
	$(BIN)/python tests/support/install.py --wheels dist

clean: ## remove what these targets made
	rm -rf .venv dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

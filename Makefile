# make run     the whole service on this machine, no cloud account needed
# make test    the tests that need Python alone
# make verify  the tests on DynamoDB Local and in Lambda's own runtime loop
# make check   lint and strict types
# PYTHON=python3.13 make run     uses another Python (3.11 or newer)

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
PORT ?= 8000

.PHONY: run test verify verify-tools check mutants format lock clean
.DEFAULT_GOAL := help

help:
	@sed -n 's/^# //p' Makefile | head -12

$(INSTALLED): infra/requirements/dev.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed; name one with PYTHON=..." >&2; exit 1; }
	@echo "Installing into $(VENV) (once; about a minute) ..."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --disable-pip-version-check --require-hashes \
	  --requirement infra/requirements/dev.txt
	@touch $@

run: $(INSTALLED)
	@PORT=$(PORT) exec $(BIN)/python -m infra.local

test: $(INSTALLED)
	@$(BIN)/python -m pytest -q -n auto --maxprocesses 4 --dist loadfile

verify: verify-tools
	@$(BIN)/python -m pytest -m real -n 2 --dist loadfile

# Needs Java 17 and npm (Debian: default-jre-headless npm) and a Python 3.13.
verify-tools: $(INSTALLED)
	@$(BIN)/python -m infra.verify.tools

check: $(INSTALLED)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

# Breaks the money protocol on purpose, a dozen and more times; fails when a break goes unnoticed.
mutants: $(INSTALLED)
	@$(BIN)/python -m tests.mutants

format: $(INSTALLED)
	@$(BIN)/ruff check --fix-only .
	@$(BIN)/ruff format .

# Needs uv: recompiles the pinned requirements from the .in files.
lock:
	cd infra/requirements && for name in runtime dev verify; do \
	  uv pip compile --universal --python-version 3.11 --generate-hashes --no-header \
	    --no-emit-index-url --no-emit-find-links --constraint runtime.in $$name.in -o $$name.txt; done
	cd infra/requirements && uv pip compile --no-deps --universal --python-version 3.11 \
	  --generate-hashes --no-header --no-emit-index-url --no-emit-find-links emulator.in -o emulator.txt

clean:
	rm -rf $(VENV) .local .build .aws-sam .mypy_cache .ruff_cache .pytest_cache .hypothesis

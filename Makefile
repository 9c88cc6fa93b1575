# make run     the whole service on this machine, no cloud account needed
# make test    the tests that need Python alone
# make verify  the tests on DynamoDB Local and in Lambda's own runtime loop
# make check   lint and strict types
# make bench   measures it beside what a user would have instead: infra/bench/RESULTS.md
# make build   what is deployed, into .build/artifact/arm64 (ARCHITECTURE=x86_64 for the other)
# PYTHON=python3.13 make run     uses another Python (3.11 or newer)

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
PORT ?= 8000
ARCHITECTURE ?= arm64
# A build needs no packages of Python's: an operator's machine may have none.
BUILDER = $(or $(wildcard $(BIN)/python),$(PYTHON))

.PHONY: run test verify bench verify-tools check build artifact mutants format lock clean
.DEFAULT_GOAL := help

define python_is_new_enough
  $(1) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
    { echo "Python 3.11 or newer is needed; name one with PYTHON=..." >&2; exit 1; }
endef

help:
	@sed -n 's/^# //p' Makefile | head -7

# The project itself is installed too, as it lies here: that makes $(BIN)/gemini-generate.
$(INSTALLED): infra/requirements/dev.txt pyproject.toml
	@$(call python_is_new_enough,$(PYTHON))
	@echo "Installing into $(VENV) (once; about a minute) ..."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --disable-pip-version-check --require-hashes \
	  --requirement infra/requirements/dev.txt
	@$(BIN)/python -m pip install --disable-pip-version-check --quiet --no-deps --no-index \
	  --no-build-isolation --editable .
	@touch $@

run: $(INSTALLED)
	@PORT=$(PORT) exec $(BIN)/python -m infra.local

test: $(INSTALLED)
	@$(BIN)/python -m pytest -q -n auto --maxprocesses 4 --dist loadfile

verify: verify-tools
	@$(BIN)/python -m pytest -m real -n 3 --dist loadfile --no-loadscope-reorder

# Leave the machine alone meanwhile: it takes about twenty minutes.
bench: verify-tools
	@$(BIN)/python -m infra.bench

# Needs Java 17, npm, Chromium and its driver (Debian: default-jre-headless npm chromium
# chromium-driver) and a Python 3.13.
verify-tools: $(INSTALLED)
	@$(BIN)/python -m infra.verify.tools

check: $(INSTALLED)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

build:
	@rm -rf .build/artifact/$(ARCHITECTURE)
	@$(MAKE) --no-print-directory artifact INTO=.build/artifact/$(ARCHITECTURE)

# Also what `sam build` comes to, by way of infra/build/<architecture>/Makefile.
artifact:
	@$(call python_is_new_enough,$(BUILDER))
	@$(BUILDER) -m infra.build --architecture $(ARCHITECTURE) --into "$(INTO)"

# Breaks the money protocol on purpose, a dozen and more times; fails when a break goes unnoticed.
mutants: $(INSTALLED)
	@$(BIN)/python -m tests.mutants

format: $(INSTALLED)
	@$(BIN)/ruff check --fix-only .
	@$(BIN)/ruff format .

# Needs uv: recompiles the pinned requirements from the .in files.
LOCK = uv pip compile --universal --python-version 3.11 --generate-hashes --no-header \
  --no-emit-index-url --no-emit-find-links
lock:
	cd infra/requirements && for name in runtime dev verify; do \
	  $(LOCK) --constraint runtime.in $$name.in -o $$name.txt; done
	cd infra/requirements && for name in sam checkov schemathesis litellm; do $(LOCK) $$name.in -o $$name.txt; done

clean:
	rm -rf $(VENV) .local .build .aws-sam .mypy_cache .ruff_cache .pytest_cache .hypothesis

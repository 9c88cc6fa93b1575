# `make help` lists the targets. PYTHON=python3.13 make run uses another Python, 3.11 or newer.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
PORT ?= 8000
# This machine's. `sam build` names the deployment's.
ARCHITECTURE ?= $(if $(filter arm64 aarch64,$(shell uname -m)),arm64,x86_64)
# A build needs no installed packages: an operator's machine may have only Python.
BUILDER = $(or $(wildcard $(BIN)/python),$(PYTHON))

.PHONY: help run sam-local test check verify bench build format docs lock advisories counts mutants verify-tools artifact clean
.DEFAULT_GOAL := help

define python_is_new_enough
  $(1) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
    { echo "Python 3.11 or newer is required; name one with PYTHON=..." >&2; exit 1; }
endef

help: ## list these targets
	@sed -n 's/^\([a-z-]*\):.* ## \(.*\)/\1|\2/p' Makefile | \
	  while IFS='|' read -r target text; do printf 'make %-13s %s\n' "$$target" "$$text"; done

run: $(INSTALLED) ## run the whole service on this machine, without a cloud account (PORT=8000)
	@PORT=$(PORT) exec $(BIN)/python -m infra.local

sam-local: $(INSTALLED) build ## make run, for the built functions in Lambda's container too (needs Docker)
	@PORT=$(PORT) exec $(BIN)/python -m infra.local --sam-local

test: $(INSTALLED) ## run the tests that need only Python
	@$(BIN)/python -m pytest -q -n 3 --dist loadfile

check: $(INSTALLED) ## lint and check types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

verify: verify-tools ## run the tests on DynamoDB Local, in Lambda's runtime, a browser and a deployment
	@$(BIN)/python -m pytest -m real -n 3 --dist loadfile --no-loadscope-reorder

# Leave the machine idle meanwhile.
bench: verify-tools ## measure the service beside its alternatives: infra/bench/RESULTS.md (20 minutes)
	@$(BIN)/python -m infra.bench

build: ## build the functions for this machine, into .build/artifact (ARCHITECTURE=arm64 for another)
	@rm -rf .build/artifact/$(ARCHITECTURE)
	@$(MAKE) --no-print-directory artifact INTO=.build/artifact/$(ARCHITECTURE)

format: $(INSTALLED) ## format the code and apply the linter's safe fixes
	@$(BIN)/ruff check --fix-only .
	@$(BIN)/ruff format .

docs: $(INSTALLED) ## render infra/docs/API.md from the HTTP contract
	@$(BIN)/python -m infra.docs.api

# Without UPGRADE, only what the .in files ask for changes.
UPGRADE ?= --upgrade
LOCK = ../../$(BIN)/python -m uv pip compile --quiet --universal --python-version 3.11 \
  --generate-hashes --only-binary=:all: --no-header --no-emit-index-url --no-emit-find-links $(UPGRADE)
lock: $(INSTALLED) ## pin the newest release of every package in infra/requirements (UPGRADE= keeps pins)
	@cd infra/requirements && $(LOCK) runtime.in -o runtime.txt
	@cd infra/requirements && for name in dev verify; do \
	  $(LOCK) --constraint runtime.txt $$name.in -o $$name.txt || exit 1; done
	@cd infra/requirements && for name in uv sam ministack checkov schemathesis clients advisories openai0 openai1 openai2 openai3; do \
	  $(LOCK) $$name.in -o $$name.txt || exit 1; done

advisories: $(INSTALLED) ## look every pin up in a database of known vulnerabilities
	@$(BIN)/python -m infra.verify.advisories

counts: $(INSTALLED) ## write what the last make verify tried into infra/docs/ARCHITECTURE.md
	@$(BIN)/python -m tests.reporting

mutants: $(INSTALLED) ## break the money protocol on purpose; fails if the tests miss a break
	@$(BIN)/python -m tests.mutants

# Java 17, npm, Chromium and its driver (Debian: default-jre-headless npm chromium chromium-driver)
# and a Python 3.13 must be there.
verify-tools: $(INSTALLED) ## install what verify and bench use, into .build/tools
	@$(BIN)/python -m infra.verify.tools

# `sam build` runs it too, through infra/build/<architecture>/Makefile.
artifact: ## build what is deployed, into the directory INTO
	@$(call python_is_new_enough,$(BUILDER))
	@$(BUILDER) -m infra.build --architecture $(ARCHITECTURE) --into "$(INTO)"

clean: ## remove everything that these targets make
	rm -rf $(VENV) .local .build .aws-sam .mypy_cache .ruff_cache .pytest_cache .hypothesis

# The project is installed as editable, for $(BIN)/gemini-generate.
$(INSTALLED): infra/requirements/uv.txt infra/requirements/dev.txt pyproject.toml
	@$(call python_is_new_enough,$(PYTHON))
	@$(PYTHON) -m infra.environments $(VENV)
	@touch $@

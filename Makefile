# `make test` and `make quickstart` need nothing but make and Python 3.11 or newer:
# the first call creates .venv and installs the package there.
#
# Every path below is relative, so that the checkout may lie in a folder with spaces in its name.

PYTHON ?= python3
EXTRAS ?= dev,plots,baselines
OUT ?= runs/quickstart
VENV := .venv
RUN := $(VENV)/bin/python
# Threads that wait for work sleep: spinning would take the cores from other processes.
OMP_WAIT_POLICY ?= passive
export OMP_WAIT_POLICY
# Two processes share the tests; with PYTEST= it is one, which a debugger can stop.
PYTEST ?= -n 2 --dist worksteal
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help install lint format test test-slow test-all test-full test-upstream test-matrix coverage fuzz package audit \
	docs quickstart clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' Makefile | sed -E 's/^([a-z-]+):.*## /  make \1|/' | \
		while IFS='|' read -r name text; do printf '%-20s %s\n' "$$name" "$$text"; done
	@echo
	@echo 'Variables: PYTHON=python3.12  DATA=folder  OUT=runs/quickstart  SEED=0  ARGS="..."'

install: $(STAMP) ## create .venv and install the package with its development tools

$(STAMP): pyproject.toml
	@command -v "$(PYTHON)" >/dev/null 2>&1 || { \
		echo 'make: no "$(PYTHON)" found. Install Python 3.11 or newer, or name one: make PYTHON=/path/to/python3.12' >&2; \
		exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "make: drmm-hf needs Python 3.11 or newer, but $(PYTHON) is $$("$(PYTHON)" --version 2>&1)." \
			"Name a newer one: make PYTHON=python3.12" >&2; \
		exit 1; }
	@"$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null || { \
		echo 'make: $(PYTHON) cannot create virtual environments. Install its venv package' \
			'(Debian and Ubuntu: apt install python3-venv).' >&2; \
		exit 1; }
	"$(PYTHON)" -m venv $(VENV)
	$(RUN) -m pip install --disable-pip-version-check -e ".[$(EXTRAS)]"
	@touch $(STAMP)

lint: $(STAMP) ## ruff check, ruff format --check, mypy
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

format: $(STAMP) ## let ruff sort imports and format
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

test: $(STAMP) ## the quick tests; real data only if DRMM_TEST_DATA names a folder
	$(RUN) -m pytest $(PYTEST) -q $(ARGS)

test-slow: $(STAMP) ## the slow tests alone
	$(RUN) -m pytest $(PYTEST) -q -m slow $(ARGS)

test-all: $(STAMP) ## the quick and the slow tests
	$(RUN) -m pytest $(PYTEST) -q -m 'not full' $(ARGS)

test-full: $(STAMP) ## every test, also those of minutes
	$(RUN) -m pytest $(PYTEST) -q -m '' $(ARGS)

test-upstream: $(STAMP) ## transformers' own tests of every model (downloads its source distribution)
	$(RUN) -m pip install --disable-pip-version-check --quiet parameterized
	$(RUN) tests/upstream/fetch.py
	DRMM_UPSTREAM=1 $(RUN) -m pytest -q -rs tests/upstream -W ignore -o addopts=--import-mode=importlib $(ARGS)

test-matrix: $(STAMP) ## the quick tests with the lowest and the newest versions, on every Python there is (slow: installs)
	$(RUN) tests/matrix.py $(ARGS)

coverage: $(STAMP) ## the quick tests, the ten slowest of them, and how much of src/ they reach: at least 90%
	$(RUN) -m pytest $(PYTEST) -q --cov --cov-report=term --durations=10 $(ARGS)

fuzz: $(STAMP) ## 2,000 damaged inputs: each is read or refused with a clear error (ARGS="--cases 20000 --seed 1")
	PYTHONPATH=tests $(RUN) -m fuzz $(ARGS)

package: $(STAMP) ## build sdist and wheel in dist/, install the wheel apart from this folder, run the README there
	rm -rf dist
	$(RUN) -m build --outdir dist
	$(RUN) .ci/check_package.py dist README.md

audit: $(STAMP) ## known vulnerabilities in what is installed (asks a database on the network)
	$(RUN) -m pip install --disable-pip-version-check --quiet pip-audit
	$(RUN) -m pip_audit --strict --skip-editable $(ARGS)

docs: $(STAMP) ## the tables of the pages anew from the files of results, and the reference as HTML in build/docs
	$(RUN) -m pip install --disable-pip-version-check --quiet -e ".[$(EXTRAS),docs]"
	$(RUN) docs/tables.py
	$(RUN) -m pdoc --math -o build/docs drmm_hf

quickstart: $(STAMP) ## look at a small detector, then fine-tune it, on your DATA= if given (OUT= SEED= ARGS=)
	$(RUN) scripts/quickstart.py $(if $(DATA),--data "$(DATA)") --output "$(OUT)" \
		$(if $(SEED),--seed "$(SEED)") $(ARGS)

clean: ## remove .venv, builds and caches; runs/ stays
	rm -rf $(VENV) build dist .coverage .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find src tests scripts -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

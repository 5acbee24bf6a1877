# Two commands on a fresh machine: `make demo` and `make test`. `make help` lists the others.
PYTHON      ?= python3
VENV        ?= .venv
CONSTRAINTS ?= constraints.txt
IMAGES      ?= digits
LEARNING_ZOO ?= zoos/learning
BIN         := $(VENV)/bin
STAMP       := $(VENV)/.installed
DEV_STAMP   := $(VENV)/.installed-dev
COVERAGE_STAMP := $(VENV)/.installed-coverage
PYG_STAMP   := $(VENV)/.installed-pyg
PIP         := $(BIN)/python -m pip install -q --disable-pip-version-check -c $(CONSTRAINTS)

.DEFAULT_GOAL := help
.PHONY: help demo test test-all test-here demo-here check format bench laws learning coverage-report clean

help:
	@echo "make demo       set up, run the demonstration, write its results to demo/"
	@echo "make test       set up, run the tests (the quick ones: what every change must pass)"
	@echo "make test-all   the same with the tests marked slow"
	@echo "make check      set up, ruff format --check, ruff check, mypy"
	@echo "make format     set up, let ruff format and repair what it can"
	@echo "make bench      set up with PyG, measure speed and memory, write docs/speed.md (20 minutes)"
	@echo "make laws       set up, check every metanetwork on every law, write docs/laws.md"
	@echo "make learning   set up, train every metanetwork for the same CPU time, write docs/learning.md (hours)"
	@echo "make coverage-report  set up with transformers and PyG, capture and verify all architectures"
	@echo "make test-here  tests in the active Python, installs nothing (also: demo-here)"
	@echo "make clean      remove the environment, caches and demo/"
	@echo "Settings: PYTHON=$(PYTHON) VENV=$(VENV) CONSTRAINTS=$(CONSTRAINTS)"

# A stamp is touched only when the install succeeded, so a killed set-up is simply run again.
$(STAMP): pyproject.toml $(CONSTRAINTS)
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else \
	  "paramgraph needs Python 3.11 or newer, but $(PYTHON) is " + sys.version.split()[0] + \
	  ". Name a newer one: make PYTHON=python3.12 ...")'
	@start=$$(date +%s); \
	echo "Setting up $(VENV) (once; torch is large) ..."; \
	$(PYTHON) -m venv $(VENV) || { echo "$(PYTHON) cannot make a virtual environment" \
	  "(on Debian or Ubuntu: install python3-venv)." >&2; exit 1; }; \
	$(PIP) -e ".[test]" && touch $@ && echo "Set-up took $$(( $$(date +%s) - start )) s."

$(DEV_STAMP): $(STAMP)
	@start=$$(date +%s); \
	$(PIP) -e ".[dev]" && touch $@ && echo "Set-up of the check tools took $$(( $$(date +%s) - start )) s."

$(COVERAGE_STAMP): $(STAMP)
	@start=$$(date +%s); \
	$(PIP) -e ".[coverage]" && touch $@ && \
	echo "Set-up of transformers and PyG took $$(( $$(date +%s) - start )) s."

$(PYG_STAMP): $(STAMP)
	@start=$$(date +%s); \
	$(PIP) -e ".[pyg]" && touch $@ && echo "Set-up of PyG took $$(( $$(date +%s) - start )) s."

demo: $(STAMP)
	$(BIN)/paramgraph demo --out demo

test: $(STAMP)
	$(BIN)/python -m pytest

test-all: $(STAMP)
	$(BIN)/python -m pytest -m "slow or not slow"

check: $(DEV_STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(DEV_STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(PYG_STAMP)
	$(BIN)/python -m benchmarks

laws: $(STAMP)
	$(BIN)/python -m benchmarks laws

learning: $(STAMP)
	$(BIN)/python -m benchmarks.learning_check --images $(IMAGES) --zoo $(LEARNING_ZOO)
	$(BIN)/python -m benchmarks.learning_table

coverage-report: $(COVERAGE_STAMP)
	$(BIN)/python -m benchmarks.coverage

test-here:
	$(PYTHON) -m pytest

demo-here:
	$(PYTHON) -m paramgraph demo --out demo

clean:
	rm -rf $(VENV) demo build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis

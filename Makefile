# Everything happens in .venv, which `setup` makes; no target needs another step before it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO ?= demo
GALAXIES ?= 3000

# Without stored bytecode every process would compile all that it imports: ten seconds for torch, Ray and MLflow.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup demo test test-all lint bench clean
.DEFAULT_GOAL := help

help:
	@echo "make demo      mock survey -> training under Ray -> embeddings -> report, in $(DEMO)/"
	@echo "make test      all tests but the slow ones"
	@echo "make test-all  all tests"
	@echo "make lint      ruff and mypy"
	@echo "make bench     all measures; rewrites the README's table"

setup: $(VENV)/installed

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --no-compile --constraint constraints.txt --editable '.[dev]'
	touch $@

# Each step is skipped when its result is there already: an interrupted demo goes on where it stopped.
demo: setup
	test -e $(DEMO)/mock/manifest.json || \
		$(BIN)/astroclip shards build mock --galaxies $(GALAXIES) --seed 1 --samples-per-shard 400 $(DEMO)/mock
	$(BIN)/astroclip train configs/demo.yaml data=$(DEMO)/mock run=$(DEMO)/run launcher=ray
	test -e $(DEMO)/embeddings/manifest.json || $(BIN)/astroclip embed $(DEMO)/run $(DEMO)/mock $(DEMO)/embeddings
	$(BIN)/astroclip evaluate $(DEMO)/embeddings $(DEMO)/report.html --run $(DEMO)/run

test: setup
	$(BIN)/pytest -m "not slow"

test-all: setup
	$(BIN)/pytest

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: setup
	$(BIN)/python -m tests.benchmarks.run_all

clean:
	rm -rf $(DEMO) .pytest_cache .hypothesis .mypy_cache .ruff_cache

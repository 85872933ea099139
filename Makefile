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
	@echo "make demo      mock survey -> three stages of training -> embeddings -> report, in $(DEMO)/"
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
demo: export MLFLOW_TRACKING_URI ?= sqlite:///$(abspath $(DEMO))/mlflow.db
demo: setup
	test -e $(DEMO)/mock/manifest.json || \
		$(BIN)/astroclip shards build mock --galaxies $(GALAXIES) --seed 1 --samples-per-shard 400 $(DEMO)/mock
	$(BIN)/astroclip train configs/demo/spectrum.yaml data=$(DEMO)/mock run=$(DEMO)/spectrum/run
	$(BIN)/astroclip train configs/demo/image.yaml data=$(DEMO)/mock run=$(DEMO)/image/run
	$(BIN)/astroclip train configs/demo/align.yaml data=$(DEMO)/mock run=$(DEMO)/align/run launcher=ray \
		objective.image_from=$(DEMO)/image/run objective.spectrum_from=$(DEMO)/spectrum/run
	for stage in spectrum image align; do \
		test -e $(DEMO)/$$stage/embeddings/manifest.json || \
			$(BIN)/astroclip embed $(DEMO)/$$stage/run $(DEMO)/mock $(DEMO)/$$stage/embeddings || exit 1; \
	done
	$(BIN)/astroclip evaluate $(DEMO)/align/embeddings $(DEMO)/report.html --run $(DEMO)/align/run \
		--compare "unaligned images=$(DEMO)/image/embeddings" \
		--compare "unaligned spectra=$(DEMO)/spectrum/embeddings" \
		--image-run $(DEMO)/image/run --spectrum-run $(DEMO)/spectrum/run

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

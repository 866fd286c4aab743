# Every target needs only Python >= 3.10 and make: the first call builds .venv, later ones start at once.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: study test test-full coverage lint bench docs fuzz clean help

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## */\t/'

$(READY): pyproject.toml .ci/constraints.txt
	@echo "Installing tdcompress and what it needs into $(VENV) (once; a few minutes at most)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c .ci/constraints.txt -e '.[dev]'
	@touch $@

study: $(READY)  ## the paper's question on a small network: decompose, measure, correlate, draw
	@$(BIN)/python -m examples.paper $(ARGS)

test: $(READY)  ## the tests and every documented example, in less than four minutes on two cores
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal $(ARGS)

test-full: $(READY)  ## the same with every combination, and ten times the drawn examples, in eleven
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal --full $(ARGS)

coverage: $(READY)  ## which lines and branches of the package the tests run
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c .ci/constraints.txt -e '.[coverage]'
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal --cov --cov-report=term $(ARGS)

lint: $(READY)  ## style, types, import directions
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

bench: $(READY)  ## error, time and memory beside the peers
	@$(BIN)/python -m tests.benchmarks $(ARGS)

docs: $(READY)  ## the documentation, with its gallery run anew, into docs/_build/html
	@rm -rf docs/api
	@$(BIN)/python -m sphinx -W --keep-going -q -b html $(ARGS) docs docs/_build/html
	@echo "docs/_build/html/index.html"

fuzz: $(READY)  ## 10 000 wrong files for everything that reads files
	@OMP_NUM_THREADS=1 $(BIN)/python -m tests.fuzz $(ARGS)

clean:  ## remove what the other targets made
	rm -rf $(VENV) docs/_build docs/api docs/gallery results

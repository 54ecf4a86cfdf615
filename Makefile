# `make train` and `make test` set up everything they need in .venv and then do the job.
SHELL := /bin/bash
RECIPE ?= recipes/quickstart.toml
ARGS ?=
VENV ?= .venv
BIN := $(VENV)/bin
# The first Python from 3.11 to 3.13 on this machine.
PYTHON ?= $(shell for name in python3 python3.13 python3.12 python3.11; do \
	$$name -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null && echo $$name && break; done)

.PHONY: train test lint test-slow benchmark figures schema clean

train: $(VENV)/.train
	$(BIN)/fastres train $(RECIPE) $(ARGS)

# Workers take files as a whole, with one thread each, which conftest.py sees to; afterwards, by itself, what times
# something or kills processes. (With pytest 9.2, pytest-xdist 3.8 finds no groups of its own.)
WORKERS ?= 2
test: lint
	$(BIN)/python -m pytest -m "not slow and not serial" \
	  --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder $(ARGS)
	$(BIN)/python -m pytest -m "serial and not slow" $(ARGS) || test $$? = 5 # none among those that ARGS names

lint: $(VENV)/.test
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	PYTHONPATH=. $(BIN)/lint-imports

# What takes long, in parts of less than 50 minutes; the logs of the last runs on a quiet machine are committed.
PARTS := kills fuzz zoo kernels rest
PART ?= $(PARTS)
test-slow: $(VENV)/.test
	@test -z "$(filter-out $(PARTS),$(PART))" || { echo "PART is one or more of: $(PARTS)" >&2; exit 2; }
	@mkdir -p tests/slow
	@set -o pipefail; status=0; for part in $(PART); do \
	  marked="slow and $$part"; test $$part != rest || marked="slow and not (kills or fuzz or zoo or kernels)"; \
	  $(BIN)/python -m pytest tests -m "$$marked" -v --no-header --durations=0 $(ARGS) 2>&1 \
	    | tee tests/slow/$$part.log || status=1; \
	done; exit $$status

benchmark: $(VENV)/.test
	$(BIN)/python -m pytest benchmarks --benchmark-only $(ARGS)

# Tables and pictures of the READMEs, from benchmarks/results/.
figures: $(VENV)/.train
	$(BIN)/python -m benchmarks.published.readme

# The JSON Schema from which editors complete recipes; a test fails when it is stale.
schema: $(VENV)/.train
	$(BIN)/python -m fastres.recipe > recipes/recipe.schema.json

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(VENV)/bin/pip:
	@test -n "$(PYTHON)" || { echo "fastres needs Python 3.11 to 3.13: apt-get install python3 python3-venv python3-dev" >&2; exit 2; }
	@$(PYTHON) -m venv $(VENV) || { echo "no virtual environment: apt-get install python3-venv python3-dev g++" >&2; rm -rf $(VENV); exit 2; }

# One pip call each, so that torch, torchvision and triton are chosen together.
$(VENV)/.train: pyproject.toml | $(VENV)/bin/pip
	$(BIN)/pip install --quiet --disable-pip-version-check --editable .
	@touch $@

# What FFCV is built against; root on Debian gets it here.
FFCV_NEEDS := g++ pkg-config libopencv-dev libturbojpeg0-dev
.PHONY: ffcv-needs
ffcv-needs:
	@pkg-config --exists opencv4 libturbojpeg 2>/dev/null && command -v g++ >/dev/null || { \
	  test "$$(id -u)" = 0 && command -v apt-get >/dev/null || \
	    { echo "the tests need FFCV, which is built from source: apt-get install $(FFCV_NEEDS)" >&2; exit 2; }; \
	  apt-get update -qq && \
	    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $(FFCV_NEEDS) >/dev/null; }

$(VENV)/.test: pyproject.toml | $(VENV)/bin/pip ffcv-needs
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[test]'
	@touch $@ $(VENV)/.train

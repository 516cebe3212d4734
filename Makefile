PYTHON ?= python3
VENV ?= .venv
FRAMEWORKS ?= .venv-frameworks
BIN = $(VENV)/bin
# Two files at a time, with a thread each: threads of several processes on one core slow each other manyfold. In their
# order: by number of tests, the one of twenty killed runs would come last and alone.
TEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: setup demo test test-frameworks check first-hour screenshots world docs site

setup: $(VENV)/installed

demo: $(VENV)/installed
	$(BIN)/sae-lm-eval demo

# Without the tests that are marked slow.
test: $(VENV)/installed
	$(TEST) -m "not slow"

# Inspect and lighteval need other versions than constraints.txt has, so they are installed apart.
test-frameworks: $(FRAMEWORKS)/installed
	OMP_NUM_THREADS=1 $(FRAMEWORKS)/bin/python -m pytest -q tests/frameworks

check: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports --no-logo
	$(TEST)

# The commands of README and tutorials, in a fresh clone with the package installed anew.
first-hour: $(VENV)/installed
	sh scripts/first_hour.sh $(VENV)

# What the report and the talk page look like: out/demo/screenshots. Needs Chromium.
screenshots: demo
	$(BIN)/python scripts/screenshots.py out/demo --readme

# About half an hour on one core, to the same weights bit for bit on the same machine; rewrites the embedded world in src/sae_lm_eval/world/files.
world: $(VENV)/installed
	$(BIN)/python scripts/make_world.py

docs: $(VENV)/installed
	$(BIN)/python scripts/specs_table.py
	$(BIN)/python scripts/schema_tables.py
	$(BIN)/python scripts/argument_tables.py
	$(BIN)/typer sae_lm_eval.cli.main utils docs --name sae-lm-eval --output docs/cli.md

# The pages of docs/ with their navigation, in site/.
site: $(VENV)/installed
	$(BIN)/mkdocs build --quiet

# torch first: what depends on it would bring a build of its own choice.
$(VENV)/installed: pyproject.toml constraints.txt
	@echo "Installing lm_eval, SAELens, torch and what they need into $(VENV): $$(grep -c == constraints.txt) pinned packages,"
	@echo "some gigabytes. This is done once, and takes minutes, most of them for downloads."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt --upgrade pip
	$(BIN)/python -m pip install -q -c constraints.txt torch
	$(BIN)/python -m pip install -q -c constraints.txt -e . --group dev
	touch $@

$(FRAMEWORKS)/installed: pyproject.toml constraints-frameworks.txt
	@echo "Installing Inspect, lighteval and what sae_lm_eval needs beside them into $(FRAMEWORKS)."
	$(PYTHON) -m venv $(FRAMEWORKS)
	$(FRAMEWORKS)/bin/python -m pip install -q -c constraints-frameworks.txt --upgrade pip
	$(FRAMEWORKS)/bin/python -m pip install -q -c constraints-frameworks.txt torch
	$(FRAMEWORKS)/bin/python -m pip install -q -c constraints-frameworks.txt -e . --group frameworks
	touch $@

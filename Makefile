PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

.PHONY: demo test check world docs

demo: $(VENV)/installed
	$(BIN)/sae-lm-eval demo

test: $(VENV)/installed
	$(BIN)/python -m pytest -q

check: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/python -m pytest -q

# An hour and a half on two cores; rewrites the embedded world in src/sae_lm_eval/world/files.
world: $(VENV)/installed
	$(BIN)/python scripts/make_world.py

docs: $(VENV)/installed
	$(BIN)/python scripts/specs_table.py

# torch first: what depends on it would bring a build of its own choice.
$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt --upgrade pip
	$(BIN)/python -m pip install -q -c constraints.txt torch
	$(BIN)/python -m pip install -q -c constraints.txt -e . --group dev
	touch $@

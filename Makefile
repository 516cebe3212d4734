PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

.PHONY: test check

test: $(VENV)/installed
	$(BIN)/python -m pytest -q

check: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/python -m pytest -q

# torch first: what depends on it would bring a build of its own choice.
$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt --upgrade pip
	$(BIN)/python -m pip install -q -c constraints.txt torch
	$(BIN)/python -m pip install -q -c constraints.txt -e . --group dev
	touch $@

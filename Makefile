PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: demo docs test test-all test-gpu lint clean

$(INSTALLED): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "clipvid needs Python 3.11 or newer; PYTHON=/path/to/python make ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing clipvid and what it needs into $(VENV) (a few minutes the first time)"
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --progress-bar on -e '.[dev]'
	touch $@

demo: $(INSTALLED)
	$(BIN)/clipvid demo

test: $(INSTALLED)
	$(BIN)/python -m pytest -n 2 --dist loadfile

test-all: $(INSTALLED)
	$(BIN)/python -m pytest -n 2 --dist loadfile -m 'slow or not slow'

test-gpu: $(INSTALLED)
	$(BIN)/python -m pytest -m gpu tests/test_gpu.py

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --platform linux
	$(BIN)/mypy --platform darwin
	$(BIN)/mypy --platform win32
	$(BIN)/lint-imports

docs: $(INSTALLED)
	$(BIN)/python -m pip install --quiet -e '.[docs]'
	$(BIN)/mkdocs build --strict

clean:
	rm -rf outputs

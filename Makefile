# Everything happens in .venv; nothing is installed outside this folder.
PYTHON ?= python3.11
BIN := .venv/bin

.PHONY: help setup sample test lint clean

help:
	@echo "make sample   sample digits securely on three parties, and write figures/sample.png"
	@echo "make test     run all tests"
	@echo "make setup    only make .venv"

setup: .venv/installed

# The lock lists every package, so pip has nothing to resolve.
.venv/installed: requirements.lock pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "Python 3.11 is needed (SPU has no wheels for newer ones); set PYTHON=..."; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps -r requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps -e .
	touch $@

sample: setup
	$(BIN)/cipherdm sample --model mnist10 --labels 0-9 --steps 20 --granularity loop --out figures/sample.png

test: setup lint
	$(BIN)/python -m pytest

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:
	rm -rf .venv runs build *.egg-info

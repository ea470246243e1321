# Everything happens in .venv; nothing is installed outside this folder.
PYTHON ?= python3.11
BIN := .venv/bin

.PHONY: help setup sample lab book test attack notebooks run-notebooks lint clean

help:
	@echo "make sample   three parties draw ten digits and a prompt: figures/sample.png, figures/prompt.png"
	@echo "make lab      open a copy of the notebooks in JupyterLab: build/lab"
	@echo "make book     write the notebooks and documents as pages that need no Python: build/book/index.html"
	@echo "make test     run all tests, and all notebooks"
	@echo "make attack   run the tests in which somebody attacks, or random processes fail; FAULTS=200 for more of these"
	@echo "make setup    only make .venv"

setup: .venv/installed

# The lock lists every package, but for the libraries that torch asks for where pip takes its build for CUDA.
.venv/installed: requirements.lock pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "Python 3.11 is needed (SPU has no wheels for newer ones); set PYTHON=..."; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps -e .
	touch $@

sample: setup
	$(BIN)/cipherdm sample --model mnist10-turbo-2 --granularity step --out figures/sample.png
	$(BIN)/cipherdm sample --model sd-mini-turbo-1 --prompt "a small red seven on a blue background" --granularity step \
		--out figures/prompt.png

# A copy, so that the checkout stays as it is. What a reader has changed there is kept; what is newer here is copied.
# LAB takes options of JupyterLab, such as --no-browser.
lab: build/lab
	$(BIN)/jupyter lab --ServerApp.root_dir=build/lab --LabApp.default_url=/lab/tree/notebooks/00_start.ipynb $(LAB)

.PHONY: build/lab
build/lab: setup
	mkdir -p $@
	cp --recursive --update --parents notebooks figures experiments/README.md $(wildcard *.md) $@
	$(BIN)/jupyter trust $@/notebooks/*.ipynb

# The first page is README. BOOK takes options of Sphinx.
book: setup
	$(BIN)/python -m sphinx -q -W --keep-going -c docs $(BOOK) . build/book
	cp build/book/README.html build/book/index.html
	@echo "build/book/index.html"

test: setup lint
	$(BIN)/python -m pytest
	$(MAKE) notebooks

# These are among those of `make test`. FAULTS random faults strike a cluster, and as many three hosts.
FAULTS ?= 6
attack: setup
	$(BIN)/python -m pytest -m attack --faults $(FAULTS)

# One thread for each process: the three parties, the kernel and the test share the machine's cores.
attack notebooks run-notebooks: export OMP_NUM_THREADS = 1

# Every cell of every notebook, in a fresh kernel; the outputs of marked cells are compared with the committed ones.
NOTEBOOKS ?= $(sort $(wildcard notebooks/*.ipynb))
notebooks: setup
	$(BIN)/python -m pytest --nbval-lax --nbval-current-env --nbval-cell-timeout=120 $(NOTEBOOKS)

# For authors: execute notebooks and save them as they are committed, without times and other traces of this run.
run-notebooks: setup
	$(BIN)/jupyter nbconvert --to notebook --inplace --execute --ExecutePreprocessor.record_timing=False \
		--ExecutePreprocessor.timeout=120 --ClearMetadataPreprocessor.enabled=True \
		--ClearMetadataPreprocessor.preserve_cell_metadata_mask=tags \
		--ClearMetadataPreprocessor.preserve_cell_metadata_mask=jupyter \
		--ClearMetadataPreprocessor.clear_notebook_metadata=False $(NOTEBOOKS)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:
	rm -rf .venv runs build *.egg-info

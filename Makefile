# Two commands for a newcomer: `make demo` and `make test`. Both set up everything they need.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test unit fix check bench docs setup clean

setup: $(VENV)/installed

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("ComfyLoop needs Python 3.11 or newer: make PYTHON=python3.11 ..." if sys.version_info < (3, 11) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	# torch first and by its exact version: no resolver then looks at larger builds of it
	$(INSTALL) torch
	$(INSTALL) --editable '.[dev]'
	touch $@

demo: setup
	$(BIN)/comfyloop demo

# Two at a time, the tests of a file one after the other: they have their models and servers in common. In the order
# of the folders, acceptance first: the long files begin, and the many short ones fill up what is left of either worker.
test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

# What runs without a trainer or a ComfyUI: for between two changes.
unit: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/unit -m "not slow" -n 2 --dist loadfile

fix: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	# where no test runs; with caches of their own, so that only what changed is looked at again
	$(BIN)/mypy --platform win32 --cache-dir .mypy_cache/win32 src comfyui
	$(BIN)/mypy --platform darwin --cache-dir .mypy_cache/darwin src comfyui
	$(BIN)/lint-imports
	@if command -v node >/dev/null; then node --experimental-vm-modules --no-warnings tools/check_js.mjs; \
	else echo "Node is not installed: the pages' JavaScript was not parsed."; fi
	@if command -v eslint >/dev/null; then eslint .; \
	else echo "eslint is not installed: the pages' JavaScript was not checked further."; fi

bench: setup
	for script in bench/*.py; do $(BIN)/python $$script || exit 1; done

docs: setup
	$(BIN)/python docs/make_reference.py

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .import_linter_cache demo-report.json demo-report.html brand-report.json brand-report.html brand-sheet.png

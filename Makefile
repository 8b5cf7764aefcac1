# Every target works as the first command on a fresh clone: it makes .venv and installs what it needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
SETTINGS := setup.cfg pyproject.toml constraints.txt

.DEFAULT_GOAL := help
.PHONY: help demo test lint bench picture docs clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/installed ## train on real data with probes; ends with the paths of its reports
	$(BIN)/diagnose demo

test: $(VENV)/installed-dev lint ## lint, types, import rule, and all tests
	@tests/system_packages.sh
	$(BIN)/pytest --numprocesses 2 --dist worksteal

lint: $(VENV)/installed-dev ## style, types and the import rule
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/installed-dev ## side by side with peers, in one run, as ratios
	$(BIN)/python -m benchmarks

picture: $(VENV)/installed-dev ## the README's picture, taken from a fresh demonstration
	@tests/system_packages.sh
	$(BIN)/python docs/picture.py

docs: $(VENV)/installed-docs ## the documentation, with a gallery of fresh reports; into site/
	@tests/system_packages.sh
	$(BIN)/python docs/gallery.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo "the documentation: site/index.html, or with search: $(BIN)/python -m http.server --directory site"

clean: ## remove what make made
	rm -rf $(VENV) diagnose-demo site docs/gallery build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: $(SETTINGS) | $(VENV)/bin/python
	@echo "installing into $(VENV), about a minute"
	$(PIP) install --constraint constraints.txt --editable .
	@touch $@

$(VENV)/installed-docs: $(SETTINGS) | $(VENV)/bin/python
	@echo "installing into $(VENV), with what the documentation needs, about a minute"
	$(PIP) install --constraint constraints.txt --editable '.[docs]'
	@touch $@ $(VENV)/installed

$(VENV)/installed-dev: $(SETTINGS) tests/peers.txt | $(VENV)/bin/python
	@echo "installing into $(VENV), with what the tests need, about two minutes"
	$(PIP) install --constraint constraints.txt --editable '.[dev]'
	$(PIP) install --no-deps --requirement tests/peers.txt
	@touch $@ $(VENV)/installed $(VENV)/installed-docs

# Two commands: `make demo` (the whole loop; README says how long) and `make test`.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
# Huge pages: 10 to 15 % off training on Linux; ignored elsewhere.
export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1
PIP    := PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: demo test venv lint clean help

help:
	@echo "make demo   install, pull the models, ask, roll out, train, and print before and after"
	@echo "make test   install the test tools and run the default test suite"
	@echo "make venv   install only        make lint   ruff and pyright        make clean   remove $(VENV) and build output"

demo: $(VENV)/.installed
	$(BIN)/python -m restill.selftrain.demo

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -q -n 2 --dist loadfile

venv: $(VENV)/.installed-dev

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("restill needs Python 3.11 or newer, this is %d.%d: make PYTHON=python3.12" % sys.version_info[:2] if sys.version_info < (3, 11) else 0)'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing restill into $(VENV) ..."
	@$(PIP) 'pip>=25'
	@$(PIP) -c constraints.txt -e .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	@echo "Installing the test tools ..."
	@$(PIP) -c constraints.txt -e '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

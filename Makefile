# Two commands do everything on a fresh machine: `make demo` and `make test`. JOBS is the number of test processes.
PYTHON ?= python3
VENV ?= .venv
JOBS ?= 2
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo demo-short test test-fast lint types wheel clean

demo: $(VENV)/.installed          ## train the four stages on Blocks world, evaluate, answer: runs/demo/report.html
	$(BIN)/aurora demo runs/demo

demo-short: $(VENV)/.installed    ## the same path with a fraction of the data: shows that it runs, not what it learns
	$(BIN)/aurora demo runs/demo-short --scale 0.02

# a file of tests stays in one process, so that its fixtures are made once
PYTEST := $(BIN)/python -m pytest --numprocesses $(JOBS) --dist loadfile

test: $(VENV)/.installed          ## all tests
	$(PYTEST)

test-fast: $(VENV)/.installed     ## while you work: without those that are slow or start processes
	$(PYTEST) -m "not process and not interpreter and not slow"

lint: $(VENV)/.installed          ## ruff
	$(BIN)/ruff check .

types: $(VENV)/.installed         ## mypy --strict on the frame and the parts
	$(BIN)/mypy

wheel: $(VENV)/.installed         ## build the wheel, install it elsewhere, run it from another folder
	PYTHON=$(abspath $(BIN)/python) bash tools/smoke_wheel.sh

# torch first: what follows must not bring another build of it
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) torch
	$(PIP) --editable '.[dev]'
	@touch $@

clean:                            ## what `make` installed and what runs wrote
	rm -rf $(VENV) runs dist

# `make demo` and `make test` need only Python 3.11 to 3.13 and make.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
WORKDIR ?= runs/demo

.PHONY: install demo test test-all soak bench docs lint format clean

install: $(VENV)/.installed

$(VENV)/.installed: setup.py constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -c constraints.txt -e '.[test]'
	touch $@

demo: install
	$(BIN)/dermvq demo --workdir=$(WORKDIR)

test: install
	$(BIN)/python -m pytest -n 2 --dist=worksteal

test-all: install
	$(BIN)/python -m pytest -n 2 --dist=worksteal -m ''

# Kills runs at random moments and flips bits; takes 15 minutes or more.
soak: install
	JAX_PLATFORMS=cpu $(BIN)/python tests/runs/soak.py

# Takes hours; run it on an idle machine: make bench BENCH='--rounds=1'
bench: install
	$(BIN)/python -m pip install -c constraints.txt -e '.[bench]'
	mkdir -p runs
	JAX_PLATFORMS=cpu $(BIN)/python -m experiments.benchmarks \
	  --out=runs/bench.md --plot=runs/bench.png $(BENCH)
	JAX_PLATFORMS=cpu $(BIN)/python -m experiments.benchmarks.sampling \
	  --out=runs/bench_sampling.md $(BENCH)

# Warnings are errors, broken links included.
docs: install
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[docs]'
	$(BIN)/python -m sphinx -b html -q -W --keep-going docs docs/_build/html
	$(BIN)/python docs/check_links.py docs/_build/html

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/shellcheck experiments/*.sh .ci/run

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build *.egg-info

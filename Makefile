# `make demo` and `make test` need only Python 3.11 to 3.13 and make.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
PIP = $(BIN)/python -m pip install
WORKDIR ?= runs/demo

.PHONY: install demo demo-model test test-all fuzz soak power-cuts bench \
  class-room docs lint format constraints licences clean

install: $(VENV)/.installed

# What is downloaded must have the digests in requirements/. One dependency is
# built here, with the tools of the first line.
$(VENV)/.installed: setup.py pyproject.toml requirements/build.txt \
  requirements/test.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) --require-hashes -r requirements/build.txt
	$(PIP) --require-hashes --no-build-isolation -r requirements/test.txt
	$(PIP) --no-deps --no-build-isolation -e .
	touch $@

demo: install
	$(BIN)/dermvq demo --workdir=$(WORKDIR)

# The model of dermvq_jax.load('demo'): its data are drawn, so it may be given
# away. Commit the folder; it has about 5 MB.
demo-model: demo
	rm -rf dermvq_jax/demo_model
	$(BIN)/dermvq export --workdir=$(WORKDIR) --out=dermvq_jax/demo_model

test: install
	$(BIN)/python -m pytest -n 2 --dist=worksteal

test-all: install
	$(BIN)/python -m pytest -n 2 --dist=worksteal -m ''

# Tries thousands of fuzzed inputs, other ones each time: make fuzz INPUTS=100000
INPUTS ?= 10000
fuzz: install
	DERMVQ_FUZZ_INPUTS=$(INPUTS) $(BIN)/python -m pytest tests/fuzz -n 2 \
	  --dist=worksteal -m '' --durations=0

# Kills runs at random moments and flips bits; takes 15 minutes or more.
soak: install
	JAX_PLATFORMS=cpu $(BIN)/python tests/runs/soak.py

# Cuts the power of a disk in a file, 100 times; needs root on Linux.
power-cuts: install
	JAX_PLATFORMS=cpu $(BIN)/python tests/runs/power_cuts.py

# Takes hours; run it on an idle machine: make bench BENCH='--rounds=1'
bench: install
	$(PIP) -c constraints.txt -e '.[bench]'
	mkdir -p runs
	JAX_PLATFORMS=cpu $(BIN)/python -m experiments.benchmarks \
	  --out=runs/bench.md --plot=runs/bench.png $(BENCH)
	JAX_PLATFORMS=cpu $(BIN)/python -m experiments.benchmarks.sampling \
	  --out=runs/bench_sampling.md $(BENCH)

# Opens the notebook of the class room in a browser.
class-room: install
	$(PIP) -q -c constraints.txt -e '.[notebook]'
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/jupyter notebook \
	  docs/tutorials/class_room.ipynb

# Warnings are errors, broken links included.
docs: install
	$(PIP) -q -c constraints.txt -e '.[docs]'
	$(BIN)/python -m sphinx -b html -q -W --keep-going docs docs/_build/html
	$(BIN)/python docs/check_links.py docs/_build/html

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/shellcheck experiments/*.sh .ci/run

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Versions stay as they are unless: make constraints UPGRADE=--upgrade
LOCK = $(BIN)/uv pip compile --quiet --universal --python-version=3.11 \
  --no-header --no-annotate
HASHED = $(LOCK) --generate-hashes --constraint=constraints.txt
# All but beam, which needs other versions of these packages.
EXTRAS = test bench docs notebook outliers dicom explore hub tpu cuda
NOT_BEAM = ^(protobuf|pyarrow|python-dateutil)==
constraints: install
	$(PIP) --require-hashes -r requirements/uv.txt
	$(LOCK) $(UPGRADE) $(EXTRAS:%=--extra=%) -o constraints.txt setup.py requirements/build.in requirements/uv.in
	$(HASHED) -o requirements/build.txt requirements/build.in
	$(HASHED) -o requirements/uv.txt requirements/uv.in
	$(HASHED) --no-deps -o requirements/inference.txt requirements/inference.in
	$(HASHED) --extra=test -o requirements/test.txt setup.py
	$(HASHED) --extra=tpu -o requirements/tpu.txt setup.py
	grep -Ev '$(NOT_BEAM)' constraints.txt | $(LOCK) --generate-hashes \
	  --constraint=/dev/stdin --extra=beam -o requirements/beam.txt setup.py

# The licence of every package that is installed; some give all its text.
licences: install
	$(BIN)/pip-licenses --order=license | grep '^ \w' | cut -c1-110

clean:
	rm -rf $(VENV) build *.egg-info

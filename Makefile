# `make demo` shows kdkit at work, `make test` checks it, `make quick` checks most of it. You need Python 3.11 or newer.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
export HF_HUB_OFFLINE ?= 1
export PYDEVD_DISABLE_FILE_VALIDATION = 1
# processes that tests start would compile kdkit anew, each of them
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test quick soak lab notebooks docs bench lint clean

$(VENV)/ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "kdkit needs Python 3.11 or newer; choose one with make PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet -c constraints.txt torch
	$(BIN)/pip install --quiet -c constraints.txt -e '.[test]'
	touch $@

demo: $(VENV)/ready
	$(BIN)/python -m notebooks.execute notebooks/quickstart.ipynb build

lab: $(VENV)/ready
	$(BIN)/jupyter lab notebooks/quickstart.ipynb

# without slow tests, browser and notebooks: one minute on 2 idle cores
quick: $(VENV)/ready
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -p no:nbval -n 2 --dist worksteal -m "not slow" --ignore=tests/browser $(ARGS)

test: $(VENV)/ready
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -p no:nbval -n 2 --dist loadfile --max-worker-restart 2 --ignore=tests/browser $(ARGS)
	@# browser tests run alone; where other work on the machine delays them, they run a second time
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -p no:nbval tests/browser || OMP_NUM_THREADS=1 $(BIN)/python -m pytest -p no:nbval tests/browser
	OMP_NUM_THREADS=1 KDKIT_STABLE=1 $(BIN)/python -m pytest -n 2 --dist loadfile --nbval --nbval-sanitize-with notebooks/sanitize.cfg --nbval-cell-timeout 300 notebooks/*.ipynb

# 3600 lines in one session, ten times as many fuzzed lines as in `make test`, and every technique on every model of the zoo
soak: $(VENV)/ready
	KDKIT_SOAK_ROUNDS=400 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile tests/faults tests/testing/test_conformance.py --timeout 7200 -o faulthandler_timeout=0 $(ARGS)

notebooks: $(VENV)/ready
	for notebook in notebooks/*.ipynb; do KDKIT_STABLE=1 $(BIN)/python -m notebooks.execute $$notebook notebooks || exit 1; done

# the documentation site: build/site/html/index.html
docs: $(VENV)/ready
	$(BIN)/python -m notebooks.documentation build/site

lint: $(VENV)/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/ready
	for bench in $(basename $(notdir $(wildcard tests/benchmarks/bench_*.py))); do $(BIN)/python -m tests.benchmarks.$$bench || exit 1; done

clean:
	rm -rf $(VENV) build

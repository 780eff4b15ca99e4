# Two commands: `make demo` shows kdkit at work, `make test` checks it. Python 3.11 or newer is all they need.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
export HF_HUB_OFFLINE ?= 1
export PYDEVD_DISABLE_FILE_VALIDATION = 1

.PHONY: demo test lab notebooks bench lint clean

$(VENV)/ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "kdkit wants Python 3.11 or newer; say which with make PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet -c constraints.txt torch
	$(BIN)/pip install --quiet -c constraints.txt -e '.[test]'
	touch $@

demo: $(VENV)/ready
	$(BIN)/python -m notebooks.execute notebooks/quickstart.ipynb build

lab: $(VENV)/ready
	$(BIN)/jupyter lab notebooks/quickstart.ipynb

test: $(VENV)/ready
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --ignore=tests/browser $(ARGS)
	@# a browser wants the machine for itself; where other work holds it up all the same, it has a second try
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/browser || OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/browser
	OMP_NUM_THREADS=1 KDKIT_STABLE=1 $(BIN)/python -m pytest -n 2 --dist loadfile --nbval --nbval-sanitize-with notebooks/sanitize.cfg --nbval-cell-timeout 300 notebooks/*.ipynb

notebooks: $(VENV)/ready
	for notebook in notebooks/*.ipynb; do KDKIT_STABLE=1 $(BIN)/python -m notebooks.execute $$notebook notebooks || exit 1; done

lint: $(VENV)/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/ready
	for bench in $(basename $(notdir $(wildcard tests/benchmarks/bench_*.py))); do $(BIN)/python -m tests.benchmarks.$$bench || exit 1; done

clean:
	rm -rf $(VENV) build

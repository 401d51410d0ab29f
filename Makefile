# make demo    see it work            make check   everything CI checks
# make test    run the tests          make format  mend what can be mended by itself

PYTHON ?= python3
VENV ?= .venv
VENV_OLD := .venv-genai-1.46
VENV_WHEEL := .venv-wheel
BIN := $(VENV)/bin
# The first pip only fetches the pinned one, which knows dependency groups.
PIP_INSTALL := -m pip install --quiet --disable-pip-version-check

# Rooms whose every branch is tested.
CORE := src/batch_llm/core/*,src/batch_llm/strategies/*,src/batch_llm/base.py,src/batch_llm/_engine/*,src/batch_llm/parallel.py

.PHONY: demo test check soak mutants bench endurance format format-check lint types layers coverage compat wheel clean constraints
.DEFAULT_GOAL := test
# One check at a time: a machine's cores belong to the check that runs.
.NOTPARALLEL:

demo: $(VENV)/.ready
	$(BIN)/python -m batch_llm demo

test: $(VENV)/.ready
	$(BIN)/python -m coverage erase
	$(BIN)/python -m pytest --cov --cov-report=

check: format-check lint types layers test coverage compat wheel

format: $(VENV)/.ready
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

format-check: $(VENV)/.ready
	$(BIN)/ruff format --check

lint: $(VENV)/.ready
	$(BIN)/ruff check

types: $(VENV)/.ready
	$(BIN)/mypy
	$(BIN)/pyright --pythonpath $(BIN)/python

layers: $(VENV)/.ready
	$(BIN)/lint-imports --no-logo

coverage: test
	$(BIN)/python -m coverage report --fail-under=95
	$(BIN)/python -m coverage report --fail-under=100 --include='$(CORE)'

# The oldest google-genai that is supported; the newest is in $(VENV).
compat: $(VENV_OLD)/.ready
	$(VENV_OLD)/bin/python -m pytest -k gemini

# The suite against the built wheel, in a place from which src/ cannot be imported.
wheel: $(VENV)/.ready
	rm -rf build/wheel
	mkdir -p build/wheel/elsewhere
	$(BIN)/python -m build --no-isolation --outdir build/wheel .
	$(PYTHON) -m venv --clear $(VENV_WHEEL)
	$(VENV_WHEEL)/bin/python $(PIP_INSTALL) -c constraints.txt pip
	$(VENV_WHEEL)/bin/python $(PIP_INSTALL) -c constraints.txt "$$(echo build/wheel/*.whl)[all]" --group test
	cp -R tests docs examples benchmarks README.md Makefile pyproject.toml build/wheel/elsewhere
	PATH="$(CURDIR)/$(VENV_WHEEL)/bin:$$PATH" $(BIN)/pyright --verifytypes batch_llm --ignoreexternal
	cd build/wheel/elsewhere && $(CURDIR)/$(VENV_WHEEL)/bin/python -m pytest

# A hundred thousand simulated runs on all cores; no part of the checks, since it takes a while.
soak: $(VENV)/.ready
	$(BIN)/python -m batch_llm.testing.simulate --seeds 100000

# Small faults in the engine and the strategies, each of which a test must notice: an hour or two.
mutants: $(VENV)/.ready
	$(BIN)/python -m tests.mutants

# Ratios of CPU time; no part of the checks, since machines are noisy.
bench: $(VENV)/.ready
	$(BIN)/python benchmarks/overhead.py

# Memory, sockets and tokens over a million items and 20,000 calls, in real time: minutes.
endurance: $(VENV)/.ready
	$(BIN)/python benchmarks/endurance.py

clean:
	rm -rf $(VENV) $(VENV_OLD) $(VENV_WHEEL) build .coverage*

# Pin anew what the registry resolves today.
constraints:
	rm -rf build/constraints
	$(PYTHON) -m venv build/constraints
	build/constraints/bin/python $(PIP_INSTALL) --upgrade pip
	build/constraints/bin/python $(PIP_INSTALL) ".[all]" --group dev
	build/constraints/bin/python -m pip freeze --quiet --all --exclude batch-llm --exclude setuptools > constraints.txt
	build/constraints/bin/python $(PIP_INSTALL) google-genai==1.46.0
	build/constraints/bin/python -m pip freeze --quiet --all --exclude batch-llm --exclude setuptools > constraints-genai-1.46.txt

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python $(PIP_INSTALL) -c constraints.txt pip hatchling
	$(BIN)/python $(PIP_INSTALL) -c constraints.txt --no-build-isolation -e ".[all]" --group dev
	touch $@

$(VENV_OLD)/.ready: pyproject.toml constraints-genai-1.46.txt
	$(PYTHON) -m venv $(VENV_OLD)
	$(VENV_OLD)/bin/python $(PIP_INSTALL) -c constraints-genai-1.46.txt pip hatchling
	$(VENV_OLD)/bin/python $(PIP_INSTALL) -c constraints-genai-1.46.txt --no-build-isolation -e ".[all]" --group test
	touch $@

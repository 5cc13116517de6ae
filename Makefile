# `make run` runs the main job, `make test` everything that checks the project.
# Both set up what they need in .venv, from a machine with Python 3.11+, git and make.
PYTHON ?= python3
BIN := .venv/bin
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: run test lint types layers pytest campaign campaign-of-jobs campaign-of-faults bench clean

run: .venv/run.ready
	$(BIN)/python flows/parameter_sweep.py

test: lint types layers pytest

lint: .venv/test.ready
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: .venv/test.ready
	$(BIN)/mypy

layers: .venv/test.ready
	$(BIN)/lint-imports

pytest: .venv/test.ready
	$(BIN)/pytest -m "not campaign"

# Takes two hours, and root: every fault in numbers, in two halves beside each other. Puts its
# figures into docs/reliability.md. `make campaign-of-faults FAULTS=tests/faults/test_races.py`
# does one part again, and replaces the figures of its class.
campaign: .venv/test.ready
	$(MAKE) -j2 campaign-of-jobs campaign-of-faults

JOBS := tests/faults/test_whole_jobs.py tests/faults/test_hostile_files.py tests/faults/test_hostile_input.py
FAULTS ?= $(filter-out $(JOBS),$(wildcard tests/faults/test_*.py))
CAMPAIGN := $(BIN)/pytest -m campaign --figures docs/reliability.md -p no:cacheprovider

campaign-of-jobs: .venv/test.ready
	$(CAMPAIGN) $(JOBS)

campaign-of-faults: .venv/test.ready
	$(CAMPAIGN) $(FAULTS)

# Takes two hours or more, on an idle machine: flowmap and its peers on the same work. Puts its
# figures into docs/performance.md. `make bench CASES="fill import"` plays these cases again, and
# replaces their figures; `.venv/bin/python -m benchmarks --help` tells how to try one.
bench: .venv/bench.ready
	$(BIN)/python -m benchmarks $(CASES) --save

.venv/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "flowmap needs Python 3.11 or later; set PYTHON=python3.x")'
	$(PYTHON) -m venv .venv

.venv/run.ready: pyproject.toml constraints.txt | .venv/bin/python
	$(PIP_INSTALL) -e '.[plot]'
	touch $@

.venv/test.ready: pyproject.toml constraints.txt | .venv/bin/python
	$(PIP_INSTALL) -e '.[test]'
	touch $@ .venv/run.ready

.venv/bench.ready: pyproject.toml constraints.txt | .venv/bin/python
	$(PIP_INSTALL) -e '.[bench]'
	touch $@ .venv/run.ready

clean:
	rm -rf .venv build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

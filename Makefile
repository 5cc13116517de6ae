# `make run` runs the main job, `make test` everything that checks the project.
# Both set up what they need in .venv, from a machine with Python 3.11+, git and make.
PYTHON ?= python3
BIN := .venv/bin
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: run test lint types layers pytest test-lowest test-newest lowest campaign bench session rulegraph clean

# In a folder of Prefect's for this alone: the user's own may hold a database that a newer Prefect
# has made, with which an older one ends.
run: export PREFECT_HOME = $(CURDIR)/results/prefect
run: .venv/run.ready
	$(BIN)/python flows/parameter_sweep.py

test: lint types layers pytest

lint: .venv/test.ready .venv/snakemake.ready
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	.venv/snakemake/bin/snakefmt --check workflows

types: .venv/test.ready
	$(BIN)/mypy

layers: .venv/test.ready
	$(BIN)/lint-imports

# Hundreds of processes import the package: compile it once, whatever the environment says.
pytest: export PYTHONDONTWRITEBYTECODE =
pytest: .venv/test.ready .venv/snakemake.ready
	$(BIN)/pytest -n 3 --dist worksteal -m "not campaign"

# The quick part, with other versions than those of constraints.txt. It uses every dependency; Prefect,
# in a flow with an embedded server, in own flows, and in a deployment that is served.
QUICK := tests/test_npy.py tests/test_allocate.py tests/test_write_segment.py tests/test_random.py \
	tests/test_handing_dask.py tests/test_handing_zarr.py tests/test_doctor.py \
	tests/test_package.py tests/test_extras.py tests/cli/test_commands.py \
	tests/prefect_layer/test_tasks.py tests/prefect_layer/test_recording.py \
	tests/prefect_layer/test_serving.py

test-lowest test-newest: export PYTHONDONTWRITEBYTECODE =

# The lowest versions that pyproject.toml allows; Python 3.11 has them all.
test-lowest: .venv/lowest.ready
	.venv/lowest/bin/pytest -n 2 --dist loadfile $(QUICK)

# The newest versions of the day, in a new environment each time.
test-newest: | .venv/bin/python
	$(PYTHON) -m venv --clear .venv/newest
	.venv/newest/bin/python -m pip install --quiet --disable-pip-version-check -e '.[test]'
	.venv/newest/bin/pytest -n 2 --dist loadfile $(QUICK)

# After a bound in pyproject.toml has changed: what test-lowest installs.
lowest: .venv/test.ready
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip compile --quiet --resolution lowest-direct --python-version 3.11 --extra test \
		--no-header --no-annotate --output-file constraints-lowest.txt pyproject.toml

# Takes two hours, and root: every fault in numbers, in parts of which two run at a time. Each that
# passes puts its figures into docs/reliability.md, also alone: `make campaign-races`.
campaign: .venv/test.ready
	$(MAKE) -k -j2 $(PARTS:%=campaign-%)

PARTS := whole_jobs hostile_input zombies power_cut damage system_calls races killed_runs \
	full_disk failed_write_back two_hosts slurm

campaign-%: .venv/test.ready
	$(BIN)/pytest -m campaign -p no:cacheprovider --figures docs/reliability.md tests/faults/test_$**.py

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

.venv/lowest.ready: pyproject.toml constraints-lowest.txt | .venv/bin/python
	$(PYTHON) -m venv .venv/lowest
	.venv/lowest/bin/python -m pip install --quiet --disable-pip-version-check \
		-c constraints-lowest.txt -e '.[test]'
	touch $@

# Snakemake has an environment of its own, as its users have it.
.venv/snakemake.ready: pyproject.toml workflows/constraints.txt | .venv/bin/python
	$(PYTHON) -m venv .venv/snakemake
	.venv/snakemake/bin/python -m pip install --quiet --disable-pip-version-check -c workflows/constraints.txt \
		-e . snakemake snakemake-executor-plugin-cluster-generic snakefmt
	touch $@

# Records the picture of a session that the README shows, from a real one.
session: .venv/test.ready
	PYTHONPATH=tests $(BIN)/python tests/cli/session.py docs/session.svg

# Draws the rules of the Snakefile, for docs/snakemake.md; needs graphviz.
rulegraph: .venv/snakemake.ready
	cd workflows && ../.venv/snakemake/bin/snakemake --rulegraph | dot -Grankdir=LR -Tsvg >../docs/rulegraph.svg

clean:
	rm -rf .venv build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

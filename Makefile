# All targets need only Python 3.11 or newer, make and git; .venv is created from requirements.lock.
.DEFAULT_GOAL := help
.PHONY: help demo stack test soak coverage lint format bench assess lock clean

PYTHON ?= python3
BIN := .venv/bin
# Empty: Python keeps its compiled files. Otherwise every process compiles Prefect and SQLMesh again.
export PYTHONDONTWRITEBYTECODE :=
export DO_NOT_TRACK := 1

##@ Main

help:  ## List the targets
	@awk 'BEGIN {FS = ":.*## "} /^##@/ {printf "\n%s\n", substr($$0, 5)} /^[a-z-]+:.*## / {printf "  %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: .venv/installed  ## Real data, from files to gold (ARGS="--start 2013-01-01 --end 2013-01-31" selects a range)
	$(BIN)/lake demo $(ARGS)

stack: .venv/installed  ## PostgreSQL, S3, Prefect, a worker and Dask on this machine, without Docker
	$(BIN)/python -m deployments.stack $(ARGS)

##@ Development

test: .venv/installed  ## All tests (ARGS="tests/lake -k name" selects some)
	$(BIN)/python -m pytest $(ARGS)

soak: .venv/installed  ## The long form of the tests: every crash point, hundreds of seeds, all storages; prints a table
	$(BIN)/python -m pytest --soak --timeout 7200 tests/faults tests/values tests/regressions tests/lake $(ARGS)
	$(BIN)/python -m pytest --soak --timeout 7200 -m soak tests/flows tests/stack $(ARGS)

coverage: .venv/installed  ## All tests with branch coverage, subprocesses included
	rm -f .coverage .coverage.*
	$(BIN)/coverage run -m pytest $(ARGS)
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report --skip-covered

lint: .venv/installed  ## Style and types (`make test` compares the lock with pyproject.toml)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/mypy

format: .venv/installed  ## Format the code and fix lint errors
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: .venv/bench  ## Comparison with DuckDB alone, dlt and Dagster; about an hour (ARGS="year startup" selects some)
	$(BIN)/python -m benchmarks.run $(ARGS)

assess: .venv/assess/installed  ## docs/honest-assessment.md, measured: other formats, retry settings, dbt; 40 minutes (ARGS="writers --quick" narrows it)
	.venv/assess/bin/python -m benchmarks.assess.run $(ARGS)

##@ Environment

# Of the bootstrap lock, pip installs uv, hash-checked; uv installs the rest several times faster than pip.
.venv/installed: requirements.lock requirements-bootstrap.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is %s: make PYTHON=python3.12 ..." % sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	awk '/^[a-z]/ {uv = /^uv==/} uv' requirements-bootstrap.lock > .venv/uv.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r .venv/uv.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes -r requirements-bootstrap.lock -r requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@touch $@

.venv/bench: .venv/installed requirements-bench.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes -r requirements-bench.lock
	@touch $@

# An environment next to ours: dbt wants an older pathspec and importlib-metadata. The rest has the same versions.
.venv/assess/installed: .venv/installed requirements-assess.lock
	test -x .venv/assess/bin/python || $(BIN)/uv venv --quiet --python $(BIN)/python .venv/assess
	$(BIN)/uv pip install --quiet --python .venv/assess/bin/python --require-hashes -r requirements-assess.lock
	$(BIN)/uv pip install --quiet --python .venv/assess/bin/python --no-deps --no-build-isolation --editable .
	@touch $@

COMPILE := $(BIN)/uv pip compile --quiet --universal --generate-hashes --no-emit-index-url --python-version 3.11
RUNTIME := --extra postgres --extra s3 --extra openlineage --extra demo
lock: .venv/installed  ## Resolve the pins again
	@# The aiobotocore that `make assess` brings along takes no newer botocore (2026-11).
	printf 'botocore<1.43.118\n' | $(COMPILE) $(RUNTIME) --extra stack --extra dev -c /dev/stdin pyproject.toml -o requirements.lock
	$(COMPILE) $(RUNTIME) --extra stack --extra dev --extra bench -c requirements.lock pyproject.toml -o requirements-bench.lock
	$(COMPILE) $(RUNTIME) -c requirements.lock pyproject.toml -o requirements-image.lock
	grep '^[a-z]' requirements.lock | sed 's/ \\$$//; /^pathspec==/d; /^importlib-metadata==/d' | \
	    $(COMPILE) $(RUNTIME) --extra stack --extra assess -c /dev/stdin pyproject.toml -o requirements-assess.lock
	printf 'hatchling\nuv\n' | $(COMPILE) -c requirements.lock - -o requirements-bootstrap.lock

clean:  ## Remove the environment and the local lake (stops its server first)
	-test -x $(BIN)/lake && $(BIN)/lake down
	rm -rf .venv .lake

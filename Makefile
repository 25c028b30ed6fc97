# Everything here needs only Python 3.11 or newer, make and git; .venv is made from requirements.lock.
.DEFAULT_GOAL := help
.PHONY: help demo stack test soak lint format bench lock clean

PYTHON ?= python3
BIN := .venv/bin
# An empty value lets Python keep its compiled files: without them every process compiles Prefect and SQLMesh anew.
export PYTHONDONTWRITEBYTECODE :=
export DO_NOT_TRACK := 1

##@ Main

help:  ## List the targets
	@awk 'BEGIN {FS = ":.*## "} /^##@/ {printf "\n%s\n", substr($$0, 5)} /^[a-z-]+:.*## / {printf "  %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: .venv/installed  ## Real data, from files to gold (ARGS="--start 2013-01-01 --end 2013-01-31" narrows it)
	$(BIN)/lake demo $(ARGS)

stack: .venv/installed  ## PostgreSQL, S3, Prefect, a worker and Dask on this machine, without Docker
	$(BIN)/python -m deployments.stack $(ARGS)

##@ Development

test: .venv/installed  ## All tests (ARGS="tests/lake -k name" narrows them)
	$(BIN)/python -m pytest $(ARGS)

soak: .venv/installed  ## The tests of faults and values at length: every crash point, hundreds of seeds; prints a table
	$(BIN)/python -m pytest --soak --timeout 7200 tests/faults tests/values tests/regressions $(ARGS)

lint: .venv/installed  ## Style and types (`make test` holds the lock against pyproject.toml)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: .venv/installed  ## Put the code into shape
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: .venv/bench  ## Side by side with DuckDB alone, dlt and Dagster; about an hour (ARGS="year startup" narrows it)
	$(BIN)/python -m benchmarks.run $(ARGS)

##@ Environment

# uv comes first, alone and hash-checked: it installs the rest several times faster than pip.
.venv/installed: requirements.lock requirements-bootstrap.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is %s: make PYTHON=python3.12 ..." % sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-bootstrap.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes -r requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@touch $@

.venv/bench: .venv/installed requirements-bench.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes -r requirements-bench.lock
	@touch $@

lock: .venv/installed  ## Resolve the pins anew
	$(BIN)/uv pip compile --quiet --universal --generate-hashes --no-emit-index-url --extra dev --python-version 3.11 pyproject.toml -o requirements.lock
	$(BIN)/uv pip compile --quiet --universal --generate-hashes --no-emit-index-url --extra dev --extra bench --python-version 3.11 -c requirements.lock pyproject.toml -o requirements-bench.lock
	grep -A999 '^uv==' requirements.lock | awk 'NR > 1 && /^[a-z]/ {exit} {print}' > requirements-bootstrap.lock

clean:  ## Remove the environment and the local lake (stops its server first)
	-test -x $(BIN)/lake && $(BIN)/lake down
	rm -rf .venv .lake

# make test     set up, then run the tests, in under five minutes on two cores
# make slow     the tests that are left out of it: whole runs, benchmarks, killed jobs
# make long     slow tests of minutes: rehearsals of the reference runs, kills in every command, files
#               that inflate to gigabytes, the GPU benchmark on a CPU
# make check    style, types, Rust lints and tests, architecture, vocabulary
# make format   format the code
SHELL := bash
.DEFAULT_GOAL := test
.PHONY: setup test slow long check format clean

PYTHON := .venv/bin/python
PYTHON_FILES := nanochat tasks scripts tests dev
# Three processes for two cores, since many tests wait; one test file per process at a time. A crashed
# worker ends the run: pytest-xdist would not give all of its tests to a new worker and then wait for
# them forever.
PYTEST := $(PYTHON) -m pytest tests/ -q -n 3 --dist loadfile --max-worker-restart=0
CARGO := PATH="$$PATH:$$HOME/.cargo/bin" PYO3_PYTHON="$$PWD/$(PYTHON)" cargo
CLIPPY := $(CARGO) clippy --quiet --manifest-path rustbpe/Cargo.toml

setup:
	@bash dev/setup.sh

test: setup
	$(PYTEST) -m "not slow"

slow: setup
	$(PYTEST) -m "slow and not long"

long: setup
	$(PYTEST) -m long

check: setup
	.venv/bin/ruff check $(PYTHON_FILES)
	.venv/bin/ruff format --check $(PYTHON_FILES)
	.venv/bin/mypy nanochat tasks scripts dev
	$(CARGO) fmt --check --manifest-path rustbpe/Cargo.toml
	$(CLIPPY) --all-targets -- -D warnings
	$(CLIPPY) --features python -- -D warnings
	$(CLIPPY) --features abi3 -- -D warnings
	$(CARGO) test --quiet --manifest-path rustbpe/Cargo.toml
	$(PYTHON) -m pytest -q tests/test_architecture.py
	$(PYTHON) -m dev.vocabulary

format: setup
	.venv/bin/ruff check --fix $(PYTHON_FILES)
	.venv/bin/ruff format $(PYTHON_FILES)
	$(CARGO) fmt --manifest-path rustbpe/Cargo.toml

clean:
	rm -rf build dist rustbpe/target .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +

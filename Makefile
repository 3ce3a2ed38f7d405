# Everything runs in .venv, made on first use with nothing but python3 and pip; pyproject.toml decides when to install again.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/installed
WORKERS ?= 2

.PHONY: simulate test test-all check docs bench bench-lasgd release-check clean

simulate: $(INSTALLED)
	$(BIN)/fedcurv-simulate $(ARGS)

# the tests of a file share what they have run, and some must not run beside each other
test: $(INSTALLED)
	$(BIN)/python -m pytest -m "not slow and not benchmark_suite" -n $(WORKERS) --dist loadfile $(ARGS)

# those that start processes of their own wait for them, and have the machine to themselves
test-all: test
	$(BIN)/python -m pytest -m "slow and not benchmark_suite" $(ARGS)

check: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(INSTALLED)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build $(ARGS)

bench: $(INSTALLED)
	$(BIN)/python -m pytest tests/benchmarks -m benchmark_suite $(ARGS)

bench-lasgd: $(INSTALLED)
	$(BIN)/python -m tests.benchmarks.lasgd $(ARGS)

release-check: $(INSTALLED)
	.ci/release-check

$(INSTALLED): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable '.[simulation,dev,dev-apps,docs]'
	touch $(INSTALLED)

clean:
	rm -rf .venv build dist site *.egg-info outputs multirun

# make run     the embedded guest, at its shell          make bench    speed beside QEMU, and of monitors
# make test    lint, types and tests                     make guest    rebuild the embedded guest
# make long    the tests that those leave out: an hour
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

run: $(VENV)/installed
	$(BIN)/ringfence run

test: $(VENV)/tested
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest -n auto -rs

long: $(VENV)/tested
	$(BIN)/pytest -m long -rs --durations=0 tests

guest: $(VENV)/tested
	$(BIN)/python -m ringfence.guest.program.build

bench: $(VENV)/tested
	$(BIN)/python -m benchmarks

clean:
	rm -rf $(VENV) build dist *.egg-info

$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -e .
	touch $@

$(VENV)/tested: $(VENV)/installed
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[test]'
	touch $@

.PHONY: run test long guest bench clean

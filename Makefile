# `make demo` and `make test` do all of their own set-up: a virtual environment with pinned versions.
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# The newest suitable interpreter; PYTHON=/path/to/python3.12 overrides the search.
PYTHON ?= $(shell for candidate in python3.13 python3.12 python3 python \
	$$(ls -d $${PYENV_ROOT:-$$HOME/.pyenv}/versions/3.1[23]*/bin/python3 2>/dev/null | sort -V); do \
	  $$candidate -c 'import sys, venv; sys.exit(not (3, 12) <= sys.version_info < (3, 14))' 2>/dev/null \
	  && $$candidate -c 'import sys; print(sys.executable)' && break; done)

.PHONY: demo study test test-slow lint bench clean

demo: $(READY)
	$(BIN)/pipeline demo

# The cross-evaluation on real images: three seeds of three modalities; goes on where it was interrupted.
study bench: export PIPELINE_DATA_ROOT ?= $(abspath $(wildcard ../shared/data))
study: $(READY)
	$(BIN)/pipeline study manifests/study

test: $(READY) lint
	$(BIN)/python -m pytest -m "not slow" --numprocesses auto --maxprocesses 4 --dist loadfile

test-slow: $(READY)
	$(BIN)/python -m pytest -m slow --timeout 3600

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The README's figures, about two hours on two cores; kept in runs/bench for `pipeline report RUN --bench runs/bench`.
bench: $(READY)
	$(BIN)/pipeline bench --architecture ViT-B-16
	$(BIN)/pipeline bench --architecture ViT-B-32 --threads 1
	$(BIN)/pipeline bench merge
	$(BIN)/pipeline bench curve
	$(BIN)/pipeline bench reads
	$(BIN)/pipeline bench pipeline --pairs 8
	$(BIN)/pipeline bench memory
	$(BIN)/pipeline bench scoring
	$(BIN)/pipeline bench scaling

# What set-up made. Runs, archives and checkpoints are results: they stay.
clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis *.egg-info

# Byte-compiling matters: without it every Ray worker compiles its imports anew where bytecode is not written.
$(READY): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "error: no Python 3.12 or 3.13 found; install one, or run: make PYTHON=/path/to/python3.12 $(MAKECMDGOALS)" >&2; exit 2; }
	test -x $(BIN)/python || "$(PYTHON)" -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python --compile-bytecode -c constraints.txt --editable ".[dev]"
	touch $(READY)

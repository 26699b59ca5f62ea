# The commands a person runs are the commands CI runs.
#
#   PYTHON=python3.12   the interpreter that .venv is made with (>= 3.11)
#   TORCH="..."         what pip is told to install as torch in place of torch==2.13.0; on Linux without an NVIDIA card
#                       TORCH="torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu" saves a few gigabytes

PYTHON ?= python3
TORCH ?=
PY := .venv/bin/python

.PHONY: help setup demo test check bench bench-gpu docs

help:
	@echo "make demo       text -> tokenizer -> shards -> pretraining -> labelled task -> report, within 10 minutes"
	@echo "make test       the tests"
	@echo "make check      lint, format, types, layers"
	@echo "make bench      side-by-side benchmarks on this CPU (bench-gpu: on this GPU)"
	@echo "make docs       generated pages and tables from the results"
	@echo "make setup      .venv with everything these need (each of them calls it)"

setup:
	@$(PYTHON) scripts/setup.py "$(TORCH)"

demo: setup
	$(PY) -m recipes.wordnet_demo

test: setup
	$(PY) -m pytest -q

check: setup
	$(PY) -m ruff check
	$(PY) -m ruff format --check
	$(PY) -m mypy
	$(PY) -m pytest -q tests/test_layers.py

bench: setup
	$(PY) -m benchmarks

bench-gpu: setup
	$(PY) -m benchmarks --gpu

docs: setup
	$(PY) -m scripts.docs
